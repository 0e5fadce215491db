"""What lies beside photographs and is none: label maps, depth maps, thumbnails.

A name alone decides nothing: "masks" may be a class of carnival photographs. It only says where to look. Whether these
are label maps, their pixels say, and whether they have the names of other images, which are photographs. What is surely
no photograph is left out, what only seems so is named, and both are told.

All of it follows from names and pixels, so it is the same on every machine and in a resumed run. Of each kind of name a
few images are opened; where no name gives a hint, of each folder of PNG and the like only those that hold little.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from densecl.images.decode import BadImage, NoBrightness, decode, measure
from densecl.images.paths import Found, PathIndex, absolute
from densecl.names import shown

#: Images of a kind that are opened, and photographs beside them.
SAMPLES, PHOTOGRAPHS = 12, 4

#: Sides of the part in the middle of an image that is looked at, and pixels beyond which an image is not opened.
WINDOW, MAX_PIXELS = 512, 50_000_000

#: The share of neighboring pixels, but for those of the background, that are equal in a label map: in those of
#: CamVid, of nuclei and of aerial images 0.85 to 0.98, where only borders are drawn 0.64 to 0.81; in photographs, those
#: of a microscope too, at most 0.4.
FLAT = 0.6

#: The share of pixels near black or white in a mask that was stored as JPEG, which blurs its edges.
ALMOST_ALL = 0.95

#: Few colors, and so few that thin lines in them pass for a label map too.
FEW, VERY_FEW = 64, 16

#: The share of images with a partner that makes them pairs, and of flat images that makes a user wonder.
PAIRED, MOSTLY = 0.9, 0.5

#: How far two images of one scene, scaled, may differ in the relation of their sides.
SAME_SHAPE = 0.02

#: Bytes a pixel of a compressed photograph are more.
PACKED = 0.25

#: The range of values below which a JPEG, which rounds them, is dim and not flat.
DIM = 32 / 255

#: Folders among which equal names are looked for without a hint, and the formats in which labels survive.
FOLDERS = 64
LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".npy", ".webp")


class Hint(NamedTuple):
    """What a name says."""

    what: Literal["label maps", "depth maps", "thumbnails"]
    sure: bool = False  # hardly used for anything else


class Kind(NamedTuple):
    """Images whose names give the same hint."""

    name: str  # as it is told: "masks/" or "*_mask"
    hint: Hint
    images: list[int]
    level: int | None  # where in the folder's path the hint stands; None: in the file's name


class Look(NamedTuple):
    """What the middle of an image looks like."""

    areas: bool  # of equal pixels, or nothing at all
    flat: bool  # that, or too few colors for a photograph
    empty: bool  # all pixels are equal
    gray: bool
    deep: bool  # sixteen bits, or measured values
    colors: int


#: Words that say what a folder or a file may be.
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

#: The same at the end of a file's name behind a separator, "001_mask", "001-150x150", or at its beginning, "mask_001".
_WORDS = "|".join(pattern for pattern, _ in HINTS)
_AT_THE_END = re.compile(rf"(?i)[._ -]({_WORDS}|colou?r|L|\d+x\d+)(?:[._ -]?\d{{1,3}})?$".encode())
_AT_THE_BEGINNING = re.compile(rf"(?i)({_WORDS})[._ -]".encode())
_NAMED_SIZE = re.compile(rb"[._ -](\d{1,6})x(\d{1,6})$")
#: For a first look at a million names: how such words begin, and where a name may hold one.
_BEGINNINGS = frozenset(run[:2] for run in re.findall(r"[a-z]{2,}", _WORDS))
_SOMEWHERE = re.compile(
    rf"(?i)[._ -](?:(?:{'|'.join(sorted(_BEGINNINGS))})[a-z_]*|colou?r|L|\d+x\d+)(?:[._ -]?\d{{1,3}})?\.[a-z]".encode()
)


def set_aside(paths: PathIndex, root: Path) -> Found:
    """The images below `root` without those that are surely no photographs, and what to tell of it."""
    tree = _Tree(paths, root)
    kinds = [kind for kind in _hinted(tree) if _may_be(tree, kind)]
    for kind in kinds:
        tree.suspected[kind.images] = True
    verdicts = [(kind, _verdict(tree, kind)) for kind in kinds]
    out = [kind for kind, verdict in verdicts if verdict == "out"]
    doubtful = [kind for kind, verdict in verdicts if verdict == "doubtful"] + _unnamed(tree)
    notes = []
    if out:
        chosen = np.ones(len(paths), bool)
        for kind in out:
            chosen[kind.images] = False
        paths = paths.keep(chosen)
        notes.append(f"left out: {_told(out)}. To train on these too, give --data a glob or a list of files.")
    if doubtful:
        notes.append(
            f"warning: perhaps no photographs, but trained on: {_told(doubtful)}. To leave them out, give --data the"
            " folder of the photographs, a glob or a list of files."
        )
    return Found(paths, tuple(notes))


def _told(kinds: Sequence[Kind]) -> str:
    """Such as "24 label maps (SegmentationClass/, SegmentationObject/), 3 thumbnails (*_thumb)"."""
    parts = []
    for what in dict.fromkeys(kind.hint.what for kind in kinds):
        alike = [kind for kind in kinds if kind.hint.what == what]
        names = ", ".join(shown(kind.name, 40) for kind in alike[:6]) + ", ..." * (len(alike) > 6)
        parts.append(f"{sum(len(kind.images) for kind in alike)} {what} ({names})")
    return ", ".join(parts)


# --- names --------------------------------------------------------------------------------------------------------


class _Tree:
    """The images of a folder, by their folders and names."""

    def __init__(self, paths: PathIndex, root: Path) -> None:
        self.paths = paths
        self.suspected = np.zeros(len(paths), bool)  # of a kind that may be no photograph
        self._looks: dict[int, Look | None] = {}
        base = len(os.path.join(absolute(root), b""))
        folders = [index for index, count in enumerate(paths.counts.tolist()) if count]
        self.parts = {folder: tuple(filter(None, paths.folders.get(folder)[base:].split(b"/"))) for folder in folders}
        self._folder_at = {parts: folder for folder, parts in self.parts.items()}
        self._below: dict[tuple[bytes, ...], set[bytes]] = defaultdict(set)
        for parts in self.parts.values():
            for level, part in enumerate(parts):
                self._below[parts[:level]].add(part)

    def look(self, index: int) -> Look | None:
        """What the image looks like; None if it cannot be read."""
        if index not in self._looks:
            self._looks[index] = _look(self.paths[index])
        return self._looks[index]

    def looks(self, kind: Kind) -> list[Look]:
        """Of some images of a kind, those that can be read."""
        return [look for index in _some(kind.images, SAMPLES) if (look := self.look(index))]

    @functools.cache  # noqa: B019 (as long as the tree)
    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width of the image; None if it cannot be read."""
        try:
            return measure(self.paths[index], 3)
        except BadImage:
            return None

    def same_shape(self, one: int, other: int) -> bool:
        """Whether two images may show the same, at any scale and turned or not. They may, too, if nobody can tell."""
        sizes = self.size(one), self.size(other)
        if None in sizes:
            return True
        first, second = (max(size) / max(1, min(size)) for size in sizes if size)
        return abs(first / second - 1) <= SAME_SHAPE

    def smaller(self, one: int, other: int) -> bool:
        """Whether an image is a small copy of another: half of it, or of the size that its name says."""
        size, whole = self.size(one), self.size(other)
        if size is None or whole is None:
            return False
        share = math.prod(size) / math.prod(whole)
        named = _NAMED_SIZE.search(os.path.splitext(self.paths.names.get(one))[0])
        return share < 1 and size == (int(named[2]), int(named[1])) if named else share <= 0.5

    def packed(self, index: int) -> bool:
        """Whether the file is too small for a photograph that was stored without loss."""
        size = self.size(index)
        with contextlib.suppress(OSError):
            return size is not None and os.stat(self.paths[index]).st_size < PACKED * math.prod(size)
        return False

    def partners(self, index: int, level: int | None) -> Iterator[int]:
        """Images that have the same name, but for its hint, the likeliest first, one of a folder."""
        stem = os.path.splitext(self.paths.names.get(index))[0]
        parts = self.parts[self.paths.folder_of(index)]
        bases = list(_bases(stem))
        for folder in self._expected(parts, level):
            found = next((found for base in bases if (found := self.find(folder, base)) is not None), None)
            if found is not None:
                yield found

    def _expected(self, parts: tuple[bytes, ...], level: int | None) -> Iterator[int]:
        """The folders in which the photographs of a folder's label maps may lie."""
        if level is None:
            yield self._folder_at[parts]
            level = max(0, len(parts) - 1)
        above, below = parts[:level], parts[level + 1 :]
        beside = sorted(self._below[above] - {*parts[level : level + 1]})
        places = [above + below, above]
        places += [(*above, other, *rest) for other in beside for rest in (below, (), below[-1:])]
        likely = [self._folder_at[place] for place in dict.fromkeys(places) if place in self._folder_at]
        yield from likely
        if len(self.parts) <= FOLDERS:
            yield from (folder for folder in self.parts if folder not in likely)

    def find(self, folder: int, base: bytes) -> int | None:
        """The first image in a folder, not suspected, whose name is `base`, or `base` and more behind a separator."""
        images = self.paths.images_of(folder)
        low, high = images.start, images.stop
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.paths.names.get(middle) < base else (low, middle)
        for index in range(low, min(low + 20, images.stop)):
            name = self.paths.names.get(index)
            if not name.startswith(base):
                break
            if name[len(base) : len(base) + 1] in (b".", b"_", b"-", b" ") and not self.suspected[index]:
                return index
        return None


