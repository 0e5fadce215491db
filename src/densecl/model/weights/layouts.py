"""How other projects lay out their files of weights: whose file it is, and their names of the tensors in timm's.

What is known of a project stands in one row of `LAYOUTS`. The names are facts, known from files, from running the
project, or from its documentation. A row says which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from densecl.model.weights.pickles import Stored

#: Paths of a file that are looked at, to see whose it is. Their first ones tell, and a hostile file may have millions.
MOST_LOOKED_AT = 20_000

_KIND = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"


class Naming(NamedTuple):
    """Another project's names for the tensors of networks that timm has too.

    Attributes:
        mark: a regular expression. A file without a path that it is found in does not use these names.
        rename: from a path in the file to one with timm's names, or with names that timm translates. Whatever stands
            before the names stays. A path that it does not know is returned as it is.
    """

    mark: str
    rename: Callable[[str], str]


class Layout(NamedTuple):
    """One way in which files of weights are laid out.

    Attributes:
        name: whose it is, as the user reads it.
        place: a regular expression for the whole prefix of the tensors; it ends in a dot, or is empty.
        beside: a regular expression that is found in another path, or in a name at the top of the file. "": in any.
        naming: the names, if they are not timm's: a key of `NAMINGS`.
        warning: what a user of such a file must look at.
        checked: what the row was checked against. "": its names are from documentation alone.
    """

    name: str
    place: str = ".*"
    beside: str = ""
    naming: str = ""
    warning: str = ""
    checked: str = ""


def _of_detectron2(path: str) -> str:
    path = re.sub(r"\bstem\.conv1\.norm\.", "bn1.", path)
    path = re.sub(r"\bstem\.conv1\.", "conv1.", path)
    path = re.sub(r"\bres([2-5])\.(?=\d+\.)", lambda found: f"layer{int(found[1]) - 1}.", path)
    path = re.sub(r"\bconv([123])\.norm\.", r"bn\1.", path)
    path = re.sub(r"\bshortcut\.norm\.", "downsample.1.", path)
    return re.sub(r"\bshortcut\.", "downsample.0.", path)


def _of_numbers(path: str) -> str:
    """The parts of a ResNet are counted: 0 and 1 are its first convolution and norm, 4 to 7 its stages."""
    stage = re.fullmatch(r"((?:.*\.)?)([4-7])\.(\d+\.(?:conv|bn|downsample|se|aa)\d*\..*)", path)
    if stage is not None:
        return f"{stage[1]}layer{int(stage[2]) - 3}.{stage[3]}"
    first = re.fullmatch(rf"((?:.*\.)?)([01])\.((?:\d+\.)?{_KIND})", path)
    if first is not None:
        return f"{first[1]}{('conv1', 'bn1')[int(first[2])]}.{first[3]}"
    return path


def _of_mmpretrain(path: str) -> str:
    """Its vision transformers get timm's names, its ConvNeXts the authors', which timm translates."""
    path = re.sub(r"\bdepthwise_conv\.", "dwconv.", path)
    path = re.sub(r"\bpointwise_conv([12])\.", r"pwconv\1.", path)
    path = re.sub(r"\bnorm3\.", "norm.", path)
    path = re.sub(r"\bpatch_embed\.projection\.", "patch_embed.proj.", path)
    path = re.sub(r"\bffn\.layers\.0\.0\.", "mlp.fc1.", path)
    path = re.sub(r"\bffn\.layers\.1\.", "mlp.fc2.", path)
    path = re.sub(r"\blayers\.(\d+)\.(?=ln|norm|attn|mlp|gamma)", r"blocks.\1.", path)
    path = re.sub(r"(\bblocks\.\d+)\.(?:ln|norm)([12])\.", r"\1.norm\2.", path)
    return re.sub(r"^((?:.*\.)?)ln1\.", r"\1norm.", path)  # the one that is left is the last norm


def _of_transformers(path: str) -> str:
    """Its ResNets get timm's names, its ConvNeXts the authors', which timm translates."""
    path = re.sub(r"\bembedder\.embedder\.convolution\.", "conv1.", path)
    path = re.sub(r"\bembedder\.embedder\.normalization\.", "bn1.", path)
    path = re.sub(r"\bembeddings\.patch_embeddings\.", "downsample_layers.0.0.", path)
    path = re.sub(r"\bembeddings\.layernorm\.", "downsample_layers.0.1.", path)
    path = re.sub(r"\bencoder\.stages\.(\d)\.downsampling_layer\.", r"downsample_layers.\1.", path)
    inside = re.fullmatch(r"((?:.*\.)?)encoder\.stages\.(\d)\.layers\.(\d+)\.(.*)", path)
    if inside is None:
        path = re.sub(r"(^|\.)classifier\.(weight|bias)$", r"\1head.\2", path)
        return re.sub(r"(^|\.)layernorm\.", r"\1norm.", path)
    before, stage, block, rest = inside.groups()
    if re.match(r"layer\.\d|shortcut", rest):
        rest = re.sub(r"^layer\.(\d)\.convolution", lambda found: f"conv{int(found[1]) + 1}", rest)
        rest = re.sub(r"^layer\.(\d)\.normalization", lambda found: f"bn{int(found[1]) + 1}", rest)
        rest = rest.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        return f"{before}layer{int(stage) + 1}.{block}.{rest}"
    rest = rest.replace("layernorm", "norm").replace("layer_scale_parameter", "gamma")
    rest = rest.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta")
    return f"{before}stages.{stage}.{block}.{rest}"


def _of_torchvision(path: str) -> str:
    """Its vision transformers get timm's names, its ConvNeXts the authors'. Its ResNets have timm's own."""
    path = re.sub(r"\bconv_proj\.", "patch_embed.proj.", path)
    path = re.sub(r"\bclass_token$", "cls_token", path)
    path = re.sub(r"\bencoder\.pos_embedding$", "pos_embed", path)
    path = re.sub(r"\bencoder\.ln\.", "norm.", path)
    path = re.sub(r"\bencoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1.", path)
    path = re.sub(r"(\bblocks\.\d+)\.ln_([12])\.", r"\1.norm\2.", path)
    path = re.sub(r"\bself_attention\.in_proj_", "attn.qkv.", path)
    path = re.sub(r"\bself_attention\.out_proj\.", "attn.proj.", path)
    path = re.sub(r"(\bblocks\.\d+\.mlp)\.(?:0|linear_1)\.", r"\1.fc1.", path)
    path = re.sub(r"(\bblocks\.\d+\.mlp)\.(?:3|linear_2)\.", r"\1.fc2.", path)
    part = re.fullmatch(r"((?:.*\.)?)features\.([0-7])\.(\d+)\.(.*)", path)
    if part is None:
        return re.sub(r"\bclassifier\.2\.", "head.", re.sub(r"\bclassifier\.0\.", "norm.", path))
    before, number, block, rest = part[1], int(part[2]), part[3], part[4]
    if number % 2 == 0:
        return f"{before}downsample_layers.{number // 2}.{block}.{rest}"
    parts = {"block.0.": "dwconv.", "block.2.": "norm.", "block.3.": "pwconv1.", "block.5.": "pwconv2."}
    for theirs, authors in parts.items():
        rest = rest.replace(theirs, authors)
    return f"{before}stages.{number // 2}.{block}.{rest.replace('layer_scale', 'gamma')}"


