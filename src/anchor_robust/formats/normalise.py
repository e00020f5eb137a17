"""What happens to pixels before a model that does not say it itself: a mean and a deviation for each channel."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import Refusal

# Deviations of all training pixels; (.2023, .1994, .2010), which many repositories copy, are those of image means.
NORMALISATIONS = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))}
IDENTITY = ((0.0,), (1.0,))


class Normalised(nn.Module):
    """(x - mean) / std, then `network`: any module or function from such pixels to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Callable[[Tensor], Tensor], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


def normalisation(text: str, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """'none', a data set's name, or 'mean,mean,mean:std,std,std' with pixels in [0, 1]."""
    if text == "none":
        return [0.0] * channels, [1.0] * channels
    try:
        given = NORMALISATIONS.get(text) or [[float(v) for v in part.split(",")] for part in text.split(":")]
        mean, std = given
    except ValueError:
        mean, std = [], []
    if (
        len(mean) != channels
        or len(std) != channels
        or not all(map(math.isfinite, mean))
        or not all(0 < value < math.inf for value in std)
    ):
        raise Refusal(f"--normalize {text} given; allowed: {allowed(channels)}")
    return mean, std


def allowed(channels: int) -> str:
    numbers = {1: "0.5:0.25", 3: "0.5,0.5,0.5:0.25,0.25,0.25"}.get(channels, "MEAN,..:STD,..")
    return (
        f"none (the model takes pixels in [0, 1]), cifar10, or {channels} means:{channels} deviations such as {numbers}"
    )
