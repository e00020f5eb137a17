"""PGD-20 on test images: as the TRADES protocol is usually coded, and as `anchor evaluate` does it.

    python benchmarks/evaluation.py --run results/cifar10-resnet8-anchor --images 500 --rounds 5 --json FILE

The run's own test images, CIFAR-10 for that one (ANCHOR_DATA, --data-dir, or it is fetched). Without --run a network
with random weights, and random images labelled with its own answers. `same_verdicts` is the share of images that both
ways find alike, which random starts and the float32 of two layouts keep below 1; it says something where
`robust_accuracy` is neither 0 nor 1.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import ours
import plain
from anchor_robust.data import Given
from anchor_robust.evaluation import measure
from anchor_robust.evaluation.verdicts import evaluating
from anchor_robust.models import LogitsOnly
from anchor_robust.subject import Named, under_test
from timing import MODELS, alternated, compared, count, device_of, parser, record, run, write

EPS, STEPS, STEP_SIZE = 0.031, 20, 0.003


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--run", help="run directory or weights of ours")
    asked.add_argument("--data-dir", help="folder that holds the run's data set")
    asked.add_argument("--model", default="resnet18", choices=MODELS, help="without --run (default: resnet18)")
    asked.add_argument("--images", type=count, default=500, help="images (default: 500)")
    asked.add_argument("--batch", type=count, default=250, help="images at a time (default: 250)")
    asked.add_argument("--rounds", type=count, default=5, help="timed evaluations of each way (default: 5)")
    given = asked.parse_args(words)
    device = device_of(given)
    write(record("evaluation", given, device, measured(given, device)), given.json)


def measured(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    model, x, y = subject(given, device) if given.run else at_random(given, device)
    given.images = len(x)  # the test set may hold fewer than were asked for
    held: dict[str, Tensor] = {}

    def usual() -> None:
        # As strictly in float32 as ours; public code leaves convolutions on CUDA to TF32.
        with evaluating(model, device):
            attacked()

    def attacked() -> None:
        parts = zip(x.split(given.batch), y.split(given.batch), strict=True)
        held["plain"] = torch.cat([whitebox(model, *part) for part in parts]).cpu()

    def product() -> None:
        found = measure(model, Given(x, y), ("clean", "pgd20"), batch_size=given.batch)
        held["anchor"] = torch.from_numpy(found.outcomes["held_pgd20"])

    timings = alternated({"plain": usual, "anchor": product}, given.rounds, device)
    same = (held["plain"] == held["anchor"]).double().mean().item()
    robust = {name: each.double().mean().item() for name, each in held.items()}
    return compared(timings, given.images) | {"robust_accuracy": robust, "same_verdicts": same}


def subject(given: argparse.Namespace, device: torch.device) -> tuple[LogitsOnly, Tensor, Tensor]:
    found = under_test(Named(given.run, data_dir=given.data_dir), device)
    images = found.images.first(given.images).to(device)
    return found.model, images.pixels(slice(None)), images.labels


def at_random(given: argparse.Namespace, device: torch.device) -> tuple[LogitsOnly, Tensor, Tensor]:
    data = ours.images(given.images)
    model = LogitsOnly(plain.network(given.model, data, device)).to(device).eval()
    x = data.pixels(slice(None)).to(device)
    with torch.no_grad():
        return model, x, torch.cat([model(part).argmax(1) for part in x.split(given.batch)])


def whitebox(model: LogitsOnly, x: Tensor, y: Tensor) -> Tensor:
    """Which images hold: every one attacked, gradients through all parameters."""
    x_adv = plain.attack(model.classifier, x, y, STEPS, EPS, STEP_SIZE)
    with torch.no_grad():
        return (model(x_adv).argmax(1) == y) & (model(x).argmax(1) == y)


if __name__ == "__main__":
    run(main)
