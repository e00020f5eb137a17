"""The perturbations that Square Attack tries: stripes and squares in L-inf, bumps in L2 (arXiv 1912.00049).

x, x_best and what is returned are [n c h w] with pixels in [0, 1], of a square [n c s s]; x_best is in the ball around
x, and so is the result. `share` is the square's share of the h w pixels, `place` five numbers in [0, 1) that say where
windows lie and how a bump is turned, and `signs(*shape)` draws -1 or 1.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..threat import unit

Signs = Callable[..., Tensor]
Window = tuple[slice, slice]  # rows and columns
TINY = 1e-12


def stripes(x: Tensor, eps: float, signs: Signs) -> Tensor:
    """Vertical stripes one pixel wide: each column of each channel goes up or down by eps."""
    n, c, _, w = x.shape
    return (x + eps * signs(n, c, 1, w)).clamp_(0, 1)


def recoloured(x: Tensor, square: Window, eps: float, signs: Signs) -> Tensor:
    """What a square turns into, [n c s s]: x + eps or x - eps, by channel.

    That is the paper's step of 2 eps, projected: it ends on the far side of the ball wherever it starts.
    """
    n, c = x.shape[:2]
    return (x[(..., *square)] + eps * signs(n, c, 1, 1)).clamp_(0, 1)


def pasted(x: Tensor, where: Window, new: Tensor) -> Tensor:
    """A copy of x with `new` in the window."""
    x = x.clone()
    x[(..., *where)] = new
    return x


def square_of(h: int, w: int, share: float, place: Sequence[float]) -> Window:
    """The square that changes its colour."""
    return window(h, w, min(max(round(math.sqrt(share * h * w)), 1), h, w), place[:2])


def bumps(x: Tensor, eps: float, signs: Signs) -> Tensor:
    """A grid of bumps of about a fifth of the image each, signs by image and channel, total length eps."""
    n, c, h, w = x.shape
    side = max(min(h, w) // 5, 1)
    rows, columns = h // side, w // side
    one = bump(side, x.dtype, x.device)
    upright = signs(rows, columns).repeat_interleave(side, 0).repeat_interleave(side, 1) > 0
    grid = torch.where(upright, one.repeat(rows, columns), one.T.repeat(rows, columns))
    above, before = (h - side * rows) // 2, (w - side * columns) // 2
    delta = torch.zeros_like(x)
    sign = signs(n, c, rows, columns).repeat_interleave(side, 2).repeat_interleave(side, 3)
    delta[..., above : above + side * rows, before : before + side * columns] = grid * sign
    return (x + eps * unit(delta)).clamp_(0, 1)


def moved_bump(x: Tensor, x_best: Tensor, eps: float, share: float, place: Sequence[float], signs: Signs) -> Tensor:
    """x_best with the perturbation's energy of one window moved into another, and a bump added there.

    Per channel, delta the perturbation, W the windows:

        new          = delta_W1 / |delta_W1| +- bump
        delta'_W1    = new / |new| sqrt(|delta_(W1 u W2)|^2 + (eps^2 - |delta|^2) / c),     delta'_W2 = 0
    """
    n, c, h, w = x.shape
    side = min(max(round(math.sqrt(share * h * w)), 3) | 1, h, w)
    into, out_of = ((..., *window(h, w, side, corner)) for corner in (place[:2], place[2:4]))
    delta = x_best - x
    either = torch.zeros_like(x[0, 0])
    either[into] = either[out_of] = 1
    unused = (eps**2 - delta.flatten(1).square().sum(1)).clamp_min_(0) / c
    energy = (delta * either).square().sum((2, 3), keepdim=True) + unused.view(-1, 1, 1, 1)
    one = bump(side, x.dtype, x.device)
    one = one if place[4] < 0.5 else one.T
    new = of_length_one(delta[into]) + one * signs(n, c, 1, 1)
    delta[out_of] = 0
    delta[into] = of_length_one(new) * energy.sqrt()
    return (x + eps * unit(delta)).clamp_(0, 1)


def window(h: int, w: int, side: int, place: Sequence[float]) -> Window:
    """The index of a square inside the image; every place where it fits is as likely."""
    row, column = int(place[0] * (h - side + 1)), int(place[1] * (w - side + 1))
    return slice(row, row + side), slice(column, column + side)


@functools.cache
def bump(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[side side], length 1: a pyramid in the upper half and a negative one in the lower half."""
    upper, lower = pyramid(side // 2, side), -pyramid(side - side // 2, side)
    return (torch.cat([upper, lower]) / math.hypot(upper.norm().item(), lower.norm().item())).to(device, dtype)


def pyramid(h: int, w: int) -> Tensor:
    """[h w] of length 1: a pixel in ring d around the centre is as high as the sum of 1/k^2 over the rings k > d."""
    rings = torch.maximum((torch.arange(h) - h // 2).abs().unsqueeze(1), (torch.arange(w) - w // 2).abs())
    outermost = max(h // 2, w // 2) + 1
    tails = torch.arange(1, outermost + 1).double().pow(-2).flip(0).cumsum(0).flip(0)
    height = tails[rings]
    return height / height.norm().clamp_min(TINY)


def of_length_one(windows: Tensor) -> Tensor:
    """[n c s s], each image's each channel at length 1, and 0 where it is 0."""
    return windows / windows.square().sum((2, 3), keepdim=True).sqrt_().clamp_min_(TINY)
