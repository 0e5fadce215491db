"""Starts one process for each device of this machine, and ends with them.

Nothing heavy is imported here, so that a process starts with its own threads set and costs only what it uses.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from densecl.errors import UserError
from densecl.interrupts import STOPPING, Interrupts
from densecl.training.cores import available_cores

#: Seconds that processes have to leave once they have told how they ended.
GRACE = 10.0


#: In a process that was started here: its end of the pipe to the one that waits for it.
_to_parent: Connection | None = None


def launch(function: Callable[..., Any], devices: int, *arguments: Any, nodes: int = 1, node: int = 0) -> Any:
    """Calls ``function(*arguments)`` in a new process for each device of this machine.

    Lightning's own launcher repeats ``sys.argv``, which means nothing when the run was started by a call in
    Python or in a notebook. The processes are spawned, as CUDA demands; Lightning finds its place in their
    environment. On several machines the same is done on each, with MASTER_ADDR and MASTER_PORT set.

    Returns:
        What the first of them returned.

    Args:
        function: of a module, so that it can be found by the new processes.
        devices: number of processes.
        arguments: must be picklable.
        nodes: machines on which the same is done.
        node: the number of this one among them.

    Raises:
        UserError: if one of them raised it, or was killed.
        RuntimeError: with the traceback of the first that failed otherwise.
        SystemExit, KeyboardInterrupt: as the first process ended.
    """
    if not hasattr(signal, "pthread_sigmask"):
        raise UserError(f"--devices {devices}: several processes need Linux or macOS. Take one device.")
    context = multiprocessing.get_context("spawn")
    wished = os.environ.get("OMP_NUM_THREADS", "")  # may be a list, for loops within loops
    threads = int(wished) if wished.isdecimal() else available_cores()
    environment = {
        "OMP_NUM_THREADS": str(max(1, threads // devices)),
        "WORLD_SIZE": str(devices * nodes),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
    }
    pipes = [context.Pipe(duplex=False) for _ in range(devices)]
    processes = [context.Process(target=_process, args=(sender, function, arguments)) for _, sender in pipes]
    # Before the first process, with which it would otherwise start, and let signals through again. It holds back for
    # ever those that are held back here, which would end it.
    with _signals_held():
        resource_tracker.ensure_running()
    with contextlib.ExitStack() as until_the_end:
        with _signals_held():  # there must be a process to forward them to
            interrupts = until_the_end.enter_context(_forwarding(processes))
            until_the_end.callback(_end, processes)
            for rank, process in enumerate(processes):
                place = {"RANK": str(node * devices + rank), "LOCAL_RANK": str(rank)}
                with _in_environment(environment | place):
                    _start(process, devices)
        for _, sender in pipes:
            sender.close()
        outcome = _first_outcome(processes, [receiver for receiver, _ in pipes], interrupts)
        for process in processes:
            process.join(GRACE)
    kind, content = outcome
    if kind == "exit":
        raise SystemExit(content)
    if kind == "interrupt":
        raise KeyboardInterrupt(content)
    return content


def check_not_importing() -> None:
    """
    Raises:
        UserError: in a new process that is still importing the script that started it. Its environment is already that
            of one of several, so that the training would begin once more.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # what multiprocessing itself asks
        raise UserError(
            "Each of several processes imports the script that calls pretrain, which must therefore do so under"
            " if __name__ == '__main__':"
        )


def tell_parent(text: str) -> None:
    """Hands on the message for the user, in a process that has to be ended without returning from its function."""
    assert _to_parent is not None
    _to_parent.send(("user error", text))


def _start(process: Any, devices: int) -> None:
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"--devices {devices} gives every process a copy of the data set and the module, but one of them cannot be"
            f" pickled ({error}). Define its class at the top of a module, or start the script with torchrun."
        ) from error


def _end(processes: list[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _first_outcome(processes: list[Any], receivers: list[Connection], interrupts: Interrupts) -> tuple[str, Any]:
    """Waits until all have ended in good order and tells how the first did, or raises the first failure."""
    outcomes: dict[int, tuple[str, Any]] = {}
    stops: dict[int, tuple[str, Any]] = {}
    waiting = {receiver: rank for rank, receiver in enumerate(receivers)}
    while waiting:
        # One that a signal reached before the processes met is gone; the others would wait for it for ever.
        ready = wait(list(waiting), timeout=GRACE if stops else None)
        if not ready:
            break
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = waiting.pop(receiver)
            try:
                kind, content = outcomes[rank] = receiver.recv()
            except EOFError:
                processes[rank].join()
                raise UserError(
                    f"Process {rank} of {len(processes)} {_how_it_died(processes[rank].exitcode)}"
                ) from None
            if kind == "failed" and interrupts.received is not None:  # for want of one that was stopped
                kind, content = outcomes[rank] = "exit", 128 + interrupts.received
            if kind == "user error":
                raise UserError(content)
            if kind == "failed":
                raise RuntimeError(f"process {rank} of {len(processes)} failed:\n{content}")
            if kind in ("exit", "interrupt"):
                stops[rank] = kind, content
    return stops[min(stops)] if stops else outcomes[0]


def _how_it_died(code: int) -> str:
    """What to tell of a process that ended before it could say why, by its exit code; -n: of signal n."""
    number = -code if code < 0 else code - 128  # as a shell reports it, where there was one in between
    name = next((each.name for each in signal.Signals if each == number), "")
    if name == "SIGKILL":
        return (
            f"was killed (exit code {code}), most likely by the system for want of memory. Go on with --resume; a"
            " smaller --batch-size or fewer --workers need less."
        )
    if name == "SIGBUS":
        return (
            f"was killed (exit code {code}), most likely for want of shared memory. In a container give more"
            " ('docker run --shm-size 8g'), or take --workers 0; then go on with --resume."
        )
    if name:
        return (
            f"died of {name} (exit code {code}), which is a fault in compiled code or a signal from elsewhere; what it"
            " wrote before stands above. Go on with --resume."
        )
    return (
        f"ended with exit code {code} before it could say why: what it wrote itself stands above. (Each process imports"
        " the script that calls pretrain, which must therefore do so under if __name__ == '__main__'.)"
    )


def _process(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _to_parent
    _to_parent = sender
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        # Until training listens to them, signals end the process: there is nothing to save yet. Not by an exception,
        # which is lost if a destructor or a callback of C happens to run when the signal comes.
        class Leave(Interrupts):
            def _note(self, number: int, frame: Any) -> None:
                sender.send(("interrupt", "") if number == signal.SIGINT else ("exit", 128 + number))
                os._exit(128 + number)

        Leave().listen()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        outcome = "returned", function(*arguments)
    except UserError as error:
        outcome = "user error", error.args[0]
    except SystemExit as error:
        outcome = "exit", error.code
    except KeyboardInterrupt as error:
        outcome = "interrupt", str(error)
    except BaseException:
        outcome = "failed", traceback.format_exc()
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    sender.send(outcome)
    sender.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that come here are delivered at the end; a process that is started here holds them until it is ready."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # only a killed parent ends before its children
    os._exit(1)


@contextlib.contextmanager
def _in_environment(variables: dict[str, str]) -> Iterator[None]:
    """What is started here has these environment variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _forwarding(processes: list[Any]) -> Iterator[Interrupts]:
    """Signals to this process are noted and go to the first of `processes`, which ends the run in good order."""

    class Forward(Interrupts):
        def _note(self, number: int, frame: Any) -> None:
            if processes[0].is_alive():
                os.kill(processes[0].pid, number)
            super()._note(number, frame)

    forward = Forward()
    forward.listen()
    try:
        yield forward
    finally:
        forward.ignore()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
