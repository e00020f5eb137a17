"""MART, Wang et al., ICLR 2020 ("Improving Adversarial Robustness Requires Revisiting Misclassified Examples"):

    BCE(p(x_adv), y) + beta * KL(p(x) || p(x_adv)) * (1 - p_y(x))

BCE is `losses.boosted_cross_entropy`, the rest `losses.doubted_divergence`. Images that are misclassified clean are the
ones held still most. The attack starts uniformly in the ball, where the authors' code starts at x + 0.001 N(0, 1); the
paper says a random start. The margin's logarithm is exact, where theirs adds 0.0001 and ends at 9.2.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import Refusal
from ..losses import boosted_cross_entropy, doubted_divergence
from .base import Learner, Objective, Step


@dataclass(frozen=True)
class Mart(Objective):
    """A margin on attacked images, and steadiness where the clean prediction is wrong.

    Attributes:
        beta: Weight of the divergence.
    """

    name: ClassVar[str] = "mart"

    beta: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise Refusal(f"beta {self.beta} given; allowed: 0 or more, usually 5")

    def passes(self, attack_steps: int) -> int:
        return attack_steps + 2

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        clean = learner.light(x, generator)
        adversarial = learner.attacked(clean, y, generator)
        logits, _ = learner.forward(torch.cat([clean, adversarial]))
        clean_logits, adversarial_logits = logits.chunk(2)
        boosted = learner.expected(boosted_cross_entropy(adversarial_logits), y)
        divergence = learner.expected(doubted_divergence(clean_logits, adversarial_logits), y)
        parts = {"boosted_cross_entropy": boosted, "divergence": divergence}
        return Step(boosted + self.beta * divergence, adversarial_logits, parts)
