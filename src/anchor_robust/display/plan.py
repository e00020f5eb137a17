"""What every form of progress is told: what a training sets out to do, and where it stands."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Where the training stands, as a line of metrics.jsonl. Reading waits for the device, so it is done at a low rate.
Reading = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """A training as it begins, or goes on: `done` of its steps are done, with `best` validation accuracy if any.

    Weights are kept by the validation accuracy that `selects_on` names, robust or clean.
    """

    name: str
    run: Path
    epochs: int
    steps_per_epoch: int
    batch_size: int
    selects_on: str
    done: int = 0
    best: float | None = None

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class Observer(Protocol):
    """What follows a training: called after every step, after every epoch with its log point, and at the end."""

    def step(self, reading: Reading) -> None: ...

    def epoch(self, line: dict[str, Any]) -> None: ...

    def finished(self, weights: Path, best: float) -> None: ...


class Seldom:
    """Whether it is time again: at most once in `seconds`, first after as many."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        self.last = time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self.last < self.seconds:
            return False
        self.restart()
        return True
