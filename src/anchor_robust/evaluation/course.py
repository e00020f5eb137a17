"""Stages over standing sets: the one loop through which every outcome comes."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attacks import Attack
from .protocols import Planned
from .resuming import Ledger
from .searching import Precision
from .verdicts import Advance, Model, attacked, batches, predict

Bar = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def silent_bar(label: str, images: int) -> Iterator[Advance]:
    yield lambda done: None


@dataclass(frozen=True)
class Endured:
    """Which images held, bool [n]; whether every adversarial lay in its ball; what each stage did."""

    held: Tensor
    inside: bool
    seconds: float
    stages: list[dict[str, Any]]


@dataclass(frozen=True)
class Course:
    """What every stage runs on: `model` judges what attacks find on `search`, which computes in `precision`.

    Images x [n c h w] on the device, labels y [n].
    """

    model: Model
    search: Model
    precision: Precision
    x: Tensor
    y: Tensor
    batch_size: int
    seed: int
    ledger: Ledger
    bar: Bar

    def predictions(self) -> tuple[Tensor, float]:
        """The model's answers to the clean images, int64 [n] on the CPU, and the seconds they took."""
        everything = batches(torch.ones(len(self.x), dtype=torch.bool), self.batch_size)
        with self.bar("clean", len(self.x)) as advance:
            units = []
            for place, indices in enumerate(everything):
                units.append(self.ledger.unit(f"clean/{place}", partial(self.answers, indices)))
                advance(len(indices))
        found = torch.tensor([outcome for unit in units for outcome in unit.outcomes])
        return found, sum(unit.seconds for unit in units)

    def endure(self, planned: Planned, standing: Tensor) -> Endured:
        """Run the stages one after another, each in full batches over the images that still stand."""
        held, inside, stages = standing.clone(), True, []
        for number, attack in enumerate(planned.stages):
            before, seconds = int(held.sum()), 0.0
            several = f" {number + 1}/{len(planned.stages)}" if len(planned.stages) > 1 else ""
            # A bar per stage: its total shrinks with the standing set, and stages differ in what an image costs.
            with self.bar(planned.label + several, before) as advance:
                for place, indices in enumerate(batches(held.clone(), self.batch_size)):
                    name = f"{planned.name}/{number}/{place}"
                    unit = self.ledger.unit(name, partial(self.survivors, attack, indices, name))
                    held[indices] = torch.tensor(unit.outcomes, dtype=torch.bool)
                    inside &= unit.inside
                    seconds += unit.seconds
                    advance(len(indices))
            told = {"images": before, "fell": before - int(held.sum()), "seconds": round(seconds, 3)}
            stages.append({"stage": type(attack).__name__, **attack.describe(), **told})
        return Endured(held, inside, sum(stage["seconds"] for stage in stages), stages)

    def answers(self, indices: Tensor) -> tuple[list[int], bool]:
        images, labels = self.of(indices)
        return predict(self.model, images, labels, len(images), lambda done: None).tolist(), True

    def survivors(self, attack: Attack, indices: Tensor, name: str) -> tuple[list[int], bool]:
        # A generator of its own, so that what was finished before a kill changes nothing for what comes after.
        generator = torch.Generator(self.x.device).manual_seed(unit_seed(self.seed, name))
        held, inside = attacked(self.model, attack, *self.of(indices), generator, self.search)
        return held.int().tolist(), inside

    def of(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices.to(self.x.device)], self.y[indices.to(self.y.device)]


def unit_seed(seed: int, name: str) -> int:
    """A seed for the unit `name` (attack, stage, batch), unlike that of any other unit or any other seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
