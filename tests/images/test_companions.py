"""What lies beside photographs: left out where it is surely none, and never where it may be one."""

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageDraw

from densecl.images.companions import PHOTOGRAPHS, alone, tree
from densecl.images.companions.alone import only_label_maps
from densecl.images.companions.looks import look_of
from densecl.images.decode import decode
from densecl.images.sources import open_source

SIDE = 40


def photo(number, side=SIDE):
    """Colors that run into each other, a disc, and noise."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side]
    pixels = np.stack([x * 255 / side, y * 255 / side, (x + y) * 127 / side], 2)
    pixels[(x - rng.integers(side)) ** 2 + (y - rng.integers(side)) ** 2 < side * 2] = rng.integers(0, 255, 3)
    return np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)


def gray(number, side=SIDE):
    """Cells that shine on a black ground, as under a microscope."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side]
    light = sum(200 * np.exp(-((x - rng.integers(side)) ** 2 + (y - rng.integers(side)) ** 2) / 20) for _ in range(4))
    return np.clip(light + rng.normal(0, 4, (side, side)), 0, 255).astype(np.uint8)


def label(number, side=SIDE):
    """Classes 0 to 3."""
    pixels = np.zeros((side, side), np.uint8)
    pixels[5:30, 8:33] = 1 + number % 3
    return pixels


