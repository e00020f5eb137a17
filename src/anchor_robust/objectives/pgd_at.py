"""Adversarial training of Madry et al., arXiv 1706.06083: cross_entropy(c(f(x_adv)), y)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Learner, Objective, Step


@dataclass(frozen=True)
class PGDAdversarialTraining(Objective):
    """Cross-entropy on the attacked, lightly augmented images."""

    name: ClassVar[str] = "pgd-at"

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        adversarial = learner.attacked(learner.light(x, generator), y, generator)
        logits, _ = learner.forward(adversarial)
        loss = learner.cross_entropy(logits, y)
        return Step(loss, logits, {"cross_entropy": loss})
