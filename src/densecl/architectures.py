"""Names of backbones, without loading torch: what was typed, and whether timm has it.

timm fills its table of models while it is imported, and with it torch, which takes seconds. A mistyped name should be
told at once. So the names are looked up in the text of timm's own files, of whichever version is installed. A list of
ours would be out of date with the next one.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from densecl.errors import UserError, nearest

#: Who else has weights of an architecture under a name, as others write it in front: "torchvision/resnet18".
LIBRARIES = ("timm", "torchvision")

#: What people type who know an architecture from elsewhere -> timm's name.
ELSEWHERE = {
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitb14": "vit_base_patch14_dinov2",
    "dinov2_vitl14": "vit_large_patch14_dinov2",
    "dinov2_vitg14": "vit_giant_patch14_dinov2",
    "dinov2/vits14": "vit_small_patch14_dinov2",
    "dinov2/vitb14": "vit_base_patch14_dinov2",
    "dinov2/vitl14": "vit_large_patch14_dinov2",
    "dinov3/vits16": "vit_small_patch16_dinov3",
    "dinov3/vitb16": "vit_base_patch16_dinov3",
    "dinov3_vits16": "vit_small_patch16_dinov3",
    "dinov3_vitb16": "vit_base_patch16_dinov3",
    "dino_vits16": "vit_small_patch16_224",
    "vit_b_16": "vit_base_patch16_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vits16": "vit_small_patch16_224",
    "vitb16": "vit_base_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v2": "mobilenetv2_100",
    "convnext": "convnext_tiny",
    "vit": "vit_small_patch16_224",
    "resnet": "resnet50",
}

#: How a model's name begins that is no network of timm's, and what to say of it.
NOT_IN_TIMM = {
    r"yolo|rtdetr": "YOLO's networks are not timm's. In Python, give its backbone as a module; a small one of timm's:"
    " mobilenetv4_conv_small, resnet18",
}


def understood(name: str) -> str:
    """The name without what others write in front, such as "resnet18" for "torchvision/resnet18"."""
    library, _, rest = name.partition("/")
    return ELSEWHERE.get(rest, rest) if library in LIBRARIES and rest else name


def hint(name: str, known: list[str]) -> str:
    """What was perhaps meant by a name that timm does not know; nothing if there is no guess.

    Args:
        name: as it was typed.
        known: timm's names.
    """
    plain = name.lower()
    for start, advice in NOT_IN_TIMM.items():
        if re.match(start, plain.rpartition("/")[2]):
            return f" {advice}."
    if plain in ELSEWHERE:
        return f" timm calls it '{ELSEWHERE[plain]}'."
    for each in (plain, plain.rpartition("/")[2].replace("-", "_")):
        if each in known:
            return f" Did you mean '{each}'?"
    return nearest(name, known)


def unknown_backbone(name: str, known: list[str]) -> UserError:
    """The error for a name that timm does not know."""
    return UserError(f"--backbone {name}: timm has no such model.{hint(name, known)}")


def check_backbone(name: str) -> None:
    """
    Raises:
        UserError: the name stands nowhere in timm's models. Without torch one cannot know more: a name that stands
            there may still be none.
    """
    if "timm" in sys.modules:  # then it may have models of the user's, and asking it costs nothing
        return
    texts = _texts_of_timm()
    base = re.escape(name.split(".")[0].encode())
    elsewhere = name.lower() in ELSEWHERE  # such names stand in timm's files, as those of others' weights
    if not texts or (not elsewhere and any(re.search(rb"(?<![\w-])" + base + rb"(?![\w-])", text) for text in texts)):
        return
    known = sorted(name.decode() for text in texts for name in _MODEL.findall(text))
    if name not in known:
        raise unknown_backbone(name, known)


#: How timm's files make a model known.
_MODEL = re.compile(rb"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def _texts_of_timm() -> list[bytes]:
    """The files of timm's models; none if they are not there as files."""
    spec = importlib.util.find_spec("timm")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    try:
        return [path.read_bytes() for folder in folders for path in sorted(Path(folder, "models").glob("*.py"))]
    except OSError:
        return []
