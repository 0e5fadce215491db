"""Which of timm's families of models can be trained. Tries the smallest model of each, at five image sizes.

    python benchmarks/backbones.py [--families resnet swin_transformer ...]

Each model is
- trained for one step at every size, and run in evaluation mode;
- copied, and loaded into timm;
- built with output strides 16 and 8, and for images of five channels.

A size that it does not take must be refused in one line. Any other failure is noted as FAILS. Appends a row to
docs/benchmarks/backbones.csv for each family that is not yet in it, and writes docs/backbones.md. Takes half an hour on
one core. Downloads nothing.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import rows
import timm
import torch

from densecl.errors import UserError
from densecl.model.backbone import Backbone, create_backbone

DOCUMENTS = Path(__file__).parents[1] / "docs"
TABLE, PAGE = DOCUMENTS / "benchmarks" / "backbones.csv", DOCUMENTS / "backbones.md"

#: The page docs/backbones.md without its table.
TEXT = """# Backbones

For whom: anyone who asks whether their network works, and at which image sizes.

`--backbone` takes any of timm's models that gives a feature map. In Python, `backbone=` also takes any module that
returns one. Not sure? Just start: a size that the model does not take is refused in one line, with a size that it
takes.

Of {families} families of timm {timm}, the smallest model of each was trained for a step on images of five sizes, on
one CPU core (`python benchmarks/backbones.py`). {every} families take all five sizes, {some} some of them, {none}
none.

How to read the table:

- **14x14** and the like are the rows and columns of the feature map: its cells. **no** is a size that the model does
  not take. The reasons are in [benchmarks/backbones.csv](benchmarks/backbones.csv).
- **stride** is pixels per cell. Where a model takes one size alone, it is the size divided by the cells (`levit`: 224
  / 4). `crossvit` resizes every image to one size first.
- **output strides** are what `--output-stride` can be beside 32. Others are refused where the last strides cannot be
  replaced by dilation, or timm does not know how.

Why a size is refused:

- **One size alone.** The weights of some networks fit one size of the map only: a position embedding, or a bias for
  each pair of cells. timm could build them for another size. But then the weights would load only into a network that
  is built the same way. So they are always built as timm builds them. ViTs and Swin take other sizes with the same
  weights: they interpolate their position embedding, or pad their windows.
- **Whole patches or windows.** Some take only sizes that their patch or window divides, such as multiples of 16.

Families that are not here were not measured, or come with a newer timm. Try them: `densecl` asks the model itself.

{table}
"""


class Row(NamedTuple):
    """What a family can do. A column such as `px64` has the rows and columns of the map at 64 pixels, or "no"."""

    family: str
    model: str
    parameters: str = ""  # in millions
    stride: str = ""
    px64: str = "no"
    px100: str = "no"
    px128: str = "no"
    px224: str = "no"
    px256: str = "no"
    output_strides: str = ""  # that can be had, beside its own
    any_channels: str = ""  # whether it can take five channels instead of three
    note: str = ""  # the first reason for a refusal
    timm: str = timm.__version__


FAILS = "FAILS"
Result = TypeVar("Result")
SIZES = tuple(int(field.removeprefix("px")) for field in Row._fields if field.startswith("px"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=timm.list_modules(), metavar="NAME")
    families = parser.parse_args().families
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    done = {row["family"] for row in rows.read(TABLE)}
    for family in families:
        if family not in done:
            row = examine(family, smallest(family))
            rows.append(TABLE, row)
            print(*row, sep=", ", flush=True)
    PAGE.write_text(page(rows.read(TABLE)), encoding="utf-8")


def page(found: list[dict[str, str]]) -> str:
    found = sorted(found, key=lambda row: row["family"])
    taken = [sum(row[f"px{size}"] != "no" for size in SIZES) for row in found]
    columns = ("family", "model", "stride", *(f"px{size}" for size in SIZES), "output_strides")
    heads = ("family", "model", "stride", *(f"{size} px" for size in SIZES), "output strides")
    lines = [heads, ("---",) * len(heads), *([row[column] for column in columns] for row in found)]
    return TEXT.format(
        families=len(found),
        timm=found[0]["timm"],
        every=taken.count(len(SIZES)),
        some=sum(0 < count < len(SIZES) for count in taken),
        none=taken.count(0),
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
    )


def smallest(family: str) -> str:
    """The model with the fewest parameters. Models that exist only for timm's own tests do not count."""

    def parameters(name: str) -> int:
        with torch.device("meta"):  # allocates no memory for the weights
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())

    return min((name for name in timm.list_models(module=family) if not name.startswith("test_")), key=parameters)


def examine(family: str, name: str) -> Row:
    backbone, note = attempt(lambda: create_backbone(name))
    if backbone is None:
        return Row(family, name, note=note)
    grids, problems = {}, []
    for size in SIZES:
        grid, problem = attempt(lambda size=size: step(backbone, size))
        grids[f"px{size}"] = grid or "no"
        problems.append(problem)
    finer = {stride: attempt(lambda stride=stride: create_backbone(name, output_stride=stride)) for stride in (16, 8)}
    of_five, problem = attempt(lambda: create_backbone(name, channels=5))
    others = [
        problem,
        *(problem for _, problem in finer.values()),
        attempt(lambda: copy.deepcopy(backbone))[1],  # methods with a momentum encoder copy the backbone
        attempt(lambda: timm.create_model(name, num_classes=0).load_state_dict(backbone.model.state_dict()))[1],
    ]
    failures = [problem for problem in (*problems, *others) if FAILS in problem]
    return Row(
        family,
        name,
        f"{sum(parameter.numel() for parameter in backbone.parameters()) / 1e6:.1f}",
        str(backbone.stride),
        **grids,
        output_strides=" ".join(str(stride) for stride, (found, _) in finer.items() if found is not None),
        any_channels="no" if of_five is None else "yes",
        note="; ".join(failures) or next(filter(None, problems), ""),
    )


def step(backbone: Backbone, size: int) -> str:
    """Trains one step. Returns the rows and columns of the map."""
    grid = backbone.grid_at(size)  # in evaluation mode
    features = backbone.train()(torch.randn(2, 3, size, size))
    assert features.shape == (2, backbone.channels, *grid), f"{tuple(features.shape)} instead of {grid}"
    features.square().mean().backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"
    backbone.zero_grad()
    off = max(abs(cells * backbone.stride - size) for cells in grid)
    assert off < 3 * backbone.stride or grows_not(backbone, size), "the stride is another"  # borders may be bare
    return "x".join(map(str, grid))


def grows_not(backbone: Backbone, size: int) -> bool:
    """Whether the model resizes every image to one size first. Then its map has no stride."""
    return backbone.grid_at(size) == backbone.grid_at(2 * size)


def attempt(action: Callable[[], Result]) -> tuple[Result | None, str]:
    """Returns the result and no problem, or None and the reason in one line."""
    try:
        return action(), ""
    except UserError as error:
        return None, str(error)
    except Exception as error:
        return None, f"{FAILS}: {type(error).__name__} {' '.join(str(error).split())[:120]}"


if __name__ == "__main__":
    main()
