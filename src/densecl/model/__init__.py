"""The method in pure torch: nothing here knows about files of images, Lightning or the command line."""

from densecl.model.backbone import Backbone, create_backbone
from densecl.model.densecl import DenseCL, Output
from densecl.model.distillation import Distillation, Distilled, Follower, Guidance
from densecl.model.encoder import Embeddings
from densecl.model.heads import HeadShape
from densecl.model.methods import METHODS, Method
from densecl.model.scheduled import Scheduled
from densecl.model.weights import load_backbone, save_backbone

__all__ = [
    "METHODS",
    "Backbone",
    "DenseCL",
    "Distillation",
    "Distilled",
    "Embeddings",
    "Follower",
    "Guidance",
    "HeadShape",
    "Method",
    "Output",
    "Scheduled",
    "create_backbone",
    "load_backbone",
    "save_backbone",
]
