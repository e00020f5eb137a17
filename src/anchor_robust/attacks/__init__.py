"""Attacks: find, inside a ball, what the model gets wrong. A model is any callable x -> logits."""

from .base import Attack
from .embedding import EmbeddingAttack
from .noise import Noise
from .pgd import PGD, fgsm
from .transfer import Transfer

__all__ = ["PGD", "Attack", "EmbeddingAttack", "Noise", "Transfer", "fgsm"]