def _of_features_only(path: str) -> str:
    """Where timm gives a list of maps, it puts the stages of some networks side by side."""
    return re.sub(r"\b(stem|stages|layers|blocks)_(\d+)\.", r"\1.\2.", path)


NAMINGS = {
    "detectron2": Naming(r"\bres[2-5]\.\d+\.conv\d\.norm\.", _of_detectron2),
    "numbers": Naming(r"(^|\.)[4-7]\.\d+\.(conv|bn)\d\.", _of_numbers),
    "mmpretrain": Naming(r"\bffn\.layers\.\d|\bdepthwise_conv\.", _of_mmpretrain),
    "transformers": Naming(r"\bencoder\.stages\.\d\.layers\.\d", _of_transformers),
    "features_only": Naming(r"\b(?:stages|layers|blocks)_\d+\.", _of_features_only),
    "torchvision": Naming(r"\bencoder_layer_\d+\.self_attention\.|\bfeatures\.1\.0\.block\.\d\.", _of_torchvision),
}

#: The first row that fits a file is the one.
LAYOUTS = (
    # --- whose names are not timm's -------------------------------------------------------------
    Layout(
        "detectron2's ResNet",
        naming="detectron2",
        warning="detectron2's own pre-trained ResNets (MSRA) read BGR pixels of 0 to 255 and have their stride in the"
        " 1x1 convolution. timm's ResNet would compute something else from them. Weights that detectron2 got from"
        " torchvision, MoCo or densecl are right",
        checked="its ResNet, built from its source of 2026-06",
    ),
    Layout(
        "Ultralytics' TorchVision layer",
        place=r"(?:.*\.)?model\.\d+\.m\.",
        naming="numbers",
        warning="Ultralytics trains on pixels of 0 to 1 as they are (--mean 0 0 0 --std 1 1 1), and with an eps of"
        " 0.001 in batch norm, which changes the features a little",
        checked="a .pt of Ultralytics 8.4",
    ),
    Layout(
        "LightlySSL's checkpoint",
        place=r"(?:.*\.)?(?:student_|teacher_|online_)?backbone(?:_momentum)?\.",
        beside=r"^pytorch-lightning_version$",
        naming="numbers",
        checked="a checkpoint of LightlySSL 1.6",
    ),
    Layout("a ResNet whose parts have numbers (nn.Sequential)", naming="numbers", checked="nn.Sequential"),
    Layout(
        "a file of mmpretrain or mmselfsup, with their names",
        naming="mmpretrain",
        checked="the networks of mmpretrain 1.2",
    ),
    Layout(
        "a network of transformers",
        naming="transformers",
        checked="ResNet, ConvNeXt and ConvNeXt V2 of transformers 5.24",
    ),
    Layout(
        "a network of torchvision, with its names",
        naming="torchvision",
        checked="ConvNeXt and ViT-B/16 of torchvision 0.29",
    ),
    Layout(
        "a network of timm's with features_only (also smp's tu- and transformers' TimmBackbone)",
        naming="features_only",
        checked="timm; smp 0.6's tu-convnext_nano",
    ),
    # --- whose names are timm's: known by what stands before them, or beside them -----------------
    Layout(
        "a checkpoint of DenseCL's authors", place=r"(?:.*\.)?(?:encoder_[qk]\.0|backbone)\.", beside=r"(?:^|\.)queue2$"
    ),
    Layout(
        "a checkpoint of OpenMMLab (mmselfsup, mmpretrain, mmdetection, mmsegmentation)",
        place=r"state_dict\.(?:backbone|encoder_[qk]\.0|target_net\.0|online_net\.0|encoder_k\.module\.0)\.",
        beside=r"^(?:meta|message_hub)$",
        checked="the ResNet of mmpretrain 1.2",
    ),
    Layout("MoCo v3's checkpoint", place=r"(?:.*\.)?(?:base|momentum)_encoder\."),
    Layout("MoCo's checkpoint", place=r"(?:.*\.)?encoder_[qk]\."),
    Layout("VISSL's checkpoint", place=r".*\btrunk\.(?:_feature_blocks|base_model)\."),
    Layout("a checkpoint like DINO's", place=r"(?:student|teacher)\..*", beside=r"^student(?:\.|$)"),
    Layout("LightlySSL's or another Lightning checkpoint", place=r"(?:.*\.)?backbone(?:_momentum)?\.",
           beside=r"^pytorch-lightning_version$", checked="a checkpoint of Lightning"),
    Layout("a Lightning checkpoint", beside=r"^pytorch-lightning_version$", checked="a checkpoint of Lightning"),
    Layout("a torchvision detector", place=r"(?:.*\.)?backbone\.body\.", checked="Faster R-CNN of torchvision 0.29"),
    Layout(
        "a torchvision segmenter", place=r"(?:.*\.)?backbone\.", beside=r"(?:^|\.)classifier\.\d",
        checked="DeepLabV3 of torchvision 0.29",
    ),
    Layout(
        "a segmenter of segmentation-models-pytorch", place=r"(?:.*\.)?encoder\.(?:model\.)?",
        beside=r"(?:^|\.)segmentation_head\.\d", checked="Unet of smp 0.6",
    ),
    Layout(
        "transformers' wrapper of timm",
        place=r"(?:.*\.)?(?:timm_model|_backbone)\.",
        checked="the names of TimmWrapperModel in transformers 5.24",
    ),
    Layout(
        "a checkpoint of timm's training",
        place=r"state_dict(?:_ema)?\.(?:module\.)?",
        beside=r"^(?:state_dict_ema|metric)$",
    ),
    Layout(
        "a checkpoint of PyTorch's ImageNet example", place=r"state_dict\.module\.", beside=r"^best_acc1$",
    ),
    Layout(
        "weights saved from DataParallel or DistributedDataParallel", place=r"(?:(?:state_dict|model)\.)?module\.",
        checked="torch's DataParallel",
    ),
    Layout("a plain state dict", place="", checked="timm, torchvision"),
)  # fmt: skip


