"""The best weights of a run by its headline, kept beside the last: ``best.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from densecl.errors import UserError
from densecl.model import Backbone, save_backbone
from densecl.model.weights import read_metadata
from densecl.normalization import Normalization
from densecl.training.headline import Headline, Moment
from densecl.training.provenance import after

#: The file, in the run's folder.
FILE = "best.safetensors"


class Kept(NamedTuple):
    """What a ``best.safetensors`` says of itself."""

    name: str  # of the headline, a column of watched.csv
    moment: Moment


def kept(out: Path) -> Kept | None:
    """What the file in a run's folder holds; None if there is none that says it."""
    try:
        found = read_metadata(out / FILE) if (out / FILE).is_file() else None
        said = {} if found is None else found.provenance
        return Kept(said["best_by"], Moment(int(said["steps"]), float(said["best"])))
    except (UserError, KeyError, ValueError):  # a damaged file, which is written anew
        return None


def keep(backbone: Backbone, out: Path, normalization: Normalization, origin: Mapping[str, str], best: Kept) -> None:
    """Writes the backbone there. Its metadata says after which step it was the best, by what, and what that was.

    Raises:
        OSError: if it cannot be written.
    """
    said = {**after(best.moment.step, origin), "best_by": best.name, "best": f"{best.moment.value:.6g}"}
    save_backbone(backbone, out / FILE, normalization, said)


def newest(headline: Headline | None) -> Kept | None:
    """The last moment of a run, if it is the best so far. The start does not count: its weights are there already."""
    if headline is None:
        return None
    trained = [moment for moment in headline.moments if moment.step > 0]
    best = max(trained, key=lambda moment: moment.value, default=None)
    return None if best is None or best is not trained[-1] else Kept(headline.name, best)
