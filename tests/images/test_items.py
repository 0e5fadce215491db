"""What an item of a data set is, if not an image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densecl.errors import UserError
from densecl.images.decode import BadImage
from densecl.images.items import check_data_set
from densecl.images.sources import open_source
from tests.images.folders import PIXELS, Items


def test_items_that_are_no_images():
    items = ["path.jpg", None, ValueError("truncated"), torch.zeros(3, 4, 5, dtype=torch.int64), np.zeros(5)]
    source = open_source(Items(items))
    for index, reason in enumerate(["but str", "but NoneType", "ValueError: truncated", "int64 pixels", "shape 5"]):
        with pytest.raises(BadImage, match=reason):
            source.read(index)


TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("photos/a.jpg", r"is of type str, 'photos/a.jpg'. For files give their folder"),
        (Path("a.jpg"), r"'a.jpg'. For files"),
        (None, r"is None. An item has to be"),
        (3, r"is of type int. An item"),
        ((3, Image.fromarray(PIXELS)), r"is a tuple of int, Image. An item has to be .* a tuple that begins with one"),
        ({"img": PIXELS, "label": 1}, r"""is a dict with 'img', 'label'. An item .* under "image"."""),
        ({"image": {"bytes": b"", "path": None}}, r"under 'image' a dict with 'bytes', 'path'. An item"),
        (
            TENSOR / 128 - 1,
            r"a float32 tensor of 3x10x14 from -1 to 0.99\d*: floats outside 0 to 1.*scale all images.*\. Leave out",
        ),
        (TENSOR.float(), r"from 0 to 255: floats outside 0 to 1"),
        (TENSOR.long(), r"is an int64 tensor of 3x10x14 from 0 to 255: int64 pixels .*scale all images alike"),
        (np.zeros((8, 8, 4), np.uint8), r"is a uint8 array of 8x8x4 .*: an array of shape 8x8x4, where 3 channels"),
        (torch.zeros(2, 3, 8, 8), r"is a float32 tensor of 2x3x8x8"),
        (KeyError(0), r"cannot be read: KeyError: 0"),
        (ValueError("\x1b[2J" + "x" * 10**6), r"cannot be read: ValueError: \\x1b"),
    ],
)
def test_what_the_items_are_is_said_before_the_run_if_none_is_an_image(item, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(Items([item] * 3)).check()
    assert str(error.value).startswith("item 0 of the data set (Items) ")
    assert len(str(error.value)) < 500 and str(error.value).isprintable()


def test_some_items_without_an_image_are_left_to_the_run():
    open_source(Items([None, *[PIXELS] * 9])).check()


def test_a_tensor_that_numpy_does_not_know():
    assert open_source(Items([TENSOR.to(torch.bfloat16) / 256])).read(0).dtype == torch.uint16


def test_many_images_in_one_array():
    assert open_source(np.stack([PIXELS] * 5)).read(4).shape == (3, 10, 14)
    assert open_source(torch.stack([TENSOR] * 5), channels=3).read(4).shape == (3, 10, 14)
    assert len(open_source(np.stack([PIXELS[..., 0]] * 5))) == 5
    for single, layout in ((PIXELS, "images height width channels"), (TENSOR, "images channels height width")):
        with pytest.raises(UserError, match=f'of one image. It has to be "{layout}"'):
            open_source(single)
    with pytest.raises(UserError, match="is of shape 10x14"):
        open_source(PIXELS[..., 0])


def test_what_is_no_map_style_data_set():
    with pytest.raises(UserError, match="is empty"):
        open_source(Items([]))
    with pytest.raises(UserError, match="needs a length"):
        open_source(torch.utils.data.ChainDataset([Items([PIXELS])]))
    for other in (iter([PIXELS]), Items, None, 3):
        with pytest.raises(UserError, match="needs a length"):
            check_data_set(other)
    with pytest.raises(UserError, match="is a DataLoader, which gives batches"):
        check_data_set(torch.utils.data.DataLoader(Items([PIXELS])))
    frame = type("DataFrame", (), {"iloc": None, "__len__": lambda self: 1, "__getitem__": None})()
    with pytest.raises(UserError, match="is a DataFrame of pandas"):
        check_data_set(frame)
    with pytest.raises(UserError, match=r"a dict of 'train', 'test', not .* such as data\['train'\]"):
        check_data_set({"train": [PIXELS], "test": [PIXELS]})
