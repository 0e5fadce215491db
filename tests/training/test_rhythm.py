from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from densecl.training.rhythm import Due, Rhythm

EVERY = st.integers(1, 50)


def after(
    rhythm: Rhythm,
    done: int,
    *,
    ended: bool = False,
    stopped: bool = False,
    minutes: float = 0.0,
    new_part: bool = False,
) -> Due:
    return rhythm.after(done, ended=ended, stopped=stopped, minutes=minutes, new_part=new_part)


@given(EVERY, EVERY, st.integers(1, 200))
def test_rows_and_checkpoints_come_at_their_steps(log_every: int, checkpoint_every: int, done: int) -> None:
    due = after(Rhythm(log_every, checkpoint_every, 60.0), done)
    assert due.row == (done == 1 or done % log_every == 0)
    assert due.checkpoint == (done % checkpoint_every == 0)
    assert not due.watch and after(Rhythm(log_every, checkpoint_every, 60.0), done, new_part=True).watch


@given(EVERY, EVERY, st.integers(1, 200))
def test_at_the_end_everything_is_due(log_every: int, checkpoint_every: int, done: int) -> None:
    assert after(Rhythm(log_every, checkpoint_every, 60.0), done, ended=True) == (True, True, True)


def test_a_signal_and_the_clock_ask_for_a_checkpoint_and_nothing_else() -> None:
    rhythm = Rhythm(log_every=10, checkpoint_every=100, checkpoint_minutes=30.0)
    saved = Due(row=False, watch=False, checkpoint=True)
    assert after(rhythm, 7, minutes=29.9) == (False, False, False)
    assert after(rhythm, 7, minutes=30.0) == saved
    assert after(rhythm, 7, stopped=True) == saved
