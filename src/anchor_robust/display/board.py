"""The live picture of a training on a terminal."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .lines import Lines, Say
from .plan import Plan, Reading
from .told import accuracies, loss_parts

READ_EVERY = 1.0  # seconds


class Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "", style="dim")


def image_bar(console: Console, counted: bool = True) -> Progress:
    """A bar with speed and time left, over images."""
    done = MofNCompleteColumn() if counted else TaskProgressColumn()
    name = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), name, BarColumn(bar_width=30), done, Speed(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


class Board(Lines):
    """A bar over the whole training; below it the loss and its parts, the last validation and the best so far."""

    def __init__(self, plan: Plan, console: Console, say: Say) -> None:
        super().__init__(say, plan, READ_EVERY)
        self.console = console
        self.progress = image_bar(console, counted=False)
        images = plan.batch_size
        self.task = self.progress.add_task(plan.name, total=plan.steps * images, completed=plan.done * images)
        self.now: dict[str, Any] = {}
        self.validated: dict[str, Any] = {}
        self.best, self.best_epoch = plan.best, 0

    def live(self) -> Live:
        return Live(console=self.console, get_renderable=self.render, refresh_per_second=4, transient=True)

    def step(self, reading: Reading) -> None:
        self.progress.advance(self.task, self.plan.batch_size)
        if self.seldom.due():
            self.now = reading()

    def epoch(self, line: dict[str, Any]) -> None:
        self.now = line
        if "validation_clean" in line:
            self.validated = line
            selected = line[f"validation_{self.plan.selects_on}"]
            if self.best is None or selected >= self.best:
                self.best, self.best_epoch = selected, line["epoch"]
        super().epoch(line)

    def render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in self.rows().items():
            table.add_row(f"  {label}", Text(text))
        # Lines may reach the right edge, where the terminal's echo of ^C would break a line that rich does not know of.
        return Group(self.progress, table, Text())

    def rows(self) -> dict[str, str]:
        """What stands below the bar; nothing that is not known yet."""
        now, plan, rows = self.now, self.plan, {}
        if now:
            parts = [f"{name} {value:.3f}" for name, value in loss_parts(now).items()]
            rows["now"] = (
                f"epoch {now['epoch']}/{plan.epochs}, step {now['step']:,}/{plan.steps:,}, "
                f"learning rate {now['lr']:.4g}, memory {now['memory_mb']:,} MB at most"
            )
            rows["loss"] = f"{now['loss']:.3f}{' from ' if parts else ''}{', '.join(parts)}"
            rows["training"] = f"{now['batch_accuracy']:.1%} right in this epoch's batches, as they are trained on"
        if self.validated:
            rows["validation"] = f"{accuracies(self.validated)} (epoch {self.validated['epoch']})"
        if self.best is not None:
            when = f"epoch {self.best_epoch}" if self.best_epoch else "before the stop"
            rows["best"] = f"{plan.selects_on} {self.best:.1%} ({when})"
        return rows
