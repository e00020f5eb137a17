"""Attacks: find, inside a ball, what the model gets wrong. A model is any callable x -> logits."""

from .base import Attack
from .pgd import PGD, fgsm

__all__ = ["PGD", "Attack", "fgsm"]
