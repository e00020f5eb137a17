"""Ordinary training, the yardstick for clean accuracy: cross_entropy(c(f(x)), y)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Learner, Objective, Step


@dataclass(frozen=True)
class Standard(Objective):
    """Cross-entropy on the lightly augmented images; no attack."""

    name: ClassVar[str] = "standard"
    selects_on: ClassVar[str] = "clean"

    def passes(self, attack_steps: int) -> int:
        return 1

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        logits, _ = learner.forward(learner.light(x, generator))
        loss = learner.cross_entropy(logits, y)
        return Step(loss, logits, {"cross_entropy": loss})
