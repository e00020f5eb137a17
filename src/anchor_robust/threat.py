"""The threat model: how far an attacker may move an image, in which norm.

Methods are batched: images are [n ...] with pixels in [0, 1], each with its own ball. eps and step sizes are
in pixel units: 8/255 is eight grey levels. After Madry et al., arXiv 1706.06083.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .draws import drawn
from .errors import Refusal

Norm = Literal["linf", "l2"]
LARGEST = 1_000_000  # beyond the diagonal of any image, and within what float32 can square


@dataclass(frozen=True)
class Ball:
    """All images within `eps` of an image in `norm`, intersected with [0, 1].

        linf: max_j |x_adv_j - x_j| <= eps          l2: sqrt(sum_j (x_adv_j - x_j)^2) <= eps

    Attributes:
        norm: How far images are from each other, linf or l2.
        eps: Radius of the ball, with pixels in [0, 1]; recipes may write 8/255.

    Raises Refusal for an unknown norm, and for an eps that is no number, negative, above LARGEST, above 1 for linf, or
    0 for l2.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise Refusal(f"norm {self.norm!r} given; allowed: {', '.join(get_args(Norm))}")
        if isinstance(self.eps, str):
            raise Refusal(f"eps {self.eps!r} given, in quotes; allowed: a number, such as 8 / 255")
        if not isinstance(self.eps, int | float) or not 0 <= self.eps <= LARGEST:
            raise Refusal(f"eps {self.eps!r} given; allowed: a number from 0 to {LARGEST:,}, such as 8/255")
        if self.norm == "linf" and self.eps > 1:
            raise Refusal(f"linf eps {self.eps} given; allowed: 0 to 1, as pixels are; write 8/255 for 8 grey levels")
        if self.norm == "l2" and self.eps == 0:
            raise Refusal("l2 eps 0 given; allowed: above 0, usually 0.5 on small images")

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of the ball around x [n ...] nearest to x_adv [n ...], then moved into [0, 1].

        The second move cannot leave the ball: x is in [0, 1], so clamping takes no pixel further from x.
        """
        delta = x_adv - x
        if self.norm == "linf":
            delta.clamp_(-self.eps, self.eps)
        else:
            radius = self.radius_in(x)
            shrink = (radius / _length(delta).clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1)
            delta.mul_(per_image(shrink, x))
        return delta.add_(x).clamp_(0, 1)

    def random_point(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A point drawn uniformly (in volume) from the ball around x [n ...], then moved into [0, 1]."""
        if self.norm == "linf":
            delta = _draw(torch.rand, x.shape, x, generator).mul_(2).sub_(1).mul_(self.eps)
        else:
            # The share of a d-dimensional ball's volume within radius r eps is r^d, hence the d-th root.
            share = _draw(torch.rand, x.shape[:1], x, generator) ** (1 / x[0].numel())
            delta = unit(_draw(torch.randn, x.shape, x, generator)) * per_image(self.eps * share, x)
        return self.project(x + delta, x)

    def steepest_step(self, gradient: Tensor, step_size: float) -> Tensor:
        """The move of length `step_size` in the ball's norm that follows gradient [n ...] furthest.

        linf: step_size * sign(g)          l2: step_size * g / |g|_2, and 0 where g is 0; per image
        """
        direction = gradient.sign() if self.norm == "linf" else unit(gradient)
        return direction.mul_(step_size)

    def ascent(self, x: Tensor, step_size: float) -> Callable[[Tensor, Tensor], Tensor]:
        """One step of a climb in the ball around x [n ...], for all the steps of it:

            (x_adv, gradient) -> project(x_adv + steepest_step(gradient, step_size), x)

        In linf the ball within [0, 1] is a box whose corners are the same at every step: three passes over the images
        in place of seven, equal to rounding.
        """
        if self.norm == "linf":
            low, high = (x - self.eps).clamp_(min=0), (x + self.eps).clamp_(max=1)
            return lambda x_adv, gradient: torch.add(x_adv, gradient.sign(), alpha=step_size).clamp_(low, high)
        return lambda x_adv, gradient: self.project(self.steepest_step(gradient, step_size).add_(x_adv), x)

    def contains(self, x_adv: Tensor, x: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Per image, bool [n]: is x_adv within eps of x and within [0, 1], up to `tolerance`?"""
        in_box = ((x_adv >= -tolerance) & (x_adv <= 1 + tolerance)).flatten(1).all(1)
        return in_box & (self.distance(x_adv, x) <= self.eps + tolerance)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Per image, [n]: the distance from x to x_adv in the ball's norm, in pixel units."""
        delta = x_adv - x
        return delta.flatten(1).abs().amax(1) if self.norm == "linf" else _length(delta)

    def radius_in(self, x: Tensor) -> float:
        """What of an l2 radius survives the rounding of images x [n ...]; 0 where nothing does."""
        # Rounding x + delta moves each pixel by up to half a unit in the last place, and measuring the length
        # errs by a few of its own. Without this slack (3e-6 on CIFAR-10) a flat image would leave the ball.
        unit = torch.finfo(x.dtype).eps
        return max(self.eps - unit * (16 * self.eps + math.sqrt(x[0].numel()) / 2), 0.0)


def _length(delta: Tensor) -> Tensor:
    # Not vector_norm: sum() adds pairwise, so float32 stays accurate for the 150,000 pixels of a large image.
    return delta.flatten(1).square().sum(1).sqrt()


def unit(vectors: Tensor) -> Tensor:
    """Each image of vectors [n ...] at Euclidean length 1, and 0 where it is 0; what is not finite counts as 0."""
    vectors = vectors.nan_to_num(0.0, 0.0, 0.0)
    # By the largest entry first: the squares of a saturated model's gradients (1e-25) would underflow to 0.
    tiny = torch.finfo(vectors.dtype).tiny
    scaled = vectors / per_image(vectors.flatten(1).abs().amax(1).clamp_min(tiny), vectors)
    return scaled / per_image(_length(scaled).clamp_min(tiny), vectors)


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Values [n] in a shape that broadcasts over images [n ...]."""
    return values.view(-1, *[1] * (images.ndim - 1))


def _draw(distribution: Callable[..., Tensor], shape: torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    return drawn(distribution, shape, generator, like.dtype).to(like.device)
