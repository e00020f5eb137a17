"""The record of an evaluation: where it goes, what it would write over, and how it is written.

outcomes.npz is written first and evaluation.json holds its digest, so that a pair of two evaluations is detected.
"""

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import runs
from .data import ImageSet
from .errors import Refusal
from .evaluation import Engine, Precision
from .evaluation.protocols import CONTEXTUAL, REFERENCE
from .evaluation.reference import NAME
from .exhibit import Exhibit
from .report.card import TITLE, card
from .report.methods import of_these_weights
from .threat import Ball

Say = Callable[[str], None]
Arrays = Mapping[str, np.ndarray]
LONGEST = 150  # characters; file systems take names of 255 bytes, and what stops beside the record has a longer one


@dataclass(frozen=True)
class Asked:
    """What an evaluation is to measure."""

    images: ImageSet
    attacks: Sequence[str]
    curves: Sequence[str]
    ball: Ball
    engine: Engine
    search: Precision
    corruptions: bool
    origin: str = ""
    weights: str = ""  # SHA-256

    def name(self) -> str:
        """A file name that the same command has again, so that it goes on there after a stop."""
        special = {
            "bf16": self.search == "bf16",
            "reference": self.engine == "reference",
            "corrupted": self.corruptions,
        }
        from_where = {"transfer": f"transfer-{self.origin.replace(' ', '-')}"}
        what = [
            *(from_where.get(attack, attack) for attack in self.attacks),
            *(f"curve-{curve}" for curve in self.curves),
            *(key for key in special if special[key]),
        ]
        which = f"{len(self.images)}-{self.images.sha256[:8]}"
        where = [Path(self.images.name).name, self.ball.norm, f"{self.ball.eps:g}", which]
        told = "-".join([*what, *where])
        if len(told) > LONGEST:
            told = f"{told[:LONGEST]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
        return f"evaluation-{told}.json"

    def covers(self, record: dict[str, Any]) -> bool:
        """Whether this measures again, at least as well, all that a record holds."""
        try:
            about, results = record["data"], record["results"]
            held = [(result["attack"], result["norm"], result["eps"], result.get("engine")) for result in results]
            elsewhere = any(result["attack"] == "transfer" and self.origin not in result["label"] for result in results)
            drawn = record.get("curves", {})
            points = [point for curve in drawn.values() for point in curve if point["eps"]]
            other_ball = bool(drawn) and record.get("threat") != {"norm": self.ball.norm, "eps": self.ball.eps}
            searches = {each.get("search") for each in [*results, *points] if each["norm"] and not on_its_own(each)}
            # By what they are: a folder is called otherwise from elsewhere.
            fewer = about["images"] <= len(self.images)
            these = fewer and self.images.first(about["images"]).sha256 == about["sha256"]
            # The run may have been trained on, and evaluated, since this began.
            others = self.weights and record.get("model", {}).get("sha256", self.weights) != self.weights
        except (KeyError, TypeError, AttributeError):
            return True  # no record of ours: nothing is lost
        exact = self.search == "float32" or searches <= {"bf16"}
        measured = {self.result(attack) for attack in self.attacks}
        corruptions, sibling = "corruptions" in record, "transfer_from" in record
        return (
            these
            and not others
            and exact
            and not elsewhere
            and set(held) <= measured
            and not other_ball
            and set(drawn) <= set(self.curves)
            and corruptions <= self.corruptions
            and sibling <= bool(self.origin)
        )

    def result(self, attack: str) -> tuple[str, str | None, float | None, str | None]:
        """What tells a result from others: the attack, its ball and whose code it is."""
        if attack == "clean":
            return attack, None, None, None
        theirs = self.engine == "reference" and attack in REFERENCE
        return attack, self.ball.norm, self.ball.eps, NAME if theirs else "anchor"


def on_its_own(result: Mapping[str, Any]) -> bool:
    """Whether the attack searched on another model or an embedding, always in float32, whatever --search says."""
    return result.get("attack") in CONTEXTUAL


