"""Progress as lines: for a log file, and for a program."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .plan import Plan, Reading, Seldom
from .told import duration, ending, told

Say = Callable[[str], None]

PLAIN_EVERY = 60.0  # seconds from one line to the next within an epoch, where nobody watches
JSON_EVERY = 10.0


class Tally:
    """A bar for a log file: at most a line a minute."""

    def __init__(self, say: Say, label: str, total: int) -> None:
        self.say, self.label, self.total, self.done = say, label, total, 0
        self.seldom, self.started = Seldom(PLAIN_EVERY), time.monotonic()

    def __call__(self, images: int) -> None:
        self.done += images
        if 0 < self.done < self.total and self.seldom.due():
            speed = self.done / (time.monotonic() - self.started)
            left = duration((self.total - self.done) / speed)
            self.say(f"{self.label}: {self.done:,}/{self.total:,} images, {speed:,.1f} images/s, {left} left")


class Lines:
    """A training for a log file: a line an epoch, and one a minute where epochs are long."""

    def __init__(self, say: Say, plan: Plan, every: float = PLAIN_EVERY) -> None:
        self.say, self.plan, self.seldom = say, plan, Seldom(every)

    def step(self, reading: Reading) -> None:
        if self.seldom.due():
            line = reading()
            self.say(told(f"epoch {line['epoch']}/{self.plan.epochs} step {line['step']}/{self.plan.steps}", line))

    def epoch(self, line: dict[str, Any]) -> None:
        self.seldom.restart()
        self.say(told(f"epoch {line['epoch']}/{self.plan.epochs}", line))

    def finished(self, weights: Path, best: float) -> None:
        self.say(ending(self.plan, weights, best))


class Events:
    """A training for a program: the log points themselves."""

    def __init__(self, emit: Callable[..., None], plan: Plan) -> None:
        self.emit, self.plan, self.seldom = emit, plan, Seldom(JSON_EVERY)

    def step(self, reading: Reading) -> None:
        if self.seldom.due():
            self.emit("progress", **reading())

    def epoch(self, line: dict[str, Any]) -> None:
        self.seldom.restart()
        self.emit("epoch", **line)

    def finished(self, weights: Path, best: float) -> None:
        self.emit("finished", run=self.plan.run, weights=weights, selects_on=self.plan.selects_on, best=best)
