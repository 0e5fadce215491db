"""The moments of a run, as its report draws them: colors of cells, matches, and short vectors to compare cells by."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from densecl.reporting.run_files import read_bytes

#: Moments that a page shows, evenly spread over those that the run has kept.
MOST_MOMENTS = 11

#: Bytes that a run's vectors may take on the page, before they are written as text.
VECTOR_BYTES = 1_200_000

#: Numbers of a cell's vector on the page.
FEWEST_DIMS, MOST_DIMS = 8, 32

#: What a file may hold: views, pixels along a side, cells along a side, numbers of a vector. A run writes less.
MOST_VIEWS, MOST_PIXELS, MOST_SIDE, MOST_STORED = 32, 512, 64, 256

#: Bytes of a file.
MOST_BYTES = 32 * 2**20

#: A color's range is this many standard deviations to either side.
RANGE = 2.2


def read_moments(folder: Path, share: int = 1) -> dict[str, Any] | None:
    """What the page needs to draw the moments in this folder; None if it has none.

    Args:
        folder: ``RUN/moments``.
        share: of how many runs on the page.

    Returns:
        Numbers and words alone, with arrays in base64:

        * ``names`` of the images, one for each pair of views; ``grid``: rows and columns; ``dims`` of a vector,
        * ``wholes``: of each pair its image, reduced, as a data URI (``picture``), and its true ``width`` and
          ``height``; or null, if the run has not kept it,
        * ``views``: of each view, query views first, ``before`` and ``after`` as data URIs, ``box`` and ``flipped``,
        * ``moments``: of each its ``step``, ``colors`` (uint8 "views cells 3"), ``vectors`` (int8 "views cells dims"),
          ``match`` (uint16 "pairs cells": the key cell that is most like a query cell), ``hit`` (uint8 "pairs cells":
          0 another place, 1 the same place, 2 the key view does not show it), and ``accuracy`` and ``chance`` on these
          pairs, from 0 to 1, or null.
    """
    views = _read(folder / "views.safetensors")
    if views is None or not _views_are_right(views[0]):
        return None
    tensors, said = views
    found = []
    for path in sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit()):
        moment = _read(path)
        if moment is not None and _moment_is_right(moment[0], len(tensors["box"])):
            if found and moment[0]["vectors"].shape[2:] != found[0][1]["vectors"].shape[2:]:
                continue
            found.append((int(path.stem), moment[0]))
    if not found:
        return None
    if len(found) > MOST_MOMENTS:
        places = {round(number * (len(found) - 1) / (MOST_MOMENTS - 1)) for number in range(MOST_MOMENTS)}
        found = [found[place] for place in sorted(places)]
    rows, cols = found[0][1]["vectors"].shape[2:]
    vectors = [_unit(moment["vectors"]) for _, moment in found]
    fitting = VECTOR_BYTES // (share * len(found) * vectors[0].shape[0] * rows * cols)
    dims = min(max(FEWEST_DIMS, min(MOST_DIMS, fitting)), *(each.shape[2] for each in vectors))
    right = same_places(tensors["box"], tensors["flipped"], rows, cols)
    before, after = (_pictures(tensors[name]) for name in ("before", "after"))
    drawn = [
        {
            "step": step,
            **_judged(moment["match"], right),
            "colors": _text(color),
            "vectors": _text(_as_bytes(vector[:, :, :dims])),
            "match": _text(moment["match"].astype("<u2")),
        }
        for (step, moment), color, vector in zip(found, colors(vectors), vectors, strict=True)
    ]
    return {
        "names": _names(said, len(tensors["box"]) // 2),
        "grid": [rows, cols],
        "dims": dims,
        "wholes": [_whole(tensors, pair) for pair in range(len(tensors["box"]) // 2)],
        "views": [
            {"before": before[view], "after": after[view], "box": box.tolist(), "flipped": bool(flipped)}
            for view, (box, flipped) in enumerate(zip(tensors["box"], tensors["flipped"], strict=True))
        ],
        "moments": drawn,
    }


# --- reading ------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]] | None:
    import safetensors
    import safetensors.numpy

    content = read_bytes(path, MOST_BYTES)
    if content is None:
        return None
    try:
        tensors = safetensors.numpy.load(content)
        said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return tensors, said if isinstance(said, dict) else {}


def _views_are_right(tensors: Mapping[str, np.ndarray]) -> bool:
    if not {"before", "after", "box", "flipped"} <= tensors.keys():
        return False
    box = tensors["box"]
    views = len(box) if box.ndim else 0
    if not (2 <= views <= MOST_VIEWS and views % 2 == 0 and box.shape == (views, 4) and box.dtype == np.float32):
        return False
    return bool(
        np.isfinite(box).all()
        and (box[:, 2:] > box[:, :2]).all()
        and tensors["flipped"].shape == (views,)
        and all(
            pixels.dtype == np.uint8
            and pixels.ndim == 4
            and len(pixels) == views
            and pixels.shape[1] in (1, 3)
            and min(pixels.shape[2:]) >= 1
            and max(pixels.shape[2:]) <= MOST_PIXELS
            for pixels in (tensors["before"], tensors["after"])
        )
    )


def _moment_is_right(tensors: Mapping[str, np.ndarray], views: int) -> bool:
    if not {"vectors", "match"} <= tensors.keys():
        return False
    vectors, match = tensors["vectors"], tensors["match"]
    if vectors.dtype != np.float16 or vectors.ndim != 4 or len(vectors) != views:
        return False
    _, dims, rows, cols = vectors.shape
    return bool(
        1 <= dims <= MOST_STORED
        and min(rows, cols) >= 1
        and max(rows, cols) <= MOST_SIDE
        and np.isfinite(vectors).all()
        and match.dtype == np.int16
        and match.shape == (views // 2, rows * cols)
        and (match >= 0).all()
        and (match < rows * cols).all()
    )


def _names(said: Mapping[str, str], pairs: int) -> list[str]:
    try:
        names = json.loads(said.get("names", "[]"))
    except (ValueError, RecursionError, TypeError):
        names = []
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [*names[:pairs], *[""] * (pairs - len(names))]


def _whole(tensors: Mapping[str, np.ndarray], pair: int) -> dict[str, Any] | None:
    """The image that the views of a pair come from; None if it is not there, or the views do not lie in it."""
    picture, sides = tensors.get(f"whole_{pair}"), tensors.get(f"sides_{pair}")
    if picture is None or sides is None or picture.dtype != np.uint8 or picture.ndim != 3:
        return None
    if picture.shape[0] not in (1, 3) or min(picture.shape[1:]) < 1 or max(picture.shape[1:]) > MOST_PIXELS:
        return None
    if sides.dtype != np.float32 or sides.shape != (2,) or not np.isfinite(sides).all():
        return None
    height, width = (int(side) for side in sides)
    boxes = tensors["box"][[pair, pair + len(tensors["box"]) // 2]]
    if boxes.min() < -1 or (boxes[:, 2] > width + 1).any() or (boxes[:, 3] > height + 1).any():  # of another image
        return None
    return {"picture": _pictures(picture[None])[0], "width": width, "height": height}


# --- what is drawn ------------------------------------------------------------------------------------------------


def _unit(stored: Float[np.ndarray, "views dims rows cols"]) -> Float[np.ndarray, "views cells dims"]:
    vectors = stored.astype(np.float32).reshape(*stored.shape[:2], -1).swapaxes(1, 2)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-6)


def colors(moments: Sequence[Float[np.ndarray, "views cells _"]]) -> list[UInt8[np.ndarray, "views cells 3"]]:
    """The three strongest directions of all cells as red, green and blue, at each moment.

    Each moment has its own directions, because its features are others. So that the colors of a cell do not jump, they
    are turned to agree with those of the next moment as well as possible (orthogonal Procrustes), from the last one
    back: the same cells are seen at all moments.
    """
    drawn: list[UInt8[np.ndarray, "views cells 3"]] = []
    after = None
    for vectors in reversed(moments):
        views, cells, _ = vectors.shape
        flat = vectors.reshape(views * cells, -1)
        centered = flat - flat.mean(axis=0)
        left, size, _ = np.linalg.svd(centered, full_matrices=False)
        scores = np.zeros((len(flat), 3), np.float32)
        kept = min(3, int((size > 1e-4 * max(size[0], 1e-12)).sum()))
        scores[:, :kept] = left[:, :kept] * np.sqrt(len(flat))  # each of variance 1
        if after is not None:
            u, _, v = np.linalg.svd(scores.T @ after)
            scores = scores @ (u @ v)
        else:  # the strongest direction from dark to bright in the order of the views, so that it has a sign
            scores = scores * np.where((scores * np.linspace(-1, 1, len(scores))[:, None]).sum(axis=0) < 0, -1, 1)
        after = scores
        bright = np.clip(scores / RANGE, -1, 1) * 0.5 + 0.5
        drawn.append((255 * bright).round().astype(np.uint8).reshape(views, cells, 3))
    return drawn[::-1]


def _as_bytes(vectors: Float[np.ndarray, "views cells dims"]) -> np.ndarray:
    """L2-normalized vectors, shortened, in whole numbers from -127 to 127. The page normalizes them again."""
    largest = np.abs(vectors).max(axis=2, keepdims=True)
    return (127 * vectors / np.maximum(largest, 1e-6)).round().astype(np.int8)


def same_places(box: np.ndarray, flipped: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Whether a key cell shows the same place as a query cell, "pairs cells cells": `correspondence`'s rule."""
    import torch

    from densecl.views import Views, cell_distances

    pairs = len(box) // 2
    boxes, turned = torch.from_numpy(box.copy()), torch.from_numpy(flipped != 0)
    nothing = torch.zeros(pairs, 1, 1, 1)
    query, key = (Views(nothing, boxes[part], turned[part]) for part in (slice(pairs), slice(pairs, None)))
    return (cell_distances(query, key, rows, cols) <= RADIUS).numpy()


#: As in `correspondence`, in diagonals of the larger cell.
RADIUS = 0.7


def _judged(match: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    judged = right.any(axis=2)
    hit = np.take_along_axis(right, match[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    known = int(judged.sum())
    return {
        "hit": _text(np.where(judged, hit, 2).astype(np.uint8)),
        "accuracy": float(hit.sum() / known) if known else None,
        "chance": float(right.mean(axis=2).sum() / known) if known else None,
    }


def _pictures(pixels: UInt8[np.ndarray, "views channels height width"]) -> list[str]:
    """JPEGs as data URIs."""
    from PIL import Image

    written = []
    for view in pixels:
        file = io.BytesIO()
        picture = Image.fromarray(view[0] if len(view) == 1 else np.ascontiguousarray(view.transpose(1, 2, 0)))
        picture.save(file, format="JPEG", quality=82)
        written.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return written


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
