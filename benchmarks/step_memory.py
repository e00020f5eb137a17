"""What a training step takes in memory: it grows with the batch, and with nothing else.

    python benchmarks/step_memory.py --model resnet8 --json FILE

Each point is a fresh process that makes its updates of the weights and says how much more memory it held at its peak
than before them. One setting varies at a time: the images of a step, the steps of the attack, or the updates.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
from collections.abc import Sequence

import torch

import memory
import ours
from anchor_robust.train.update import step
from timing import MODELS, count, device_of, parser, record, run, write

USUAL = {"batch": 128, "attack_steps": 5, "updates": 2}
AXES = {"batch": (64, 128, 256, 512), "attack_steps": (1, 5, 20), "updates": (2, 10)}
WARMING = 8  # images of the update before, for which libraries load what they need


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--model", default="resnet8", choices=MODELS, help="default: resnet8")
    asked.add_argument("--images", type=count, default=ours.IMAGES, help="random images (default: as CIFAR-10 has)")
    asked.add_argument("--few", action="store_true", help="small batches, two points of each axis")
    given = asked.parse_args(words)
    device, points = device_of(given), []
    given.threads = torch.get_num_threads()
    for setting in settings(given.few):
        # A fresh process, as freed memory stays with an old one.
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            points.append(setting | {"peak_mib": fresh.apply(peak_of, (given, setting, device))})
        print(json.dumps(points[-1]), file=sys.stderr, flush=True)
    write(record("step_memory", given, device, {"points": points}), given.json)


def settings(few: bool) -> list[dict[str, int]]:
    """The usual one, and every one that differs from it in a single setting."""
    usual = USUAL | ({"batch": 16, "attack_steps": 1} if few else {})
    varied = [{axis: value} for axis, values in AXES.items() for value in values if value != usual[axis]]
    if few:
        varied = [{"batch": 32}, {"attack_steps": 4}, {"updates": 4}]
    return [usual, *(usual | each for each in varied)]


def peak_of(given: argparse.Namespace, setting: dict[str, int], device: torch.device) -> float | None:
    torch.set_num_threads(given.threads)
    data = ours.images(given.images)
    trained = ours.training(data, given.model, setting["batch"], setting["attack_steps"], 2, "never")
    order, numbers = torch.arange(len(trained.train), device=device), itertools.count()
    step(trained, next(numbers), 10**6, order[:WARMING])

    def updates() -> None:
        for _ in range(setting["updates"]):
            step(trained, next(numbers), 10**6, order[: setting["batch"]])

    return memory.peak_mib(updates, device)


if __name__ == "__main__":
    run(main)
