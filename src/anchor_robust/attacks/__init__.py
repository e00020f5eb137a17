"""Attacks: find, inside a ball, what the model gets wrong. A model is any callable x -> logits."""

from .apgd import APGD, APGDT
from .autoattack import AutoAttack, Stage, stages
from .base import Attack
from .embedding import EmbeddingAttack
from .fab import FAB
from .grey_levels import GreyLevels
from .noise import Noise
from .pgd import PGD, fgsm
from .square import Square
from .transfer import Transfer

__all__ = [
    "APGD",
    "APGDT",
    "FAB",
    "PGD",
    "Attack",
    "AutoAttack",
    "EmbeddingAttack",
    "GreyLevels",
    "Noise",
    "Square",
    "Stage",
    "Transfer",
    "fgsm",
    "stages",
]
