"""Every kind of file against Pillow, tifffile or arithmetic; every kind of damage against a reason."""

import contextlib
import io
import os
import resource
import socket
import struct
import time
import zlib

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from densecl.images.decode import (
    EXTENSIONS,
    EXTENSIONS_OF_EXTRAS,
    BadImage,
    Region,
    canvas,
    decode,
    heif,
    limits,
    measure,
)
from densecl.images.decode import tiff as module

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
GRAYS = RNG.integers(0, 256, (13, 17), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (13, 17, 3), dtype=np.uint16)


def channels_first(array):
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def same(pixels, array):
    return pixels.numpy().dtype == array.dtype and np.array_equal(pixels.numpy(), array)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(array, color_type):
    """A PNG of 8 or 16 bits, written by the letter of its specification."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(array.dtype.newbyteorder(">")).tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 8 * array.dtype.itemsize, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "image.jpg"  # the wrong name for most: content decides
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_whatever_the_name(write, format, options):
    assert same(decode(write(encoded(Image.fromarray(COLORS), format, **options)), 3), channels_first(COLORS))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "MPO"])
def test_lossy_formats_are_what_pillow_reads(write, format):
    data = encoded(Image.fromarray(COLORS), format)
    assert same(decode(write(data), 3), channels_first(np.asarray(Image.open(io.BytesIO(data)))))


def test_gray_is_repeated_and_color_becomes_luma(write):
    gray = decode(write(encoded(Image.fromarray(GRAYS), "PNG")), 3)
    assert same(gray, np.stack([GRAYS] * 3))
    assert same(decode(write(encoded(Image.fromarray(GRAYS), "PNG")), 1), GRAYS[None])
    luma = decode(write(encoded(Image.fromarray(COLORS), "PNG")), 1)
    assert same(luma, np.asarray(Image.fromarray(COLORS).convert("L"))[None])


def test_sixteen_bits_are_kept(write):
    assert same(decode(write(png(DEEP, 2)), 3), channels_first(DEEP))
    assert same(decode(write(png(DEEP[..., 0], 0)), 1), DEEP[None, ..., 0])
    assert same(decode(write(png(DEEP[..., 0], 0)), 3), np.stack([DEEP[..., 0]] * 3))
    luma = decode(write(png(DEEP, 2)), 1)[0].numpy()
    assert luma.dtype == np.uint16
    assert np.abs(luma - DEEP @ np.array([0.299, 0.587, 0.114])).max() < 1


def test_transparency_is_shown_over_white(write):
    alpha = RNG.integers(0, 256, (13, 17, 1), dtype=np.uint8)
    image = Image.fromarray(np.concatenate([COLORS, alpha], axis=2))
    white = Image.new("RGBA", image.size, "white")
    expected = channels_first(np.asarray(Image.alpha_composite(white, image).convert("RGB"))).astype(int)
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        found = decode(write(encoded(image, format, **options)), 3)
        assert found.dtype == torch.uint8
        assert np.abs(found.numpy() - expected).max() <= 1
    assert same(decode(write(encoded(image, "PNG")), 4), channels_first(np.asarray(image)))  # four are wanted: four


def test_deep_transparency(write):
    alpha = RNG.integers(0, 65536, (13, 17, 1), dtype=np.uint16)
    opacity = alpha / 65535
    expected = channels_first(DEEP * opacity + 65535 * (1 - opacity))
    both = np.concatenate([DEEP, alpha], axis=2)
    assert np.abs(decode(write(png(both, 6)), 3).numpy() - expected).max() < 1
    assert same(decode(write(png(both, 6)), 4), channels_first(both))
    gray = np.concatenate([DEEP[..., :1], alpha], axis=2)
    assert same(decode(write(png(gray, 4)), 2), channels_first(gray))
    assert np.abs(decode(write(png(gray, 4)), 1).numpy() - expected[:1]).max() < 1
    path = write(b"")
    tifffile.imwrite(path, both, photometric="rgb", extrasamples=["unassalpha"])
    assert np.abs(decode(path, 3).numpy() - expected).max() < 1
    tifffile.imwrite(path, both, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(decode(path, 3).numpy() - np.minimum(channels_first(DEEP + 65535 * (1 - opacity)), 65535)).max() < 1
    tifffile.imwrite(path, both, photometric="rgb", extrasamples=["unspecified"])  # no alpha but a fourth band
    with pytest.raises(BadImage, match="has 4 channels, not 3"):
        decode(path, 3)


def test_palette_with_and_without_transparency(write):
    palette = Image.fromarray(COLORS).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert same(decode(write(encoded(palette, "PNG")), 3), channels_first(expected))
    clear = np.asarray(palette) == 5
    found = decode(write(encoded(palette, "PNG", transparency=5)), 3)
    assert same(found, channels_first(np.where(clear[..., None], np.uint8(255), expected)))


def test_bilevel(write):
    image = Image.fromarray(GRAYS > 127)
    for format in ("PNG", "TIFF"):
        assert same(decode(write(encoded(image, format)), 1), ((GRAYS > 127) * np.uint8(255))[None])


def test_cmyk_as_photoshop_writes_it(write):
    # Adobe's JPEGs hold the inks inverted, and say so in a marker; Pillow writes them so too.
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for format, options in (("JPEG", {"quality": 95}), ("TIFF", {})):
        found = decode(write(encoded(red, format, **options)), 3).float().mean(dim=(1, 2))
        assert torch.allclose(found, torch.tensor([255.0, 0, 0]), atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation(write, format, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(COLORS), format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    path = write(data)
    assert same(decode(path, 3), channels_first(expected))
    assert measure(path, 3) == expected.shape[:2]
    part = Region(2, 3, 9, 11)
    assert same(decode(path, 3, region=part), channels_first(expected[2:9, 3:11]))


def test_orientation_of_a_tiff_that_pillow_reads(write):
    palette = Image.fromarray(COLORS).quantize(16)
    exif = Image.Exif()
    exif[274] = 6
    path = write(encoded(palette, "TIFF", exif=exif))
    expected = np.rot90(np.asarray(palette.convert("RGB")), -1)
    assert same(decode(path, 3), channels_first(expected))
    assert measure(path, 3) == (17, 13)


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_orientation_of_sixteen_bits(tmp_path, orientation):
    deep = COLORS.astype(np.uint16) * 200
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, deep, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    expected = {2: deep[:, ::-1], 3: deep[::-1, ::-1], 6: np.rot90(deep, -1)}[orientation]
    assert same(decode(path, 3), channels_first(expected))


def test_broken_metadata_do_not_make_a_broken_image(write):
    data = encoded(Image.fromarray(COLORS), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode(write(data), 3).shape == (3, 13, 17)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_measuring_reads_no_pixels(write, format, monkeypatch):
    path, decoded = write(encoded(PHOTO, format)), []
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    assert measure(path, 3) == (PHOTO.height, PHOTO.width)
    assert decoded == []


# --- many channels ------------------------------------------------------------------------------------------------

COMPRESSIONS = [None, "zlib", *(["lzw", "zstd"] if module.IMAGECODECS else [])]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff_of_many_channels(tmp_path, dtype, compression, layout, tile, byteorder):
    limit = np.iinfo(dtype).max
    image = np.random.default_rng(1).integers(0, limit, (5, 70, 53), dtype=dtype, endpoint=True)
    path = tmp_path / "image.tif"
    options = {"compression": compression, "tile": tile, "byteorder": byteorder, "photometric": "minisblack"}
    options |= {} if compression is None else {"predictor": True}
    options |= {} if tile else {"rowsperstrip": 7}
    if layout == "pages":
        with tifffile.TiffWriter(path, byteorder=options.pop("byteorder")) as writer:
            for band in image:
                writer.write(band, contiguous=False, **options)
    else:
        data = image if layout == "separate" else image.transpose(1, 2, 0)
        tifffile.imwrite(path, data, planarconfig=layout, **options)
    assert same(decode(path, 5), image)
    assert same(decode(path, 5, region=Region(11, 30, 40, 50)), image[:, 11:40, 30:50])
    assert measure(path, 5) == (70, 53)


def test_palettes_and_jpegs_in_tiff(write):
    palette = Image.fromarray(COLORS).quantize(16)
    data = encoded(palette, "TIFF", compression="tiff_lzw")
    assert same(decode(write(data), 3), channels_first(np.asarray(palette.convert("RGB"))))
    smooth = Image.new("RGB", (32, 32), (200, 100, 50))
    found = decode(write(encoded(smooth, "TIFF", compression="jpeg")), 3).float().mean(dim=(1, 2))
    assert torch.allclose(found, torch.tensor([200.0, 100, 50]), atol=3)


def test_only_the_parts_of_a_slide_that_are_wanted_are_read_and_limited(tmp_path, monkeypatch):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.zeros((512, 512, 3), np.uint8), tile=(64, 64), compression="zlib", photometric="rgb")
    read = []
    original = module._read_segment
    monkeypatch.setattr(module, "_read_segment", lambda *a: read.append(a[2]) or original(*a))
    assert decode(path, 3, max_pixels=64 * 64, region=Region(64, 64, 128, 128)).shape == (3, 64, 64)
    assert read == [9]
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(path, 3, max_pixels=64 * 64)


@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_either_way_round(tmp_path, dtype, order):
    path = tmp_path / "image.npy"
    image = RNG.integers(0, 256, (6, 20, 30)).astype(dtype)
    native = image.astype(image.dtype.newbyteorder("="))
    for array in (image, image.transpose(1, 2, 0)):
        np.save(path, np.asarray(array, order=order))
        assert same(decode(path, 6), native)
        assert same(decode(path, 6, region=Region(1, 2, 8, 12)), native[:, 1:8, 2:12])
        assert measure(path, 6) == (20, 30)


def test_npy_of_gray_color_and_floats(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, GRAYS)
    assert same(decode(path, 3), np.stack([GRAYS] * 3))
    np.save(path, COLORS)
    assert same(decode(path, 1), np.asarray(Image.fromarray(COLORS).convert("L"))[None])
    np.save(path, np.array([[0.0, 0.5, 1.0]], np.float32))
    assert decode(path, 1).tolist() == [[[0, 32768, 65535]]]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([[{}]], dtype=object), "Python objects"),
        (np.zeros((4, 5), np.int16), "int16 pixels"),
        (np.full((4, 5), np.nan), "floats outside 0 to 1"),
        (np.full((4, 5), 200.0), "floats outside 0 to 1"),
        (np.zeros((4, 5, 7), np.uint8), "shape 4x5x7, where 3 channels"),
        (np.zeros((4,), np.uint8), "shape 4,"),
        (np.zeros((0, 5), np.uint8), "5x0"),
    ],
)
def test_npy_that_is_no_image(tmp_path, array, reason):
    np.save(tmp_path / "image.npy", array)
    with pytest.raises(BadImage, match=reason):
        decode(tmp_path / "image.npy", 3)


# --- damage -------------------------------------------------------------------------------------------------------

PHOTO = Image.fromarray(np.kron(COLORS, np.ones((6, 6, 1), np.uint8)))
WHOLE = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "progressive": encoded(PHOTO, "JPEG", progressive=True),
    "png": encoded(PHOTO, "PNG"),
    "png 16": png(DEEP, 2),
    "webp": encoded(PHOTO, "WEBP"),
    "bmp": encoded(PHOTO, "BMP"),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff lzw": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encoded(PHOTO, "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_truncated(write, kind):
    data = WHOLE[kind]
    decode(write(data), 3)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadImage) as error:
            decode(write(data[: int(share * len(data))]), 3)
        assert 0 < len(str(error.value)) < 200
        assert "\n" not in str(error.value)
        assert "0x" not in str(error.value)  # an address would differ from run to run


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "png 16", "webp", "tiff lzw", "tiff deflate"])
def test_written_half_and_padded_with_zeros(write, kind):
    data = WHOLE[kind]
    with pytest.raises(BadImage):
        decode(write(data[: len(data) // 2].ljust(len(data), b"\0")), 3)


def test_a_thumbnail_does_not_vouch_for_its_jpeg(write):
    thumbnail = encoded(PHOTO.resize((8, 8)), "JPEG")
    data = encoded(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail)
    decode(write(data), 3)
    with pytest.raises(BadImage, match="truncated"):
        decode(write(data[: -len(data) // 4].ljust(len(data), b"\0")), 3)


@pytest.mark.parametrize("lossless", [False, True])
def test_plain_colors_are_not_taken_for_half_written(write, lossless):
    for side in (1, 50, 3000):
        decode(write(encoded(Image.new("RGB", (side, side)), "WEBP", lossless=lossless)), 3)


def test_bytes_after_the_end_are_nobodys_business(write):
    decode(write(WHOLE["jpeg"] + b"\0" * 100), 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all\n", "not a JPEG, PNG"),
        (b"\xff\xd8\xff", "."),
        (b"II*\0", "."),
        (b"GIF89a", "a GIF image, what"),
        (b"<!DOCTYPE html>", "failed download"),
    ],
)
def test_what_never_was_an_image(write, data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(write(data), 3)


def test_no_file(tmp_path):
    with pytest.raises(BadImage, match="No such file"):
        decode(tmp_path / "none.jpg", 3)
    with pytest.raises(BadImage):
        decode(tmp_path, 3)


def test_formats_that_are_not_ours_are_not_opened(write):
    with pytest.raises(BadImage, match="not a JPEG, PNG"):
        decode(write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 3)  # Pillow would start ghostscript


def claiming(kind, side):
    """A small file whose header claims side x side pixels."""
    if kind == "png":
        data = bytearray(WHOLE["png"])
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)
    if kind == "jpeg":
        data = bytearray(WHOLE["jpeg"])
        start = data.index(b"\xff\xc0")
        data[start + 5 : start + 9] = struct.pack(">HH", side, side)
        return bytes(data)
    if kind == "bmp":
        data = bytearray(WHOLE["bmp"])
        data[18:26] = struct.pack("<ii", side, side)
        return bytes(data)
    if kind == "npy":
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (side, side, 3)})
        return file.getvalue()
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((side // 100, 4, 3), np.uint8), photometric="rgb", compression="zlib")
    data = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        for tag in ("ImageWidth", "ImageLength"):
            place = tiff.pages.first.tags[tag].valueoffset
            data[place : place + 4] = struct.pack("<I", side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "npy", "tiff"])
def test_decompression_bombs_are_refused_by_their_headers(write, kind):
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(write(claiming(kind, 60000)), 3)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(write(claiming(kind, 1100)), 3, max_pixels=1_000_000)


def test_a_small_tiff_cannot_inflate_beyond_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IMAGECODECS", False)
    path = tmp_path / "image.tif"
    tifffile.imwrite(
        path, np.zeros((2000, 2000, 3), np.uint8), compression="zlib", photometric="rgb", rowsperstrip=2000
    )
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages.first.tags["ImageLength"].valueoffset
        data[place : place + 2] = struct.pack("<H", 2)
    path.write_bytes(data)
    sizes = []
    original = module.zlib.decompressobj

    class Counting:
        def __init__(self):
            self.inner = original()

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def decompress(self, data, limit):
            out = self.inner.decompress(data, limit)
            sizes.append(len(out))
            return out

    monkeypatch.setattr(module.zlib, "decompressobj", Counting)
    decode(path, 3)
    assert sizes == [2 * 2000 * 3 + 1, 2 * 2000 * 3]  # one byte more, to see that there is more


@given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_whatever_the_damage_it_is_bad_image_or_an_image(tmp_path_factory, kind, data):
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 400)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        pixels = decode(path, 3, max_pixels=10**6)
    except BadImage as error:
        assert str(error)  # noqa: PT017
    else:
        assert pixels.shape[0] == 3
        assert pixels.dtype in (torch.uint8, torch.uint16)


def test_nothing_is_printed(write, capfd):
    for data in [*WHOLE.values(), claiming("png", 11000), claiming("png", 60000)]:
        for part in (data, data[: len(data) // 2], data[: len(data) // 2].ljust(len(data), b"\0")):
            with contextlib.suppress(BadImage):
                decode(write(part), 3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("least_side", "shrink"), [(None, 1), (400, 1), (201, 1), (200, 2), (101, 2), (100, 4), (50, 8), (26, 8)]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_smaller(tmp_path, least_side, shrink, orientation):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    whole = coarse.resize((640, 400), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274] = orientation
    whole.save(tmp_path / "large.jpg", quality=95, exif=exif)
    pixels = decode(tmp_path / "large.jpg", 3, least_side=least_side)
    expected = np.asarray(whole.reduce(shrink) if shrink > 1 else whole).transpose(2, 0, 1)
    if orientation == 6:
        expected = expected.transpose(0, 2, 1)[:, :, ::-1]
    assert pixels.shape == expected.shape
    assert np.abs(pixels.numpy().astype(int) - expected).mean() < 2
    region = decode(tmp_path / "large.jpg", 3, region=Region(0, 0, 320, 320), least_side=least_side)
    assert region.shape == (3, 320, 320)  # a tile is never shrunk


@pytest.mark.parametrize(("least_side", "shrink"), [(None, 1), (61, 1), (60, 2), (41, 2), (40, 3), (7, 17), (1, 120)])
@pytest.mark.parametrize("name", ["large.png", "large.tif", "large.npy"])
def test_other_large_images_are_shrunk_by_whole_numbers(tmp_path, name, least_side, shrink):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8))
    whole = np.asarray(coarse.resize((183, 120), Image.Resampling.BICUBIC))
    if name == "large.png":
        Image.fromarray(whole).save(tmp_path / name)
        values = whole
    else:
        values = whole.astype(np.uint16) * 257
        tifffile.imwrite(tmp_path / name, values, photometric="rgb") if name == "large.tif" else np.save(
            tmp_path / name, values
        )
    pixels = decode(tmp_path / name, 3, least_side=least_side)
    assert pixels.dtype == (torch.uint8 if name == "large.png" else torch.uint16)
    expected = Image.fromarray(whole).resize((183 // shrink, 120 // shrink), Image.Resampling.BILINEAR)
    actual = pixels.numpy() / (255 if name == "large.png" else 65535)
    assert actual.shape == (3, 120 // shrink, 183 // shrink)
    assert np.abs(actual - np.asarray(expected).transpose(2, 0, 1) / 255).max() < 1.5 / 255
    region = decode(tmp_path / name, 3, region=Region(5, 5, 85, 85), least_side=least_side)
    assert np.array_equal(region, values[5:85, 5:85].transpose(2, 0, 1))


# --- metadata do not decide about the picture -----------------------------------------------------------------------


def chunk(name, data, checksum=None):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum or zlib.crc32(name + data))


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def before(data, mark, extra):
    place = data.index(mark)
    return data[:place] + extra + data[place:]


LONG = zlib.compress(b"x" * 2**21)
TURNED = Image.Exif()
TURNED[274] = 6
ODD_JPEGS = {
    **{
        f"{junk!r} before {mark:x}": before(WHOLE["jpeg"], bytes([0xFF, mark]), junk)
        for mark in (0xDB, 0xC0, 0xC4, 0xDA)
        for junk in (b"\0\0", b"\n" * 7, b"\xff" * 9, b"\xff\0", b"\x12\x34", b"\xff\x01")
    },
    "junk at the very beginning": WHOLE["jpeg"][:2] + b"\0\0" + WHOLE["jpeg"][2:],
    "broken EXIF": before(WHOLE["jpeg"], b"\xff\xdb", segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff")),
    "broken list of pictures": before(WHOLE["jpeg"], b"\xff\xdb", segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")),
    "broken Photoshop data": before(WHOLE["jpeg"], b"\xff\xdb", segment(0xED, b"Photoshop 3.0\x008BIM\4\4\xff\xff")),
    "short mark of Adobe": before(WHOLE["jpeg"], b"\xff\xdb", segment(0xEE, b"Adobe")),
    "unknown segment": before(WHOLE["jpeg"], b"\xff\xdb", segment(0xF0, b"abc")),
    "much of them": before(WHOLE["jpeg"], b"\xff\xdb", segment(0xE2, b"x" * 65000) * 20),
    "something after it": WHOLE["jpeg"] + RNG.bytes(500),
}


@pytest.mark.parametrize("kind", ODD_JPEGS)
def test_a_jpeg_is_read_whatever_stands_between_its_parts(write, kind):
    expected = decode(write(WHOLE["jpeg"]), 3)
    path = write(ODD_JPEGS[kind])
    assert torch.equal(decode(path, 3), expected)
    assert measure(path, 3) == (PHOTO.height, PHOTO.width)


def png_with(extra=b"", behind=b"", between=b""):
    data = WHOLE["png"]
    data = before(data, b"IEND", b"")  # the name stands four bytes behind the beginning of its chunk
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    pixels = data[start + 8 : end - 4]
    parts = [chunk(b"IDAT", pixels[:20]), between, chunk(b"IDAT", pixels[20:])]
    return data[:start] + extra + b"".join(parts) + behind + data[end:]


ODD_PNGS = {
    "large profile": png_with(chunk(b"iCCP", b"k\0\0" + LONG)),
    "large text": png_with(chunk(b"zTXt", b"k\0\0" + LONG)),
    "large international text": png_with(behind=chunk(b"iTXt", b"k\0\1\0\0\0" + LONG)),
    "many texts": png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 900_000)) * 80),
    "wrong checksum of a text": png_with(chunk(b"tEXt", b"a\0b", 1)),
    "wrong checksum behind": png_with(behind=chunk(b"tEXt", b"a\0b", 1)),
    "text among the pixels": png_with(between=chunk(b"tEXt", b"a\0b")),
    "short gamma": png_with(chunk(b"gAMA", b"")),
    "broken animation": png_with(chunk(b"acTL", b"\0")),
    "broken EXIF": png_with(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")),
    "something after it": WHOLE["png"] + b"\0" * 50,
    "no end": WHOLE["png"][:-12],
    "transparency that does not fit": png_with(chunk(b"tRNS", b"\1")),
    "wrong checksum of the transparency": png_with(chunk(b"tRNS", bytes(6), 1)),
}


@pytest.mark.parametrize("kind", ODD_PNGS)
def test_a_png_is_read_whatever_its_other_chunks(write, kind):
    assert same(decode(write(ODD_PNGS[kind]), 3), channels_first(np.asarray(PHOTO)))


def test_metadata_that_are_whole_still_turn_a_png_beside_broken_ones(write):
    exif = TURNED.tobytes()
    path = write(png_with(chunk(b"tEXt", b"a\0b", 1) + chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))))
    assert same(decode(path, 3), channels_first(np.rot90(np.asarray(PHOTO), -1)))
    assert measure(path, 3) == (PHOTO.width, PHOTO.height)


def test_a_deep_color_that_is_transparent(write):
    header, rest = png(DEEP, 2)[:33], png(DEEP, 2)[33:]
    key = chunk(b"tRNS", DEEP[3, 4].astype(">u2").tobytes())
    expected = DEEP.copy()
    expected[(DEEP[3, 4] == DEEP).all(axis=2)] = 65535
    assert same(decode(write(header + key + rest), 3), channels_first(expected))


@pytest.mark.parametrize("where", ["EXIF", "XMP", "after", "other chunk"])
def test_zeros_in_what_is_not_the_picture_are_no_truncation_of_a_webp(write, where):
    data = WHOLE["webp"]
    exif = Image.Exif()
    exif[0xEA1C] = b"\0" * 2060
    body = data[12:] + b"JUNK" + struct.pack("<I", 3000) + b"\0" * 3000
    odd = {
        "EXIF": encoded(PHOTO, "WEBP", exif=exif),
        "XMP": encoded(PHOTO, "WEBP", xmp=b"<x/>" + b"\0" * 4000),
        "after": data + b"\0" * 4096,
        "other chunk": b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body,
    }[where]
    assert torch.equal(decode(write(odd), 3), decode(write(data), 3))


def test_the_first_picture_of_an_animation(write):
    for format in ("WEBP", "PNG"):
        frames = encoded(PHOTO, format, save_all=True, append_images=[PHOTO.rotate(180)], lossless=True)
        assert same(decode(write(frames), 3), channels_first(np.asarray(PHOTO)))


# --- which page of a TIFF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["copy first", "mask first", "copies behind", "copies without a mark"])
def test_the_picture_among_the_pages_of_a_tiff(tmp_path, order):
    path, gray = tmp_path / "image.tif", np.asarray(PHOTO.convert("L"))
    copies = {"subfiletype": 1, "contiguous": False}
    with tifffile.TiffWriter(path) as writer:
        if order == "copy first":
            writer.write(gray[::4, ::4], **copies)
        if order == "mask first":
            writer.write(gray > 9, subfiletype=4, photometric="mask", contiguous=False)
        writer.write(gray, contiguous=False)
        if order.startswith("copies"):
            for step in (2, 4):
                writer.write(gray[::step, ::step], **(copies if order == "copies behind" else {"contiguous": False}))
    assert same(decode(path, 3), np.stack([gray] * 3))
    assert measure(path, 3) == gray.shape


def test_planes_of_imagej_and_white_as_zero_and_inks(tmp_path):
    path, planes = tmp_path / "image.tif", RNG.integers(0, 65536, (5, 13, 17), dtype=np.uint16)
    tifffile.imwrite(path, planes, imagej=True)
    assert same(decode(path, 5), planes)
    tifffile.imwrite(path, planes[0], photometric="miniswhite")
    assert same(decode(path, 1), 65535 - planes[:1])
    tifffile.imwrite(path, planes[:4].transpose(1, 2, 0) // 65535 * 65535, photometric="separated")
    assert decode(path, 3).numpy().min() == 65535  # no ink


# --- further formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["P6", "P5", "P6 deep", "P3", "P2", "P1", "P4"])
def test_pnm(write, kind):
    gray = kind in ("P5", "P2", "P1", "P4")
    values = GRAYS[..., None] if gray else DEEP if "deep" in kind else COLORS
    if kind in ("P1", "P4"):
        values = values > 127  # True is white, which is written as 0
    largest = b"" if kind in ("P1", "P4") else b"65535\n" if "deep" in kind else b"255\n"
    content = {
        "P6 deep": lambda: values.astype(">u2").tobytes(),
        "P1": lambda: b"".join(b"%d" % (not value) for value in values.ravel()),
        "P4": lambda: np.packbits(~values[..., 0], axis=1).tobytes(),
        "P2": lambda: b" ".join(b"%d" % value for value in values.ravel()),
        "P3": lambda: b"\n".join(b"%d" % value for value in values.ravel()),
    }.get(kind, values.tobytes)()
    path = write(kind[:2].encode() + b" # a remark\n17\n13\n" + largest + content)
    expected = channels_first(values.astype(np.uint8) * np.uint8(255) if values.dtype == bool else values)
    assert same(decode(path, len(expected)), expected)
    assert same(decode(path, len(expected), region=Region(2, 3, 9, 11)), expected[:, 2:9, 3:11])
    assert measure(path, 3) == (13, 17)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadImage, match="truncated"):
        decode(path, 3)


@pytest.mark.skipif(".avif" not in EXTENSIONS, reason="Pillow without AVIF")
def test_avif(write):
    data = encoded(PHOTO, "AVIF", exif=TURNED)
    path = write(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert same(decode(path, 3), channels_first(np.asarray(expected)))
    assert measure(path, 3) == (expected.height, expected.width)


def test_what_heic_takes_is_said(write, monkeypatch):
    monkeypatch.setattr(heif, "HEIC", False)
    with pytest.raises(BadImage, match="HEIC image: pip install pi-heif"):
        decode(write(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 50), 3)
    with pytest.raises(BadImage, match="a film"):
        decode(write(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0" * 50), 3)


def test_every_extension_is_read_or_says_what_it_takes():
    assert {".jpg", ".jpe", ".jfif", ".ppm", ".pgm", ".npy"} <= set(EXTENSIONS)
    assert {".avif", ".heic"} <= {*EXTENSIONS, *EXTENSIONS_OF_EXTRAS}
    assert not set(EXTENSIONS) & set(EXTENSIONS_OF_EXTRAS)


# --- what an image may cost -----------------------------------------------------------------------------------------


def test_scans_of_a_jpeg_are_limited(write):
    data = WHOLE["progressive"]
    start = data.rindex(b"\xff\xda")
    last = data[start : data.rindex(b"\xff\xd9")]
    with pytest.raises(BadImage, match="more than 100 scans"):
        decode(write(data[:start] + last * 2000 + b"\xff\xd9"), 3)


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.webp"])
def test_entries_of_exif_that_each_name_all_of_it_cost_nothing(write, name):
    """Pillow would copy 750 kB for each of 60,000 entries."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 750_000, 0) for tag in range(1000, 61_000))
    turned = struct.pack("<HHII", 274, 3, 1, 6)
    exif = b"II*\0" + struct.pack("<IH", 8, 60_001) + turned + entries
    if name == "image.jpg":
        parts = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
        segments = [b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts]
        data = WHOLE["jpeg"][:2] + b"".join(segments) + WHOLE["jpeg"][2:]
    elif name == "image.png":
        data = png_with(chunk(b"eXIf", exif))
    else:
        data = encoded(PHOTO, "WEBP", exif=exif)
    started = time.process_time()
    assert decode(write(data), 3).shape == (3, PHOTO.width, PHOTO.height)
    assert time.process_time() - started < 2


