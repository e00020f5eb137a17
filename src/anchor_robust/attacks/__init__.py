"""Attacks: find, inside a ball, what the model gets wrong. A model is any callable x -> logits."""

from .apgd import APGD, APGDT
from .autoattack import AutoAttack, Stage, stages
from .base import Attack
from .fab import FAB
from .pgd import PGD, fgsm
from .square import Square

__all__ = ["APGD", "APGDT", "FAB", "PGD", "Attack", "AutoAttack", "Square", "Stage", "fgsm", "stages"]
