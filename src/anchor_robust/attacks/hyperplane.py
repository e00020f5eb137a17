"""The nearest point of a hyperplane inside the box [0, 1]: the projection that FAB is made of."""

import torch
from torch import Tensor

from ..threat import Norm, per_image


def move_to_hyperplane(norm: Norm, x: Tensor, w: Tensor, value: Tensor) -> Tensor:
    """The smallest move d in `norm` that brings value + w . d to 0 and keeps x + d in [0, 1]; all per image.

    x and w are [n ...], value is [n]. Where the box allows no such move, the one that comes nearest to 0.
    Every pixel goes the way that helps, by min(lambda v, room to the box), v = 1 for linf and |w| for l2: the optimum
    of the linear (quadratic) programme, by its dual. What the moves gain,

        h(lambda) = sum_j |w_j| min(lambda v_j, room_j),

    is concave and piecewise linear, so Newton's method solves h(lambda) = |value| exactly, climbing from 0 over a
    handful of pieces, where sorting the breakpoints would cost more than the model. (FAB, arXiv 1907.02044, section 3.)
    """
    flat, slope, value = x.flatten(1), w.flatten(1).abs(), value.to(x.dtype)  # a model may give logits in float64
    # By the largest entry first: a saturated model's gradients would underflow when they are squared.
    scale = slope.amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    slope = slope / scale
    towards = (per_image(-value.sign(), w) * w.sign()).flatten(1)
    room = 0.5 + towards * (0.5 - flat)  # 1 - x upwards, x downwards; choosing by a mask takes ten times as long
    speed = slope if norm == "l2" else torch.ones_like(slope)
    pace = _solve(slope, speed, room, value.abs().unsqueeze(1) / scale)
    return torch.minimum(pace * speed, room).mul_(towards).view_as(x)


def _solve(slope: Tensor, speed: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """A lambda [n 1] with h(lambda) = wanted [n 1]; where even full moves gain less, one that moves all fully."""
    gain, full, limit = slope * speed, slope * room, room / speed.clamp_min(torch.finfo(speed.dtype).tiny)
    pace, rise_before = torch.zeros_like(wanted), torch.full_like(wanted, torch.inf)
    # h is concave: a tangent meets the wanted value too early, never too late, in the right piece or one before it.
    for _ in range(slope.shape[1] + 1):
        free = (limit - pace).sign_().clamp_min_(0)
        rise = torch.linalg.vecdot(gain, free).unsqueeze(1)
        if not (rise < rise_before).any():  # nobody has entered another piece: the tangents were exact
            break
        missing = wanted - torch.linalg.vecdot(full, 1 - free).unsqueeze(1)
        pace = torch.where(rise > 0, missing / rise, pace)
        rise_before = rise
    return pace
