"""Settings of the data: which images, and what becomes of them before the network sees them."""

from __future__ import annotations

import math
from typing import Generic

from densecl.choices import Brightness
from densecl.config import automatic
from densecl.config.setting import (
    AREA,
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    VIEW_SIZE,
    Open,
    Range,
    setting,
    settings,
)

_MEAN = Range(lambda mean: all(map(math.isfinite, mean)), "must be finite numbers")
_STD = Range(lambda std: all(0 < value < math.inf for value in std), "must be greater than 0 in every channel")
_JITTER = Range(
    lambda jitter: all(0 <= strength <= 1 for strength in jitter[:3]) and 0 <= jitter[3] <= 0.5,
    "takes brightness, contrast and saturation in 0..1 and hue in 0..0.5",
)
_SIGMA = Range(lambda sigma: 0 < sigma[0] <= sigma[1] < math.inf, "takes a smallest and a largest sigma above 0")


@settings
class DataSettings(Generic[Open]):
    data: str | tuple[str, ...] = setting(
        help="Folder of images (subfolders too; label maps are left out), text file with a path per line, or quoted"
        " glob. Several are used together.",
        free=True,  # a resumed run compares the images themselves
    )
    channels: int = setting(3, "Channels of an image. 3: RGB. 1: grayscale. Others: N-channel TIFF or .npy.", COUNT)
    mean: tuple[float, ...] | Open = setting(
        "auto",
        "Mean of each channel, on the 0-1 scale. auto: that of the starting weights if they say it; else ImageNet's for"
        " RGB; else measured. With --brightness shift always measured.",
        _MEAN,
    )
    std: tuple[float, ...] | Open = setting(
        "auto", "Standard deviation of each channel, on the 0-1 scale. auto: as for the mean.", _STD
    )
    tile: int | None = setting(
        None, "Cut images into square tiles of this many pixels, and use each as an image (drones, slides).", COUNT
    )
    max_image_pixels: int = setting(
        178_956_970,
        "Refuse larger images, and those that would take more bytes of memory than 8 times this number. For larger TIFF"
        " and .npy take --tile, which reads only the parts that it needs.",
        COUNT,
        free=True,
    )
    max_bad_images: float = setting(
        0.05,
        "Stop when a larger fraction of the images than this cannot be used. Fewer are left out: RUN/quarantine.csv.",
        FRACTION,
        free=True,
    )
    image_size: int = setting(224, "Side of a view in pixels.", VIEW_SIZE)
    crop_scale: tuple[float, float] = setting(
        (0.2, 1.0), "Smallest and largest fraction of the image's area that a crop covers [paper].", AREA
    )
    use_size: int | None = setting(
        None,
        "The longer side in pixels at which your detector or segmenter will see an image (with --tile, a tile). Crops"
        " then show things about as large. Of --crop-scale only the spread counts. Not given: crops are fractions of"
        " the image.",
        VIEW_SIZE,
    )
    jitter: tuple[float, float, float, float] | Open = setting(
        "auto",
        "Strength of the jitter of brightness, contrast, saturation and hue. auto: 0.4 0.4 0.4 0.1 [paper]; with --init"
        " 0 for light (the first two) or color (the others), if the starting weights need it to tell cells apart.",
        _JITTER,
        before=automatic.JITTER,
    )
    brightness: Brightness | Open = setting(
        "auto",
        "How brightness is jittered.",
        choices={
            "scale": "multiply all values by one factor [paper]",
            "shift": "add one number to all values, in proportion to their contrast",
            "auto": "scale; but shift for 16-bit images whose values lie in a narrow band (thermal, elevation)",
        },
        before="scale",
    )
    jitter_probability: float = setting(0.8, "Fraction of views whose colors are jittered [paper].", FRACTION)
    grayscale_probability: float | Open = setting(
        "auto",
        "Fraction of views made gray. RGB only. auto: 0.2 [paper]; with --init 0 if colors are needed.",
        FRACTION,
        before=automatic.GRAYSCALE,
    )
    blur_probability: float = setting(0.5, "Fraction of views that are blurred [paper].", FRACTION)
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0),
        "Smallest and largest standard deviation of the blur, in pixels at 224 px. Scaled with --image-size [paper].",
        _SIGMA,
    )
    flip_probability: float = setting(0.5, "Fraction of views mirrored left to right [paper].", FRACTION)
    local_crops: int = setting(
        0,
        "Multi-crop: so many further, smaller views of each image. They are queries only [DINO: 6 to 10].",
        NOT_NEGATIVE,
    )
    local_crop_size: int | Open | None = setting(
        "auto",
        "Side of a local crop in pixels. auto: 3/7 of --image-size [DINO: 96 of 224], and at least 4x4 cells.",
        VIEW_SIZE,
    )
    local_crop_scale: tuple[float, float] = setting(
        (0.05, 0.4), "Smallest and largest fraction of the image's area that a local crop covers [DINO].", AREA
    )
