"""The walk through the epochs: step, validate, keep the best weights, save."""

import math
import time
from collections.abc import Callable
from functools import partial
from shlex import quote
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint, environment, processes, runs
from ..checkpoint import State
from ..display import Display, Plan
from ..draws import global_state_kept
from ..evaluation import evaluating, withstand
from ..interrupt import interruptible
from ..models import LogitsOnly
from ..objectives import warning_of
from ..optimise import learning_rate
from .setup import Training, searched
from .tracking import track
from .update import STRIDE, check_finite, step, to_read

LEFT_OUT = 0.1  # of the images, of which a user is told


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop between two steps; its state is saved."""


def fit(training: Training, state: State, display: Display) -> None:
    """Walk through the epochs: step, validate, keep the best weights, save."""
    recipe, settings = training.recipe, training.recipe.optimise
    per_epoch = len(training.train) // settings.batch_size
    steps = per_epoch * settings.epochs
    for warning in (*recipe.warnings(), *left_out(len(training.train), settings.batch_size)):
        display.warning(warning)
    worried = 0
    own_generator = global_state_kept(training.fabric.device)
    with interruptible() as stop_asked, own_generator, display.training(plan(training, state, per_epoch)) as observer:
        while state.step < steps:
            epoch = state.step // per_epoch
            order = shuffled(len(training.train), recipe.seed, epoch).to(training.train.images.device)
            batches = order[: per_epoch * settings.batch_size].split(settings.batch_size)
            started, first = time.perf_counter(), state.step
            point = partial(log_point, training, state, steps, first, started)
            while state.step < (epoch + 1) * per_epoch:
                if stopping(training, state, stop_asked):
                    state.seconds += time.perf_counter() - started
                    save_state(training, state)
                    again = f"anchor train --resume {quote(str(training.run))} goes on"
                    raise Interrupted(f"stopped at step {state.step}; {again}")
                place = state.step % per_epoch
                for following in batches[place + 1 : place + 2]:
                    training.train.ahead(to_read(training, following))
                state.add(step(training, state.step, steps, batches[place]))
                observer.step(point)
            line = point()
            state.turn()
            state.seconds += time.perf_counter() - started
            check_finite(training, state.step)
            if (epoch + 1) % recipe.validation.every == 0 or state.step == steps:
                line |= validate(training)
                keep_best(training, state, line)
            if processes.first():
                runs.append_metrics(training.run, line)
            save_state(training, state)
            observer.epoch(line)
            track(training, line, display)
            warning = warning_of(recipe.objective, line, settings.batch_size)
            worried = worried + 1 if warning else 0
            if worried == 2:  # an epoch of a healthy run can pass there; and once is enough
                display.warning(warning)
        if processes.any_says(stop_asked()):
            raise Interrupted(f"stopped at the end: {training.run} is finished")
        observer.finished(training.run / runs.WEIGHTS, state.best)


def left_out(images: int, batch_size: int) -> list[str]:
    """A warning where much of every epoch is left out, as batches are full."""
    rest = images % batch_size
    told = f"{rest} of {images} images are left out of each epoch, others every time, as batches are full"
    return [f"{told}; a smaller optimise.batch_size leaves out fewer"] if rest > LEFT_OUT * images else []


def stopping(training: Training, state: State, asked: Callable[[], bool]) -> bool:
    """Whether to stop: alone at once; several processes ask each other as seldom as they wait for the device."""
    if processes.count() == 1:
        return asked()
    return state.step % training.patience == 0 and processes.any_says(asked())


def plan(training: Training, state: State, per_epoch: int) -> Plan:
    recipe, settings = training.recipe, training.recipe.optimise
    best = state.best if state.best >= 0 else None
    return Plan(
        name=recipe.name,
        run=training.run,
        epochs=settings.epochs,
        steps_per_epoch=per_epoch,
        batch_size=settings.batch_size,
        selects_on=recipe.objective.selects_on,
        done=state.step,
        best=best,
    )


def log_point(training: Training, state: State, steps: int, first: int, started: float) -> dict[str, Any]:
    """Where training stands: the epoch's means so far, and its speed since step `first` at the time `started`."""
    settings = training.recipe.optimise
    means = state.means()  # asked for before the clock is read: it waits for what the device has queued
    elapsed = time.perf_counter() - started
    return {
        "step": state.step,
        "epoch": math.ceil(state.step * settings.epochs / steps),
        "lr": learning_rate(settings, state.step - 1, steps),
        **means,
        "images_per_s": round((state.step - first) * settings.batch_size / elapsed, 1),
        "memory_mb": round(environment.peak_memory(training.fabric.device) / 1e6),
        "seconds": round(state.seconds + elapsed, 1),
    }


def validate(training: Training) -> dict[str, float]:
    """Clean and robust accuracy of the averaged weights on the validation split; the verdicts in float32."""
    recipe, averaged = training.recipe, training.average.network
    model, search = LogitsOnly(averaged), searched(averaged, training.fabric)
    device = training.validation.labels.device
    generator = torch.Generator(device).manual_seed(recipe.seed)
    attack = recipe.validation.pgd(recipe.threat)
    size = recipe.optimise.micro_batch or recipe.optimise.batch_size
    with evaluating(model, device):
        correct, held = withstand(model, attack, training.validation, generator, size, search)
    return {"validation_clean": correct.double().mean().item(), "validation_robust": held.double().mean().item()}


def keep_best(training: Training, state: State, line: dict[str, Any]) -> None:
    """Write the weights if no earlier ones were better on the validation split.

    Of equals the later are kept: the split cannot tell them apart, and they have learned for longer.
    """
    accuracy = line[f"validation_{training.recipe.objective.selects_on}"]
    if accuracy >= state.best:
        state.best = accuracy
        header = training.header | {
            "validation": {key: line[key] for key in ("epoch", "validation_clean", "validation_robust")}
        }
        if processes.first():
            checkpoint.save_weights(training.run / runs.WEIGHTS, training.average.network, header)


def save_state(training: Training, state: State) -> None:
    check_finite(training, state.step)
    if not processes.first():
        return
    checkpoint.save_state(
        training.run / runs.LAST,
        {
            **vars(state),
            "recipe": training.recipe.text(),
            "network": training.network.state_dict(),
            "average": training.average.network.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "generator": training.generator.get_state(),
        },
    )


def shuffled(images: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's images: a function of seed and epoch, so that a resumed run finds it again."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed * STRIDE + epoch))
