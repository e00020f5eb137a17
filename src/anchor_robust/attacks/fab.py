"""The targeted Fast Adaptive Boundary attack (Croce & Hein, arXiv 1907.02044): the nearest mistake, step by step."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import Refusal
from ..threat import Ball, per_image
from .base import Attack, Model, check_ball, check_count
from .gradient import forward_and_back
from .hyperplane import move_to_hyperplane
from .margins import fooled, ranked_target, targeted_margin
from .standing import Standing, packed

TINY = 1e-8


@dataclass
class Approach:
    """What is known of each standing image; tensors [m ...], one entry per image."""

    x: Tensor
    y: Tensor
    target: Tensor
    x_adv: Tensor


@dataclass(frozen=True)
class FAB(Attack):
    """Walk to the linearised boundary between label and target, drawn back towards the image (FAB-T, one restart):

        d, d_0  = least moves from x_i and from x to the hyperplane where the linearised z_t - z_y is 0, in the box
        a       = min(|d| / (|d| + |d_0|), alpha_max)
        x_{i+1} = clamp((1 - a) (x_i + eta d) + a (x + eta d_0), 0, 1)
        x_{i+1} = x + beta (x_{i+1} - x)    where the model is fooled there

    Attributes:
        ball: Where the attacker may go. FAB minimises the distance; an image has fallen once it is at most eps.
        steps: Iterations, each two forward passes and one backward.
        target: Which class: the `target`-th most likely of those other than the label, seen from the clean image.
        alpha_max: The largest share of the way back.
        eta: Overshoot across the hyperplane, 1 or more.
        beta: What is left of the perturbation after a step back from a mistake that was found.

    An image that does not fall, or is wrong already, comes back as it was. Raises Refusal for other values, and for a
    target that the model's classes do not have.
    """

    ball: Ball
    steps: int = 100
    _: KW_ONLY
    target: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_count("steps", self.steps, 0)
        check_count("target", self.target, 1)
        for name, low, high in (("alpha_max", 0, 1), ("eta", 1, 2), ("beta", 0, 1)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise Refusal(f"{name} {value!r} given; allowed: {low} to {high}")

    def describe(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("steps", "target", "alpha_max", "eta", "beta")}
        return {**super().describe(), **own, "restarts": 1, "start": "none", "loss": "distance to the boundary"}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        standing = Standing(x)
        with torch.no_grad():
            logits = model(x)
        state = Approach(x, y, ranked_target(logits, y, self.target), x)
        left = standing.drop(fooled(logits, y), x)
        state = state if left is None else packed(state, left)
        for _ in range(self.steps):
            if not len(standing):
                break
            state.x_adv = self._step(model, state)
            with torch.no_grad():
                across = fooled(model(state.x_adv), state.y)
            fallen = across & self.ball.contains(state.x_adv, state.x, tolerance=0)
            left = standing.drop(fallen, state.x_adv)
            drawn_back = torch.lerp(state.x, state.x_adv, self.beta)
            state.x_adv = torch.where(per_image(across, x), drawn_back, state.x_adv)
            state = state if left is None else packed(state, left)
        return standing.x_adv

    def _step(self, model: Model, state: Approach) -> Tensor:
        x, here, norm = state.x, state.x_adv, self.ball.norm
        _, value, w = forward_and_back(model, here, lambda logits: targeted_margin(logits, state.y, state.target))
        move = move_to_hyperplane(norm, here, w, value)
        value_at_x = value + ((x - here) * w).flatten(1).sum(1)
        move_from_x = move_to_hyperplane(norm, x, w, value_at_x)
        length, length_from_x = (self.ball.distance(x + d, x).clamp_min(TINY) for d in (move, move_from_x))
        share = (length / (length + length_from_x)).clamp_max(self.alpha_max)
        ahead, ahead_from_x = here + self.eta * move, x + self.eta * move_from_x
        return torch.lerp(ahead, ahead_from_x, per_image(share, x)).clamp_(0, 1)
