"""Auto-PGD (Croce & Hein, arXiv 2003.01690): projected gradient ascent that finds its own step sizes."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import Refusal
from ..threat import Ball, per_image
from .base import Attack, Model, check_ball, check_count
from .gradient import forward_and_back
from .margins import cross_entropy, dlr, fooled, ranked_target, targeted_dlr
from .standing import Standing, packed

Loss = Literal["ce", "dlr"]
MOMENTUM = 0.75
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "dlr": dlr}


@dataclass
class Climb:
    """What is known of each standing image; tensors [m ...], one entry per image."""

    x: Tensor
    y: Tensor
    target: Tensor
    x_adv: Tensor
    x_before: Tensor
    gradient: Tensor
    loss: Tensor
    x_best: Tensor
    gradient_best: Tensor
    loss_best: Tensor
    loss_best_at_check: Tensor
    step_size: Tensor
    rises: Tensor  # steps since the last checkpoint that raised the loss
    halved: Tensor  # whether the last checkpoint halved the step size


class Climber(Attack):
    """The climb that APGD and APGDT share; they differ in the loss.

        z       = project(x_i + step_size * steepest direction)
        x_{i+1} = project(x_i + 0.75 (z - x_i) + 0.25 (x_i - x_{i-1}))

    Each image has a step size of its own, 2 eps at first. At a checkpoint it is halved, and the climb goes on from
    the best point so far, if since the last checkpoint at most a share rho of the steps raised the loss, or if
    neither the step size nor the highest loss has changed. An image that falls leaves the batch at once.
    """

    steps: int
    restarts: int
    rho: float

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_count("steps", self.steps, 0)
        check_count("restarts", self.restarts, 1)
        if not isinstance(self.rho, int | float) or not 0 <= self.rho <= 1:
            raise Refusal(f"rho {self.rho!r} given; allowed: 0 to 1, the share of steps that has to raise the loss")

    def describe(self) -> dict[str, Any]:
        own = {"steps": self.steps, "restarts": self.restarts, "start": "uniform", "rho": self.rho}
        return {**super().describe(), **own}

    @abstractmethod
    def losses(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """What is climbed, [n]."""

    def climb_all(self, model: Model, x: Tensor, y: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """`restarts` climbs, each of the images that the ones before left standing; x_adv as in `Standing`."""
        standing = Standing(x)
        for _ in range(self.restarts):
            if len(standing):
                left = standing.index
                self._climb(model, x[left], y[left], target[left], generator, standing)
        return standing.x_adv

    def _climb(
        self, model: Model, x: Tensor, y: Tensor, target: Tensor, generator: torch.Generator, standing: Standing
    ) -> None:
        x_adv = self.ball.random_point(x, generator)
        logits, loss, gradient = self._look(model, x_adv, y, target)
        climb = Climb(
            *(x, y, target, x_adv, x_adv, gradient, loss, x_adv, gradient, loss, loss),
            step_size=torch.full_like(loss, 2 * self.ball.eps, dtype=x.dtype),
            rises=torch.zeros_like(y),
            halved=torch.ones_like(y, dtype=torch.bool),
        )
        climb = self._without_fallen(climb, logits, standing)
        checked, marks = 0, checkpoints(self.steps)
        for step in range(1, self.steps + 1):
            if not len(standing):
                return
            self._move(climb, MOMENTUM if step > 1 else 1.0)
            logits, loss, climb.gradient = self._look(model, climb.x_adv, climb.y, climb.target)
            self._remember(climb, loss)
            climb = self._without_fallen(climb, logits, standing)
            if step in marks:
                self._adapt(climb, step - checked)
                checked = step
        standing.offer(climb.x_best, climb.loss_best)

    def _look(self, model: Model, x_adv: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return forward_and_back(model, x_adv, lambda logits: self.losses(logits, y, target))

    def _without_fallen(self, climb: Climb, logits: Tensor, standing: Standing) -> Climb:
        left = standing.drop(fooled(logits, climb.y), climb.x_adv)
        return climb if left is None else packed(climb, left)

    def _move(self, climb: Climb, momentum: float) -> None:
        project, x, here = self.ball.project, climb.x, climb.x_adv
        ahead = self.ball.steepest_step(climb.gradient, 1.0).mul_(per_image(climb.step_size, x)).add_(here)
        ahead = project(ahead, x).sub_(here).mul_(momentum).add_(here)
        climb.x_adv = project(ahead.add_(here - climb.x_before, alpha=1 - momentum), x)
        climb.x_before = here

    def _remember(self, climb: Climb, loss: Tensor) -> None:
        climb.rises = climb.rises + (loss > climb.loss)
        climb.loss = loss
        better = loss > climb.loss_best
        climb.x_best = torch.where(per_image(better, climb.x), climb.x_adv, climb.x_best)
        climb.gradient_best = torch.where(per_image(better, climb.x), climb.gradient, climb.gradient_best)
        climb.loss_best = torch.where(better, loss, climb.loss_best)

    def _adapt(self, climb: Climb, steps: int) -> None:
        # At most, not below as in the paper: so the authors' own code decides when the share is exactly rho.
        oscillates = climb.rises <= self.rho * steps
        stuck = ~climb.halved & (climb.loss_best <= climb.loss_best_at_check)
        climb.halved = oscillates | stuck
        climb.loss_best_at_check = climb.loss_best
        climb.rises = torch.zeros_like(climb.rises)
        climb.step_size = torch.where(climb.halved, climb.step_size / 2, climb.step_size)
        climb.x_adv = torch.where(per_image(climb.halved, climb.x), climb.x_best, climb.x_adv)
        climb.gradient = torch.where(per_image(climb.halved, climb.x), climb.gradient_best, climb.gradient)


@dataclass(frozen=True)
class APGD(Climber):
    """Auto-PGD on the cross-entropy or the DLR loss, away from the label; see `Climber` for the iteration.

    Attributes:
        ball: Where the attacker may go.
        steps: Gradient steps of a climb, 0 or more.
        restarts: Climbs, each from a new random start, of the images that the ones before left standing.
        loss: `ce`, or `dlr`, which does not feel the scale of the logits (the plain margin for two classes).
        rho: The share of steps that has to raise the loss for a step size to stay.

    An image that does not fall comes back as the point of the highest loss. Raises Refusal for other values.
    """

    ball: Ball
    steps: int = 100
    restarts: int = 1
    _: KW_ONLY
    loss: Loss = "ce"
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in get_args(Loss):
            raise Refusal(f"loss {self.loss!r} given; allowed: {', '.join(get_args(Loss))}")

    def describe(self) -> dict[str, Any]:
        names = {"ce": "cross-entropy", "dlr": "DLR (margin below 3 classes)"}
        return {**super().describe(), "loss": names[self.loss]}

    def losses(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.loss](logits, y)

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return self.climb_all(model, x, y, y, generator)


@dataclass(frozen=True)
class APGDT(Climber):
    """Auto-PGD on the targeted DLR loss, towards one class; see `Climber` for the iteration.

    Attributes:
        ball: Where the attacker may go.
        steps: Gradient steps of a climb, 0 or more.
        restarts: Climbs, each from a new random start, of the images that the ones before left standing.
        target: Which class: the `target`-th most likely of those other than the label, seen from the clean image;
            1 is the nearest competitor. AutoAttack tries 1 to 9 one after another.
        rho: The share of steps that has to raise the loss for a step size to stay.

    Below four classes the loss is the plain margin z_t - z_y. Any wrong class counts as a fall, not the target alone.
    Raises Refusal for other values, and for a target that the model's classes do not have.
    """

    ball: Ball
    steps: int = 100
    restarts: int = 1
    _: KW_ONLY
    target: int = 1
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("target", self.target, 1)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "loss": "targeted DLR (margin below 4 classes)", "target": self.target}

    def losses(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return targeted_dlr(logits, y, target)

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            target = ranked_target(model(x), y, self.target)
        return self.climb_all(model, x, y, target, generator)


def checkpoints(steps: int) -> set[int]:
    """The steps w_j = ceil(p_j steps) after which step sizes are reconsidered, at most `steps`.

    p_1 = 0.22 and p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), counted in whole hundredths to be exact.
    """
    marks, at, stride = set(), 22, 22
    while at <= 100:
        marks.add(-(-at * steps // 100))
        stride = max(stride - 3, 6)
        at += stride
    return marks
