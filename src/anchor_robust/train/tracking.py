"""What a run's loggers are told, and when. It changes nothing of what is trained.

Every log point; and about ten times over a training the first validation images, clean, perturbation and attacked side
by side, with the embeddings of both. A logger that fails on the way is left behind with a warning.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..data import pictures
from ..display import Display
from ..errors import Refusal, one_line
from ..evaluation import evaluating
from ..models import LogitsOnly
from ..recipe import Recipe, as_mapping
from ..report.dotted import flat
from .setup import Training

EMBEDDED, SHOWN = 100, 8  # of the validation images: how many are embedded, how many of those are shown
TIMES = 10


def begin(training: Training) -> None:
    """Open the run's loggers with its recipe; Refusal where a service cannot be reached."""
    for logger in training.loggers:
        try:
            logger.log_hyperparams(flat(as_mapping(training.recipe)))
        except Exception as error:  # a service can fail in any way
            raise Refusal(f"the logger cannot begin ({one_line(error)}); mend that, or train without it") from error


@contextmanager
def followed(training: Training, display: Display) -> Iterator[None]:
    """Close the loggers afterwards, with how the training ended."""
    status = "aborted"
    try:
        yield
        status = "success"
    finally:
        with left_behind(training, display):
            for logger in training.loggers:
                logger.finalize(status)


def track(training: Training, line: dict[str, Any], display: Display) -> None:
    """Tell the loggers a log point, and show them pictures if it is time."""
    if not training.loggers:
        return
    with left_behind(training, display):
        for logger in training.loggers:
            logger.log_metrics(scalars(line), line["step"])
        if due(line["epoch"], training.recipe):
            show(training, line["step"])


@contextmanager
def left_behind(training: Training, display: Display) -> Iterator[None]:
    """Go on without loggers when one fails: hours of training are worth more."""
    try:
        yield
    except Exception as error:
        display.warning(f"the logger failed ({one_line(error)}); the run goes on without it")
        training.loggers.clear()


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """A log point under names that the loggers group: validation/clean, train/loss and so on."""
    names = {key: key if key in ("epoch", "lr", "seconds") else f"train/{key}" for key in line if key != "step"}
    return {name.replace("train/validation_", "validation/"): line[key] for key, name in names.items()}


def due(epoch: int, recipe: Recipe) -> bool:
    """Whether pictures are shown after this epoch: at the first validation, the last, and some evenly between."""
    every, epochs = recipe.validation.every, recipe.optimise.epochs
    stride = math.ceil(epochs / every / TIMES)
    return epoch == epochs or (epoch % every == 0 and (epoch // every - 1) % stride == 0)


def show(training: Training, step: int) -> None:
    recipe, network, images = training.recipe, training.average.network, training.validation.first(EMBEDDED)
    x, y = images.pixels(slice(None)), images.labels
    attack = recipe.validation.pgd(recipe.threat)
    with evaluating(network, x.device):
        x_adv = attack(LogitsOnly(network), x, y, generator=torch.Generator(x.device).manual_seed(recipe.seed))
        both = torch.cat([x, x_adv])
        with torch.no_grad():
            logits, embeddings = network(both)
    views, name = ["clean"] * len(x) + ["attacked"] * len(x), images.classes
    said = zip(y.tolist() * 2, views, logits.argmax(1).tolist(), strict=True)
    rows = [[name[truth], view, name[answer]] for truth, view, answer in said]
    clean, attacked = (each[:SHOWN].mul(255).round().byte().cpu() for each in (x, x_adv))
    shown = pictures.grid(clean, attacked)
    for logger in training.loggers:
        logger.log_picture("adversarial", shown, step)
        logger.log_embeddings(embeddings.cpu(), rows, both.cpu(), step)
