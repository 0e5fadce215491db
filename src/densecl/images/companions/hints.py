"""What a name says: words that mark label maps, depth maps and thumbnails, and the images that have them.

A name decides nothing by itself. It only says which images to look at.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from densecl.images.paths import PathIndex


class Hint(NamedTuple):
    """What a name suggests."""

    what: Literal["label maps", "depth maps", "thumbnails"]
    sure: bool = False  # the word is hardly used for anything else


class Kind(NamedTuple):
    """Images whose names give the same hint."""

    name: str  # as messages show it: "masks/" or "*_mask"
    hint: Hint
    images: list[int]
    level: int | None  # which part of the folder's path has the hint; None: the file's name has it


#: Words in the name of a folder or a file, as regular expressions.
DEPTH = r"depths?|depth_?maps?|disparit(?:y|ies)|disps?|n?dsms?|dems?|dtms?"
THUMBNAILS = r"thumbs?|thumbnails?|previews?"
SURELY_LABELS = (
    r"annotations?|segmentations?|panoptic|ground_?truths?|gt_?fine|gt_?coarse|trimaps?|label_?maps?|seg_?maps?|parsing"
    r"|segmentation_?(?:class|object)(?:_?(?:aug|raw))?|(?:train|test|val|default)annot|stuffthingmaps?|(?:label|instance)_?(?:train_?)?ids?"
)
LABELS = r"labels?|labell?ed|masks?|annots?|annos?|anns?|gts?|segs?|segms?|semantics?|instances?|mattes?|alphas?|parts?"
HINTS = (
    (DEPTH, Hint("depth maps")),
    (THUMBNAILS, Hint("thumbnails")),
    (SURELY_LABELS, Hint("label maps", sure=True)),
    (LABELS, Hint("label maps")),
)

_WORDS = "|".join(pattern for pattern, _ in HINTS)

#: Where a file's name may have them: at its end behind a separator ("001_mask", "001-150x150"), or at its beginning
#: ("mask_001").
AT_THE_END = re.compile(rf"(?i)[._ -]({_WORDS}|colou?r|L|\d+x\d+)(?:[._ -]?\d{{1,3}})?$".encode())
AT_THE_BEGINNING = re.compile(rf"(?i)({_WORDS})[._ -]".encode())
NAMED_SIZE = re.compile(rb"[._ -](\d{1,6})x(\d{1,6})$")

#: A first, fast look at a million names: the two letters such words begin with, and the places where one may stand.
_BEGINNINGS = frozenset(run[:2] for run in re.findall(r"[a-z]{2,}", _WORDS))
_SOMEWHERE = re.compile(
    rf"(?i)[._ -](?:(?:{'|'.join(sorted(_BEGINNINGS))})[a-z_]*|colou?r|L|\d+x\d+)(?:[._ -]?\d{{1,3}})?\.[a-z]".encode()
)


def bases(stem: bytes) -> Iterator[bytes]:
    """The name with fewer and fewer hints: "a_gtFine_labelIds", "a_gtFine", "a"."""
    yield stem
    if begun := AT_THE_BEGINNING.match(stem):
        yield stem[begun.end() :]
    while (ended := AT_THE_END.search(stem)) and ended.start() > 0:
        stem = stem[: ended.start()]
        yield stem


@functools.cache
def hint_of(name: bytes) -> Hint | None:
    """What the name of a folder, or a word in the name of a file, suggests."""
    words = "_".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", os.fsdecode(name))).lower()
    return next((hint for pattern, hint in HINTS if re.search(rf"(?:^|_)(?:{pattern})(?:_|$)", words)), None)


def hinted(paths: PathIndex, folders: dict[int, tuple[bytes, ...]]) -> list[Kind]:
    """All images that have a hint in the name of a folder above them, or else in their own, grouped by the hint.

    Args:
        paths: the images.
        folders: the parts of each folder's path below the root, by its number. Folders without images may be missing.
    """
    kinds: dict[tuple[str, int | None], Kind] = {}
    plain = np.ones(len(paths), bool)
    for folder, parts in folders.items():
        found = [(level, hint) for level, part in enumerate(parts) if (hint := hint_of(part))]
        if found:
            # The innermost folder counts: one around it may carry the data set's name. But "depth/annotated" is depth.
            level, hint = next((each for each in reversed(found) if each[1].what != "label maps"), found[-1])
            name = f"{os.fsdecode(parts[level])}/"
            images = paths.images_of(folder)
            kinds.setdefault((name, level), Kind(name, hint, [], level)).images.extend(images)
            plain[images.start : images.stop] = False
    for index in _with_a_hint(paths):
        stem = os.path.splitext(paths.names.get(index))[0]
        ended, begun = AT_THE_END.search(stem), AT_THE_BEGINNING.match(stem)
        match = ended if ended and ended.start() > 0 else begun
        if plain[index] and match:
            scaled = match[1][:1].isdigit()
            text = "-NxN" if scaled else os.fsdecode(match[0]).rstrip("0123456789._ -")
            hint = Hint("thumbnails") if scaled else hint_of(match[1]) or Hint("label maps")
            name = f"*{text}" if match is ended else f"{text}*"
            kinds.setdefault((name, None), Kind(name, hint, [], None)).images.append(index)
    return list(kinds.values())


def _with_a_hint(paths: PathIndex) -> list[int]:
    """The images whose names may hold a hint. A million names are searched as one text, which is fast."""
    text, ends = paths.names
    view = text.data
    found = np.searchsorted(ends, [match.start() for match in _SOMEWHERE.finditer(view)], "right").tolist()
    starts = np.concatenate([[0], ends[:-1]])
    pairs = text[starts].astype(int) << 8 | text[np.minimum(starts + 1, len(text) - 1)]
    begun = [int.from_bytes(each.encode()) for word in _BEGINNINGS for each in (word, word.upper(), word.capitalize())]
    likely = np.flatnonzero(np.isin(pairs, begun))
    found += [
        index
        for index, start in zip(likely.tolist(), starts[likely].tolist(), strict=True)
        if AT_THE_BEGINNING.match(view, start)
    ]
    return sorted(set(found))
