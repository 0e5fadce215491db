"""Reading a label map: an eight-bit gray or palette image whose values are the classes of the pixels."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from densecl.errors import UserError
from densecl.evaluation.files import read_bytes
from densecl.images.decode import png
from densecl.names import shown

#: Larger label maps are refused before their pixels are decoded.
MAX_PIXELS = 100_000_000
MAX_BYTES = 256 * 1024**2

#: The extensions of label maps. No other format is read, because most lose labels.
LABEL_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff")

#: The readers of Pillow that may see a label map, whatever its name is.
LABEL_FORMATS = ("PNG", "BMP", "TIFF")

#: The first bytes of formats that change values when they compress.
LOSSY = {b"\xff\xd8": "a JPEG", b"RIFF": "a WebP", b"\0\0\0\x0cjP": "a JPEG 2000"}

#: Pillow takes gray values for brightness, and multiplies those of fewer than eight bits by these numbers.
STORED = {"L": 1, "L;4": 17, "L;2": 85, "1": 1}


def read_label_map(path: Path) -> UInt8[Tensor, "height width"]:
    """The label of each pixel.

    Raises:
        UserError: the file cannot be read as a label map, or its format changes labels.
    """
    name, content = shown(path), read_bytes(path, MAX_BYTES)
    for mark, kind in LOSSY.items():
        if content.startswith(mark):
            raise UserError(f"{name} is {kind}, whose compression changes labels. Store label maps as PNG.")
    try:
        picture = io.BytesIO(content)
        if content.startswith(png.SIGNATURE):  # text and profiles in the file must not change how it is read
            picture = png.without_metadata(picture)
        with warnings.catch_warnings(action="ignore"), Image.open(picture, formats=LABEL_FORMATS) as file:
            if file.mode not in ("L", "P", "1"):
                raise UserError(
                    f"{name}: a label map is an eight-bit image of classes, not {file.mode}. Store the number of each"
                    " pixel's class as an eight-bit gray or palette PNG."
                )
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            layout = file.tile[0].args if file.tile else None
            stored = layout if isinstance(layout, str) else layout[0] if layout else file.mode
            if file.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
                raise UserError(f"{name}: its compression changes labels. Store label maps as PNG.")
            if file.mode != "P" and stored not in STORED:
                raise UserError(f"{name}: its labels are stored in an unusual way ({stored}). Store them as PNG.")
            return torch.from_numpy(np.array(file, dtype=np.uint8) // STORED.get(stored, 1))
    except UserError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} cannot be read as a label map: it is no PNG, BMP or TIFF.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has more than {MAX_PIXELS} pixels, which are too many for a label map.") from error
    except Exception as error:  # decoders raise all kinds of errors for a damaged file
        raise UserError(f"{name} cannot be read as a label map: it is damaged ({shown(error)}).") from error
