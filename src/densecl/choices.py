"""The settings that are one of a few words, each list once. Free of torch, because `densecl --help` reads it.

`Literal["auto", MethodName]` is such a list with "auto" in front: a recipe may leave the choice to the run.
"""

from __future__ import annotations

from typing import Literal

Auto = Literal["auto"]

#: The self-supervised methods; "densecl" is moco with a dense loss. What each is made of: `model.methods.METHODS`.
MethodName = Literal["moco", "densecl", "simclr", "byol", "simsiam", "barlow", "vicreg", "dino"]

#: How a query cell finds its positive.
Matching = Literal["features", "mutual", "geometry", "both"]

#: What a query cell is told apart from.
DenseNegatives = Literal["pooled", "cells", "batch", "others"]

#: What keeps the dense loss from telling apart cells that look alike.
DenseSoftening = Literal["none", "propagation", "weighted-negatives"]

#: Barlow Twins and VICReg: over which cells the statistics of the dense loss are taken.
DenseStatistics = Literal["cells", "position"]

#: How batch norm in the momentum encoder is kept from telling query and key apart.
KeyNorm = Literal["shuffle", "split", "ema"]

#: How brightness is jittered.
Brightness = Literal["scale", "shift"]

#: How a student follows its teacher.
TeacherObjective = Literal["cosine", "relational", "both"]

#: What an anchor keeps of the starting network.
AnchorForm = Literal["gram", "cells"]

#: Detectors, all of torchvision's and with a feature pyramid on the backbone.
Architecture = Literal["faster-rcnn", "retinanet", "mask-rcnn"]

#: As a teacher: the weights that the run starts from.
STARTING_WEIGHTS = "init"

#: What a result calls that teacher.
ITSELF = "its own starting weights"

#: The license of weights of which nothing says it.
UNKNOWN_LICENSE = "unknown"
