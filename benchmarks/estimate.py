"""What training would cost on many accelerators and on ImageNet: an estimate, worked from counted operations.

    python benchmarks/estimate.py --json FILE

Nothing is measured here. Operations are counted on networks without numbers (the device `meta`); everything else is an
assumption, an option, and written into the record:

    step     = images on a device x operations of an image / (rate x utilisation)
    exchange = 2 (g - 1) / g x bytes of the gradients / network        a ring of g devices, nothing overlapped
    hours    = epochs x images / batch x (step + exchange)
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import machine
from anchor_robust.models import backbone
from timing import count, parser, record, run, write

DEVICES = (1, 8, 64)


class Bottleneck(nn.Module):
    """He et al., arXiv 1512.03385, figure 5, with the stride in the 3x3 convolution as is usual now."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *convolved(width_in, width, 1), nn.ReLU(), *convolved(width, width, 3, stride), nn.ReLU()
        )
        self.out = nn.Sequential(*convolved(width, 4 * width, 1))
        same = stride == 1 and width_in == 4 * width
        self.shortcut = nn.Sequential() if same else nn.Sequential(*convolved(width_in, 4 * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.out(self.path(x)) + self.shortcut(x))


def convolved(width_in: int, width: int, side: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(width_in, width, side, stride, side // 2, bias=False), nn.BatchNorm2d(width)


def resnet50() -> nn.Module:
    """For images of 224 x 224 and a thousand classes, 25.6 million parameters."""
    layers: list[nn.Module] = [*convolved(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width_in = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            layers.append(Bottleneck(width_in, width, 2 if stage and not block else 1))
            width_in = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, 1000))


@dataclass(frozen=True)
class Task:
    name: str
    network: Callable[[], nn.Module]
    side: int
    images: int
    epochs: int
    attack_steps: int
    views: int


TASKS = (
    Task("CIFAR-10, ResNet-18, PGD-10", lambda: backbone("resnet18", 10, (3, 32, 32)), 32, 49_000, 60, 10, 2),
    Task("ImageNet, ResNet-50, PGD-3", resnet50, 224, 1_281_167, 90, 3, 2),
    Task("ImageNet, ResNet-50, PGD-10", resnet50, 224, 1_281_167, 90, 10, 2),
)


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--tflops", type=float, default=750, help="bf16 matrix products, TFLOP/s (default: 750)")
    asked.add_argument("--utilisation", type=float, default=0.3, help="of it, in a step (default: 0.3)")
    asked.add_argument("--network", type=float, default=50, help="GB/s of a device to the others (default: 50)")
    asked.add_argument("--batch", type=count, default=64, help="images on each device in a step (default: 64)")
    given = asked.parse_args(words)
    cpu = torch.device("cpu")
    write(record("estimate", given, cpu, {"tasks": [estimated(task, given) for task in TASKS]}), given.json)


def estimated(task: Task, given: argparse.Namespace) -> dict[str, Any]:
    counts = counted(task)
    needed = task.attack_steps * counts["attack_pass"] + task.views * counts["training_pass"]
    step = given.batch * needed / (given.tflops * 1e12 * given.utilisation)
    rows = []
    for devices in DEVICES:
        exchange = 2 * (devices - 1) / devices * 4 * counts["parameters"] / (given.network * 1e9)
        seconds = task.epochs * task.images / (devices * given.batch) * (step + exchange)
        rows.append(
            {
                "devices": devices,
                "hours": seconds / 3600,
                "device_hours": devices * seconds / 3600,
                "exchange_share": exchange / (step + exchange),
                "images_per_s": devices * given.batch / (step + exchange),
            }
        )
    told = {key: value for key, value in vars(task).items() if key != "network"}
    return told | counts | {"flops_per_image": needed, "flops": needed * task.images * task.epochs, "on": rows}


def counted(task: Task) -> dict[str, int]:
    """Operations of one image: a pass of the attack (to the image alone) and one of training; and the parameters."""
    with torch.device("meta"):
        network, x = task.network(), torch.rand(1, 3, task.side, task.side)

    def attack() -> None:
        torch.autograd.grad(network(x).sum(), x)

    network.eval().requires_grad_(False)
    x.requires_grad_()
    attacking = machine.flops(machine.counted(attack))
    network.requires_grad_()
    x.requires_grad_(False)
    training = machine.flops(machine.counted(lambda: network(x).sum().backward()))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"attack_pass": attacking, "training_pass": training, "parameters": parameters}


if __name__ == "__main__":
    run(main)
