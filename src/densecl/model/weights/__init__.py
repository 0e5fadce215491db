"""Files of weights: the result of a run, and existing weights as a start."""

from densecl.model.weights.result import load_backbone, read_metadata, save_backbone
from densecl.model.weights.start import Start, initialize_from, weights_file
from densecl.model.weights.teacher import Teacher, load_teacher

__all__ = [
    "Start",
    "Teacher",
    "initialize_from",
    "load_backbone",
    "load_teacher",
    "read_metadata",
    "save_backbone",
    "weights_file",
]
