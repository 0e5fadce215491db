from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densecl.errors import UserError
from densecl.evaluation.arms import Arm, arms_of, find_baseline


def test_runs_that_differ_in_their_seed_are_one_arm() -> None:
    names = ["runs/a-seed0", "runs/a-seed1", "imagenet", "seed_3/b/x.pth", "seed_12/b/x.pth", "runs/c-seed0"]
    assert arms_of(names) == [
        Arm("runs/a-seed*", ("runs/a-seed0", "runs/a-seed1"), (0, 1)),
        Arm("imagenet", ("imagenet",), ()),
        Arm("seed_*/b/x.pth", ("seed_3/b/x.pth", "seed_12/b/x.pth"), (3, 12)),
        Arm("runs/c-seed0", ("runs/c-seed0",), ()),  # the only one of its name
    ]
    # Alone they are compared with each other.
    assert arms_of(names[:2]) == [Arm(name, (name,), ()) for name in names[:2]]
    assert arms_of(["seeds/a", "seeds/b"]) == [Arm(name, (name,), ()) for name in ("seeds/a", "seeds/b")]
    # The last number counts.
    assert [arm.name for arm in arms_of(["seed0/a-seed0", "seed0/a-seed1", "x"])] == ["seed0/a-seed*", "x"]


def test_one_seed_under_two_spellings_is_not_lost() -> None:
    names = ["a-seed1", "a-seed01", "x"]
    assert sorted(member for arm in arms_of(names) for member in arm.members) == sorted(names)


@given(st.lists(st.from_regex(r"(a|b)?(seed[-_]?)?[0-3]?(x)?", fullmatch=True).filter(bool), min_size=1, unique=True))
def test_each_of_the_weights_is_in_one_arm(names: list[str]) -> None:
    arms = arms_of(names)
    assert sorted(member for arm in arms for member in arm.members) == sorted(names)
    assert len({arm.name for arm in arms}) == len(arms)
    assert all(len(arm.seeds) in (0, len(arm.members)) for arm in arms)
    for arm in arms:
        assert find_baseline(arms, arm.members) == arm


def test_the_baseline() -> None:
    arms = arms_of(["runs/a-seed0", "runs/a-seed1", "imagenet", "random"])
    assert find_baseline(arms, []) == find_baseline(arms, ["runs/a-seed1/"]) == arms[0]
    assert find_baseline(arms, ["runs/a-seed*"]) == find_baseline(arms, ["runs/a-seed0", "runs/a-seed1"]) == arms[0]
    assert find_baseline(arms, ["imagenet"]) == arms[1]
    there = "runs/a-seed0, runs/a-seed1, imagenet, random"
    for asked, complaint in (
        (["imagnet"], f"--baseline imagnet is none of the weights: {there}. Did you mean 'imagenet'?"),
        (["x"], f"--baseline x is none of the weights: {there}. Name it among WEIGHTS, too."),
        (["imagenet", "random"], "--baseline takes one of the weights, or runs whose names differ only in their seed"),
    ):
        with pytest.raises(UserError) as raised:
            find_baseline(arms, asked)
        assert complaint in raised.value.args[0]
