"""Progress: live on a terminal, plain lines elsewhere, JSON lines for programs, or nothing but warnings.

It is for people and programs that wait; the files that a job writes are the truth.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ..console import Console, silence
from ..finite import finite
from .board import Board, image_bar
from .lines import Events, Lines, Tally
from .plan import Observer, Plan
from .told import headline, told

__all__ = ["Display", "JsonLines", "Plan", "Quiet", "told"]

Advance = Callable[[int], None]


class Display:
    """Progress on standard error: a live picture on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        self.line(f"warning: {text}")

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        """A bar over `total` images with speed and time left; a line a minute where nobody watches."""
        if not self.console.is_interactive:
            yield Tally(self.line, label, total)
            return
        with image_bar(self.console) as progress:
            task = progress.add_task(label, total=total)
            yield lambda images: progress.advance(task, images)

    @contextmanager
    def training(self, plan: Plan) -> Iterator[Observer]:
        """Who follows the training of `plan`: a board on a terminal, else lines."""
        self.line(headline(plan))
        if not self.console.is_interactive:
            yield Lines(self.line, plan)
            return
        board = Board(plan, self.console, self.line)
        with board.live():
            yield board


class Quiet(Display):
    """Warnings, and nothing else."""

    def line(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        super().line(f"warning: {text}")

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda images: None

    @contextmanager
    def training(self, plan: Plan) -> Iterator[Observer]:
        yield Lines(self.line, plan, every=float("inf"))


class JsonLines(Quiet):
    """A JSON object a line on standard output; its `event` is start, progress, epoch, message, warning or finished."""

    def emit(self, event: str, /, **facts: Any) -> None:
        try:
            print(json.dumps(finite({"event": event, **facts}), default=str), flush=True)
        except BrokenPipeError:  # what reads has gone; the training goes on
            silence(sys.stdout)

    def line(self, text: str) -> None:
        self.emit("message", text=text)

    def warning(self, text: str) -> None:
        self.emit("warning", text=text)

    @contextmanager
    def training(self, plan: Plan) -> Iterator[Observer]:
        self.emit("start", **asdict(plan), steps=plan.steps)
        yield Events(self.emit, plan)
