"""Progress on standard error: a live bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]


class Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "", style="dim")


class Display:
    """What a long job says while it runs; the files it writes are the truth."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar over `total` images with speed and time left; it draws nothing when nobody watches."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            Speed(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(label, total=total, completed=done)
            yield lambda images: progress.advance(task, images)


def told(label: str, line: dict[str, Any]) -> str:
    """A log point as one line for people."""
    shown = {"loss": "loss", "batch_accuracy": "batch"}
    parts = [f"{name} {line[key]:.3f}" for key, name in shown.items()]
    if "validation_clean" in line:
        parts.append(f"validation clean {line['validation_clean']:.1%} robust {line['validation_robust']:.1%}")
    return "  ".join([label, *parts, f"{line['images_per_s']:,.0f} images/s", f"{line['seconds']:.0f} s"])
