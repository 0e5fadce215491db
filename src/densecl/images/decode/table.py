"""The image formats that are read, a row each."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple, Protocol

from torch import Tensor

from densecl.images.decode import bmp, heif, jpeg, npy, png, pnm, tiff, webp
from densecl.images.decode.canvas import Wanted


class Reader(Protocol):
    """What the file of a format offers. Both functions find the stream at its first byte."""

    def read(self, file: BinaryIO, wanted: Wanted) -> Tensor:
        """The pixels. Raises `BadImage`, or whatever its decoder raises."""
        ...

    def measure(self, file: BinaryIO, channels: int) -> tuple[int, int, int]:
        """Height and width as stored, and EXIF's orientation, from the header alone.

        In some formats they depend on how many channels are wanted. Raises like `read`.
        """
        ...


class Format(NamedTuple):
    """A row of the table."""

    name: str  # for messages
    marks: tuple[bytes, ...]  # a file is of this format if one of these stands ...
    reader: Reader
    extensions: tuple[str, ...]  # in lower case; only those that this installation can read
    kinds: tuple[str, ...] = ()  # what `formats.kind_of` calls such files, if it knows them
    place: int = 0  # ... at this byte
    in_parts: bool = False  # whether it reads a region without the rest, so that files may be of any size


#: The first row that fits a file reads it.
FORMATS = (
    Format("JPEG", (b"\xff\xd8",), jpeg, (".jpg", ".jpeg", ".jpe", ".jfif"), ("a JPEG image",)),
    Format("PNG", (png.SIGNATURE,), png, (".png",), ("a PNG image",)),
    Format("WebP", (b"WEBP",), webp, (".webp",), ("a WebP image",), place=8),
    Format("BMP", (b"BM",), bmp, (".bmp",), ("a BMP image",)),
    Format("TIFF", tiff.SIGNATURES, tiff, (".tif", ".tiff"), ("a TIFF image",), in_parts=True),
    Format("PPM", pnm.SIGNATURES, pnm, (".ppm", ".pgm", ".pbm", ".pnm"), ("a PPM, PGM or PBM image",)),
    Format("AVIF, HEIC", (b"ftyp",), heif, heif.EXTENSIONS, heif.KINDS, place=4),
    Format(".npy", (b"\x93NUMPY",), npy, (".npy",), ("a NumPy array",), in_parts=True),
)

#: Extensions of image files, in lower case: all that this installation reads.
EXTENSIONS = tuple(extension for format in FORMATS for extension in format.extensions)

#: Kinds of files, as `formats.kind_of` names them, that this installation reads.
KINDS = tuple(kind for format in FORMATS for kind in format.kinds)

#: Extensions that another installation would read, and what it takes.
EXTENSIONS_OF_EXTRAS = heif.MISSING
