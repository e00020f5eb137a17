"""Training: settle the settings, build what they name, fit."""

import dataclasses
import io
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from shlex import quote
from typing import Any

from .. import checkpoint, data, processes, runs
from ..checkpoint import State
from ..console import Console
from ..data import ImageSet
from ..display import Display
from ..errors import Refusal
from ..recipe import Recipe, settle
from ..report.dotted import flat
from ..settings import from_yaml
from . import tracking
from .explanation import Explanation, explained
from .followers import Follower, follower
from .launch import launched
from .loop import Interrupted, fit, log_point, save_state, shuffled, validate
from .setup import Training, accelerate, build, check_divisible, check_fits, circumstances, own_code, precision

__all__ = [
    "Interrupted",
    "Training",
    "accelerate",
    "build",
    "check_fits",
    "circumstances",
    "explain",
    "heard",
    "launched",
    "log_point",
    "resume",
    "shuffled",
    "start",
    "validate",
]


def start(
    recipe: Recipe,
    run: Path,
    data_dir: str | None,
    display: Display,
    logger: str | None = None,
    devices: int | None = None,
    nodes: int | None = None,
) -> Path:
    """Train `recipe` into the new directory `run`, in one process or several (see `launched`).

    `logger` is tensorboard, mlflow or wandb, if the run has one.
    """
    kept = {"logger": {"name": logger, "key": uuid.uuid4().hex}} if logger else {}
    check_shares(recipe, devices, nodes)
    with launched(devices, nodes, precision(recipe)) as fabric:
        with processes.refusing_together():
            if processes.first():
                runs.check_free(run)
            loggers = following(kept, run)
        training = build(recipe, loaded(recipe, data_dir), run, fabric)
        training.loggers = loggers
        if processes.first():
            with runs.beginning(run):
                runs.write_text(run / runs.RECIPE, recipe.text())
                runs.write_json(run / runs.ENVIRONMENT, circumstances(training) | kept)
                save_state(training, State())
                tracking.begin(training)
        with alone(run), nothing_left(run):
            go_on(training, State(), heard(display))
    return run


@contextmanager
def nothing_left(run: Path) -> Iterator[None]:
    """Leave no directory where a run fails before its first epoch is done; where it is stopped, that can go on."""
    try:
        yield
    except Exception:
        if processes.first() and not runs.has_begun(run):
            shutil.rmtree(run, ignore_errors=True)
        raise


def explain(recipe: Recipe, data_dir: str | None) -> Explanation:
    """What `start` would do to be fast, and what it would cost; CIFAR-10 is not read for that."""
    images = data.cifar.blank() if recipe.data.name == "cifar10" else data.load(recipe.data.name, "train", data_dir)
    return explained(build(recipe, images, Path()))


def resume(
    run: Path, data_dir: str | None, display: Display, devices: int | None = None, nodes: int | None = None
) -> Path:
    """Go on with a run that was stopped, to the very weights that it would have reached without the stop.

    In the precision that the run was begun in, whatever this machine would choose. With another number of processes,
    to rounding, as they add up in another order, but for what docs/how-to/scale.md names.
    """
    saved = checkpoint.read_state(run / runs.LAST)
    if not (run / runs.RECIPE).is_file():
        raise Refusal(f"{run / runs.RECIPE} is missing; restore it or start the run anew")
    recipe = settle(str(run / runs.RECIPE))
    check_unchanged(run, recipe, saved.get("recipe"))
    before = runs.read_json(run / runs.ENVIRONMENT)
    check_shares(recipe, devices, nodes)
    with launched(devices, nodes, before.get("precision", precision(recipe))) as fabric, alone(run):
        with processes.refusing_together():
            loggers = following(before, run)
        training = build(recipe, loaded(recipe, data_dir), run, fabric)
        training.loggers = loggers
        with processes.refusing_together():
            if before.get("data") != circumstances(training)["data"]:
                raise Refusal(f"{run} was trained on other images than {recipe.data.name} now holds; give it those")
            for section, digest in own_code(recipe).items():
                if digest != before.get("code", {}).get(section, digest):
                    heard(display).warning(f"the file of the {section} has changed since {run} was begun with it")
            state = restore(training, saved)
            if state.best >= 0:
                checkpoint.read_weights(run / runs.WEIGHTS)  # what the end will announce
            if processes.first():
                runs.clear_partial(run)
                runs.keep_metrics(run, state.step)
                tracking.begin(training)
        go_on(training, state, heard(display))
    return run


def check_shares(recipe: Recipe, devices: int | None, nodes: int | None) -> None:
    """Refuse as many processes as cannot share the batch, before the first of them is started."""
    count = max(devices or 1, 1) * max(nodes or 1, 1)
    check_divisible(recipe.optimise.batch_size, count, recipe.optimise.micro_batch)


def check_unchanged(run: Path, recipe: Recipe, begun: str | None) -> None:
    """Refuse a recipe that was edited since the run began; states of early versions do not hold what it was."""
    now, before = (flat(from_yaml(text)) if text else {} for text in (recipe.text(), begun))
    if other := [key for key, value in before.items() if now.get(key, value) != value]:
        raise Refusal(
            f"{run / runs.RECIPE} is not what the run was begun with ({', '.join(other)} differ); "
            "put that back, or start a new run with it"
        )


def alone(run: Path) -> AbstractContextManager[None]:
    """No other training writes into the run; of several processes the first one sees to that."""
    return runs.alone(run) if processes.first() else nullcontext()


def go_on(training: Training, state: State, display: Display) -> None:
    try:
        with tracking.followed(training, display):
            not_compiled = accelerate(training, display)
            if processes.first():
                around = training.run / runs.ENVIRONMENT
                runs.write_json(around, runs.read_json(around) | {"not_compiled": not_compiled})
            fit(training, state, display)
    except Interrupted:
        raise
    except KeyboardInterrupt:  # before the first step, while it compiles
        raise Interrupted(f"stopped; anchor train --resume {quote(str(training.run))} goes on") from None


def loaded(recipe: Recipe, data_dir: str | None) -> ImageSet:
    """The training images, for every process or for none."""
    with processes.refusing_together():
        return data.load(recipe.data.name, "train", data_dir)


def heard(display: Display) -> Display:
    """The display in the process that speaks, one that shows nothing in all others."""
    return display if processes.first() else Display(Console(file=io.StringIO()))


def following(environment: dict[str, Any], run: Path) -> list[Follower]:
    """The logger that a run was started with, if any, as its environment.json names it; for the first process."""
    kept = environment.get("logger")
    return [follower(kept["name"], run, kept["key"])] if kept and processes.first() else []


def restore(training: Training, saved: dict[str, Any]) -> State:
    """Put everything back as `save_state` found it."""
    source = training.run / runs.LAST
    try:
        checkpoint.fill(training.network, saved["network"], source)
        checkpoint.fill(training.average.network, saved["average"], source)
        training.optimizer.load_state_dict(saved["optimizer"])
        if saved["generator"].shape != training.generator.get_state().shape:
            raise Refusal(f"{source} was saved on another kind of device; go on with it on one of that kind")
        training.generator.set_state(saved["generator"])
        return State(**{field.name: saved[field.name] for field in dataclasses.fields(State)})
    except KeyError as error:
        raise Refusal(f"{source} has no {error}; it is no state that anchor train saved") from error