def instances(number, side=SIDE):
    """Sixteen bits, each object a number of its own."""
    return (np.arange(16).reshape(4, 4) * 37).astype(np.uint16).repeat(side // 4, 0).repeat(side // 4, 1)


def colored(number, side=SIDE):
    """A label map drawn in colors."""
    colors = np.array([[0, 0, 0], [128, 64, 128], [220, 20, 60], [0, 0, 142]], np.uint8)
    return colors[label(number, side)]


def paletted(number):
    image = Image.fromarray(label(number)).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    return image


def binary(number):
    return label(number).clip(0, 1) * np.uint8(255)


def depth(number, side=SIDE):
    """Sixteen bits that change slowly, with noise."""
    y, x = np.mgrid[:side, :side]
    return (8000 + 300 * y + 40 * x + np.random.default_rng(number).integers(0, 50, (side, side))).astype(np.uint16)


def bands(number):
    """Eight channels, as of a satellite."""
    return np.stack([photo(number + band)[..., 0] for band in range(8)], 2)


def dim(number):
    """Cells that hardly shine."""
    return gray(number) // 16


def empty(number):
    return np.zeros((SIDE, SIDE), np.uint8)


def small(number):
    return photo(number, SIDE // 2)


def metres(number):
    return 250 + 10 * gray(number).astype(np.float32) / 255


def wide(number):
    return np.concatenate([photo(number), photo(number + 50)], 1)


def night(number):
    return photo(number) // 32


def write(root, layout, count=5):
    """`layout`: pattern of paths with {} for the number -> what to draw."""
    for pattern, draw in layout.items():
        for number in range(count):
            path = root / pattern.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            image = draw(number)
            if path.suffix == ".tif":
                tifffile.imwrite(path, image)
            elif path.suffix == ".npy":
                np.save(path, image)
            else:
                image = image if isinstance(image, Image.Image) else Image.fromarray(image)
                image.save(path)
    return root


def kept(root):
    """The patterns that are kept, as they were given to `write`, and what is told."""
    source = open_source(root)
    names = [Path(source.name(index)).relative_to(root).as_posix() for index in range(len(source))]
    return names, " ".join(source.notes())


#: Layouts as they are met: what is in them, and which of it is no photograph.
LEFT_OUT = {
    "VOC": (
        {"JPEGImages/{:06}.jpg": photo},
        {"SegmentationClass/{:06}.png": paletted, "SegmentationObject/{:06}.png": paletted},
    ),
    "VOC within": ({"VOC2012/JPEGImages/{:06}.jpg": photo}, {"VOC2012/SegmentationClassAug/{:06}.png": label}),
    "images and labels": ({"images/train/{}.png": photo}, {"labels/train/{}.png": label}),
    "labels without splits": (
        {"train/{}.png": photo},
        {"labels/{}.png": label, "labels_border/{}.png": label, "instances/{}.png": instances},
    ),
    "splits above": (
        {"train/images/{}.jpg": photo, "val/images/v{}.jpg": photo},
        {"train/masks/{}.png": binary, "val/masks/v{}.png": binary},
    ),
    "img_dir and ann_dir": ({"img_dir/train/{}.jpg": photo}, {"ann_dir/train/{}.png": label}),
    "COCO panoptic": ({"train2017/{:012}.jpg": photo}, {"annotations/panoptic_train2017/{:012}.png": colored}),
    "ADE20K": ({"images/training/ADE_train_{:08}.jpg": photo}, {"annotations/training/ADE_train_{:08}.png": label}),
    "Cityscapes": (
        {"leftImg8bit/train/aachen/aachen_{:06}_000019_leftImg8bit.png": photo},
        {
            "gtFine/train/aachen/aachen_{:06}_000019_gtFine_labelIds.png": label,
            "gtFine/train/aachen/aachen_{:06}_000019_gtFine_instanceIds.png": instances,
            "gtFine/train/aachen/aachen_{:06}_000019_gtFine_color.png": colored,
            "disparity/train/aachen/aachen_{:06}_000019_disparity.png": depth,
        },
    ),
    "Cellpose": ({"{:03}_img.png": gray}, {"{:03}_masks.png": instances}),
    "masks beside": ({"well_{:03}.png": gray}, {"well_{:03}_masks.png": label}),
    "a mask in front": ({"scan{}.png": photo}, {"mask_scan{}.png": binary}),
    "several masks": ({"breast ({}).png": gray}, {"breast ({})_mask.png": binary, "breast ({})_mask_1.png": binary}),
    "ISIC": ({"ISIC_{:07}.jpg": photo}, {"ISIC_{:07}_segmentation.png": binary}),
    "DeepGlobe": ({"{}_sat.jpg": photo}, {"{}_mask.png": colored}),
    "CamVid": ({"701_StillsRaw_full/0001TP_{:06}.png": photo}, {"LabeledApproved_full/0001TP_{:06}_L.png": colored}),
    "MVTec": ({"bottle/test/broken/{:03}.png": photo}, {"bottle/ground_truth/broken/{:03}_mask.png": binary}),
    "Data Science Bowl": (
        {"stage1_train/a{}/images/x.png": gray},
        {"stage1_train/a{}/masks/f00.png": binary, "stage1_train/a{}/masks/f01.png": binary},
    ),
    "Oxford pets": ({"images/Abyssinian_{}.jpg": photo}, {"annotations/trimaps/Abyssinian_{}.png": label}),
    "DAVIS": ({"JPEGImages/480p/bear/{:05}.jpg": photo}, {"Annotations/480p/bear/{:05}.png": paletted}),
    "saliency": ({"DUTS-TR/DUTS-TR-Image/{}.jpg": photo}, {"DUTS-TR/DUTS-TR-Mask/{}.png": binary}),
    "polyps": ({"Original/{}.tif": photo}, {"Ground Truth/{}.tif": binary}),
    "JPEG masks": ({"images/{}.jpg": photo}, {"masks/{}.jpg": binary}),
    "dim cells": ({"images/{}.png": dim}, {"masks/{}.png": binary}),
    "a hint in the name of the whole": ({"kvasir-seg/images/cju{}.jpg": photo}, {"kvasir-seg/masks/cju{}.jpg": binary}),
    "BDD100K": (
        {"images/10k/train/{:08}-aa.jpg": photo},
        {"labels/sem_seg/masks/train/{:08}-aa.png": label, "labels/pan_seg/colormaps/train/{:08}-aa.png": colored},
    ),
    "Mapillary": (
        {"training/images/{}.jpg": photo},
        {"training/v2.0/labels/{}.png": colored, "training/v2.0/panoptic/{}.png": colored},
    ),
    "Segment Anything": ({"images/{}.jpg": photo}, {"images/{}_mask_0.png": binary, "images/{}_mask_1.png": binary}),
    "elevation": (
        {"2_Ortho_RGB/top_2_{}_RGB.tif": photo},
        {"5_Labels_all/top_2_{}_label.tif": colored, "1_DSM/dsm_{}.tif": depth},
    ),
    "SUN RGB-D": ({"image/{}.jpg": photo}, {"depth_bfx/{}.png": depth, "seg/{}.png": label}),
    "eight channels": ({"tiles/{}.tif": bands}, {"masks/{}.tif": label}),
    "KITTI": (
        {"image_2/{:06}_10.png": photo},
        {"semantic/{:06}_10.png": label, "semantic_rgb/{:06}_10.png": colored, "instance/{:06}_10.png": instances},
    ),
    "Supervisely": ({"ds/img/{}.jpg": photo}, {"ds/masks_machine/{}.png": label}),
    "CelebAMask": ({"CelebA-HQ-img/{}.jpg": photo}, {"CelebAMask-HQ-mask-anno/0/{:05}_hair.png": binary}),
    "labels of another name": ({"photos/{}.jpg": photo}, {"Masks/frame{}.png": label}),
    "nothing to see": ({"images/{}.jpg": photo}, {"masks/{}.png": empty}),
    "NYU": ({"rgb/{:05}.jpg": photo}, {"depth/{:05}.png": depth}),
    "TUM": ({"rgb/1305031102.17{}.png": photo}, {"depth/1305031102.16{}.png": depth}),
    "depth beside": ({"{}.jpg": photo}, {"{}_depth.png": depth}),
    "thumbnails beside": ({"IMG_{}.jpg": photo}, {"IMG_{}_thumb.jpg": small}),
    "a folder of thumbnails": ({"2024/IMG_{}.jpg": photo}, {"2024/thumbnails/IMG_{}.jpg": small}),
    "WordPress": (
        {"uploads/cat{}.jpg": photo},
        {"uploads/cat{}-20x20.jpg": small, "uploads/cat{}-38x38.jpg": lambda number: photo(number, 38)},
    ),
    "SegNet's CamVid": ({"train/{}.png": photo}, {"trainannot/{}.png": colored}),
    "parts": ({"ADE_{}.jpg": photo}, {"ADE_{}_seg.png": colored, "ADE_{}_parts_1.png": colored}),
    "metres": ({"{}.png": photo}, {"{}_depth.npy": metres}),
    "metres in another folder": ({"top/area{}.tif": photo}, {"dsm/dsm_area{}.tif": metres}),
}  # fmt: skip

#: Photographs, whatever their names say.
KEPT = {
    "classes": {"cats/{}.jpg": photo, "dogs/{}.jpg": photo},
    "carnival": {"masks/{}.jpg": photo, "hats/{}.jpg": photo, "costumes/{}.png": photo},
    "carnival alone": {"masks/{}.png": photo},
    "shipping labels": {"labels/{}.png": photo, "boxes/{}.png": photo},
    "microscopy": {"plate1/{}.png": gray, "plate2/{}.png": gray},
    "dim cells": {"labels/{}.png": dim, "other/{}.png": dim},
    "screens": {"screenshots/{}.png": colored, "icons/{}.png": colored},
    "channels of a microscope": {"nuclei/{}.tif": gray, "actin/{}.tif": gray},
    "labeled and unlabeled": {"labeled/{}.png": gray, "unlabeled/{}.png": gray},
    "annotated by hand": {"annotations/{}.jpg": photo, "photos/{}.jpg": photo},
    "names that only sound so": {"{}_label.jpg": photo, "mask_{}.jpg": photo, "{}_seg.png": photo, "{}_L.png": photo},
    "stereo": {"left/{}.png": photo, "right/{}.png": photo},
    "faces": {"with_mask/{}.png": photo, "without_mask/{}.png": photo},
    "drawings": {"characters/{}.png": binary, "labels/{}.png": binary},
    "drawings by class": {"sun/{}.png": binary, "moon/{}.png": label},
    "depth below the sea": {"depth/{}.jpg": photo, "surface/{}.jpg": photo},
    "elevation": {"north/{}.png": depth, "depth/{}.png": depth},
    "thumbnails alone": {"thumbnails/{}.jpg": photo},
    "thumbnails as large": {"thumbnails/{}.jpg": photo, "other/{}.jpg": photo},
    "thermal and color": {"thermal/{}.png": gray, "rgb/{}.png": photo},
    "tiles named by their place": {"scene{}.png": photo, "scene{}_0x40.png": small, "scene{}_20x20.png": photo},
    "classes numbered alike": {"depth/{}.png": gray, "cats/{}.jpg": wide},
    "night": {"labeled/{}.jpg": night, "unlabeled/{}.jpg": photo},
    "only empty frames beside": {"dark/{}.png": empty, "light/{}.png": photo},
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_no_photograph_is_left_out_and_told(tmp_path, case):
    photographs, others = LEFT_OUT[case]
    write(tmp_path, photographs | others)
    names, notes = kept(tmp_path)
    expected = {pattern.format(number) for pattern in photographs for number in range(5)}
    assert set(names) == expected
    count = len({pattern.format(number) for pattern in others for number in range(5)})
    assert "left out: " in notes and "glob" in notes
    assert sum(map(int, re.findall(r"(\d+) (?:label maps|depth maps|thumbnails)", notes))) == count
    assert "warning" not in notes


@pytest.mark.parametrize("case", KEPT)
def test_photographs_are_kept_whatever_their_names(tmp_path, case):
    write(tmp_path, KEPT[case])
    names, notes = kept(tmp_path)
    assert len(names) == 5 * len(KEPT[case])
    assert notes == ""


def test_what_is_only_likely_is_told_and_kept(tmp_path):
    """Flat images without a hint in the name, which have the names of photographs; and label maps kept as JPEG."""
    write(tmp_path / "pairs", {"A/{}.jpg": photo, "B/{}.png": colored})
    names, notes = kept(tmp_path / "pairs")
    assert len(names) == 10
    assert "warning: perhaps no photographs, but trained on: 5 label maps (B/)" in notes
    write(tmp_path / "three", {"rgb/{}.jpg": photo, "scribbles/{}.png": paletted, "masks/{}.png": label})
    names, notes = kept(tmp_path / "three")
    assert len(names) == 10
    assert "left out: 5 label maps (masks/)" in notes and "5 label maps (scribbles/)" in notes
    write(tmp_path / "colored", {"photos/{}.jpg": photo, "labels/drawn_{}.png": colored})
    names, notes = kept(tmp_path / "colored")
    assert len(names) == 10
    assert "warning" in notes and "5 label maps (labels/)" in notes
    write(tmp_path / "export", {"images/{}.jpg": photo, "export/task-{}-by-1.png": binary})
    names, notes = kept(tmp_path / "export")
    assert len(names) == 10
    assert "warning" in notes and "5 label maps (export/)" in notes
    write(tmp_path / "alone", {"SegmentationClass/{}.png": label})
    names, notes = kept(tmp_path / "alone")
    assert len(names) == 5
    assert "warning" in notes


def test_what_the_user_names_is_taken_as_it_is(tmp_path):
    write(tmp_path, {"images/{}.png": photo, "labels/{}.png": label})
    (tmp_path / "list.txt").write_text("labels/0.png\nimages/0.png\n")
    for data, count in (("labels", 5), ("**/*.png", 10), ("labels/0.png", 1), ("list.txt", 2)):
        source = open_source(str(tmp_path / data))
        assert (len(source), source.notes()) == (count, ())


def test_a_set_aside_image_changes_nothing_in_the_others(tmp_path):
    write(tmp_path / "plain", {"images/{}.jpg": photo})
    write(tmp_path / "labeled", {"images/{}.jpg": photo, "images/{}_mask.png": label})
    plain, labeled = open_source(tmp_path / "plain"), open_source(tmp_path / "labeled")
    assert labeled.fingerprint() == plain.fingerprint()
    assert [(labeled.read(i) == plain.read(i)).all() for i in range(5)] == [True] * 5


def test_images_that_cannot_be_read_are_no_evidence(tmp_path):
    write(tmp_path, {"images/{}.jpg": photo})
    (tmp_path / "masks").mkdir()
    for number in range(5):
        (tmp_path / "masks" / f"{number}.png").write_bytes(b"broken")
    assert len(kept(tmp_path)[0]) == 10


def test_few_images_are_opened_and_none_without_a_hint(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(tree, "look_at", lambda path: opened.append(path))
    write(tmp_path / "plain", {"cats/{}.jpg": photo, "dogs/{}.jpg": photo, "IMG_{}.png": photo})
    open_source(tmp_path / "plain")
    assert opened == []
    write(tmp_path / "hinted", {"images/{}.png": empty, "labels/{}.png": empty}, count=100)
    open_source(tmp_path / "hinted")
    assert len(opened) <= 2 * (tree.SAMPLES + PHOTOGRAPHS)


# --- nothing but label maps ---------------------------------------------------------------------------------------


def outlined(number):
    """Areas with a contour, one pixel wide."""
    pixels = label(number)
    pixels[5, 8:33] = pixels[29, 8:33] = 7
    return pixels


def drawing(number, ground=255, finer=4):
    """Shapes with smooth edges, drawn finer and made smaller."""
    canvas = Image.new("L", (SIDE * finer, SIDE * finer), ground)
    pen = ImageDraw.Draw(canvas)
    start = 20 + 2 * number
    pen.ellipse([start, start, start + 80, start + 60], fill=255 - ground)
    pen.line([(5, start), (150, 155 - start)], fill=255 - ground, width=6 * finer)
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


def scan(number):
    """Black on white, and nothing between."""
    return Image.fromarray(255 - binary(number)).convert("1")


def thin(number):
    """White lines on black, two pixels wide."""
    canvas = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(canvas).line([(0, 3 + number), (38, 30), (20, 2)], fill=255, width=2)
    return canvas


def clouds(number):
    """Few grays in wide bands, one beside the next."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return ((x - 20) ** 2 + (y - number) ** 2).astype(float) ** 0.5 // 8


ALONE = {"a": label, "b": binary, "c": paletted, "d": colored, "e": outlined, "f": lambda number: instances(number)}


@pytest.mark.parametrize("draw", ALONE.values(), ids=["classes", "0 and 255", "palette", "colors", "contours", "ids"])
def test_a_folder_of_nothing_but_label_maps_is_told(tmp_path, draw):
    write(tmp_path, {"masks/{}.png": draw, "photos/{}.png": photo})
    (told,) = only_label_maps(open_source(tmp_path / "masks"))
    assert "label maps" in told and "0.png" in told and "--probe" in told
    assert len(list(only_label_maps(open_source((tmp_path / "photos", tmp_path / "masks"))))) == 1  # of the second
    assert len(list(only_label_maps(open_source(tmp_path / "masks", tile=20)))) == 1


@pytest.mark.parametrize(
    "draw",
    [photo, gray, dim, night, empty, drawing, lambda number: drawing(number, 0, 2), scan, thin, clouds],
    ids=["photo", "cells", "dim", "night", "empty", "drawing", "on black", "scan", "lines", "clouds"],
)
def test_dim_images_and_drawings_are_no_label_maps(tmp_path, draw):
    write(tmp_path, {"{}.png": lambda number: np.uint8(draw(number)) if draw is clouds else draw(number)}, 12)
    assert not list(only_label_maps(open_source(tmp_path)))


def test_some_photographs_among_label_maps_are_enough(tmp_path, monkeypatch):
    write(tmp_path, {"{}.png": label}, 10)
    write(tmp_path, {"1{}.png": photo}, 2)
    assert not list(only_label_maps(open_source(tmp_path)))
    opened = []
    monkeypatch.setattr(alone, "decode", lambda path, *more: opened.append(path) or decode(path, *more))
    write(tmp_path / "photos", {"{}.png": photo}, 40)
    assert not list(only_label_maps(open_source(tmp_path / "photos")))
    assert len(opened) == 2  # two photographs say it


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_an_image_may_be_one_pixel_wide(size):
    assert look_of(torch.zeros(3, *size, dtype=torch.uint8)).flat
    look_of(torch.arange(3 * 9, dtype=torch.uint8).reshape(3, 9, 1)[:, : size[0]])
