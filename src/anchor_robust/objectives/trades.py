"""TRADES, Zhang et al., arXiv 1901.08573: cross_entropy(c(f(x)), y) + beta * KL(p(x) || p(x_adv)).

The attack climbs the same divergence, from x + 0.001 N(0, 1). In bf16, which cannot tell most of that start from x,
the first step is a coarse one.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import Refusal
from ..losses import kl_divergence
from .base import Learner, Objective, Step


@dataclass(frozen=True)
class Trades(Objective):
    """Cross-entropy on clean images, and predictions that do not move under attack.

    Attributes:
        beta: Weight of the divergence; larger is more robust and less accurate.
    """

    name: ClassVar[str] = "trades"

    beta: float = 6.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise Refusal(f"beta {self.beta} given; allowed: 0 or more, usually 6")

    def passes(self, attack_steps: int) -> int:
        return attack_steps + 2

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        clean = learner.light(x, generator)
        attack = replace(learner.attack, loss="kl", start="gaussian")
        adversarial = learner.attacked(clean, y, generator, attack)
        logits, _ = learner.forward(torch.cat([clean, adversarial]))
        clean_logits, adversarial_logits = logits.chunk(2)
        cross_entropy = learner.cross_entropy(clean_logits, y)
        divergence = kl_divergence(clean_logits, adversarial_logits).mean()
        parts = {"cross_entropy": cross_entropy, "divergence": divergence}
        return Step(cross_entropy + self.beta * divergence, adversarial_logits, parts)
