"""Training: settle the settings, build what they name, fit."""

import dataclasses
import io
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import checkpoint, data, processes, runs
from ..checkpoint import State
from ..data import ImageSet
from ..display import Display
from ..errors import Refusal
from ..recipe import Recipe, settle
from .launch import launched
from .loop import Interrupted, fit, save_state, shuffled, validate
from .setup import Training, build, circumstances, precision, searched

__all__ = [
    "Interrupted",
    "Training",
    "build",
    "circumstances",
    "fit",
    "heard",
    "launched",
    "restore",
    "resume",
    "searched",
    "shuffled",
    "start",
    "validate",
]


def start(
    recipe: Recipe,
    run: Path,
    data_dir: str | None,
    display: Display,
    devices: int | None = None,
    nodes: int | None = None,
) -> Path:
    """Train `recipe` into the new directory `run`, in one process or several (see `launched`)."""
    with launched(devices, nodes, precision(recipe)) as fabric:
        with processes.refusing_together():
            if processes.first():
                runs.check_free(run)
        training = build(recipe, loaded(recipe, data_dir, fabric.local_rank == 0), run, fabric)
        if processes.first():
            with runs.beginning(run):
                runs.write_text(run / runs.RECIPE, recipe.text())
                runs.write_json(run / runs.ENVIRONMENT, circumstances(training))
                save_state(training, State())
        fit(training, State(), heard(display))
    return run


def resume(
    run: Path, data_dir: str | None, display: Display, devices: int | None = None, nodes: int | None = None
) -> Path:
    """Go on with a run that was stopped, to the very weights that it would have reached without the stop.

    With another number of processes, to rounding: they add up in another order.
    """
    saved = checkpoint.read_state(run / runs.LAST)
    recipe = settle(str(run / runs.RECIPE))
    with launched(devices, nodes, precision(recipe)) as fabric:
        training = build(recipe, loaded(recipe, data_dir, fabric.local_rank == 0), run, fabric)
        with processes.refusing_together():
            before = runs.read_json(run / runs.ENVIRONMENT)["data"]
            if before != circumstances(training)["data"]:
                raise Refusal(f"{run} was trained on other images than {recipe.data.name} now holds; give it those")
            state = restore(training, saved)
            if processes.first():
                runs.clear_partial(run)
                runs.keep_metrics(run, state.step)
        fit(training, state, heard(display))
    return run


def loaded(recipe: Recipe, data_dir: str | None, ahead: bool) -> ImageSet:
    """The training images; what has to be fetched is fetched by one process on each machine, the one `ahead`."""
    for turn in (True, False):
        with processes.refusing_together():
            if turn == ahead:
                images = data.load(recipe.data.name, "train", data_dir)
    return images


def heard(display: Display) -> Display:
    """The display in the process that speaks, one that shows nothing in all others."""
    return display if processes.first() else Display(Console(file=io.StringIO()))


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
