"""Projected gradient descent (Madry et al., arXiv 1706.06083); with one step, FGSM (arXiv 1412.6572)."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import Refusal
from ..threat import Ball
from .base import Attack, Model, check_count
from .gradient import forward_and_back
from .margins import cross_entropy

Start = Literal["uniform", "none"]
Loss = Literal["ce"]


@dataclass(frozen=True)
class PGD(Attack):
    """Climb the cross-entropy inside the ball, `steps` times, and return the last iterate:

        x_0     = x + uniform noise of the ball, or x
        x_{i+1} = project(x_i + steepest_step(gradient of the loss at x_i, step_size))

    Attributes:
        ball: Where the attacker may go.
        steps: Gradient steps, 0 or more.
        step_size: Length of a step in the ball's norm, in pixel units.
        restarts: Independent climbs. Each image keeps the first that fools the model, else the highest loss.
        start: Where a climb starts: `uniform` in the ball, or `none`, at the image.
        loss: What is climbed: `ce`, cross-entropy.

    PGD-20 of the TRADES protocol is PGD(Ball("linf", 0.031), steps=20, step_size=0.003). Raises Refusal for
    values other than the above.
    """

    ball: Ball
    steps: int = 10
    step_size: float = 0.007
    _: KW_ONLY
    restarts: int = 1
    start: Start = "uniform"
    loss: Loss = "ce"

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 0)
        if not isinstance(self.step_size, int | float) or not 0 < self.step_size < math.inf:
            raise Refusal(f"step_size {self.step_size!r} given; allowed: above 0, such as 2/255")
        check_count("restarts", self.restarts, 1)
        if self.start not in get_args(Start):
            raise Refusal(f"start {self.start!r} given; allowed: {', '.join(get_args(Start))}")
        if self.loss not in get_args(Loss):
            raise Refusal(f"loss {self.loss!r} given; allowed: {', '.join(get_args(Loss))}")

    def describe(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("steps", "step_size", "restarts", "start", "loss")}
        return {**super().describe(), **own}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        worst = self._climb(model, x, y, generator)
        if self.restarts == 1:
            return worst
        worst_damage = _damage(model, worst, y)
        for _ in range(self.restarts - 1):
            x_adv = self._climb(model, x, y, generator)
            damage = _damage(model, x_adv, y)
            worse = damage > worst_damage
            worst[worse] = x_adv[worse]
            worst_damage = worst_damage.maximum(damage)
        return worst

    def _climb(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        x_adv = self.ball.random_point(x, generator) if self.start == "uniform" else x.clone()
        for _ in range(self.steps):
            *_, gradient = forward_and_back(model, x_adv, lambda logits: cross_entropy(logits, y))
            step = self.ball.steepest_step(gradient, self.step_size)
            x_adv = self.ball.project(step.add_(x_adv), x)
        return x_adv


def fgsm(ball: Ball) -> PGD:
    """The fast gradient sign method: one step of the ball's whole radius, from the image itself."""
    return PGD(ball, steps=1, step_size=ball.eps, start="none")


@torch.no_grad()
def _damage(model: Model, x_adv: Tensor, y: Tensor) -> Tensor:
    """Per image, [n]: the loss, and infinity once the model is fooled, which no later restart can beat."""
    logits = model(x_adv)
    return cross_entropy(logits, y).masked_fill(logits.argmax(1) != y, math.inf)
