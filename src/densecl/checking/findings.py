"""From what was seen to lines for the user: what should be put right first, and what is good to know. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from densecl.checking.copies import Copies
from densecl.checking.survey import Survey
from densecl.names import counted, listing

#: Fraction of images that are copies, or nearly so, above which they should be thinned out. Each takes the time of an
#: image that would teach more, and in a batch it is a negative that shows the same. A guess.
MANY_COPIES = 0.1

#: Fraction of images of a single color, or tiny ones, above which they should be taken out. A guess.
MANY_USELESS = 0.01

#: Pixels of the shorter side below which an image is tiny.
TINY = 32

#: An image is enlarged to a view that is so many times as large as its shorter side without harm. A guess.
ENLARGED = 2

#: What takes images out, for messages.
BY_LIST = "--usable FILE writes a list without them, for --data"


def problems(survey: Survey, copies: Copies, *, image_size: int, max_bad_images: float, listed: bool) -> Iterator[str]:
    """A line for each thing about the images that should be put right before a run.

    Args:
        survey: of all images.
        copies: among them.
        image_size: side of a view.
        max_bad_images: a run stops when a larger fraction of the images is bad.
        listed: whether a list without the useless images is being written anyway.
    """
    how = "take the list that was written" if listed else BY_LIST
    images = survey.images
    unreadable = images - int(survey.readable.sum())
    if unreadable > max_bad_images * images:
        yield (
            f"{unreadable} of {images} images cannot be read, and a run stops at {100 * max_bad_images:.3g}%. Mend or"
            f" remove them; {how}."
        )
    doubled = copies.exact_count + copies.near_count
    if doubled > MANY_COPIES * images:
        yield (
            f"{doubled} of {images} images are copies of others: {copies.exact_count} with the same pixels,"
            f" {copies.near_count} nearly so. Thin them out; {how}."
        )
    constant, tiny = int(survey.constant.sum()), int(is_tiny(survey).sum())
    if constant > MANY_USELESS * images:
        yield f"{constant} of {images} images have one color alone, from which nothing is learned. Remove them; {how}."
    if tiny > MANY_USELESS * images:
        yield f"{tiny} of {images} images have a side below {TINY} px. Remove them; {how}."
    typical = int(np.median(survey.sides[survey.readable].min(axis=1)))
    if typical >= TINY and typical * ENLARGED < image_size:
        yield (
            f"Most images are much smaller than a view: half of them have a side of {typical} px or less, and a view"
            f" has {image_size}. To enlarge them shows nothing more. Give --image-size {_rounded(typical)}."
        )


def remarks(survey: Survey, copies: Copies, *, channels: int) -> Iterator[str]:
    """A line for each group of facts about the images."""
    if set(survey.kinds) != {""}:  # items of a data set in Python are no files
        yield "files: " + ", ".join(f"{count} {_plain(kind)}" for kind, count in survey.kinds.most_common())
    height, width = survey.sides[survey.readable].T
    sizes = np.unique(survey.sides[survey.readable], axis=0)
    if len(sizes) == 1:
        yield f"size: {width[0]}x{height[0]}"
    else:
        areas = np.argsort(height.astype(np.int64) * width, kind="stable")
        small, middle, large = (f"{width[at]}x{height[at]}" for at in areas[[0, len(areas) // 2, -1]])
        yield f"sizes: from {small} to {large}, half of them up to {middle}"
    readable = int(survey.readable.sum())
    gray, deep = int(survey.gray.sum()), int(survey.deep.sum())
    colors = counted(channels, "channel") if channels != 3 else f"{readable - gray} in color, {gray} gray"
    bits = [f"{count} of {bits} bits" for count, bits in ((readable - deep, 8), (deep, 16)) if count]
    yield f"pixels: {colors}; {listing(bits, 'and')}" + (", which are mixed" if 0 < deep < readable else "")
    few = {
        ("cannot be read", "cannot be read"): survey.images - readable,
        ("has the same pixels as another", "have the same pixels as others"): copies.exact_count,
        ("is nearly the same as another", "are nearly the same as others"): copies.near_count,
        ("has one color alone", "have one color alone"): int(survey.constant.sum()),
        (f"has a side below {TINY} px", f"have a side below {TINY} px"): int(is_tiny(survey).sum()),
    }
    for (one, several), count in few.items():
        if count:
            yield f"{count} {one if count == 1 else several}"


def is_tiny(survey: Survey) -> np.ndarray:
    """Of each image, whether it is readable and tiny."""
    return survey.readable & (survey.sides.min(axis=1) < TINY)


def reasons_to_leave_out(survey: Survey, copies: Copies, name: list[str]) -> list[str | None]:
    """Of each image, why a list should not have it; None: it should.

    Args:
        survey: of all images.
        copies: among them.
        name: of each image, escaped for a table.
    """
    bad = dict(survey.bad)
    tiny = is_tiny(survey)
    why: list[str | None] = []
    for index in range(survey.images):
        reason = None
        if not survey.readable[index]:
            reason = f"cannot be read: {bad.get(index, '')}"
        elif copies.exact[index] != index:
            reason = f"the same as {name[copies.exact[index]]}"
        elif copies.near[index] != index:
            reason = f"nearly the same as {name[copies.near[index]]}"
        elif survey.constant[index]:
            reason = "one color alone"
        elif tiny[index]:
            reason = f"a side below {TINY} px"
        why.append(reason)
    return why


def _plain(kind: str) -> str:
    """Such as "JPEG" for "a JPEG image"."""
    return kind.removeprefix("a ").removeprefix("an ").removesuffix(" image") or "of no known kind"


def _rounded(side: int) -> int:
    """To a multiple of 32, the stride of most networks."""
    return 32 * max(1, round(side / 32))
