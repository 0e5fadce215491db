"""The method in pure torch: nothing here knows about files of images, Lightning or the command line."""

from densecl.model.backbone import Backbone, Normalisation, create_backbone, load_backbone, save_backbone
from densecl.model.densecl import DenseCL, Embeddings, Output

__all__ = [
    "Backbone",
    "DenseCL",
    "Embeddings",
    "Normalisation",
    "Output",
    "create_backbone",
    "load_backbone",
    "save_backbone",
]
