"""Images that are the same, or nearly: by a hash of their pixels, and by a difference hash."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from jaxtyping import Int64, UInt64

from densecl.checking.survey import Survey

#: Bits of 64 in which the hashes of two images may differ that count as nearly the same. Of 1,500 photographs of
#: buildings no two unlike ones came so near (at 6 bits, 8 pairs did), while 92 of 100 stayed so near to themselves when
#: saved as a JPEG of quality 50, 99 at half their size, and 64 when a fiftieth was cut off.
NEAR = 3

#: Parts that a hash is cut into. If at most `NEAR` bits differ, one part is the same, so only such images are compared.
PARTS = NEAR + 1
_BITS = 64 // PARTS

#: Kept images that share a part of their hash, beyond which no more are noted there. Hashes of nearly empty pictures
#: crowd into a few parts; to compare all of them would take hours, and other parts tell them apart.
CROWD = 1000


class Copies:
    """Which images are copies of earlier ones.

    Attributes:
        exact: of each image, the first with the same pixels; itself, if there is none before. Images that cannot be
            read are their own.
        near: the same for images that are nearly the same, among those that are no exact copies.
    """

    def __init__(self, survey: Survey) -> None:
        self.exact = _first_of_each(survey)
        own = np.arange(survey.images)
        # A picture of one color has no look.
        compared = survey.readable & ~survey.constant & (self.exact == own)
        self.near = near_copies(survey.look, np.flatnonzero(compared))

    @property
    def exact_count(self) -> int:
        return int((self.exact != np.arange(len(self.exact))).sum())

    @property
    def near_count(self) -> int:
        return int((self.near != np.arange(len(self.near))).sum())


def _first_of_each(survey: Survey) -> Int64[np.ndarray, "images"]:
    leader = np.arange(survey.images)
    readable = np.flatnonzero(survey.readable)
    packed = np.ascontiguousarray(survey.digest[readable]).view(f"V{survey.digest.shape[1]}").ravel()
    _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    leader[readable] = readable[first[inverse]]
    return leader


def near_copies(look: UInt64[np.ndarray, "images"], compared: Int64[np.ndarray, "rest"]) -> Int64[np.ndarray, "images"]:
    """For each image the first kept one whose hash differs in at most `NEAR` bits; itself, if there is none.

    Args:
        look: the hash of each image.
        compared: the images that take part, in order.
    """
    leader = np.arange(len(look))
    kept: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in range(PARTS)]
    for image in compared.tolist():
        value = int(look[image])
        parts = [value >> (_BITS * part) & (1 << _BITS) - 1 for part in range(PARTS)]
        found = min(
            (
                other
                for table, part in zip(kept, parts, strict=True)
                for other in table.get(part, ())
                if (int(look[other]) ^ value).bit_count() <= NEAR
            ),
            default=None,
        )
        if found is not None:
            leader[image] = found
            continue
        for table, part in zip(kept, parts, strict=True):
            if len(table[part]) < CROWD:
                table[part].append(image)
    return leader
