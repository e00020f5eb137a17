"""Projected gradient descent (Madry et al., arXiv 1706.06083); with one step, FGSM (arXiv 1412.6572)."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refusal
from ..threat import Ball
from .base import Attack, Model

Start = Literal["uniform", "gaussian", "none"]
Loss = Literal["ce", "kl"]
Criterion = Callable[[Tensor], Tensor]  # candidates [n ...] -> what is climbed, per image [n]

GAUSSIAN = 0.001  # deviation of TRADES' start


@dataclass(frozen=True)
class PGD(Attack):
    """Climb a loss inside the ball, `steps` times, and return the last iterate:

        x_0     = x + uniform noise of the ball, x + 0.001 N(0, 1), or x
        x_{i+1} = project(x_i + steepest_step(gradient of the loss at x_i, step_size))

    Attributes:
        ball: Where the attacker may go.
        steps: Gradient steps, 0 or more.
        step_size: Length of a step in the ball's norm, in pixel units.
        restarts: Independent climbs. Each image keeps the first that fools the model, else the highest loss.
        start: Where a climb starts: `uniform` in the ball, `gaussian` close to the image, or `none`, at the image.
        loss: What is climbed: `ce`, cross-entropy, or `kl`, KL(p(x) || p(x_adv)), the search of TRADES
            (arXiv 1901.08573); its gradient is 0 at the image itself, so it needs a random start.

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
        if not isinstance(self.steps, int) or self.steps < 0:
            raise Refusal(f"steps {self.steps!r} given; allowed: a whole number, 0 or more")
        if not isinstance(self.step_size, int | float) or not 0 < self.step_size < math.inf:
            raise Refusal(f"step_size {self.step_size!r} given; allowed: above 0, such as 2/255")
        if not isinstance(self.restarts, int) or self.restarts < 1:
            raise Refusal(f"restarts {self.restarts!r} given; allowed: a whole number, 1 or more")
        if self.start not in get_args(Start):
            raise Refusal(f"start {self.start!r} given; allowed: {', '.join(get_args(Start))}")
        if self.loss not in get_args(Loss):
            raise Refusal(f"loss {self.loss!r} given; allowed: {', '.join(get_args(Loss))}")
        if self.loss == "kl" and self.start == "none":
            raise Refusal("loss 'kl' with start 'none' given; its gradient is 0 there; start uniform or gaussian")

    def describe(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("steps", "step_size", "restarts", "start", "loss")}
        return {**super().describe(), **own}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        criterion = self.criterion(model, x, y)
        worst = self._climb(criterion, x, generator)
        if self.restarts == 1:
            return worst
        worst_damage = _damage(model, criterion, worst, y)
        for _ in range(self.restarts - 1):
            x_adv = self._climb(criterion, x, generator)
            damage = _damage(model, criterion, x_adv, y)
            worse = damage > worst_damage
            worst[worse] = x_adv[worse]
            worst_damage = worst_damage.maximum(damage)
        return worst

    def criterion(self, model: Model, x: Tensor, y: Tensor) -> Criterion:
        """What this search climbs, as a function of the candidates; a subclass may climb something else."""
        if self.loss == "ce":
            return lambda x_adv: _cross_entropy(model(x_adv), y)
        with torch.no_grad():
            clean = _log_probabilities(model(x))
        return lambda x_adv: F.kl_div(_log_probabilities(model(x_adv)), clean, reduction="none", log_target=True).sum(1)

    def _climb(self, criterion: Criterion, x: Tensor, generator: torch.Generator) -> Tensor:
        x_adv = self._start(x, generator)
        for _ in range(self.steps):
            step = self.ball.steepest_step(_gradient(criterion, x_adv), self.step_size)
            x_adv = self.ball.project(step.add_(x_adv), x)
        return x_adv

    def _start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.start == "uniform":
            return self.ball.random_point(x, generator)
        if self.start == "gaussian":
            noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
            return self.ball.project(x + noise.to(x.device).mul_(GAUSSIAN), x)
        return x.clone()


def fgsm(ball: Ball) -> PGD:
    """The fast gradient sign method: one step of the ball's whole radius, from the image itself."""
    return PGD(ball, steps=1, step_size=ball.eps, start="none")


def _gradient(criterion: Criterion, x_adv: Tensor) -> Tensor:
    """The gradient by the images alone: going on into the parameters would waste a third of the work."""
    x_adv = x_adv.detach().requires_grad_()
    # Summed: the mean divides every image's gradient by n, and small ones would underflow to a step of 0.
    loss = criterion(x_adv).sum()
    if not loss.requires_grad:
        raise Refusal("the model's logits carry no gradient to its input; remove no_grad, detach or argmax inside it")
    return torch.autograd.grad(loss, x_adv)[0]


@torch.no_grad()
def _damage(model: Model, criterion: Criterion, x_adv: Tensor, y: Tensor) -> Tensor:
    """Per image, [n]: what was climbed, and infinity once the model is fooled, which no later restart can beat."""
    return criterion(x_adv).masked_fill(model(x_adv).argmax(1) != y, math.inf)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(_log_probabilities(logits), y, reduction="none")


def _log_probabilities(logits: Tensor) -> Tensor:
    """In at least float32: in half precision a saturated softmax has no gradient left."""
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
