"""One file for each family of methods; `methods` says which method is made of what."""

from densecl.model.objectives.contrastive import MoCo, SimCLR
from densecl.model.objectives.objective import Objective, Pairs, Temperature, image_pairs, mean_over_valid
from densecl.model.objectives.prediction import BYOL, SimSiam
from densecl.model.objectives.redundancy import BarlowTwins, VICReg, barlow_twins, vicreg
from densecl.model.objectives.self_distillation import DINO

__all__ = [
    "BYOL",
    "DINO",
    "BarlowTwins",
    "MoCo",
    "Objective",
    "Pairs",
    "SimCLR",
    "SimSiam",
    "Temperature",
    "VICReg",
    "barlow_twins",
    "image_pairs",
    "mean_over_valid",
    "vicreg",
]
