"""Files that are neither images nor lists of them: what they are, and what the user can do with them."""

from __future__ import annotations

from pathlib import Path

from densecl.errors import UserError
from densecl.names import shown

#: What a file is by its extension, where its content does not tell.
BY_EXTENSION = {
    ".npz": "a file of NumPy arrays",
    ".pth": "a file of weights",
    ".pt": "a file of weights",
    ".ckpt": "a file of weights",
    ".safetensors": "a file of weights",
    ".onnx": "a file of weights",
    ".tfrecord": "a TFRecord file",
    ".lmdb": "an LMDB data base",
    ".mdb": "an LMDB data base",
    ".mat": "a MATLAB file",
}

#: A word in the name of a kind of file -> what the user can do with such a file.
ADVICE = {
    "archive": "Unpack it and give the folder.",
    "video": "Take frames out of it, for instance with ffmpeg, and give their folder.",
    "weights": "Weights go with --init; --data takes a folder of images.",
    "XML": "Give the folder that the images are in.",
    "web page": "Give the folder that the images are in.",
    "LFS": "Run git lfs pull.",
    "image": "Convert it to a format that is: JPEG, PNG or TIFF.",
}
IN_PYTHON = "Open it in Python and give densecl.pretrain a data set of its images, or write them into a folder."


def refused(file: Path, kind: str | None) -> UserError:
    """The error for such a file.

    Args:
        file: its path.
        kind: what it is by its first bytes (`formats.kind_of`).
    """
    name = shown(file)
    kind = BY_EXTENSION.get(file.suffix.lower()) or kind or "a file of another kind"
    advice = next((text for word, text in ADVICE.items() if word in kind), IN_PYTHON)
    if "image" in kind:
        return UserError(f"{name} is {kind}, a format that is not read. {advice}")
    return UserError(f"{name} is {kind}: neither a folder, nor an image, nor a text file of paths. {advice}")
