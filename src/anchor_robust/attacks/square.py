"""Square Attack (Andriushchenko et al., arXiv 1912.00049): random search that asks for logits alone."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import Refusal
from ..threat import Ball
from .base import Attack, Model, check_ball, check_count, local_of
from .margins import fooled, margin
from .squares import Signs, Window, bumps, moved_bump, pasted, recoloured, square_of, stripes
from .standing import Standing, packed

# After so many queries of 10,000 the share of pixels in a square is halved once more.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SMALL = 1 / 9  # of the pixels: a smaller square stays local for some layers of a network


@dataclass
class Trial:
    """What is known of each standing image; tensors [m ...], one entry per image."""

    x: Tensor
    y: Tensor
    x_best: Tensor
    margin_best: Tensor


@dataclass(frozen=True)
class Square(Attack):
    """Recolour a random square, keep it if the margin z_y - max_{j != y} z_j falls; no gradients.

    The place of a square is shared by the images of a call, the colours are each image's own. An image that does not
    fall comes back as the point of its lowest margin.

    Attributes:
        ball: Where the attacker may go.
        queries: Forward passes, 1 or more; the first is of the start (linf: stripes, l2: a grid of bumps).
        p_init: Share of the pixels in the first squares; it is halved after 10, 50, 200, ... queries.
        rescale_schedule: Whether those numbers, made for 10,000 queries, shrink with `queries`; AutoAttack leaves
            them as they are.

    Images are [n c h w]. Raises Refusal for others, and for other values.
    """

    ball: Ball
    queries: int = 5000
    _: KW_ONLY
    p_init: float = 0.8
    rescale_schedule: bool = False

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_count("queries", self.queries, 1)
        if not isinstance(self.p_init, int | float) or not 0 < self.p_init <= 1:
            raise Refusal(f"p_init {self.p_init!r} given; allowed: above 0, at most 1, a share of the pixels")

    def describe(self) -> dict[str, Any]:
        start = {"linf": "stripes", "l2": "grid"}[self.ball.norm]
        own = {name: getattr(self, name) for name in ("queries", "p_init", "rescale_schedule")}
        return {**super().describe(), **own, "restarts": 1, "start": start, "loss": "margin"}

    @torch.no_grad()
    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        if x.ndim != 4:
            raise Refusal(f"images {list(x.shape)} given; allowed: [n c h w], as squares have a height and a width")

        def signs(*shape: int) -> Tensor:
            """-1 or 1 each, drawn where the generator lives."""
            return torch.randint(2, shape, generator=generator, device=generator.device).to(x).mul_(2).sub_(1)

        # All places at once: one transfer to the host instead of one per query.
        places = torch.rand(self.queries, 5, generator=generator, device=generator.device).tolist()
        small = next((query for query in range(1, self.queries) if self.share(query) < SMALL), None)
        standing, local = Standing(x), None
        trial = Trial(x, y, x_best=x.clone(), margin_best=torch.full_like(y, math.inf, dtype=x.dtype))
        for query, place in enumerate(places):
            if not len(standing):
                return standing.x_adv
            window, new = self._propose(trial, query, place, signs)
            if query == small and self.ball.norm == "linf":
                local = local_of(model, trial.x_best)
            logits = local.look(new, window) if local else model(pasted(trial.x_best, window, new))
            fallen = fooled(logits, trial.y)
            margins = -margin(logits, trial.y).to(x.dtype)
            better = fallen | (margins < trial.margin_best)
            trial.margin_best = torch.where(better, margins, trial.margin_best)
            chosen = better.nonzero().flatten()
            trial.x_best[(chosen, slice(None), *window)] = new[chosen]
            left = standing.drop(fallen, trial.x_best)
            trial = trial if left is None else packed(trial, left)
            if local:
                local.accept(better, left)
        standing.offer(trial.x_best, -trial.margin_best)
        return standing.x_adv

    def _propose(self, trial: Trial, query: int, place: Sequence[float], signs: Signs) -> tuple[Window, Tensor]:
        """A window of all images, and what each is to look like there, [m c r s]."""
        x, eps, (h, w) = trial.x, self.ball.eps, trial.x.shape[2:]
        if self.ball.norm == "linf" and query:
            square = square_of(h, w, self.share(query), place)
            return square, recoloured(x, square, eps, signs)
        if self.ball.norm == "linf":
            new = stripes(x, eps, signs)
        elif query:
            # What a bump leaves of the radius is spread over the whole image.
            new = moved_bump(x, trial.x_best, eps, self.share(query), place, signs)
        else:
            new = bumps(x, eps, signs)
        return (slice(0, h), slice(0, w)), new

    def share(self, query: int) -> float:
        """The share of pixels in the square of a query, counted from 0, the start."""
        at = (query - 1) * 10_000 / self.queries if self.rescale_schedule else query - 1
        return self.p_init / 2 ** bisect_left(HALVINGS, at)
