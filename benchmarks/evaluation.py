"""PGD-20 on test images: as the TRADES protocol is usually coded, and as `anchor evaluate` does it.

    python benchmarks/evaluation.py --run results/cifar10-resnet8-anchor --images 500 --rounds 5 --json FILE

Without --run a network with random weights. The images are random and labelled with the network's own answers, so
that none is skipped for being wrong already; `same_verdicts` is the share of images that both ways find alike, which
random starts and the float32 of two layouts keep below 1.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ours
import plain
from anchor_robust import load
from anchor_robust.data import Given
from anchor_robust.evaluation import measure
from anchor_robust.models import LogitsOnly
from timing import alternated, compared, device_of, parser, record, write

EPS, STEPS, STEP_SIZE = 0.031, 20, 0.003


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--run", help="run directory or weights of a CIFAR-10 classifier")
    asked.add_argument("--model", default="resnet18", help="without --run: resnet18 or resnet8 (default: resnet18)")
    asked.add_argument("--images", type=int, default=500, help="images (default: 500)")
    asked.add_argument("--batch", type=int, default=250, help="images at a time (default: 250)")
    asked.add_argument("--rounds", type=int, default=5, help="timed evaluations of each way (default: 5)")
    given = asked.parse_args(words)
    device = device_of(given)
    write(record("evaluation", given, device, measured(given, device)), given.json)


def measured(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    data = ours.images(given.images)
    model = load(given.run) if given.run else LogitsOnly(plain.network(given.model, data, device))
    model = model.to(device).eval()
    x = data.pixels(slice(None)).to(device)
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(given.batch)])
    held: dict[str, Tensor] = {}

    def usual() -> None:
        parts = zip(x.split(given.batch), y.split(given.batch), strict=True)
        held["plain"] = torch.cat([whitebox(model, *part) for part in parts]).cpu()

    def product() -> None:
        found = measure(model, Given(x, y), ("clean", "pgd20"), batch_size=given.batch)
        held["anchor"] = torch.from_numpy(found.outcomes["held_pgd20"])

    timings = alternated({"plain": usual, "anchor": product}, given.rounds, device)
    same = (held["plain"] == held["anchor"]).double().mean().item()
    robust = {name: each.double().mean().item() for name, each in held.items()}
    return compared(timings, given.images) | {"robust_accuracy": robust, "same_verdicts": same}


def whitebox(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images hold: every one attacked, gradients through all parameters."""
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        model.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        moved = x_adv.detach() + STEP_SIZE * x_adv.grad.sign()
        x_adv = torch.min(torch.max(moved, x - EPS), x + EPS).clamp(0, 1)
    with torch.no_grad():
        return (model(x_adv.detach()).argmax(1) == y) & (model(x).argmax(1) == y)


if __name__ == "__main__":
    main()