def _bases(stem: bytes) -> Iterator[bytes]:
    """The name without its hints: "a_gtFine_labelIds", "a_gtFine", "a"."""
    yield stem
    if begun := _AT_THE_BEGINNING.match(stem):
        yield stem[begun.end() :]
    while (ended := _AT_THE_END.search(stem)) and ended.start() > 0:
        stem = stem[: ended.start()]
        yield stem


@functools.cache
def _hint(name: bytes) -> Hint | None:
    """What a folder of this name, or a file with this word in its name, may be."""
    words = "_".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", os.fsdecode(name))).lower()
    return next((hint for pattern, hint in HINTS if re.search(rf"(?:^|_)(?:{pattern})(?:_|$)", words)), None)


def _hinted(tree: _Tree) -> list[Kind]:
    """All images whose names, or else those of their folders, give a hint, by the hint."""
    kinds: dict[tuple[str, int | None], Kind] = {}
    plain = np.ones(len(tree.paths), bool)
    for folder, parts in tree.parts.items():
        found = [(level, hint) for level, part in enumerate(parts) if (hint := _hint(part))]
        if found:
            # The innermost: what is around it may be the name of the whole data set. But "depth/annotated" is depth.
            level, hint = next((each for each in reversed(found) if each[1].what != "label maps"), found[-1])
            name = f"{os.fsdecode(parts[level])}/"
            images = tree.paths.images_of(folder)
            kinds.setdefault((name, level), Kind(name, hint, [], level)).images.extend(images)
            plain[images.start : images.stop] = False
    for index in _with_a_hint(tree.paths):
        stem = os.path.splitext(tree.paths.names.get(index))[0]
        ended, begun = _AT_THE_END.search(stem), _AT_THE_BEGINNING.match(stem)
        match = ended if ended and ended.start() > 0 else begun
        if plain[index] and match:
            scaled = match[1][:1].isdigit()
            text = "-NxN" if scaled else os.fsdecode(match[0]).rstrip("0123456789._ -")
            hint = Hint("thumbnails") if scaled else _hint(match[1]) or Hint("label maps")
            name = f"*{text}" if match is ended else f"{text}*"
            kinds.setdefault((name, None), Kind(name, hint, [], None)).images.append(index)
    return list(kinds.values())


