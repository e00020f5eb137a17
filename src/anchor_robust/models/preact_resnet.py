"""Pre-activation ResNet-18 with the CIFAR stem; He et al., arXiv 1603.05027."""

from collections.abc import Sequence

from torch import Tensor, nn

from .resnet import ACTIVATIONS, Activation, add_stages, channels_of, pooled


class PreActBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.projects = stride != 1 or width_in != width
        if self.projects:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(x))
        # A shortcut that changes the shape starts after the shared activation; an identity one starts before it.
        shortcut = self.shortcut(out) if self.projects else x
        return self.conv2(self.activation(self.bn2(self.conv1(out)))) + shortcut


class PreActResNet(nn.Module):
    def __init__(self, blocks: Sequence[int], width: int, classes: int, channels: int, activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(channels, channels_of(width), 3, padding=1, bias=False)
        self.stages = [f"layer{stage + 1}" for stage in range(len(blocks))]
        last = add_stages(self, PreActBlock, blocks, width, activation)
        self.bn = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)

    def features(self, x: Tensor) -> Tensor:
        """[n c h w], normalised -> [n d]: the average over the last, activated feature map."""
        x = self.conv1(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return pooled(self.activation(self.bn(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


def preact_resnet18(
    classes: int = 10, channels: int = 3, width: int = 64, activation: Activation = "relu"
) -> PreActResNet:
    """PreAct-ResNet-18 for 32x32 images, 11.2 million parameters at width 64.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        width: Channels of the first stage; each later stage has twice as many as the one before.
        activation: relu, or silu, smooth, which adversarial training of large networks profits from (arXiv 2006.14536).
    """
    return PreActResNet((2, 2, 2, 2), width, classes, channels, activation)
