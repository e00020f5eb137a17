"""All that the files of one run tell; for a part that is missing, a sentence on how to get it."""

import json
import shlex
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ... import runs
from ...errors import Refusal
from .. import record as records
from ..dotted import flat
from ..methods import CONVENTIONS, check_up_to_date, of_these_weights

Record = dict[str, Any]
Arrays = dict[str, np.ndarray]
TURNING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@dataclass(frozen=True, eq=False)
class Dossier:
    """One run or one record, as far as its files go.

    `record` is its evaluation; `further` are other evaluations of the same weights that lie beside, by file name.
    `lacking` has a sentence for each part that is missing; `outcomes` and `pictures` belong to `record`.
    """

    path: Path
    recipe: str = ""
    environment: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    record: Record | None = None
    outcomes: Arrays = field(default_factory=dict)
    pictures: Arrays = field(default_factory=dict)
    further: dict[str, Record] = field(default_factory=dict)
    embedding: Record = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.resolve().name if self.path.is_dir() else self.path.stem

    def evaluated(self, more: str = "") -> str:
        """The command that measures all this again, and `more`."""
        record = self.record or {}
        told = str(record.get("environment", {}).get("command", "anchor evaluate"))
        if self.path.is_dir():
            # It may have been measured under another name, or from another folder.
            before, here = shlex.quote(str(record.get("model", {}).get("source"))), shlex.quote(str(self.path))
            words = [here if word == before else word for word in told.split(" ")]
            told = " ".join(words if here in words else ["anchor evaluate", here])
        return f"{told} {more}".strip()

    @property
    def settings(self) -> Record:
        """The recipe by dotted names; empty where it is missing or no longer YAML."""
        try:
            settings = yaml.safe_load(self.recipe)
        except yaml.YAMLError:
            return {}
        return flat(settings) if isinstance(settings, Mapping) else {}

    @property
    def records(self) -> dict[str, Record]:
        """Every evaluation by its file's name, the run's own first."""
        own = {runs.EVALUATION if self.path.is_dir() else self.path.name: self.record} if self.record else {}
        return own | self.further

    def curve(self, name: str) -> Record | None:
        """The first evaluation that measured the curve `name`."""
        return next((record for record in self.records.values() if name in record.get("curves", {})), None)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes by label; a number where no file names it."""
        if self.record is None:
            return []
        if "classes" in self.record:
            return [str(name) for name in self.record["classes"]]
        # Records of early versions name only the classes that have images.
        present = np.unique(self.outcomes.get("label", np.empty(0, int))).tolist()
        names = [row["class"] for row in (self.record["results"] or [{}])[0].get("per_class", [])]
        if len(present) != len(names):
            return names
        known = dict(zip(present, names, strict=True))
        return [known.get(label, str(label)) for label in range(max(present, default=-1) + 1)]

    def class_name(self, label: int) -> str:
        """Of a label or an answer, which may be none of the classes where a model has more logits than there are.

        -1 stands for logits that are NaN.
        """
        if label < 0:
            return "no answer"
        return self.classes[label] if label < len(self.classes) else str(label)


def read(path: Path) -> Dossier:
    """The run directory or the record of an evaluation at `path`. Raises Refusal for what is neither, or is broken."""
    if not path.exists():
        raise Refusal(f"{path} does not exist; give a run directory, or the FILE.json of anchor evaluate --out")
    if path.is_file():
        if path.suffix != ".json":
            raise Refusal(f"{path} is no record; give a run directory, or the FILE.json of anchor evaluate --out")
        return with_record(Dossier(path, lacking={"training": f"{path.name} tells nothing of a training."}), path)
    if not any((path / name).is_file() for name in (runs.RECIPE, runs.METRICS, runs.EVALUATION)):
        kept = f"{runs.RECIPE}, {runs.METRICS}, {runs.EVALUATION}"
        raise Refusal(f"{path} holds no run: none of {kept}; give a directory that anchor train has written")
    metrics = legible(runs.read_metrics(path))
    found = Dossier(
        path,
        recipe=text(path / runs.RECIPE),
        environment=optional(path / runs.ENVIRONMENT),
        metrics=metrics,
        embedding=optional(path / runs.EMBEDDING),
        lacking={} if metrics else {"training": f"{runs.METRICS} holds no epoch; anchor train writes one after each."},
    )
    if found.embedding and not of_these_weights(path, found.embedding):
        found = replace(found, embedding={})
    why = f"Not evaluated yet; this does it: {found.evaluated()}"
    if (path / runs.EVALUATION).is_file():
        evaluated = with_record(found, path / runs.EVALUATION)
        try:
            check_up_to_date(path, evaluated.record or {"model": {}})
        except Refusal as refusal:
            why = f"{refusal}: {found.evaluated()}"
        else:
            return evaluated
    return replace(found, lacking=found.lacking | {"evaluation": why})


def with_record(found: Dossier, path: Path) -> Dossier:
    record, lacking = well_formed(legible(runs.read_json(path)), path), dict(found.lacking)

    def part(name: str, of: Mapping[str, str]) -> Arrays:
        try:
            return records.arrays(path, of)
        except Refusal as refusal:
            lacking[name] = f"{refusal}."
            return {}

    outcomes = part("outcomes", records.outcomes_named(path, record))
    pictures = part("pictures", record["pictures"]) if "pictures" in record else {}
    if "pictures" not in record:
        lacking["pictures"] = "This evaluation kept no pictures; one with an attack does."
    further = beside(record, path) if found.path.is_dir() else {}
    return replace(found, record=record, outcomes=outcomes, pictures=pictures, further=further, lacking=lacking)


def well_formed(record: Any, path: Path) -> Record:
    if not is_record(record):
        raise Refusal(f"{path} is no record of anchor evaluate; evaluate again")
    return record


def is_record(found: Any) -> bool:
    return (
        has(found, "model", "data", "results", "checks")
        and has(found["model"])
        and has(found["data"], "name", "split", "images")
        and all_have(found["results"], *CONVENTIONS, "attack", "accuracy", "interval", "seconds")
        and all_have(found["checks"], "name", "verdict", "detail")
    )


def has(found: Any, *keys: str) -> bool:
    return isinstance(found, Mapping) and found.keys() >= set(keys)


def all_have(found: Any, *keys: str) -> bool:
    return isinstance(found, list) and all(has(each, *keys) for each in found)


def beside(record: Record, path: Path) -> dict[str, Record]:
    """Other evaluations in the same folder, of the same weights."""
    digest = record["model"].get("sha256")
    found = {}
    for other in sorted(path.parent.glob("*.json")):
        try:
            told = legible(json.loads(other.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # no file of ours
        if other != path and digest and is_record(told) and told["model"].get("sha256") == digest:
            found[other.name] = told
    return found


def optional(path: Path) -> Record:
    """The JSON object in a file that may be missing; empty for anything else."""
    found = legible(runs.read_json(path)) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def text(path: Path) -> str:
    return shown(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ""


def legible(found: Any) -> Any:
    """What a JSON file holds, each string in it as it can be `shown`."""
    if isinstance(found, dict):
        return {shown(key): legible(value) for key, value in found.items()}
    if isinstance(found, list):
        return [legible(value) for value in found]
    return shown(found) if isinstance(found, str) else found


def shown(words: str) -> str:
    """`words` without what would garble those around them: controls, marks that turn the direction, lone surrogates."""
    kept = "".join("\ufffd" if unseen(character) else character for character in words)
    return "(blank)" if kept and not kept.strip() else kept


def unseen(character: str) -> bool:
    return character in TURNING or (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t")