def destination(run: Path | None, out: Path | None, asked: Asked, own: Sequence[str | None], say: Say) -> Path | None:
    """Where the record goes: --out, else into the run, beside its record where that holds numbers of its own.

    Raises Refusal where the record would be taken for that of another run, and where what lies beside it would be
    written over a file that is not an evaluation's; `own` are the files that this one reads.
    """
    target = out or (run and run / runs.EVALUATION)
    if target is None:
        return None
    runs.check_writable(target)
    if out is None:
        target, why = in_run(target, asked)
        if why:
            say(why)
        if target.name != runs.EVALUATION:
            return target
    anothers = run is None or target.parent.resolve() != run.resolve()
    if target.name == runs.EVALUATION and (target.parent / runs.RECIPE).exists() and anothers:
        raise Refusal(f"--out {target} given; it is the place of another run's record; give another name")
    if out is not None and target.exists() and not runs.holds(target, {"model", "data", "results"}):
        raise Refusal(f"--out {target} given; it holds something else than an evaluation; give another name")
    reserved = (runs.OUTCOMES, runs.PICTURES, runs.CARD)
    outcomes, pictures, told = sides = beside_of(target)
    # A card without its record may be anybody's, but for one in a run directory that begins as ours do.
    anybodys = (
        told.exists() and not target.exists() and (out is not None or not told.read_bytes().startswith(TITLE.encode()))
    )
    read = {Path(word).resolve() for word in own if word}
    for side in sides:
        taken = side.resolve() in read or (target.name != runs.EVALUATION and side.name in reserved)
        not_ours = (side == outcomes and foreign(side, "clean_prediction")) or (
            side == pictures and foreign(side, "gallery_index")
        )
        if taken or not_ours or (side == told and anybodys):
            raise Refusal(f"--out {target} given, and {side} would be written over; give another name")
    return target


def in_run(target: Path, asked: Asked) -> tuple[Path, str]:
    """Where in a run a record goes, `target` or a file beside it, and what to say of that; "" where all is as always.

    Another evaluation of the run may have ended since this was asked first.
    """
    if not target.exists():
        return target, ""
    record = runs.read_json(target)
    ours = isinstance(record, dict) and isinstance(record.get("model"), dict)
    if ours and not of_these_weights(target.parent, record):
        return target, f"{target} tells of other weights than the run has now; this evaluation takes its place"
    if asked.covers(record):
        return target, ""
    beside = target.with_name(asked.name())
    return beside, f"kept: {target}, which holds other numbers; this evaluation goes to {beside.name}"


def beside_of(target: Path) -> tuple[Path, Path, Path]:
    """Outcomes, pictures and card of the record `target`."""
    if target.name == runs.EVALUATION:
        return target.with_name(runs.OUTCOMES), target.with_name(runs.PICTURES), target.with_name(runs.CARD)
    return target.with_suffix(".npz"), target.with_name(f"{target.stem}-{runs.PICTURES}"), target.with_suffix(".md")


def foreign(path: Path, ours: str) -> bool:
    """Whether there is such a file, and it has no array `ours`, as one of an evaluation has."""
    if not path.exists():
        return False
    try:
        with np.load(path) as held:
            return ours not in held.files
    except (OSError, ValueError, zipfile.BadZipFile):
        return True


def save(target: Path, record: dict[str, Any], outcomes: Arrays, shown: Exhibit | None) -> None:
    """Write outcomes and pictures, then the record with their digests, then its card."""
    beside, pictures, told = beside_of(target)
    record["outcomes"] = kept(beside, outcomes)
    if shown:
        record["pictures"] = kept(pictures, shown.arrays) | shown.facts
    runs.write_json(target, record)
    runs.write_text(told, card(record))


def kept(path: Path, arrays: Arrays) -> dict[str, str]:
    """Write `arrays`; the name and the digest by which a record finds them again."""
    runs.write(path, lambda partial: save_arrays(partial, arrays))
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def save_arrays(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as handle:
        np.savez_compressed(handle, **arrays)  # type: ignore[arg-type] # its stubs take the keywords for its own
