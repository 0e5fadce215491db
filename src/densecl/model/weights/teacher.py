"""A frozen network with trained weights, to be followed: its weights, its normalization and their license."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from densecl.choices import STARTING_WEIGHTS
from densecl.errors import UserError, nearest
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.timm_models import known_to_timm
from densecl.model.weights import hub
from densecl.model.weights.licenses import License, of_file, of_timm
from densecl.model.weights.result import load_backbone, read_metadata
from densecl.model.weights.start import NotDownloaded, initialize_from
from densecl.model.weights.tensor_files import is_safetensors, read_tensors, shown
from densecl.normalization import IMAGENET, Normalization
from densecl.weights_file import configuration, weights_file

#: Channels of the images that published weights take.
RGB = 3


class Teacher(NamedTuple):
    """A trained network.

    Attributes:
        network: the backbone, with its weights.
        normalization: that it was trained with. None: that of the run.
        license: of its weights; None if nothing says it.
        whose_license: in words, who says so.
        notes: lines for the user.
    """

    network: Backbone
    normalization: Normalization | None
    license: str | None
    whose_license: str
    notes: tuple[str, ...]


def load_teacher(source: str, architecture: str | None = None) -> Teacher:
    """Opens a teacher. What is drawn at random on the way leaves torch's random numbers as they were.

    Args:
        source: a run, a file of weights, a folder from a hub, or the name of a timm model, whose weights are then
            downloaded. What exists as a path is taken as one.
        architecture: timm's name of the model, for a file that does not say it.

    Raises:
        UserError: if there is no such file or model, its architecture is not known, it cannot be read, or some of its
            weights are missing.
    """
    with torch.random.fork_rng(devices=[]):
        if Path(source).expanduser().exists():
            return _from_file(Path(source).expanduser(), architecture)
        if not known_to_timm(source):
            name = source.split(".")[0]
            no_model = "/" not in source and not timm.is_model(name)
            hint = nearest(source, [STARTING_WEIGHTS, *timm.list_models()]) if no_model else ""
            raise UserError(f"--teacher {source}: no such run or file of weights, and no model of timm's.{hint}")
        if architecture is not None:
            raise UserError(f"--teacher-backbone {architecture}: --teacher {source} is a model by name. Leave it out.")
        return _by_name(source)


# --- by name --------------------------------------------------------------------------------------


def _by_name(name: str) -> Teacher:
    """A model of timm's, with the weights that it downloads."""
    network = _create(name, "--teacher")
    said: dict[str, Any] = getattr(network.model, "pretrained_cfg", {})
    where = hub.what_to_bring(said)
    if where is None:
        raise UserError(f"--teacher {name}: timm has no weights for it. Give a file of weights or a run.")
    bring = (
        f"Bring {where} from a machine with a network, and give --teacher FILE --teacher-backbone"
        f" {_tagged(said, name)}."
    )
    try:
        start = initialize_from(network, "imagenet")
    except UserError as error:
        why = error.why if isinstance(error, NotDownloaded) else error.args[0]
        raise UserError(f"--teacher {name}: {why} {bring}") from error
    return _made(network, start.normalization, start.license, (f"teacher: {name} with timm's weights",))


def _tagged(said: dict[str, Any], name: str) -> str:
    """timm's full name of the weights."""
    tag = said.get("tag")
    return f"{name.split('.')[0]}.{tag}" if tag else name


# --- from a file ----------------------------------------------------------------------------------


def _from_file(path: Path, architecture: str | None) -> Teacher:
    """A run, a result, or a file of any training whose architecture is known."""
    file = weights_file(path)
    if path.is_dir() and not file.is_file():
        raise UserError(f"--teacher {path} is a folder without weights.")
    metadata = read_metadata(file) if is_safetensors(file) else None
    if metadata is not None:
        if architecture is not None and architecture.split(".")[0] != metadata.architecture.split(".")[0]:
            raise UserError(
                f"--teacher-backbone {architecture}: {file} says that it is a {shown(metadata.architecture)}. Leave it"
                " out."
            )
        if not known_to_timm(metadata.architecture):
            raise UserError(
                f"--teacher {file} holds the weights of a {shown(metadata.architecture)}, which timm does not know. It"
                " cannot teach."
            )
        network, normalization = load_backbone(file)
        return _made(network, normalization, of_file(file), (f"teacher: {network.name} from {file}",))
    beside = configuration(file.with_name("config.json"))
    name = architecture or _name_in(beside)
    read_tensors(file)  # what cannot be read at all is told before what is missing
    if name is None:
        raise UserError(
            f"--teacher {file} does not say what model it is of. Say it with --teacher-backbone, such as"
            " --teacher-backbone vit_small_patch14_dinov2."
        )
    return _of_architecture(file, name)


def _of_architecture(file: Path, name: str) -> Teacher:
    network = _create(name, "--teacher-backbone")
    start = initialize_from(network, file)
    if start.channels is not None:  # it was adapted, so that it is another network; made anew as it is
        network = create_backbone(name, channels=start.channels)
        start = initialize_from(network, file)
    if start.missing:
        raise UserError(
            f"--teacher {file} lacks {len(start.missing)} of the tensors of {name}, such as {start.missing[0]}. A"
            " teacher must be whole. Is it of another model?"
        )
    notes = [f"teacher: {start.report}"]
    normalization = start.normalization
    if normalization is None and network.in_channels == RGB:
        normalization = IMAGENET
        notes.append(f"warning: {file} does not say its mean and standard deviation; ImageNet's are taken")
    elif normalization is None:
        raise UserError(f"--teacher {file} does not say which mean and standard deviation it expects.")
    found = start.license
    if found.name is None and "." in name:  # whoever gives the tag says which weights these are
        found = of_timm(network.model)
    return _made(network, normalization, found, tuple(notes))


def _create(name: str, where: str) -> Backbone:
    """The model, with a complaint under the flag that named it."""
    try:
        return create_backbone(name, channels=RGB)
    except UserError as error:
        raise UserError(error.args[0].replace("--backbone", where, 1)) from error


def _name_in(configuration: dict[str, Any]) -> str | None:
    """The model that a configuration names, if timm knows it."""
    name, own = configuration.get("architecture"), configuration.get("pretrained_cfg")
    if not isinstance(name, str):
        return None
    tag = own.get("tag") if isinstance(own, dict) else None
    full = f"{name}.{tag}" if isinstance(tag, str) and tag else name
    return next((one for one in (full, name) if known_to_timm(one)), None)


def _made(network: Backbone, normalization: Normalization | None, found: License, notes: tuple[str, ...]) -> Teacher:
    return Teacher(network, normalization or IMAGENET, found.name, found.whose, notes)
