"""Two real processes of which one fails, is stopped, or goes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from densecl.errors import SharedError, UserError
from densecl.training import peers
from densecl.training.launch import _free_port
from densecl.training.peers import Peers
from densecl.training.world import World

#: Seconds: less than anybody would wait.
TIMEOUT = 1.0

Part = Callable[[Peers], object]


def everybody(_: Peers) -> None:
    """What a process waits in for the others, as in a step of the training."""
    dist.all_reduce(torch.ones(1))


def the_first(those: Peers) -> None:
    """What the others wait in while the first one saves."""
    those.first_is_done("saving")


def refuse(_: Peers) -> None:
    raise UserError("--data x: a mistake.")


def fail(_: Peers) -> None:
    raise ZeroDivisionError("of the user's own code")


def send(number: signal.Signals) -> Part:
    return lambda _: os.kill(os.getpid(), number)


def process(rank: int, folder: Path, part: Part) -> None:
    peers.GRACE, peers.LATER = 1.0, 60.0
    note = folder / f"rank{rank}"
    with note.open("w") as told:

        def end(text: str) -> None:
            told.write(f"ended: {text}")
            told.flush()

        try:
            with Peers(World("test", rank, 2, rank, 2), TIMEOUT, end) as those:
                dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
                part(those)
        except SharedError as error:
            told.write(f"shared: {error.args[0]}")
        except UserError as error:
            told.write(f"shown: {error.args[0]}")
        except ZeroDivisionError as error:
            told.write(f"own: {error}")
        told.flush()
    os._exit(0)


def run(folder: Path, first: Part, second: Part) -> list[str]:
    """What the two tell in the end."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=process, args=(rank, folder, part)) for rank, part in enumerate((first, second))]
    for one in both:
        one.start()
    deadline = time.monotonic() + 20
    try:
        for one, part in zip(both, (first, second), strict=True):
            if part is not stopped:
                one.join(max(0, deadline - time.monotonic()))
                assert one.exitcode is not None, "a process does not end"
    finally:
        for one in both:
            one.kill()
            one.join()
    return [(folder / f"rank{rank}").read_text() for rank in range(2)]


stopped, killed = send(signal.SIGSTOP), send(signal.SIGKILL)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")


def test_nothing_is_told_when_all_is_well(tmp_path: Path) -> None:
    assert run(tmp_path, everybody, everybody) == ["", ""]
    assert Peers(None, TIMEOUT, print).__enter__().world is None


def agree(those: Peers) -> None:
    own = [5.0, 0.0, 1.5] if those.world.rank == 0 else [3.0, 15.0, 1.75]
    for _ in range(2):
        if (numbers := those.agree(own)) != [5.0, 15.0, 1.75]:
            raise UserError(f"not agreed: {numbers}")


def test_all_agree_on_the_largest_of_their_numbers(tmp_path: Path) -> None:
    assert run(tmp_path, agree, agree) == ["", ""]
    assert Peers(None, TIMEOUT, print).agree([2.0, 0.0]) == [2.0, 0.0]
    assert Peers(World("torchrun", 0, 1, 0, 1), TIMEOUT, print).agree([2.0]) == [2.0]


def test_a_process_that_fails_is_named_where_the_others_agree(tmp_path: Path) -> None:
    assert run(tmp_path, agree, refuse)[0] in ("shown: --data x: a mistake.", "ended: --data x: a mistake.")


@pytest.mark.parametrize("waiting", [everybody, the_first])
def test_a_failure_of_the_second_is_shown_by_the_first(tmp_path: Path, waiting: Part) -> None:
    if waiting is the_first:  # which the first does not wait in: it is busy
        waiting = lambda those: [time.sleep(0.01) or those.check() for _ in range(1000)]  # noqa: E731
    told = run(tmp_path, waiting, refuse)
    assert told[0] in ("shown: --data x: a mistake.", "ended: --data x: a mistake.")
    assert told[1] == "shared: --data x: a mistake."


@pytest.mark.parametrize("waiting", [everybody, the_first])
def test_a_failure_of_the_first_ends_the_second(tmp_path: Path, waiting: Part) -> None:
    told = run(tmp_path, refuse, waiting)
    assert told[0] == "shown: --data x: a mistake."
    assert told[1] in ("shared: --data x: a mistake.", "")  # nothing where it was ended in the midst


def test_both_fail_of_the_same(tmp_path: Path) -> None:
    assert run(tmp_path, refuse, refuse) == ["shown: --data x: a mistake.", "shared: --data x: a mistake."]


def test_what_is_no_mistake_of_the_users_is_shown_where_it_happened(tmp_path: Path) -> None:
    told = run(tmp_path, everybody, fail)
    assert told[1] == "own: of the user's own code"
    assert "Process 1 of 2 failed, see its own traceback: ZeroDivisionError: of the user's own code" in told[0]


@pytest.mark.parametrize("waiting", [everybody, the_first])
def test_one_that_is_stopped_is_named(tmp_path: Path, waiting: Part) -> None:
    told = run(tmp_path, waiting if waiting is everybody else everybody, stopped)
    assert f"ended: Process 1 of 2 has given no sign of life for {TIMEOUT:.0f} s (on " in told[0]


@pytest.mark.parametrize("waiting", [everybody, the_first])
def test_the_first_that_is_stopped_is_named(tmp_path: Path, waiting: Part) -> None:
    told = run(tmp_path, stopped, waiting)
    assert f"Process 0 of 2 has given no sign of life for {TIMEOUT:.0f} s" in told[1]


def test_one_that_is_killed_is_named(tmp_path: Path) -> None:
    assert "Process 1 of 2 " in (told := run(tmp_path, everybody, killed))[0], told
    (tmp_path / "other").mkdir()
    told = run(tmp_path / "other", killed, everybody)
    assert "Process 0 of 2 is gone" in told[1], told


def keep_table(port: int) -> None:
    _ = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    signal.pause()


def test_torchrun_is_gone_and_the_run_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    port = _free_port()
    for name, value in (
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(port)),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ):
        monkeypatch.setenv(name, value)
    torchrun = multiprocessing.get_context("fork").Process(target=keep_table, args=(port,))
    torchrun.start()
    asked, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        with Peers(World("torchrun", 0, 1, 0, 1), TIMEOUT, print) as those:
            torchrun.kill()
            assert asked.wait(5)
            those.first_is_done("saving")
    finally:
        signal.signal(signal.SIGTERM, before)
        torchrun.kill()
        torchrun.join()


@pytest.mark.parametrize("address", ["127.0.0.1", "a" * 300])
def test_nobody_listens_at_the_first_process(address: str, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(_free_port()))
    with pytest.raises(UserError, match=r"^Process 1 of 2 does not reach process 0 at .*[^.]\. Does MASTER_ADDR name"):  # noqa: SIM117
        with Peers(World("test", 1, 2, 1, 2), 0.1, print):
            pass
    assert capfd.readouterr().err == ""  # none of torch's frames


def test_one_that_does_not_come_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(_free_port()))
    monkeypatch.setattr(peers, "GRACE", 0.1)
    with (
        pytest.raises(UserError, match="Process 1 of 2 has not come for 0 s"),
        Peers(World("test", 0, 2, 0, 2), 0.3, print),
    ):
        pass
    with pytest.raises(UserError, match="Process 1 of 2 does not reach process 0 at 127.0.0.1"):
        Peers(World("test", 1, 2, 1, 2), 0.3, print).__enter__()
