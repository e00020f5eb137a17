"""Fast adversarial training, Wong et al., arXiv 2001.03994: one step of 1.25 eps from a uniform start.

One-step training can collapse within an epoch ("catastrophic overfitting"): the network holds the one-step attack and
loses every answer to a longer one. The guard is ours: it looks for that in every step, on a slice of the batch, and
attacks a batch thoroughly where it finds it. The authors look once an epoch, and stop the training.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import Refusal
from .base import Learner, Objective, Step


@dataclass(frozen=True)
class FastAdversarialTraining(Objective):
    """Cross-entropy on images attacked in one step, and in the recipe's steps where one no longer suffices.

    Attributes:
        step: Length of the one step, in eps.
        guard: Share of the batch, at least one image, on which the recipe's own attack is compared with the one step; 0
            does not look.
        gap: Largest share of that slice that may hold the one step and fall to the recipe's attack; above it the whole
            batch is attacked by the latter.
    """

    name: ClassVar[str] = "fast-at"

    step: float = 1.25
    guard: float = 0.125
    gap: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.step <= 2:
            raise Refusal(f"step {self.step} given; allowed: above 0 and at most 2, in eps; usually 1.25")
        for setting in ("guard", "gap"):
            if not 0 <= getattr(self, setting) <= 1:
                raise Refusal(f"{setting} {getattr(self, setting)} given; allowed: 0 to 1, a share of the images")

    def passes(self, attack_steps: int) -> float:
        # The guard attacks its slice thoroughly, and the whole batch only where training had begun to collapse.
        return min(attack_steps, 1) + self.guard * attack_steps + 1

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        clean = learner.light(x, generator)
        one_step = replace(learner.attack, steps=1, step_size=self.step * learner.attack.ball.eps)
        adversarial = learner.attacked(clean, y, generator, one_step)
        overfitted = torch.zeros((), device=x.device)
        few = math.ceil(self.guard * len(x))
        if few:
            thorough = learner.attacked(clean[:few], y[:few], generator)
            with torch.no_grad():
                fooled_late = self.holds(learner, adversarial[:few], y[:few]) & ~self.holds(learner, thorough, y[:few])
            overfitted = (learner.gathered(fooled_late.float()).mean() > self.gap).float()
            if overfitted:
                adversarial = learner.attacked(clean, y, generator)
        logits, _ = learner.forward(adversarial)
        loss = learner.cross_entropy(logits, y)
        return Step(loss, logits, {"cross_entropy": loss, "guarded": overfitted})

    @staticmethod
    def holds(learner: Learner, x: Tensor, y: Tensor) -> Tensor:
        return learner.net(x).argmax(1) == y
