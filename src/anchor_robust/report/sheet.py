"""One table, for the terminal and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rich.table import Table
from rich.text import Text

from ..console import Console


@dataclass(frozen=True)
class Sheet:
    """Headings and rows of plain text; the `wrapped` first columns are words, which may break, the others numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    wrapped: int = 1

    def rich(self) -> Table:
        table = Table()
        for column, heading in enumerate(self.headings):
            words = column < self.wrapped
            table.add_column(Text(heading), justify="left" if words else "right", no_wrap=not words, overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> list[str]:
        return [f"**{self.title}**", *([""] if self.rows else []), *self.grid(), *self.below()]

    def grid(self) -> list[str]:
        """The lines of the table alone, none where there are no rows."""
        ruler = ["---" if column < self.wrapped else "---:" for column in range(len(self.headings))]
        table = [self.headings, ruler, *([cell.replace("|", "\\|") for cell in row] for row in self.rows)]
        return [f"| {' | '.join(cells)} |" for cells in table] if self.rows else []

    def below(self) -> list[str]:
        return [line for note in self.notes for line in ("", note)]


def show(sheets: Sequence[Sheet]) -> None:
    console = output()
    for sheet in sheets:
        console.print(Text(sheet.title, style="bold"))
        if sheet.rows:
            console.print(sheet.rich())
        for note in sheet.notes:
            console.print(note, highlight=False, markup=False, soft_wrap=not console.is_terminal)
        console.print()


def output() -> Console:
    """Standard output, for words as they are; wide enough not to break lines where no terminal sets the width."""
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(width=160, markup=False, emoji=False)


def spread(values: Sequence[float], decimals: int = 2) -> str:
    """Mean of fractions in %, with the sample deviation where there are two or more."""
    told = f"{100 * mean(values):.{decimals}f}"
    return f"{told} ± {100 * stdev(values):.{decimals}f}" if len(values) > 1 else told
