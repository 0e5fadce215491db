"""Starts one process for each device of this machine, and waits for them.

Nothing heavy is imported here. A new process imports this module first and torch later, when its number of threads is
set.

Torch's elastic launcher would not be simpler (tried with torch 2.14). It sets the number of threads after torch is
imported, which is too late; it waits forever for a process that Ctrl-C has ended; it shows a user's mistake as 20
lines of traceback; and it sends every signal to all processes, where ours must agree on a step to stop at.
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

from densecl.cores import available_cores
from densecl.errors import UserError
from densecl.interrupts import STOPPING, Interrupts

#: Seconds that a process has to leave once it has told how it ended.
GRACE = 10.0

#: In a process that was started here: its end of the pipe to the parent, which waits for it.
_to_parent: Connection | None = None


def launch(function: Callable[..., Any], devices: int, *arguments: Any, nodes: int = 1, node: int = 0) -> Any:
    """Calls ``function(*arguments)`` in a new process for each device of this machine.

    Lightning's own launcher repeats ``sys.argv``, which means nothing when the run was started by a call in
    Python or in a notebook. The processes are spawned, because CUDA does not survive a fork. They find their rank in
    environment variables, as if torchrun had started them. With several machines, call this on each of them, with
    MASTER_ADDR and MASTER_PORT set.

    Returns:
        What the first process returned.

    Args:
        function: must be defined in a module, where the new processes can import it.
        devices: number of processes on this machine.
        arguments: must be picklable.
        nodes: number of machines.
        node: number of this machine, from 0.

    Raises:
        UserError: if a process raised it, or was killed.
        RuntimeError: if a process failed in another way; with its traceback.
        SystemExit, KeyboardInterrupt: if the first process ended with it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        raise UserError(f"--devices {devices}: several processes need Linux or macOS. Take one device.")
    context = multiprocessing.get_context("spawn")
    wished = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wished) if wished.isdecimal() else available_cores()  # OpenMP allows a list, too, such as 4,2
    environment = {
        "OMP_NUM_THREADS": str(max(1, threads // devices)),
        "WORLD_SIZE": str(devices * nodes),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
    }
    pipes = [context.Pipe(duplex=False) for _ in range(devices)]
    processes = [context.Process(target=_process, args=(sender, function, arguments)) for _, sender in pipes]
    # Python's resource tracker would start with the first process, and its start lets signals through again: too early.
    # So it starts here, with signals held back, as they then are in the tracker: they must not end it.
    with _signals_held():
        resource_tracker.ensure_running()
    with contextlib.ExitStack() as until_the_end:
        with _signals_held():  # until there is a process to forward them to
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
        UserError: if this is a new process that is still importing the user's script. A call of pretrain at the top
            of that script would start the training once more.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # multiprocessing checks the same
        raise UserError(
            "Each of several processes imports the script that calls pretrain, so the call must stand under"
            " if __name__ == '__main__':"
        )


def tell_parent(text: str) -> None:
    """Sends the parent a message for the user, from a process that is about to be ended where it stands."""
    assert _to_parent is not None
    _to_parent.send(("user error", text))


def _start(process: Any, devices: int) -> None:
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"--devices {devices} gives every process a copy of the data set and the module, but one of the two cannot"
            f" be pickled ({error}). Define its class at the top of a module, or start the script with torchrun."
        ) from error


def _end(processes: list[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _first_outcome(processes: list[Any], receivers: list[Connection], interrupts: Interrupts) -> tuple[str, Any]:
    """Waits until all processes have ended. Returns how the first one did, or raises the first failure."""
    outcomes: dict[int, tuple[str, Any]] = {}
    stops: dict[int, tuple[str, Any]] = {}
    waiting = {receiver: rank for rank, receiver in enumerate(receivers)}
    while waiting:
        # A signal may end one process before they have all met. The others would then wait for it forever.
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
            # After a signal, a process may fail only because another one has stopped.
            if kind == "failed" and interrupts.received is not None:
                kind, content = outcomes[rank] = "exit", 128 + interrupts.received
            if kind == "user error":
                raise UserError(content)
            if kind == "failed":
                raise RuntimeError(f"process {rank} of {len(processes)} failed:\n{content}")
            if kind in ("exit", "interrupt"):
                stops[rank] = kind, content
    return stops[min(stops)] if stops else outcomes[0]


def _how_it_died(code: int) -> str:
    """What to tell the user of a process that ended without a word.

    Args:
        code: its exit code. Signal n gives -n, or 128 + n if a shell stood in between.
    """
    number = -code if code < 0 else code - 128
    name = next((each.name for each in signal.Signals if each == number), "")
    if name == "SIGKILL":
        return (
            f"was killed (exit code {code}), most likely by the system because memory ran out. Go on with --resume; a"
            " smaller --batch-size or fewer --workers need less."
        )
    if name == "SIGBUS":
        return (
            f"was killed (exit code {code}), most likely because shared memory ran out. In a container give more"
            " ('docker run --shm-size 8g'), or take --workers 0; then go on with --resume."
        )
    if name:
        return (
            f"died of {name} (exit code {code}): an error in compiled code, or a signal from outside. What it wrote"
            " before is above. Go on with --resume."
        )
    return (
        f"ended with exit code {code} before it could say why. What it wrote before is above. (Each process imports the"
        " script that calls pretrain, so the call must stand under if __name__ == '__main__'.)"
    )


def _process(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _to_parent
    _to_parent = sender
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        # Until training listens for signals there is nothing to save, so a signal ends the process at once. An
        # exception would not do: it is lost if the signal comes while a destructor or a callback from C runs.
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
    """Signals that come in this block are delivered at its end.

    A process that is started in it inherits this, and lets signals through when it is ready.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # a parent that ends before its children was killed
    os._exit(1)


@contextlib.contextmanager
def _in_environment(variables: dict[str, str]) -> Iterator[None]:
    """Processes that are started in this block have these environment variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _forwarding(processes: list[Any]) -> Iterator[Interrupts]:
    """Notes signals to this process and forwards them to the first of `processes`, which ends the run properly."""

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
