"""Losses: pure functions of tensors, strangers to models, data and attacks."""

from .contrastive import check_tensor, hard_supcon, selective_supcon
from .divergence import boosted_cross_entropy, doubted_divergence, kl_divergence, margin_penalty

__all__ = [
    "boosted_cross_entropy",
    "check_tensor",
    "doubted_divergence",
    "hard_supcon",
    "kl_divergence",
    "margin_penalty",
    "selective_supcon",
]
