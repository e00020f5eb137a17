"""Adversarial images that survive being saved: a search that ends on the 256 grey levels of a picture file."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..threat import Ball, per_image
from .base import Attack, Model, check_ball, check_count
from .gradient import forward_and_back
from .margins import margin
from .worst import worst

LEVELS = 255
HALVINGS = 40


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class GreyLevels(Attack):
    """From `found`, what another attack has found in floating point, on through pictures of 8 bits inside the ball:

        x_0 = q(found),   x_{i+1} = q(x_i + steepest_step(gradient of the margin at x_i)),   the most harmful x_i

    q goes to grey levels inside the ball: for linf to the nearest with at most floor(255 eps) levels between; for l2
    to x + round(s d) / 255, where d is the perturbation in levels and s the largest that stays inside, so that even
    a d below half a level everywhere keeps its largest pixels.

    Attributes:
        ball: Where the attacker may go; for linf of at least one level, 1/255.
        found: Where the search starts, [n ...] like the images, which have to be of grey levels themselves.
        steps: Gradient steps, each of about an eighth of eps.
    """

    ball: Ball
    found: Tensor
    steps: int = 20

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_count("steps", self.steps, 0)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "steps": self.steps, "start": "found", "loss": "margin", "levels": LEVELS + 1}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            return worst(self._walk(model, x, y), lambda x_adv: margin(model(x_adv), y))

    def _walk(self, model: Model, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        x_adv = on_levels(self.ball, self.found.to(x), x)
        yield x_adv
        for _ in range(self.steps):
            with torch.enable_grad():
                *_, gradient = forward_and_back(model, x_adv, lambda logits: margin(logits, y))
            x_adv = on_levels(self.ball, x_adv + self.ball.steepest_step(gradient, self._step_size()), x)
            yield x_adv

    def _step_size(self) -> float:
        """For linf whole levels: less than half of one would round to none."""
        eighth = self.ball.eps / 8
        return math.ceil(LEVELS * eighth) / LEVELS if self.ball.norm == "linf" else eighth


def on_levels(ball: Ball, x_adv: Tensor, x: Tensor) -> Tensor:
    """q above: images on grey levels, inside the ball around the images x [n ...] and inside [0, 1]."""
    start, change = (x * LEVELS).round(), (x_adv - x) * LEVELS
    radius = LEVELS * ball.eps * (1 + 1e-9)  # 8/255 is eight levels, whatever rounding makes of it
    if ball.norm == "linf":
        moved = change.round().clamp(-math.floor(radius), math.floor(radius))
    else:
        moved = filled(change, radius)
    return (start + moved).clamp(0, LEVELS) / LEVELS


def filled(change: Tensor, radius: float) -> Tensor:
    """round(s change) for the largest s, per image of change [n ...], at which its length is at most `radius`."""
    longest = change.flatten(1).abs().amax(1).clamp_min(torch.finfo(change.dtype).tiny)
    inside, outside = torch.zeros_like(longest), (radius + 1) / longest
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        fits = (change * per_image(middle, change)).round().flatten(1).norm(dim=1) <= radius
        inside, outside = torch.where(fits, middle, inside), torch.where(fits, outside, middle)
    return (change * per_image(inside, change)).round()
