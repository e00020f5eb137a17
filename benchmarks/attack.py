"""The attack of a training step alone, PGD on one batch: the plain way, ours, and every measure between them by itself.

    python benchmarks/attack.py --model resnet18 --batch 128 --rounds 10 --json FILE

`measures` adds one at a time; the last is what `anchor train` runs. `gain` is the time of the one before over its
own, and `predicted_gain` the same of the seconds that the counted operations and bytes need at least, at the copy
bandwidth and the rate of matrix products that were measured first.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import machine
import ours
import plain
from anchor_robust.attacks import PGD
from anchor_robust.evaluation.searching import InBf16
from anchor_robust.models import Folded, LogitsOnly
from anchor_robust.threat import Ball
from apart import apart
from timing import MODELS, alternated, compared, count, device_of, parser, record, run, wait, write

BALL, STEP_SIZE = Ball("linf", 0.031), 0.007


@dataclass(frozen=True)
class Measure:
    """A way to attack, and what a compiler would have made of it is `fused`."""

    name: str
    attack: Callable[[], Tensor]
    fused: bool = False


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--model", default="resnet18", choices=MODELS, help="default: resnet18")
    asked.add_argument("--batch", type=count, default=128, help="images (default: 128)")
    asked.add_argument("--rounds", type=count, default=10, help="timed attacks of each way (default: 10)")
    asked.add_argument("--attack-steps", type=int, default=10, help="steps of PGD (default: 10)")
    asked.add_argument("--compile", default="auto", choices=("auto", "never"), help="as optimise.compile of a recipe")
    asked.add_argument("--images", type=count, default=ours.IMAGES, help="random images (default: as CIFAR-10 has)")
    given = asked.parse_args(words)
    device = device_of(given)
    write(record("attack", given, device, measured(given, device)), given.json)


def measured(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    data = ours.images(given.images)
    trained = ours.training(data, given.model, given.batch, given.attack_steps, 2, given.compile)
    network = plain.network(given.model, data, device)
    x, y = trained.train.pixels(slice(given.batch)), trained.train.labels[: given.batch]
    limits, bf16 = machine.limits(device, toy=given.images < 1000), trained.search.dtype == torch.bfloat16
    ways = eager(network, trained.search, x, y, given.attack_steps, bf16)
    counts = {way.name: machine.counted(way.attack) for way in ways}
    needed = machine.flops(counts[ways[-1].name]) / given.batch
    plain_search, compiling = trained.search, ours.accelerated(trained)
    if trained.search is not plain_search:
        ways.append(Measure("compiled", product(trained.search, x, y, given.attack_steps), fused=True))
        counts["compiled"] = counts[ways[-2].name]
    predicted = {way.name: machine.seconds_at_least(counts[way.name], limits, way.fused) for way in ways}
    with apart(attacking_plainly, given, device) as plainly:
        timed = {"plain": plainly} | {way.name: way.attack for way in ways}
        timings = alternated(timed, given.rounds, device, warm_ups=2)
    found = compared({"plain": timings["plain"], "anchor": timings[ways[-1].name]}, given.batch)
    return found | {
        **compiling,
        "cudagraph_skips": ours.graphs_skipped(),
        "precision": str(trained.search.dtype).removeprefix("torch."),
        "flops_per_image": needed,
        "limits": asdict(limits),
        "flop_utilisation": needed * found["anchor_images_per_s"] / limits.rate(trained.search.dtype),
        "measures": gains(timings, {"plain": predicted[ways[0].name], **predicted}),
    }


def eager(network: torch.nn.Module, search: Folded, x: Tensor, y: Tensor, steps: int, bf16: bool) -> list[Measure]:
    """From the plain attack, where freed memory is kept, to the product's, not compiled."""
    evaluated = copy.deepcopy(network).eval()
    frozen = LogitsOnly(copy.deepcopy(network)).eval().requires_grad_(False)
    last = copy.deepcopy(frozen).to(memory_format=torch.channels_last)
    packed = x.contiguous(memory_format=torch.channels_last)
    ways = [
        Measure("freed memory kept", lambda: plain.attack(network.train(), x, y, steps)),
        Measure("evaluation mode", lambda: plain.attack(evaluated, x, y, steps)),
        Measure("gradients of the images alone", lambda: images_alone(frozen, x, y, steps)),
        Measure("channels last", lambda: images_alone(last, packed, y, steps)),
        Measure("bf16", lambda: images_alone(InBf16(last), packed, y, steps)),
        Measure("BatchNorm folded", lambda: images_alone(search, packed, y, steps)),
        Measure("step and projection as one clamp", product(search, x, y, steps)),
    ]
    return [way for way in ways if bf16 or way.name != "bf16"]


def images_alone(model: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """PGD as `plain.attack` writes it, but for what is differentiated."""
    eps = BALL.eps
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        moved = x_adv.detach() + STEP_SIZE * gradient.sign()
        x_adv = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
    return x_adv


def product(search: Folded, x: Tensor, y: Tensor, steps: int) -> Callable[[], Tensor]:
    """The attack as a training step calls it."""
    packed, attack = x.contiguous(memory_format=torch.channels_last), PGD(BALL, steps, STEP_SIZE)
    generator = torch.Generator(x.device).manual_seed(0)
    return lambda: attack(search, packed, y, generator=generator, trusted=x.is_cuda)


def attacking_plainly(given: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    data = ours.images(given.images)
    network = plain.network(given.model, data, device).train()
    x, y = data.pixels(slice(given.batch)).to(device), data.labels[: given.batch].to(device)

    def attack() -> None:
        plain.attack(network, x, y, given.attack_steps)
        wait(device)

    return attack


def gains(timings: dict[str, Any], predicted: dict[str, float]) -> list[dict[str, Any]]:
    """One line a measure, in the order in which they were added."""
    told, names = [], list(timings)
    for name, before in zip(names, [names[0], *names], strict=False):
        gain = timings[before]["median_s"] / timings[name]["median_s"]
        guess = predicted[before] / predicted[name]
        line = {"measure": name, "predicted_s": predicted[name], "gain": gain, "predicted_gain": guess}
        told.append(line | timings[name])
    return told


if __name__ == "__main__":
    run(main)
