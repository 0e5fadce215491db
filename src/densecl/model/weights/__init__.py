"""Files of weights: the result of a run, and existing weights as a start."""

from densecl.model.weights.result import load_backbone, read_metadata, save_backbone
from densecl.model.weights.start import Start, initialize_from, weights_file

__all__ = ["Start", "initialize_from", "load_backbone", "read_metadata", "save_backbone", "weights_file"]
