"""A training's seconds without those in which it stood still: stopped, put to sleep, or crowded out by other work."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from statistics import median
from typing import Any

TIMES, SECONDS = 3, 60  # an epoch of that many times the usual, and that many seconds more, holds a pause

Line = Mapping[str, Any]


def without_pauses(epochs: Sequence[Line]) -> tuple[list[dict[str, Any]], float]:
    """The lines of metrics.jsonl, one an epoch, their `seconds` without pauses, and how long these were together.

    The usual epoch is the median of its kind: those with a validation take longer than those without. One that took
    over TIMES as long counts as the usual one, as what it took says nothing of the method.
    """
    took = [after - before for before, after in pairwise([0.0, *(line["seconds"] for line in epochs)])]
    kinds = ["validation_robust" in line for line in epochs]
    usual = {kind: median(each for each, its in zip(took, kinds, strict=True) if its == kind) for kind in set(kinds)}
    more = [each - usual[kind] for each, kind in zip(took, kinds, strict=True)]
    pauses = [
        each if each > SECONDS and each > (TIMES - 1) * usual[kind] else 0.0
        for each, kind in zip(more, kinds, strict=True)
    ]
    lines = [
        {**line, "seconds": line["seconds"] - before} for line, before in zip(epochs, accumulate(pauses), strict=True)
    ]
    return lines, sum(pauses)
