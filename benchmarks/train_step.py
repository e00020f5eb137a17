"""A step of adversarial contrastive training: as public code makes it, and as `anchor train` does.

    python benchmarks/train_step.py --model resnet18 --batch 128 --steps 10 --json FILE

The plain step is `plain.py`, in a process of its own; ours is the product's own, with whatever
`anchor train --explain` says is fast on this machine. Both go through the same network, attack steps and views, on
random images of CIFAR-10's size. `flop_utilisation` is what the step has to compute (counted; the attack needs no
gradients of parameters), over its time and the measured rate of matrix products in the precision that it uses.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

import machine
import ours
import plain
from anchor_robust.train import Training
from apart import apart
from timing import MODELS, alternated, compared, count, device_of, parser, record, run, wait, write


def main(words: Sequence[str] | None = None) -> None:
    given = arguments(__doc__).parse_args(words)
    device = device_of(given)
    write(record("train_step", given, device, measured(given, device)), given.json)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    asked = parser(doc)
    asked.add_argument("--model", default="resnet18", choices=MODELS, help="default: resnet18")
    asked.add_argument("--batch", type=count, default=128, help="images a step (default: 128)")
    asked.add_argument("--steps", type=count, default=10, help="timed steps of each way (default: 10)")
    asked.add_argument("--attack-steps", type=int, default=10, help="steps of PGD (default: 10)")
    asked.add_argument(
        "--views", type=int, default=2, choices=tuple(plain.VIEWS), help="views of an image (default: 2)"
    )
    asked.add_argument("--workers", type=int, default=2, help="processes of the plain DataLoader (default: 2)")
    asked.add_argument("--compile", default="auto", choices=("auto", "never"), help="as optimise.compile of a recipe")
    asked.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "bf16", "float32"),
        help="as optimise.precision of a recipe; float32: as without bf16 units",
    )
    asked.add_argument("--images", type=count, default=ours.IMAGES, help="random images (default: as CIFAR-10 has)")
    return asked


def measured(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    data = ours.images(given.images)
    settings = (given.model, given.batch, given.attack_steps, given.views, given.compile, given.precision)
    trained = ours.training(data, *settings)
    needed = needed_flops(trained) / given.batch
    compiling = ours.accelerated(trained)
    update = ours.stepping(trained)
    with apart(stepping_plainly, given, device) as plainly:
        timings = alternated({"plain": plainly, "anchor": update}, given.steps, device, warm_ups=2)
    found = compared(timings, given.batch)
    limits = machine.limits(device, toy=given.images < 1000)
    return found | {
        **compiling,
        "cudagraph_skips": ours.graphs_skipped(),
        "precision": str(trained.search.dtype).removeprefix("torch."),
        "passes": trained.recipe.passes(),
        "flops_per_image": needed,
        "limits": asdict(limits),
        "flop_utilisation": needed * found["anchor_images_per_s"] / limits.rate(trained.search.dtype),
    }


def stepping_plainly(given: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    data = ours.images(given.images)
    network = plain.network(given.model, data, device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = plain.batches(data, given.batch, given.workers, device)

    def update() -> None:
        plain.step(network, optimizer, next(batches), given.attack_steps, given.views)
        wait(device)

    return update


def needed_flops(trained: Training) -> int:
    """Operations of one step that was not compiled."""
    return machine.flops(machine.counted(ours.stepping(trained)))


if __name__ == "__main__":
    run(main)
