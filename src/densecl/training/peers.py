"""What the processes of a run know of each other: who is there, who has failed, and why.

When a process fails, the others may be in the middle of an operation that needs all of them. There they would wait for
as long as gloo or NCCL allows. So the first process keeps a small table (torch's TCPStore). Every process writes there
that it is alive, and why it fails. A thread in each process reads the table. If the run has failed and the process does
not return by itself, the thread ends it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from densecl.errors import SharedError, UserError
from densecl.names import shown
from densecl.training.environment import Placed
from densecl.training.world import World

#: Seconds between two looks at the table.
LOOK_EVERY = 1.0

#: Seconds that a process has to end by itself after a failure is known.
GRACE = 5.0

#: Operations that need all processes wait so many seconds longer than the threads, whose message names who is missing.
LATER = 15.0

_RUNS = itertools.count()


class Failure(NamedTuple):
    """Why the run ends."""

    rank: int  # of the process that failed
    text: str  # for the user
    own_words: bool  # that process shows its own traceback, because it was not the user's mistake
    lost: bool = False  # that process is gone and cannot show anything


class Peers:
    """The other processes of a run, from their first meeting to their end. With a single process it does nothing.

    Args:
        world: all processes, and which one this is; None if there is only one.
        timeout: seconds to wait for a process that does not answer.
        end: shows the user a failure when this process has to be ended where it stands.

    Attributes:
        agreed_to_stop: to be set when all processes stop at the same step because of a signal. That is no failure.
    """

    def __init__(self, world: World | None, timeout: float, end: Callable[[str], None]) -> None:
        self.world = world
        self.timeout = timeout
        self.end = end
        self.agreed_to_stop = False
        self._look_every = min(LOOK_EVERY, timeout / 10)
        self._failure: Failure | None = None
        self._seen: dict[int, tuple[bytes, float]] = {}  # by rank: the last sign of life, and when it changed
        self._agreement: Any = None  # the group of processes that `agree` talks to
        self._answered = time.monotonic()
        self._together = threading.Event()
        self._leaving = threading.Event()

    # --- from the meeting to the end --------------------------------------------------------------

    def __enter__(self) -> Peers:
        if self.world is None:
            return self
        self._store = self._connect(self.world)
        self._answered = now = time.monotonic()
        watched = range(1, self.world.size) if self.world.rank == 0 else (0,)
        self._seen = dict.fromkeys(watched, (b"", now))
        for thread in (self._talk, self._watch):
            threading.Thread(target=thread, daemon=True).start()
        while not self._together.wait(self._look_every):
            if self._failure is not None:
                self._leave()
                raise self._as_error(self._failure)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.world is None:
            return
        try:
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            if error is None or (stopped and self.agreed_to_stop):
                return
            if _of_a_lost_connection(error):
                self._find_who_is_gone()
            failure = self._failure or self._tell(self._own(error))
            if failure.rank == self.world.rank and failure.own_words:
                return  # with what it raised
            raise self._as_error(failure) from error
        finally:
            self._leave()

    @property
    def patience(self) -> timedelta:
        """How long an operation that needs all processes may wait for one of them."""
        return timedelta(seconds=self.timeout + LATER)

    def check(self) -> None:
        """
        Raises:
            UserError: if another process has failed.
        """
        if self._failure is not None:
            raise self._as_error(self._failure)

    def first_is_done(self, what: str) -> None:
        """The first process says that it has done something. The others wait for that, however long it takes.

        Raises:
            UserError: if a process fails in the meantime.
        """
        if self.world is None:
            return
        if self.world.rank == 0:
            with self._even_without_torchrun():
                self._store.set(f"done/{what}", "")
            return
        with self._even_without_torchrun():
            while not self._store.check([f"done/{what}"]):
                self.check()
                time.sleep(0.02)

    def agree(self, numbers: list[float]) -> list[float]:
        """The largest that any process has of each number. All processes must call this at the same time."""
        if self.world is None or self.world.size == 1:
            return numbers
        if self._agreement is None:  # on the CPU, which does not stall a GPU; NCCL knows no CPU
            self._agreement = dist.new_group(backend="gloo", timeout=self.patience)
        largest = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._agreement)
        return largest.tolist()

    @contextlib.contextmanager
    def _even_without_torchrun(self) -> Iterator[None]:
        """If torchrun is gone, and the table with it, the run can still save a checkpoint; see `_talk`."""
        try:
            yield
        except (dist.DistError, RuntimeError):
            if not self._of_torchrun:
                raise

    # --- failures ---------------------------------------------------------------------------------

    def _own(self, error: BaseException) -> Failure:
        assert self.world is not None
        name = f"Process {self.world.rank} of {self.world.size}"
        if isinstance(error, UserError):
            return Failure(self.world.rank, error.args[0], own_words=False)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return Failure(self.world.rank, f"{name} was interrupted. Go on with --resume.", own_words=True)
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Failure(self.world.rank, f"{name} failed, see its own traceback: {words}", own_words=True)

    def _tell(self, failure: Failure) -> Failure:
        """Puts a failure into the table and returns the first one that is in it."""
        with contextlib.suppress(dist.DistError, RuntimeError):  # the table is gone
            first = self._store.compare_set("failure", "", json.dumps(failure))
            failure = Failure(*json.loads(first))
        self._failure = failure
        return failure

    def _as_error(self, failure: Failure) -> UserError:
        """What this process raises. The first process shows the failure; if that one is gone, every other does."""
        assert self.world is not None
        if failure.own_words:
            time.sleep(2 * self._look_every)  # the traceback of the other process comes first
        if self.world.rank == 0:
            with contextlib.suppress(dist.DistError, RuntimeError):
                self._store.set("shown", "")
            return UserError(failure.text)
        until = time.monotonic() + GRACE
        with contextlib.suppress(dist.DistError, RuntimeError):
            while not self._store.check(["shown"]):
                if time.monotonic() >= until or (failure.rank == 0 and failure.lost):
                    return UserError(failure.text)
                time.sleep(0.05)
            return SharedError(failure.text)
        return UserError(failure.text)

    def _find_who_is_gone(self) -> None:
        """Waits a moment to learn why a connection was lost: from a failure in the table or a missing sign of life."""
        until = time.monotonic() + 2 * GRACE
        while self._failure is None and time.monotonic() < until:
            time.sleep(0.05)
            silent = [rank for rank, (_, at) in self._seen.items() if time.monotonic() - at > 4 * self._look_every]
            if silent:
                self._tell(self._lost(silent[0], "is gone: it was killed, or its machine was lost"))

    def _lost(self, rank: int, how: str, who: str = "") -> Failure:
        assert self.world is not None
        text = f"{who or f'Process {rank} of {self.world.size}'} {how}. Go on with --resume."
        return Failure(rank, text, own_words=False, lost=True)

    # --- the table --------------------------------------------------------------------------------

    def _connect(self, world: World) -> Any:
        place = Placed(world)
        address, port = place.main_address, place.main_port
        self._of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun keeps the table
        self._keeps_table = world.rank == 0 and not self._of_torchrun
        try:
            if not self._keeps_table:
                _reach(address, port, self.timeout)
            store = dist.TCPStore(
                address,
                port,
                is_master=self._keeps_table,
                timeout=timedelta(seconds=self.timeout),
                wait_for_workers=False,
                multi_tenant=True,  # the process group opens the same store once more
            )
        except (OSError, UnicodeError, dist.DistError, RuntimeError) as error:
            what = "cannot listen" if self._keeps_table else "does not reach process 0"
            raise UserError(
                f"Process {world.rank} of {world.size} {what} at {shown(address)}:{port}:"
                f" {' '.join(str(error).split())[:160].rstrip('.')}."
                " Does MASTER_ADDR name the first machine, and is MASTER_PORT free there?"
            ) from error
        return dist.PrefixStore(f"densecl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_RUNS)}", store)

    def _talk(self) -> None:
        """The first thread: shows that this process is alive, and looks for the others."""
        assert self.world is not None
        host = socket.gethostname()
        try:
            for count in itertools.count():
                self._store.set(f"alive/{self.world.rank}", f"{count} {host} {os.getpid()}")
                self._look(time.monotonic())
                self._answered = time.monotonic()
                if self._leaving.wait(self._look_every):
                    return
        except (dist.DistError, RuntimeError):
            if self._leaving.is_set() or self._failure is not None:
                return
            if self._of_torchrun:
                # torchrun is gone: a cluster that ends a job tells torchrun first. This process gets the signal that
                # torchrun would have sent, so that it saves a checkpoint.
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self._failure = self._lost(0, "is gone, and with it the run: it was killed, or its machine was lost")

    def _look(self, now: float) -> None:
        assert self.world is not None
        for rank, (before, at) in self._seen.items():
            sign = self._store.get(f"alive/{rank}") if self._store.check([f"alive/{rank}"]) else b""
            if sign != before or self._store.check([f"left/{rank}"]):
                self._seen[rank] = sign, now
            elif now - at > self.timeout and self._failure is None:
                where = f" (on {sign.split()[1].decode()}, process id {sign.split()[2].decode()})" if sign else ""
                how = "has given no sign of life" if sign else "has not come"
                self._tell(self._lost(rank, f"{how} for {self.timeout:.0f} s{where}: it was stopped, or is lost"))
        if self.world.rank == 0 and all(sign for sign, _ in self._seen.values()):
            self._store.set("together", "")
        if self._store.check(["together"]):
            self._together.set()
        if self._failure is None and self._store.check(["failure"]):
            if self.world.rank == 0:
                self._store.set("shown", "")  # this process will show it, by returning or when it is ended
            self._failure = Failure(*json.loads(self._store.get("failure")))

    def _watch(self) -> None:
        """The second thread: ends this process if it hangs after a failure, or if whoever keeps the table is silent."""
        while not self._leaving.wait(self._look_every):
            if time.monotonic() - self._answered > self.timeout + self._look_every and self._failure is None:
                who = "torchrun" if self._of_torchrun else ""
                self._failure = self._lost(
                    0, f"has given no sign of life for {self.timeout:.0f} s: it was stopped", who
                )
            if self._failure is not None and not self._leaving.wait(GRACE):
                assert self.world is not None
                silent = time.monotonic() - self._answered > GRACE  # then the table cannot be asked
                error = UserError(self._failure.text) if silent else self._as_error(self._failure)
                if not isinstance(error, SharedError):
                    self.end(self._failure.text)
                self._wait_for_others()
                os._exit(2)

    def _leave(self) -> None:
        self._leaving.set()
        self._wait_for_others()

    def _wait_for_others(self) -> None:
        """Waits until this process may end.

        If it keeps the table, the others must have read it. If the run has failed, the first process must have shown
        why, because torchrun ends all processes as soon as one has ended.
        """
        with contextlib.suppress(dist.DistError, RuntimeError):  # the table is gone
            self._wait_while_there_is_a_table()

    def _wait_while_there_is_a_table(self) -> None:
        assert self.world is not None
        if time.monotonic() - self._answered > GRACE:
            return
        self._store.set(f"left/{self.world.rank}", "")
        if not self._keeps_table and (self.world.rank == 0 or self._failure is None):
            return
        now = time.monotonic()
        living = [rank for rank, (_, at) in self._seen.items() if now - at < GRACE]
        while time.monotonic() < now + 3 * GRACE:  # the others may take as long as this one to notice, and then to end
            if self._store.check([f"left/{rank}" for rank in living]):
                return
            time.sleep(0.02)


def _reach(address: str, port: int, timeout: float) -> None:
    """Waits until somebody listens there. Torch would wait, too, but prints pages of stack frames if nobody does.

    Raises:
        OSError, UnicodeError: if nobody listens, or there is no such address.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((address, port), timeout).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _of_a_lost_connection(error: BaseException) -> bool:
    """Whether an operation that needs all processes failed. The reason then lies in another process."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
    )