def test_a_long_header_of_an_array_is_not_read(tmp_path):
    """Two gigabytes of it, in a file that takes no room."""
    path = tmp_path / "image.npy"
    path.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 2**31))
    os.truncate(path, 2**31 + 12)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match="header"):
        decode(path, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_a_palette_that_is_missing(write):
    with pytest.raises(BadImage, match="without the palette"):
        decode(write(png(GRAYS, 3)), 3)


@pytest.mark.parametrize("kind", ["png 16", "webp", "deflate", "npy"])
def test_bytes_are_limited_and_not_only_pixels(write, kind, monkeypatch):
    monkeypatch.setattr(limits, "FREE_BYTES", 0)
    eight = DEEP[..., :2].repeat(4, 2)
    path = write(WHOLE.get(kind, b""))
    if kind == "npy":
        np.save(path.with_suffix(".npy"), eight / 65535)
        path = path.with_suffix(".npy")
    elif kind == "deflate":
        tifffile.imwrite(path, eight, photometric="minisblack", planarconfig="contig", compression="zlib")
    channels = 3 if kind in WHOLE else 8
    height, width = measure(path, channels)
    assert decode(path, channels, max_pixels=10 * height * width).shape == (channels, height, width)
    with pytest.raises(BadImage, match="decompression bomb.*--max-image-pixels"):
        decode(path, channels, max_pixels=height * width)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "image.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
            server.bind("image.jpg")
    for read in (decode, measure):
        with pytest.raises(BadImage, match="not a regular file|a folder"):
            read(path, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_put_where_they_belong(tmp_path, monkeypatch, orientation):
    whole = np.kron(COLORS, np.ones((3, 3, 1), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(whole).save(tmp_path / "image.png", exif=exif)
    expected = decode(tmp_path / "image.png", 3)
    region = Region(5, 6, 30, 31)
    monkeypatch.setattr(canvas, "BAND", 1000)
    assert torch.equal(decode(tmp_path / "image.png", 3), expected)
    assert torch.equal(decode(tmp_path / "image.png", 3, region=region), expected[:, 5:30, 6:31])
