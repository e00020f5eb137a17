"""Losses: pure functions of tensors, strangers to models, data and attacks."""

from .contrastive import hard_supcon

__all__ = ["hard_supcon"]
