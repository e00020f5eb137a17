"""Residual networks with the CIFAR stem (3x3 convolution, stride 1, no pooling); He et al., arXiv 1512.03385.

Parameter names (`conv1, bn1, layer1.0.conv1, ..., layer1.0.shortcut.0, ..., linear`) are those of the CIFAR ResNet-18
checkpoints that most adversarial training repositories publish.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Refusal

Activation = Literal["relu", "silu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}


class BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        return self.activation(self.bn2(self.conv2(out)) + self.shortcut(x))


def channels_of(width: int) -> int:
    """`width`, before a layer of it warns of being empty."""
    if width < 1:
        raise Refusal(f"width {width} given; allowed: 1 or more channels")
    return width


def add_stages(
    network: nn.Module, block: type[nn.Module], blocks: Sequence[int], width: int, activation: Activation
) -> int:
    """Add `layer1`, `layer2`, ... to a network whose stem gives `width` channels; return the channels of the last.

    Stage s has `width * 2**s` channels and, from the second on, half the resolution of the one before.
    """
    width_in = width
    for stage, count in enumerate(blocks):
        width_out = width * 2**stage
        first = block(width_in, width_out, 1 if stage == 0 else 2, activation)
        rest = [block(width_out, width_out, 1, activation) for _ in range(count - 1)]
        network.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
        width_in = width_out
    return width_in


class ResNet(nn.Module):
    def __init__(self, blocks: Sequence[int], width: int, classes: int, channels: int, activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(channels, channels_of(width), 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = [f"layer{stage + 1}" for stage in range(len(blocks))]
        self.linear = nn.Linear(add_stages(self, BasicBlock, blocks, width, activation), classes)

    def features(self, x: Tensor) -> Tensor:
        """[n c h w], normalised -> [n d]: the average over the last feature map."""
        x = self.activation(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return pooled(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


def pooled(x: Tensor) -> Tensor:
    """[n d h w] -> [n d], the average over the map.

    Not `x.mean((2, 3))`: compilers merge that with the activation before it and then have to keep its sign for the way
    back as bits, which on processors costs a fifth of the input gradient of a small network.
    """
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)


def resnet18(classes: int = 10, channels: int = 3, width: int = 64, activation: Activation = "relu") -> ResNet:
    """ResNet-18 for 32x32 images, 11.2 million parameters at width 64.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        width: Channels of the first stage; each later stage has twice as many as the one before.
        activation: relu, or silu, smooth, which adversarial training of large networks profits from (arXiv 2006.14536).
    """
    return ResNet((2, 2, 2, 2), width, classes, channels, activation)


def resnet8(classes: int = 10, channels: int = 3, width: int = 16, activation: Activation = "relu") -> ResNet:
    """Three stages of one block: a network that CPUs train adversarially in minutes.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        width: Channels of the first stage; each later stage has twice as many as the one before.
        activation: relu, or silu, smooth, which adversarial training of large networks profits from (arXiv 2006.14536).
    """
    return ResNet((1, 1, 1), width, classes, channels, activation)
