"""An evaluation that outlives a kill: what was finished is looked up, what was not is computed."""

import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from .. import processes, runs

Compute = Callable[[], tuple[list[int], bool]]


@dataclass(frozen=True)
class Unit:
    """One batch of one stage: the classes that the model said of its images."""

    outcomes: list[int]
    inside: bool
    seconds: float


class Ledger:
    """The finished units of one evaluation, kept beside its record until that is written.

    `identity` is what determines outcomes beside the arguments of the evaluation: weights, hardware, versions. The file
    holds a JSON line for all that determines the outcomes, then one per unit, written as the unit ends. Its name holds
    a digest of the first: the same evaluation finds it again, any other starts anew in a file of its own.
    """

    def __init__(
        self,
        record: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.record = record
        self.say = say
        self.identity = dict(identity or {})
        self.path: Path | None = None
        self.units: dict[str, Unit] = {}

    def open(self, **asked: Any) -> None:
        """Look up what the evaluation with these settings has finished."""
        self.units = {}
        if self.record is None:
            return
        # Files without this word hold 1 where the model held, not a class; they are not gone on from.
        first = json.dumps({"outcomes": "classes", **asked, **self.identity}, sort_keys=True)
        key = hashlib.sha256(first.encode()).hexdigest()[:12]
        # The record may have had another name when this was stopped: what else a run holds decides it.
        own = self.record.with_name(f"{self.record.stem}.partial-{key}.jsonl")
        self.path = own if own.exists() else min(own.parent.glob(f"*.partial-{key}.jsonl"), default=own)
        kept = runs.whole_lines(self.path)
        if kept[:1] != [first]:
            kept = [first]
        try:
            for each in map(json.loads, kept[1:]):
                name = each.pop("unit")
                self.units[name] = Unit(**each)
        except (ValueError, TypeError, KeyError, AttributeError):
            self.say(f"beginning anew: {self.path} is damaged")
            self.units, kept = {}, [first]
        if self.units:
            self.say(f"going on after {len(self.units)} finished batches, from {self.path}")
        elif others := {*self.path.parent.glob(f"{glob.escape(self.record.stem)}.partial-*.jsonl")} - {self.path}:
            self.say(
                f"beginning anew: {min(others)} is of other settings, weights, versions, threads or another machine"
            )
        # Written anew, because a kill may have cut the last line short.
        if processes.first():
            runs.write_text(self.path, "".join(f"{line}\n" for line in kept))

    def finished(self, work: Sequence[tuple[str, Compute]]) -> Iterator[Unit]:
        """Every unit by its name, in order, as it was finished before, or computed and written down.

        Several processes take a unit each, tell each other, and all get all of them.
        """
        for start in range(0, len(work), processes.count()):
            turn = work[start : start + processes.count()]
            own = [self.computed(*turn[processes.index()])] if processes.index() < len(turn) else []
            units = chain.from_iterable(processes.everybodys(own))
            for (name, _), unit in zip(turn, units, strict=True):
                self.keep(name, unit)
                yield unit

    def computed(self, name: str, compute: Compute) -> Unit:
        if name in self.units:
            return self.units[name]
        started = time.perf_counter()
        outcomes, inside = compute()
        return Unit(outcomes, inside, time.perf_counter() - started)

    def keep(self, name: str, unit: Unit) -> None:
        if name not in self.units and self.path and processes.first():
            self.append(self.path, {"unit": name, **asdict(unit)})
        self.units[name] = unit

    def append(self, path: Path, line: Mapping[str, Any]) -> None:
        with runs.writing(path), path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def close(self) -> None:
        """The record is written: nothing has to be resumed any more."""
        if self.path and processes.first():
            self.path.unlink(missing_ok=True)
