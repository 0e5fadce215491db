"""What lies beside photographs and is none: label maps, depth maps, thumbnails.

A name alone decides nothing: "masks" may be a class of carnival photographs. It only says where to look (`hints`). The
decision rests on the pixels (`looks`), and on whether other images, the photographs, have the same names (`tree`).
Images that are surely no photographs are left out. Images that only seem so are kept. The user is told of both.

Everything follows from names and pixels, so it is the same on every machine and in a resumed run. A few images of each
kind of name are opened. Folders without a hint are only looked into if their files are PNG or the like and small.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from densecl.images.companions.hints import Hint, Kind, hinted
from densecl.images.companions.looks import FEW, LOSSLESS
from densecl.images.companions.tree import FOLDERS, SAMPLES, Tree, some
from densecl.images.paths import Found, PathIndex
from densecl.names import shown

#: Photographs that are opened beside the images of a kind.
PHOTOGRAPHS = 4

#: Fraction of images with a partner that makes the two kinds pairs.
PAIRED = 0.9

#: Fraction of flat images at which a kind may be label maps.
MOSTLY = 0.5


class Suspects(NamedTuple):
    """Images that are no photographs, grouped by what their names say."""

    out: list[Kind]  # surely none
    doubtful: list[Kind]  # perhaps none


def suspects(paths: PathIndex, root: Path) -> Suspects:
    """The images below `root` that are no photographs, or seem to be none."""
    tree = Tree(paths, root)
    kinds = [kind for kind in hinted(paths, tree.parts) if _may_be(tree, kind)]
    for kind in kinds:
        tree.suspected[kind.images] = True
    verdicts = [(kind, _verdict(tree, kind)) for kind in kinds]
    out = [kind for kind, verdict in verdicts if verdict == "out"]
    doubtful = [kind for kind, verdict in verdicts if verdict == "doubtful"] + _unnamed(tree)
    return Suspects(out, doubtful)


def set_aside(paths: PathIndex, root: Path) -> Found:
    """The images below `root` without those that are surely no photographs, and what to tell the user."""
    out, doubtful = suspects(paths, root)
    notes = []
    if out:
        chosen = np.ones(len(paths), bool)
        for kind in out:
            chosen[kind.images] = False
        paths = paths.keep(chosen)
        notes.append(f"left out: {told(out)}. To train on these too, give --data a glob or a list of files.")
    if doubtful:
        notes.append(
            f"warning: perhaps no photographs, but trained on: {told(doubtful)}. To leave them out, give --data the"
            " folder of the photographs, a glob or a list of files."
        )
    return Found(paths, tuple(notes))


def told(kinds: Sequence[Kind]) -> str:
    """Such as "24 label maps (SegmentationClass/, SegmentationObject/), 3 thumbnails (*_thumb)"."""
    parts = []
    for what in dict.fromkeys(kind.hint.what for kind in kinds):
        alike = [kind for kind in kinds if kind.hint.what == what]
        names = ", ".join(shown(kind.name, 40) for kind in alike[:6]) + ", ..." * (len(alike) > 6)
        parts.append(f"{sum(len(kind.images) for kind in alike)} {what} ({names})")
    return ", ".join(parts)


def _may_be(tree: Tree, kind: Kind) -> bool:
    """Whether the images look like what their names say."""
    looks = tree.looks(kind)
    if kind.hint.what == "depth maps":
        return bool(looks) and all(look.gray for look in looks)
    return kind.hint.what == "thumbnails" or sum(look.flat for look in looks) >= max(1, MOSTLY * len(looks))


def _verdict(tree: Tree, kind: Kind) -> Literal["out", "doubtful"] | None:
    """Whether images are surely no photographs ("out"), perhaps none ("doubtful"), or as good as any (None)."""
    samples = some(kind.images, SAMPLES)
    partners = [list(itertools.islice(tree.partners(index, kind.level), PHOTOGRAPHS)) for index in samples]
    if kind.hint.what == "thumbnails":
        pairs = [(one, those[0]) for one, those in zip(samples, partners, strict=True) if those]
        all_paired = len(pairs) >= PAIRED * len(samples)
        return "out" if all_paired and all(itertools.starmap(tree.smaller, pairs)) else None
    # Names such as "1" occur in every folder. Images that show the same scene also have the same shape.
    partners = [
        [other for other in those if tree.same_shape(one, other)] for one, those in zip(samples, partners, strict=True)
    ]
    paired = [those for those in partners if those]
    all_paired = len(paired) >= PAIRED * len(samples)
    others = paired[:PHOTOGRAPHS] or [[index] for index in some(np.flatnonzero(~tree.suspected), PHOTOGRAPHS)]
    looks, beside = tree.looks(kind), [[tree.look(index) for index in those] for those in others]
    # A partner that cannot be read here may have more channels. It is no label map, at any rate.
    if kind.hint.what == "depth maps":
        colored = _most(any(look is None or not look.gray for look in those) for those in beside)
        return "out" if colored and (all_paired or all(look.deep for look in looks)) else None
    areas, flat = all(look.areas for look in looks), all(look.flat for look in looks)
    if not _most(any(look is None or not (look.areas if areas else look.flat) for look in those) for those in beside):
        # The photographs are flat, too (drawings, scans, dim images), so flatness says nothing about label maps.
        return "doubtful" if kind.hint.sure and flat and not beside else None
    if not flat:
        return "doubtful" if all_paired else None
    plain = all(look.gray and look.colors <= FEW for look in looks) and not all(look.empty for look in looks)
    return "out" if kind.hint.sure or all_paired or plain else "doubtful"


def _unnamed(tree: Tree) -> list[Kind]:
    """Folders without a hint that hold only flat images, beside photographs: with the same names, or all gray."""
    plain = [folder for folder in tree.parts if not tree.suspected[tree.paths.images_of(folder)[0]]]
    if len(plain) > FOLDERS:
        return []
    found = []
    for folder in plain:
        images = tree.paths.images_of(folder)
        samples = some(images, PHOTOGRAPHS)
        names = [os.path.splitext(tree.paths.names.get(index)) for index in samples]
        if not all(os.fsdecode(ending).lower() in LOSSLESS for _, ending in names):
            continue
        others = [other for other in plain if other != folder]
        by_name = ([tree.find(other, stem) for stem, _ in names] for other in others)
        beside = next((pairs for pairs in by_name if None not in pairs), None)
        named = beside is not None
        if beside is None:
            if not others or not all(tree.packed(index) for index in samples):
                continue
            beside = [tree.paths.images_of(other)[0] for other in some(others, PHOTOGRAPHS)]
        looks = [tree.look(index) for index in samples]
        if (
            all(look and look.flat and look.colors <= FEW and (named or look.gray) for look in looks)
            and not all(look and look.empty for look in looks)
            and _most((look := tree.look(index)) is None or not look.flat for index in beside if index is not None)
        ):
            name = os.fsdecode(b"/".join(tree.parts[folder])) + "/"
            found.append(Kind(name, Hint("label maps"), list(images), None))
    return found


def _most(facts: Iterable[bool]) -> bool:
    listed = list(facts)
    return sum(listed) > len(listed) / 2
