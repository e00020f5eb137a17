"""Training: settle the settings, build what they name, fit."""

import dataclasses
import uuid
from pathlib import Path
from typing import Any

from .. import checkpoint, data, runs
from ..checkpoint import State
from ..display import Display
from ..errors import Refusal
from ..recipe import Recipe, settle
from . import tracking
from .explanation import Explanation, explained
from .followers import Follower, follower
from .loop import Interrupted, fit, save_state, shuffled, validate
from .setup import Training, accelerate, build, circumstances, searched

__all__ = [
    "Interrupted",
    "Training",
    "accelerate",
    "build",
    "circumstances",
    "explain",
    "fit",
    "restore",
    "resume",
    "searched",
    "shuffled",
    "start",
    "validate",
]


def start(recipe: Recipe, run: Path, data_dir: str | None, display: Display, logger: str | None = None) -> Path:
    """Train `recipe` into the new directory `run`; `logger` is tensorboard, mlflow or wandb, if the run has one."""
    runs.check_free(run)
    kept = {"logger": {"name": logger, "key": uuid.uuid4().hex}} if logger else {}
    loggers = following(kept, run)
    training = build(recipe, data.load(recipe.data.name, "train", data_dir), run)
    training.loggers = loggers
    with runs.beginning(run):
        runs.write_text(run / runs.RECIPE, recipe.text())
        runs.write_json(run / runs.ENVIRONMENT, circumstances(training) | kept)
        save_state(training, State())
        tracking.begin(training)
    with tracking.followed(training, display):
        accelerate(training, display)
        fit(training, State(), display)
    return run


def explain(recipe: Recipe, data_dir: str | None) -> Explanation:
    """What `start` would do to be fast, and what it would cost."""
    return explained(build(recipe, data.load(recipe.data.name, "train", data_dir), Path()))


def resume(run: Path, data_dir: str | None, display: Display) -> Path:
    """Go on with a run that was stopped, to the very weights that it would have reached without the stop."""
    saved = checkpoint.read_state(run / runs.LAST)
    recipe = settle(str(run / runs.RECIPE))
    before = runs.read_json(run / runs.ENVIRONMENT)
    loggers = following(before, run)
    training = build(recipe, data.load(recipe.data.name, "train", data_dir), run)
    training.loggers = loggers
    if before["data"] != circumstances(training)["data"]:
        raise Refusal(f"{run} was trained on other images than {recipe.data.name} now holds; give the data it had")
    state = restore(training, saved)
    runs.clear_partial(run)
    runs.keep_metrics(run, state.step)
    tracking.begin(training)
    with tracking.followed(training, display):
        accelerate(training, display)
        fit(training, state, display)
    return run


def following(environment: dict[str, Any], run: Path) -> list[Follower]:
    """The logger that a run was started with, if any, as its environment.json names it."""
    kept = environment.get("logger")
    return [follower(kept["name"], run, kept["key"])] if kept else []


def restore(training: Training, saved: dict[str, Any]) -> State:
    """Put everything back as `save_state` found it."""
    source = training.run / runs.LAST
    try:
        checkpoint.fill(training.network, saved["network"], source)
        checkpoint.fill(training.average.network, saved["average"], source)
        training.optimizer.load_state_dict(saved["optimizer"])
        training.generator.set_state(saved["generator"])
        return State(**{field.name: saved[field.name] for field in dataclasses.fields(State)})
    except KeyError as error:
        raise Refusal(f"{source} has no {error}; it is no state that anchor train saved") from error
