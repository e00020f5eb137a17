"""What a page is made of: sections, blocks side by side in them, and tables and charts in those."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .dossier import Dossier
from .together import Entry, Together


@dataclass(frozen=True)
class Block:
    """What a section shows of one entry, or of all together where `label` is empty."""

    label: str
    parts: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """One heading of the page: sentences `says`, then blocks side by side."""

    id: str
    title: str
    says: Sequence[str] = ()
    blocks: Sequence[Block] = field(default_factory=list)


def missing(page: Together, entry: Entry, part: str) -> str:
    """Why `part` of an entry is not there, with its name where there are several; empty if it is."""
    told = entry.dossier.lacking.get(part, "")
    return f"{entry.label}: {told}" if told and len(page.entries) > 1 else told


def unmeasured(page: Together) -> list[str]:
    """How to evaluate what has not been evaluated."""
    return [told for entry in page.entries if (told := missing(page, entry, "evaluation"))]


def named(page: Together, entry: Entry, seed: Dossier | None = None) -> str:
    """The entry's label, where there are several; with the seed that is shown, where it has several."""
    if len(entry.seeds) > 1:
        return f"{entry.label}, seed {(seed or entry.dossier).settings.get('seed')}"
    return entry.label if len(page.entries) > 1 else ""
