"""What a data-loading worker does besides reading: it marks its progress, ignores Ctrl-C, and ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import threading

from torch.utils.data import get_worker_info

from densecl.allocator import return_freed_memory
from densecl.interrupts import STOPPING

#: Seconds between two looks at whether the main process is still there.
LOOK_AFTER = 2.0

#: Numbers that each worker keeps in `marks`: its process, how often it began or ended an image, and the index + 1 of
#: the image in hand (0: none).
MARKS = 3


def start_worker(worker: int, marks: ctypes.Array) -> None:
    """Prepare this process. torch calls it first in every worker.

    Args:
        worker: number of this worker.
        marks: shared with the main process, `MARKS` numbers for each worker.
    """
    return_freed_memory()  # or a worker that has read one large image would hold that much memory for good
    mine = MARKS * worker
    marks[mine] = os.getpid()

    def mark(image: int | None) -> None:
        marks[mine + 1] += 1
        marks[mine + 2] = 0 if image is None else image + 1

    info = get_worker_info()
    assert info is not None
    info.dataset.on_read = mark  # pyright: ignore[reportAttributeAccessIssue]
    # Ctrl-C and the end of a cluster job reach every process of the group. The main process decides what they mean,
    # and needs its workers until its last step. They leave when it tells them to, or when it is gone.
    for number in set(STOPPING) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, which has no clusters
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()


def _leave_when_told(parent: int) -> None:
    """End this process when the main process sends SIGTERM, or is gone.

    Both are needed. A main process that ends with an unfinished iterator sends SIGTERM and then waits for its workers
    without end. One that is killed sends nothing: torch's workers notice, but wait without end until somebody takes
    their last batch from a pipe that the other workers hold open, and keep their memory meanwhile.
    """
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, LOOK_AFTER)
        if told is not None and told.si_pid == parent:
            break
    os._exit(0)
