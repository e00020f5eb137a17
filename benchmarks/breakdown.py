"""Where the time of our training step goes: by its parts, and by kinds of operation.

    python benchmarks/breakdown.py --model resnet18 --batch 128 --steps 10 --json FILE

The parts are clocked around the product's own calls, waiting for the device before and after each. The operations
are those of torch's profiler over one more step: on a processor what they took themselves, on CUDA their kernels.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import ours
import train_step
from anchor_robust.attacks import Attack
from anchor_robust.objectives import Learner
from anchor_robust.train import Training
from timing import device_of, record, run, summary, timed, wait, write

SHOWN = 15


class Clock:
    """Seconds by the name of the part; no part lies within another, or its time would count twice."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*given: Any, **named: Any) -> Any:
            wait(self.device)
            started = time.perf_counter()
            result = function(*given, **named)
            wait(self.device)
            self.seconds[name] += time.perf_counter() - started
            return result

        return clocked


@dataclass(frozen=True)
class Clocked(Learner):
    """A learner whose attack is clocked as well."""

    clock: Clock | None = None

    def attacked(self, x: Tensor, y: Tensor, generator: torch.Generator, attack: Attack | None = None) -> Tensor:
        assert self.clock
        return self.clock.around("attack", super().attacked)(x, y, generator, attack)


def main(words: Sequence[str] | None = None) -> None:
    given = train_step.arguments(__doc__).parse_args(words)
    device = device_of(given)
    write(record("breakdown", given, device, measured(given, device)), given.json)


def measured(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    data = ours.images(given.images)
    trained = ours.training(
        data, given.model, given.batch, given.attack_steps, given.views, given.compile, given.precision
    )
    compiling = ours.accelerated(trained)
    update = ours.stepping(trained)
    for _ in range(3):
        update()
    operations = profiled(update, device)
    clock = clocked(trained)
    totals = []
    for _ in range(given.steps):
        totals.append(timed(update, device))
    parts = {name: seconds / given.steps for name, seconds in clock.seconds.items()}
    whole = sum(totals) / given.steps
    parts["losses and the rest"] = whole - sum(parts.values())
    return {
        **compiling,
        "step": summary(totals),
        "parts": [{"part": name, "s": seconds, "share": seconds / whole} for name, seconds in parts.items()],
        "operations": operations,
    }


def clocked(trained: Training) -> Clock:
    """Put a clock around everything that a step calls."""
    clock = Clock(trained.fabric.device)
    learner = trained.learner
    trained.learner = replace(
        Clocked(**vars(learner), clock=clock),
        light=clock.around("light augmentation", learner.light),
        strong=clock.around("strong augmentation", learner.strong),
        forward=clock.around("training pass, forward", learner.forward),
    )
    around: Iterable[tuple[str, Any, str]] = (
        ("twin refreshed", trained.search, "refresh"),
        ("training pass, backward", trained.fabric, "backward"),
        ("optimizer", trained.optimizer, "step"),
        ("averaged weights", trained.average, "update"),
    )
    for name, owner, method in around:
        setattr(owner, method, clock.around(name, getattr(owner, method)))
    return clock


def profiled(update: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """The operations that took most of one step, longest first, and their share of all."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as seen:
        update()
        wait(device)
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events) or 1
    return [
        {"operation": event.key, "calls": event.count, "share": getattr(event, own) / total} for event in events[:SHOWN]
    ]


if __name__ == "__main__":
    run(main)
