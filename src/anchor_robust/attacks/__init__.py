"""Attacks: find, inside a ball, what the model gets wrong. A model is any callable x -> logits."""

from .apgd import APGD, APGDT
from .base import Attack
from .pgd import PGD, fgsm

__all__ = ["APGD", "APGDT", "PGD", "Attack", "fgsm"]