def _with_a_hint(paths: PathIndex) -> list[int]:
    """Numbers of the names that may hold a hint, found without taking a million of them apart."""
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
        if _AT_THE_BEGINNING.match(view, start)
    ]
    return sorted(set(found))


# --- pixels -------------------------------------------------------------------------------------------------------


def _may_be(tree: _Tree, kind: Kind) -> bool:
    """Whether the images look like what their names say."""
    looks = tree.looks(kind)
    if kind.hint.what == "depth maps":
        return bool(looks) and all(look.gray for look in looks)
    return kind.hint.what == "thumbnails" or sum(look.flat for look in looks) >= max(1, MOSTLY * len(looks))


def _verdict(tree: _Tree, kind: Kind) -> Literal["out", "doubtful"] | None:
    samples = _some(kind.images, SAMPLES)
    partners = [list(itertools.islice(tree.partners(index, kind.level), PHOTOGRAPHS)) for index in samples]
    if kind.hint.what == "thumbnails":
        pairs = [(one, those[0]) for one, those in zip(samples, partners, strict=True) if those]
        all_paired = len(pairs) >= PAIRED * len(samples)
        return "out" if all_paired and all(itertools.starmap(tree.smaller, pairs)) else None
    # Numbers from 1 are names in every folder. What shows the same has the same shape, too.
    partners = [
        [other for other in those if tree.same_shape(one, other)] for one, those in zip(samples, partners, strict=True)
    ]
    paired = [those for those in partners if those]
    all_paired = len(paired) >= PAIRED * len(samples)
    others = paired[:PHOTOGRAPHS] or [[index] for index in _some(np.flatnonzero(~tree.suspected), PHOTOGRAPHS)]
    looks, beside = tree.looks(kind), [[tree.look(index) for index in those] for those in others]
    # An image beside them that cannot be read here may have more channels: no label map, at any rate.
    if kind.hint.what == "depth maps":
        colored = _most(any(look is None or not look.gray for look in those) for those in beside)
        return "out" if colored and (all_paired or all(look.deep for look in looks)) else None
    areas, flat = all(look.areas for look in looks), all(look.flat for look in looks)
    if not _most(any(look is None or not (look.areas if areas else look.flat) for look in those) for those in beside):
        # Drawings, scans, dim images: what is flat here is no label map for it.
        return "doubtful" if kind.hint.sure and flat and not beside else None
    if not flat:
        return "doubtful" if all_paired else None
    plain = all(look.gray and look.colors <= FEW for look in looks) and not all(look.empty for look in looks)
    return "out" if kind.hint.sure or all_paired or plain else "doubtful"


