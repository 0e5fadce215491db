"""Where a split of labels for every pixel may be. Whether there is one is told without torch and without an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densecl.errors import UserError
from densecl.names import listing, shown

#: A list of pairs, PASCAL VOC's list, and a folder with another one for the label maps. SPLIT is the name of the split.
LISTS, VOC, FOLDERS = PLACES = ("SPLIT.txt", "ImageSets/Segmentation/SPLIT.txt", "images/SPLIT")

#: The splits that are asked about, if none is named: the first that there is. The test images come last, because a run
#: that keeps its best weights by them has seen them.
ASKED = ("val", "valid", "test")


def check_splits(data: Path) -> None:
    """
    Raises:
        UserError: the folder has no split to learn from, or none to ask about. What is in them is not looked at.
    """
    if not data.is_dir():
        raise UserError(f"{shown(data)}: no such folder of labeled images.")
    for names, purpose in ((("train",), "to learn from"), (ASKED, "to score on")):
        if not any(_is_there(data, place, name) for place in PLACES for name in names):
            raise UserError(f"{shown(data)} has no label maps {purpose}: looked for {_looked_for(names)}.")


def check_some_labels(data: Path, name: str) -> None:
    """
    Args:
        data: a folder.
        name: of the split that is learned from. It is only named in the message: which splits there are, and which one
            was meant, is told where they are opened.

    Raises:
        UserError: no split of any name is there.
    """
    if not data.is_dir():
        raise UserError(f"{shown(data)}: no such folder of labeled images.")
    for place in PLACES:
        found = (path for path in data.glob(place.replace("SPLIT", "*")) if not path.name.startswith("."))
        if place == FOLDERS:
            found = (path for path in found if path.is_dir() and (data / "labels").is_dir())
        if next(found, None) is not None:
            return
    raise UserError(f"{shown(data)} has no label maps: looked for {_looked_for([name])}.")


def _is_there(data: Path, place: str, name: str) -> bool:
    path = data / place.replace("SPLIT", name)
    return path.is_dir() and (data / "labels" / name).is_dir() if place == FOLDERS else path.exists()


def _looked_for(names: Sequence[str]) -> str:
    places = [place.replace("SPLIT", names[0]) for place in PLACES]
    places[-1] += f" with labels/{names[0]}"
    return listing(places, "and") + (f", and for {listing(names[1:], 'and')} likewise" if names[1:] else "")
