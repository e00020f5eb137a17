"""Blending pairs of training images, labels included: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Generator, Tensor

from .augment import on_host

Mix = Literal["none", "mixup", "cutmix"]


@dataclass(frozen=True)
class Mixed:
    """`images` [n c h w]; `labels` [n], those of the larger share; `targets` [n k], shares that sum to 1."""

    images: Tensor
    labels: Tensor
    targets: Tensor


def mix(x: Tensor, y: Tensor, classes: int, kind: Mix, alpha: float, generator: Generator) -> Mixed:
    """Each image x_i [c h w] with a partner x_j of the same batch; j is a random permutation.

    Every batch is mixed, as for ImageNet in the paper of CutMix, which on CIFAR mixes one of two.

    share  ~ Beta(alpha, alpha), one for the batch
    mixup:   share x_i + (1 - share) x_j
    cutmix:  x_i, but for a box of (1 - share) of the area at a random place that shows x_j; share is then
             what is left of x_i, as a box at the border is cut
    target   share onehot(y_i) + (1 - share) onehot(y_j)
    """
    partner = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    quantile, *centre = torch.rand(3, generator=on_host(generator)).tolist()
    share = float(betaincinv(alpha, alpha, quantile))  # the quantile function of Beta
    if kind == "mixup":
        images = torch.lerp(x[partner], x, share)
    else:
        top, bottom, left, right = box(x.shape[2], x.shape[3], 1 - share, centre)
        images = x.clone()
        images[:, :, top:bottom, left:right] = x[partner, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (x.shape[2] * x.shape[3])
    targets = share * F.one_hot(y, classes) + (1 - share) * F.one_hot(y[partner], classes)
    return Mixed(images, y if share >= 0.5 else y[partner], targets.to(x.dtype))


def box(height: int, width: int, area: float, centre: list[float]) -> tuple[int, int, int, int]:
    """Rows from, to and columns from, to of a box of `area` (a share of the image) around `centre` (shares), cut."""
    half_height, half_width = height * area**0.5 / 2, width * area**0.5 / 2
    row, column = centre[0] * height, centre[1] * width
    top, bottom = round(max(row - half_height, 0)), round(min(row + half_height, height))
    left, right = round(max(column - half_width, 0)), round(min(column + half_width, width))
    return top, bottom, left, right
