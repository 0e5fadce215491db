"""What a file is: by its extension, for pictures that are not read; and by its first bytes, for any file."""

from __future__ import annotations

import os
import re
import stat

#: Extensions of pictures that are not read. A user whose photographs these are must hear of it.
PICTURES = {
    "pictures": ".heic .heif .hif .gif .apng .jp2 .j2k .j2c .jpf .jpx .jxl .jxr .psd .psb .tga .dds .exr .hdr .pcx"
    " .xcf",
    "undeveloped pictures of cameras": ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .3fr .iiq .x3f"
    " .srw .rwl .mrw .kdc .dcr .erf",
    "those of microscopes, scanners, satellites": ".dcm .dicom .nii .nii.gz .mha .mhd .nrrd .fits .fit .fts .czi .lif"
    " .nd2 .oib .oif .vsi .svs .ndpi .mrxs .scn .bif .ecw .sid",
    "films": ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .3gp .mts .m2ts .ogv",
    "archives, which may hold some": ".zip .tar .tar.gz .tgz .7z .rar",
}

#: What a file is -> how its content begins, as a regular expression. The first that fits counts.
MARKS = {
    "a JPEG image": rb"\xff\xd8\xff",
    "a PNG image": rb"\x89PNG\r\n",
    "a BMP image": rb"BM.{4}\0{4}",
    "a TIFF image": rb"II[*+]\0|MM\0[*+]",
    "a WebP image": rb"RIFF.{4}WEBP",
    "an AVIF image": rb".{4}ftypavi[fs]",
    "a HEIC image": rb".{4}ftyp(he[a-z]{2}|mif1|msf1)",
    "a GIF image": rb"GIF8[79]a",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL image": rb"\0\0\0\x0cJXL |\xff\x0a",
    "a DICOM image": rb".{128}DICM",
    "a video": rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3",
    "a NumPy array": rb"\x93NUMPY",
    "a zip archive": rb"PK\x03\x04|PK\x05\x06",
    "a gzip archive": rb"\x1f\x8b",
    "a bzip2 archive": rb"BZh[1-9]1AY",
    "an xz archive": rb"\xfd7zXZ",
    "a Zstandard archive": rb"\x28\xb5\x2f\xfd",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a",
    "a tar archive": rb".{257}ustar",
    "a PDF": rb"%PDF-",
    "a Parquet table": rb"PAR1",
    "an Arrow table": rb"ARROW1\0\0",
    "an HDF5 file": rb"\x89HDF\r\n",
    "an SQLite data base": rb"SQLite format 3\0",
    "a pickle": rb"\x80[\2-\5].",
    "a PPM, PGM or PBM image": rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s",
    "a web page (a failed download?)": rb"(?i:\s*<(?:!doctype )?html)",
    "an XML or SVG file": rb"\s*<(?:\?xml|svg|!doctype svg)",
    "a Git LFS pointer (git lfs pull brings the file)": rb"version https?://git-lfs",
}

#: Bytes that `kind_of` needs.
HEAD = 512


def head_of(path: str | bytes, size: int = HEAD) -> bytes:
    """The first bytes of a file. Empty if it is no regular file or cannot be read."""
    try:
        # Opening a named pipe in the ordinary way would wait for its writer without end.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return file.read(size) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""


def kind_of(head: bytes) -> str | None:
    """What a file is that begins with these bytes, such as "a JPEG image". None: unknown."""
    return next((kind for kind, mark in MARKS.items() if re.match(mark, head, re.DOTALL)), None)


def extension_of(name: bytes) -> str:
    """The extension in lower case, such as ".png" or ".tar.gz". "" if there is none, or if it looks like none."""
    match = re.search(rb"(?<!^)((?:\.nii|\.tar)?\.[a-z0-9_~-]{1,12})$", name.lower())
    return match[1].decode() if match else ""
