"""Random noise: what is lost without any search, the yardstick that every attack has to beat (arXiv 1902.06705)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..threat import Ball
from .base import Attack, Model, check_ball, check_count
from .margins import margin
from .worst import damage, worst


@dataclass(frozen=True)
class Noise(Attack):
    """Draw points of the ball, and keep for each image the first that fools the model, else the smallest lead.

    Attributes:
        ball: Where the points lie, uniform in volume.
        draws: Points for each image, 1 or more; each costs one forward pass and no gradient.

    Raises Refusal for other draws.
    """

    ball: Ball
    draws: int = 100

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_count("draws", self.draws, 1)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "restarts": self.draws, "start": "uniform", "loss": "margin"}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        points = (self.ball.random_point(x, generator) for _ in range(self.draws))
        return worst(points, lambda x_adv: damage(model, x_adv, y, lambda logits: margin(logits, y)))