def _unnamed(tree: _Tree) -> list[Kind]:
    """Folders without a hint that hold flat images only, beside photographs: under the names of these, or all gray."""
    plain = [folder for folder in tree.parts if not tree.suspected[tree.paths.images_of(folder)[0]]]
    if len(plain) > FOLDERS:
        return []
    found = []
    for folder in plain:
        images = tree.paths.images_of(folder)
        samples = _some(images, PHOTOGRAPHS)
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
            beside = [tree.paths.images_of(other)[0] for other in _some(others, PHOTOGRAPHS)]
        looks = [tree.look(index) for index in samples]
        if (
            all(look and look.flat and look.colors <= FEW and (named or look.gray) for look in looks)
            and not all(look and look.empty for look in looks)
            and _most((look := tree.look(index)) is None or not look.flat for index in beside if index is not None)
        ):
            name = os.fsdecode(b"/".join(tree.parts[folder])) + "/"
            found.append(Kind(name, Hint("label maps"), list(images), None))
    return found


def _some(images: Sequence[int] | np.ndarray, count: int) -> list[int]:
    places = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    return [int(images[place]) for place in places]


def _most(facts: Iterable[bool]) -> bool:
    listed = list(facts)
    return sum(listed) > len(listed) / 2


def _look(path: str) -> Look | None:
    """None: it cannot be read."""
    try:
        pixels = decode(path, 3, max_pixels=MAX_PIXELS)
    except NoBrightness:
        return Look(areas=False, flat=False, empty=False, gray=True, deep=True, colors=WINDOW**2)
    except BadImage:
        return None
    top, left = (max(0, (side - WINDOW) // 2) for side in pixels.shape[1:])
    red, green, blue = pixels[:, top : top + WINDOW, left : left + WINDOW].numpy().astype(np.int64)
    values = (red << 32) + (green << 16) + blue
    colors, counts = np.unique(values, return_counts=True)
    background = colors[counts.argmax()]
    across, down = values[:, 1:] == values[:, :-1], values[1:] == values[:-1]
    inside = max(
        equal[part].mean() if (part := ahead != background).any() else 1.0
        for equal, ahead in ((across, values[:, 1:]), (down, values[1:]))
    )
    few = len(colors) <= VERY_FEW and across.mean() > FLAT
    gray = bool((red == green).all() and (green == blue).all())
    white = 65535 if pixels.element_size() == 2 else 255
    bright, dark = (red > white * 15 / 16).mean(), (red < white / 16).mean()
    mask = gray and bright > 0 and dark > 0 and bright + dark > ALMOST_ALL and bright > FLAT * (1 - dark)
    dim = not path.lower().endswith(LOSSLESS) and np.ptp(pixels.numpy()) < DIM * white and len(colors) > 1
    return Look(
        areas=bool(inside >= FLAT and not dim),
        flat=bool((inside >= FLAT or few or mask) and not dim),
        empty=len(colors) == 1,
        gray=gray,
        deep=pixels.element_size() == 2,
        colors=len(colors),
    )
