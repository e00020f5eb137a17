"""A Markdown table of the result documents, and what is said below it."""

from collections.abc import Sequence

from anchor_robust.report.sheet import Sheet


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], note: str = "", words: int = 1) -> str:
    """The first columns, `words` of them, hold words, the others numbers."""
    lines = Sheet("", headings, rows, wrapped=words).grid()
    return "\n".join([*lines, *(["", note] if note else [])])
