"""Files of weights: the result of a run, and existing weights as a start."""

from densecl.model.weights.result import check_fits, load_backbone, outline, read_metadata, save_backbone, write_tensors
from densecl.model.weights.start import Start, initialize_from
from densecl.model.weights.teacher import Teacher, load_teacher
from densecl.model.weights.tensor_files import check_finite, is_safetensors, read_tensors

__all__ = [
    "Start",
    "Teacher",
    "check_finite",
    "check_fits",
    "initialize_from",
    "is_safetensors",
    "load_backbone",
    "load_teacher",
    "outline",
    "read_metadata",
    "read_tensors",
    "save_backbone",
    "write_tensors",
]
