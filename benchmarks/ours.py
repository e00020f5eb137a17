"""The product's own training, built as `anchor train` builds it, on random images: what they show costs no time."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import plain
from anchor_robust import train
from anchor_robust.data import ImageSet
from anchor_robust.display import Display
from anchor_robust.recipe import settle
from anchor_robust.train.update import step

RECIPE = "cifar10-resnet18-anchor"
IMAGES = 50_000


def images(count: int = IMAGES) -> ImageSet:
    """As many as CIFAR-10 has to train on, of its size."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return ImageSet(pixels, labels, tuple(map(str, range(10))), "random", "train")


def training(
    data: ImageSet,
    model: str,
    batch: int,
    attack_steps: int,
    views: int,
    compiling: str,
    precision: str = "auto",
) -> train.Training:
    settings = {
        "model.name": model,
        "optimise.batch_size": batch,
        "optimise.compile": compiling,
        "optimise.precision": precision,
        "attack.steps": attack_steps,
        "objective.views": f"[{', '.join(plain.VIEWS[views])}]",
        # The loss of the plain way: cross-entropy on the attacked view and contrast over all.
        **{f"objective.{term}": 0 for term in ("clean", "margin", "consistency")},
        "validation.images": min(1000, len(data) // 2),
    }
    recipe = settle(RECIPE, [f"--{key}={value}" for key, value in settings.items()])
    return train.build(recipe, data, Path("nowhere"))


def accelerated(trained: train.Training) -> dict[str, Any]:
    """Compile as a long run does; the seconds that it takes, and why a part stays as it was."""
    counters.clear()
    started = time.perf_counter()
    fault = train.accelerate(trained, Display())
    return {"compile_s": time.perf_counter() - started, "not_compiled": fault}


def graphs_skipped() -> int:
    """How often since `accelerated` the compiler has left its kernels without a CUDA graph, which it only logs."""
    return counters["inductor"]["cudagraph_skips"]


def stepping(trained: train.Training) -> Callable[[], dict[str, Tensor]]:
    """Makes the next update of the weights each time it is called."""
    size = trained.recipe.optimise.batch_size
    order = torch.arange(len(trained.train), device=trained.fabric.device)
    per_epoch, numbers = len(order) // size, itertools.count()

    def update() -> dict[str, Tensor]:
        number = next(numbers)
        return step(trained, number, 10**6, order[number % per_epoch * size :][:size])

    return update
