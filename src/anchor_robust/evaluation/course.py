"""Stages over standing sets: the one loop through which every outcome comes."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attacks import Attack, Stage
from ..attacks.base import Model
from ..data import Labelled
from .protocols import Planned
from .resuming import Compute, Ledger
from .searching import COMPILED_FROM, Precision, laid_out
from .verdicts import Advance, attacked, batches, predict

Bar = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def silent_bar(label: str, images: int) -> Iterator[Advance]:
    yield lambda done: None


@dataclass(frozen=True)
class Endured:
    """Which images held, bool [n]; whether every adversarial lay in its ball; what each stage did.

    `answers` int64 [n] are the classes that the model said of the images when last attacked, -1 where never attacked.
    """

    held: Tensor
    answers: Tensor
    inside: bool
    seconds: float
    stages: list[dict[str, Any]]


@dataclass(frozen=True)
class Course:
    """What every stage runs on: `model` judges what attacks find on `search`, which computes in `precision`.

    Stages that pass through it very often search on `compiled`, the same function.

    The images are asked for a batch at a time, and come to the `device`; y [n] are their labels.
    """

    model: Model
    search: Model
    compiled: Model
    precision: Precision
    images: Labelled
    device: torch.device
    batch_size: int
    seed: int
    ledger: Ledger
    bar: Bar

    @property
    def y(self) -> Tensor:
        return self.images.labels

    def predictions(self) -> tuple[Tensor, float]:
        """The model's answers to the clean images, int64 [n] on the CPU, and the seconds they took."""
        everything = batches(torch.ones(len(self.images), dtype=torch.bool), self.batch_size)
        with self.bar("clean", len(self.images)) as advance:
            work = [(f"clean/{place}", partial(self.answers, indices)) for place, indices in enumerate(everything)]
            units = []
            for unit in self.ledger.finished(work):
                units.append(unit)
                advance(len(unit.outcomes))
        found = torch.tensor([outcome for unit in units for outcome in unit.outcomes])
        return found, sum(unit.seconds for unit in units)

    def endure(self, planned: Planned, standing: Tensor, drawn_as: str = "") -> Endured:
        """Run the stages one after another, each attack in full batches over the images that still stand.

        What is `drawn_as` another name draws what that would, and is kept under its own name.
        """
        held, answers, inside, told = standing.clone(), torch.full(standing.shape, -1), True, []
        for number, stage in enumerate(planned.stages):
            before, seconds = int(held.sum()), 0.0
            # Those that the first stage leaves mostly stand to the end; how many it leaves nobody knows before. By what
            # stands now, not by what of it is done, so that a resumed evaluation computes the very same.
            ahead = planned.stages[number:] if number else planned.stages[:1]
            search = self.compiled if passes(ahead) * before >= COMPILED_FROM else self.search
            for turn, attack in enumerate(stage.attacks):
                # A bar per attack: its total is what still stands, and attacks differ in what an image costs.
                with self.bar(heading(planned, stage, turn), int(held.sum())) as advance:
                    chosen = batches(held.clone(), self.batch_size)
                    work: list[tuple[str, Compute]] = []
                    for place, indices in enumerate(chosen):
                        where = f"{number}/{turn}/{place}"
                        draws = f"{drawn_as or planned.name}/{where}"
                        answer = partial(self.answers_under, attack, indices, draws, search)
                        work.append((f"{planned.name}/{where}", answer))
                    for indices, unit in zip(chosen, self.ledger.finished(work), strict=True):
                        answers[indices] = torch.tensor(unit.outcomes)
                        held[indices] = answers[indices] == self.y.cpu()[indices]
                        inside &= unit.inside
                        seconds += unit.seconds
                        advance(len(indices))
            counts = {"images": before, "fell": before - int(held.sum()), "seconds": round(seconds, 3)}
            told.append({"stage": stage.name, **stage.describe(), **counts})
        return Endured(held, answers, inside, sum(stage["seconds"] for stage in told), told)

    def answers(self, indices: Tensor) -> tuple[list[int], bool]:
        images, labels = self.of(indices)
        return predict(self.model, images, labels, len(images), lambda done: None).tolist(), True

    def answers_under(self, attack: Attack, indices: Tensor, name: str, search: Model) -> tuple[list[int], bool]:
        # A generator of its own, so that what was finished before a kill changes nothing for what comes after.
        generator = torch.Generator(self.device).manual_seed(unit_seed(self.seed, name))
        search = search if attack.searches_the_model else self.model
        answers, inside = attacked(self.model, attack, *self.of(indices), generator, search)
        return answers.tolist(), inside

    def searched_in(self, planned: Planned) -> Precision:
        """What the attacks search in, of which some know no other than float32."""
        attacks = [attack for stage in planned.stages for attack in stage.attacks]
        return self.precision if any(attack.searches_the_model for attack in attacks) else "float32"

    def of(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return laid_out(self.model, self.images.pixels(indices)), self.y[indices.to(self.y.device)]


def passes(stages: Sequence[Stage]) -> int:
    """How often stages pass an image through the model if it never falls, by what their attacks say of themselves."""
    told = [attack.describe() for stage in stages for attack in stage.attacks]
    climbs = [int(each.get("steps") or 0) * int(each.get("restarts") or 1) for each in told]
    return sum(climbs) + sum(int(each.get("queries") or 0) for each in told)


def heading(planned: Planned, stage: Stage, turn: int) -> str:
    """What is running: the protocol, its stage, the turn of that stage, as far as there are several."""
    parts = [planned.label]
    parts += [stage.name] if len(planned.stages) > 1 else []
    parts += [f"{turn + 1}/{len(stage.attacks)}"] if len(stage.attacks) > 1 else []
    return " ".join(parts)


def unit_seed(seed: int, name: str) -> int:
    """A seed for the unit `name` (protocol, stage, turn, batch), unlike that of any other unit or any other seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
