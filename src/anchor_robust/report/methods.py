"""Runs as they lie in their directories, pooled: one method is one recipe, over its seeds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import runs
from ..errors import Refusal, one_line
from .dotted import flat, shortened, spelled
from .pauses import without_pauses
from .record import arrays, outcomes_named

CONVENTIONS = ("label", "norm", "eps", "steps", "step_size", "restarts", "start", "loss", "dtype", "images")
ASSUMED = {"engine": "anchor", "search": "float32"}  # where a record does not say: those of early versions


@dataclass(frozen=True)
class Run:
    """One run directory: what was asked, what was measured, what it cost.

    `settings` are the recipe's by dotted name without seed and name, and beside them what else decides the weights: the
    precision that was used, the images, and of a head how its encoder was trained. `passes` are forward and backward,
    of an image in one step (runs of early versions do not say). The seconds in `metrics` are without the `paused` ones
    in which the training stood still. `held` has for each attack which test images the model
    held.
    """

    path: Path
    name: str
    seed: int
    settings: dict[str, Any]
    record: dict[str, Any]
    held: dict[str, np.ndarray]
    metrics: list[dict[str, Any]]
    paused: float
    hardware: str
    images_seen: int
    passes: float | None
    second_stage: bool


@dataclass(frozen=True)
class Method:
    """The runs of one recipe by seed; `differs` are the settings in which it is not like every other method."""

    label: str
    differs: dict[str, Any]
    runs: dict[int, Run]


def read(path: Path, evaluation: str = runs.EVALUATION) -> Run:
    """A run that was evaluated, with the record in its file `evaluation`."""
    runs.check_is_run(path)
    if not (path / evaluation).is_file():
        raise Refusal(f"{path} has no {evaluation}; measure it first: anchor evaluate {path}")
    try:
        recipe = flat(yaml.safe_load((path / runs.RECIPE).read_text(encoding="utf-8")))
        record, environment = runs.read_json(path / evaluation), runs.read_json(path / runs.ENVIRONMENT)
        metrics, paused = without_pauses(runs.read_epochs(path))
        name, seed = recipe.pop("name"), recipe.pop("seed")
        check_up_to_date(path, record)
        if not environment.get("second_stage") and metrics[-1]["epoch"] < recipe["optimise.epochs"]:
            stopped = f"{metrics[-1]['epoch']} of {recipe['optimise.epochs']} epochs"
            raise Refusal(f"{path} has had {stopped}; end it: anchor train --resume {path}; then evaluate it again")
        trained_on = {
            "precision": environment["precision"],
            "training_images": environment["data"]["train"]["sha256"][:12],
            "validation_images": environment["data"].get("validation", {}).get("sha256", "")[:12],
            **{
                f"encoder.{key}": value
                for key, value in environment.get("second_stage", {}).get("encoder_settings", {}).items()
            },
        }
        return Run(
            path,
            name,
            seed,
            recipe | trained_on,
            record,
            outcomes(path / evaluation, record),
            metrics,
            paused,
            runs.machine(environment),
            metrics[-1]["step"] * recipe["optimise.batch_size"],
            environment.get("passes"),
            "second_stage" in environment,
        )
    except (KeyError, IndexError, TypeError, AttributeError, yaml.YAMLError) as error:
        told = f"{type(error).__name__}: {one_line(error)}"
        raise Refusal(
            f"{path} cannot be read ({told}); its files must be those of anchor train and evaluate"
        ) from error


def check_up_to_date(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse a record of other weights than those of the run, which may have been trained on since."""
    weights, told = path / runs.WEIGHTS, record["model"].get("sha256")
    if told and weights.is_file() and hashlib.sha256(weights.read_bytes()).hexdigest() != told:
        raise Refusal(f"{path} has other weights than those that its record tells of; evaluate it again")


def of_these_weights(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether `check_up_to_date` has nothing against a record."""
    try:
        check_up_to_date(path, {"model": {}, **record})
    except Refusal:
        return False
    return True


def outcomes(path: Path, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """By attack, which images [n] were held, as the record at `path` has it; empty without the file of the outcomes."""
    named = outcomes_named(path, record)
    file = path.with_name(Path(named["file"]).name)
    if not file.exists():
        return {}
    stored = arrays(path, named)
    held = {key.removeprefix("held_"): array for key, array in stored.items() if key.startswith("held_")}
    held["clean"] = stored["clean_prediction"] == stored["label"]
    for result in record["results"]:
        found = held.get(result["attack"])
        if found is None or (len(found), int(found.sum())) != (
            result["images"],
            round(result["accuracy"] * len(found)),
        ):
            raise Refusal(f"{file} and {path.name} do not tell of the same evaluation; evaluate {path.parent} again")
    return held


def pooled(found: Sequence[Run]) -> list[Method]:
    """Runs of one recipe apart from the seed become one method, in the order in which they are named."""
    groups: list[dict[int, Run]] = []
    for run in found:
        group = next((each for each in groups if same_method(next(iter(each.values())), run)), None)
        if group is None:
            groups.append({run.seed: run})
        elif run.seed in group:
            raise Refusal(f"{group[run.seed].path} and {run.path} are one recipe with one seed; a seed counts once")
        else:
            group[run.seed] = run
    firsts = [next(iter(group.values())) for group in groups]
    shared = {
        key
        for key in firsts[0].settings
        if len({json.dumps(run.settings.get(key), default=str) for run in firsts}) == 1
    }
    differs = [{key: value for key, value in run.settings.items() if key not in shared} for run in firsts]
    return [Method(*each) for each in zip(labels(firsts, differs), differs, groups, strict=True)]


def same_method(first: Run, second: Run) -> bool:
    return (first.name, first.settings) == (second.name, second.settings)


def labels(firsts: Sequence[Run], differs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each method: the recipe's, with what sets it apart from its namesakes where there are any."""
    names = [run.name for run in firsts]
    told = []
    for name, settings in zip(names, differs, strict=True):
        namesakes = [other for other, its_name in zip(differs, names, strict=True) if its_name == name]
        apart = {key: value for key, value in settings.items() if any(other.get(key) != value for other in namesakes)}
        told.append(f"{name} {spelled(shortened(apart))}".strip())
    return told


def convention(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that must be alike for two accuracies to stand in one column."""
    data = {key: run.record["data"][key] for key in ("name", "split", "sha256")}
    assumed = {key: result.get(key, usual) for key, usual in ASSUMED.items()}
    return {key: result.get(key) for key in CONVENTIONS} | assumed | {"data": data}