def in_other_names(tensors: Mapping[str, Stored]) -> Iterable[tuple[str, dict[str, Stored]]]:
    """The tensors of a file under timm's names, once for each of `NAMINGS` that the file may use, with its key."""
    for key, naming in NAMINGS.items():
        mark = re.compile(naming.mark)
        if not any(mark.search(path) for path in tensors):
            continue
        renamed: dict[str, Stored] = {}
        for path, stored in tensors.items():
            # torchvision keeps the scales of a ConvNeXt's layers as "channels 1 1".
            scale = path.endswith("layer_scale") and stored.shape[1:] == (1, 1)
            renamed.setdefault(naming.rename(path), stored.flattened() if scale else stored)
        yield key, renamed


def layout_of(place: str, naming: str, paths: Iterable[str], top: Iterable[str]) -> Layout | None:
    """Whose file it is.

    Args:
        place: the prefix under which the tensors were found; it ends in a dot, or is empty.
        naming: the key of the names in which they were found; empty for timm's.
        paths: of all tensors of the file.
        top: names at the top of the file, also of what is no tensor.
    """
    looked_at = [*top, *paths][:MOST_LOOKED_AT]
    for layout in LAYOUTS:
        if layout.naming != naming or not re.fullmatch(layout.place, place):
            continue
        if not layout.beside or any(re.search(layout.beside, one) for one in looked_at):
            return layout
    return None
