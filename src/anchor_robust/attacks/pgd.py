"""Projected gradient descent (Madry et al., arXiv 1706.06083); with one step, FGSM (arXiv 1412.6572)."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..draws import drawn
from ..errors import Refusal
from ..losses import kl_divergence
from ..threat import Ball
from .base import Attack, Model, check_ball, check_count
from .gradient import forward_and_back
from .margins import cross_entropy, margin, ranked_target, targeted_margin
from .worst import damage, worst

Start = Literal["uniform", "gaussian", "none"]
Loss = Literal["ce", "margin", "kl"]
OfOutput = Callable[[Tensor], Tensor]
LEAST_LIKELY = -1
GAUSSIAN = 0.001  # deviation of TRADES' start


@dataclass(frozen=True)
class PGD(Attack):
    """Climb a loss inside the ball, `steps` times, and return the last iterate:

        x_0     = x + uniform noise of the ball, x + 0.001 N(0, 1), or x
        x_{i+1} = project(x_i + steepest_step(gradient of the loss at x_i, step_size))

        loss      without a target            towards a target class t
        ce        -log softmax(z)_y           log softmax(z)_t
        margin    max_{k != y} z_k - z_y      z_t - z_y
        kl        KL(p(x) || p(x_adv))

    Attributes:
        ball: Where the attacker may go.
        steps: Gradient steps, 0 or more.
        step_size: Length of a step in the ball's norm, in pixel units.
        restarts: Independent climbs. Each image keeps the first that fools the model, else the highest loss.
        start: Where a climb starts: `uniform` in the ball, `gaussian` close to the image, or `none`, at the image.
        loss: What is climbed: `ce`, cross-entropy; `margin`, which does not vanish on confident models; or `kl`, away
            from the clean prediction, as TRADES does (arXiv 1901.08573): it needs a random start and takes no target.
        target: Rank of the wrong class to aim at, by its logit on the clean image: 1 the highest, 2 the next, -1 the
            least likely; None aims at no class. Any wrong answer counts as success.

    PGD-20 of the TRADES protocol is PGD(Ball("linf", 0.031), steps=20, step_size=0.003). Raises Refusal for
    values other than the above, and on the first call for a rank that the model's classes do not have.
    """

    ball: Ball
    steps: int = 10
    step_size: float = 0.007
    _: KW_ONLY
    restarts: int = 1
    start: Start = "uniform"
    loss: Loss = "ce"
    target: int | None = None

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_count("steps", self.steps, 0)
        if not isinstance(self.step_size, int | float) or not 0 < self.step_size < math.inf:
            raise Refusal(f"step_size {self.step_size!r} given; allowed: above 0, such as 2/255")
        check_count("restarts", self.restarts, 1)
        if self.start not in get_args(Start):
            raise Refusal(f"start {self.start!r} given; allowed: {', '.join(get_args(Start))}")
        if self.loss not in get_args(Loss):
            raise Refusal(f"loss {self.loss!r} given; allowed: {', '.join(get_args(Loss))}")
        if self.loss == "kl" and (self.start == "none" or self.target is not None):
            raise Refusal("loss 'kl' given; allowed: with a random start, as its gradient at x is 0, and no target")
        if self.target not in (None, LEAST_LIKELY) and (not isinstance(self.target, int) or self.target < 1):
            raise Refusal(f"target {self.target!r} given; allowed: a rank 1, 2, ..., -1 for the least likely, or None")

    def describe(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("steps", "step_size", "restarts", "start", "loss")}
        aimed = {} if self.target is None else {"target": self.target}
        return {**super().describe(), **own, **aimed}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        loss = self._loss(model, x, y)
        return self.climb(model, loss, lambda x_adv: damage(model, x_adv, y, loss), x, generator)

    def climb(self, model: Model, loss: OfOutput, damage: OfOutput, x: Tensor, generator: torch.Generator) -> Tensor:
        """The worst, by `damage` (images -> [n]), of `restarts` climbs from x [n ...] up `loss` (output -> [n]).

        `model` may give anything that `loss` takes: EmbeddingAttack climbs an embedding.
        """
        return worst((self._climb_once(model, loss, x, generator) for _ in range(self.restarts)), damage)

    def _climb_once(self, model: Model, loss: OfOutput, x: Tensor, generator: torch.Generator) -> Tensor:
        x_adv, ascend = self._start(x, generator), self.ball.ascent(x, self.step_size)
        for _ in range(self.steps):
            *_, gradient = forward_and_back(model, x_adv, loss)
            x_adv = ascend(x_adv, gradient)
        return x_adv

    def _start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.start == "uniform":
            return self.ball.random_point(x, generator)
        if self.start == "gaussian":
            noise = drawn(torch.randn, x.shape, generator, x.dtype)
            return self.ball.project(x + noise.to(x.device).mul_(GAUSSIAN), x)
        return x.clone()

    def _loss(self, model: Model, x: Tensor, y: Tensor) -> OfOutput:
        if self.loss == "kl":
            with torch.no_grad():
                before = model(x)
            return lambda logits: kl_divergence(before, logits)
        if self.target is None:
            chosen = {"ce": cross_entropy, "margin": margin}[self.loss]
            return lambda logits: chosen(logits, y)
        with torch.no_grad():
            clean = model(x)
        target = ranked_target(clean, y, clean.shape[1] - 1 if self.target == LEAST_LIKELY else self.target)
        if self.loss == "margin":
            return lambda logits: targeted_margin(logits, y, target)
        return lambda logits: -cross_entropy(logits, target)


def fgsm(ball: Ball) -> PGD:
    """The fast gradient sign method: one step of the ball's whole radius, from the image itself."""
    check_ball(ball)
    return PGD(ball, steps=1, step_size=ball.eps, start="none")
