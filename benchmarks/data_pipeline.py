"""Both views of a batch, decoded, augmented and on the device: by a DataLoader image by image, and ours in whole
batches.

    python benchmarks/data_pipeline.py --batch 256 --rounds 20 --json FILE

Without workers, so that the plain way has one thread, and ours all: workers would prepare batches while ours is
measured, and take the cores from it. What they could do at best is the plain rate times their number.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import ours
import plain
from anchor_robust.train.update import batch
from timing import alternated, compared, count, device_of, parser, record, run, write


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--batch", type=count, default=256, help="images (default: 256)")
    asked.add_argument("--rounds", type=count, default=20, help="timed batches of each way (default: 20)")
    asked.add_argument("--images", type=count, default=ours.IMAGES, help="random images (default: as CIFAR-10 has)")
    given = asked.parse_args(words)
    device = device_of(given)
    write(record("data_pipeline", given, device, measured(given, device)), given.json)


def measured(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    data = ours.images(given.images)
    batches = plain.batches(data, given.batch, 0, device)
    trained = ours.training(data, "resnet8", given.batch, 1, 2, "never")

    def batched() -> tuple[Tensor, Tensor]:
        indices = torch.randint(len(trained.train), (given.batch,), device=device)
        learner, x, _ = batch(trained, indices, 1, 10**6)
        return learner.light(x, trained.generator), learner.strong(x, trained.generator)

    timings = alternated({"plain": lambda: next(batches), "anchor": batched}, given.rounds, device, warm_ups=2)
    return compared(timings, given.batch)


if __name__ == "__main__":
    run(main)
