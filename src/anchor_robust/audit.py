"""From a run or a weights file to its numbers: load, attack the test images, write the record and what goes with it.

outcomes.npz is written first and evaluation.json holds its digest, so that a pair of two evaluations is detected.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from . import checkpoint, checks, data, environment, runs
from .data import ImageSet
from .display import Display
from .errors import Refusal
from .evaluation import (
    PAPER_EPS,
    PROTOCOLS,
    Check,
    Engine,
    Ledger,
    Measurement,
    Model,
    Precision,
    known_attacks,
    known_curves,
    measure,
)
from .report.card import card
from .threat import Ball, Norm


def examined(model: Model, x: Tensor, y: Tensor, measurement: Measurement) -> list[dict[str, str]]:
    """What speaks for and against the accuracies just measured."""
    outcomes = measurement.outcomes.items()
    held = {name.removeprefix("held_"): outcome for name, outcome in outcomes if name.startswith("held_")}
    return checks.run(model, x, y, Ball(**measurement.record["threat"]), held=held)


# What every audit looks into beside the accuracies: a check is entered here.
CHECKS: tuple[Check, ...] = (examined,)

# Deviations of all training pixels; (.2023, .1994, .2010), which many repositories copy, are those of image means.
NORMALISATIONS = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))}


@dataclass(frozen=True)
class Subject:
    """The model under test, what is known of it, and the test images that belong to it."""

    model: nn.Module
    about: dict[str, Any]
    images: ImageSet
    ball: Ball


def audit(
    source: str,
    attacks: Sequence[str] = ("clean", "pgd20"),
    *,
    norm: Norm | None = None,
    eps: float | None = None,
    limit: int | None = None,
    batch_size: int = 500,
    seed: int = 0,
    engine: Engine = "anchor",
    search: Precision = "float32",
    curves: Sequence[str] = (),
    out: Path | None = None,
    model: str | None = None,
    dataset: str | None = None,
    normalize: str | None = None,
    data_dir: str | None = None,
    display: Display,
) -> dict[str, Any]:
    """Evaluate a run directory, a weights file or, with `model`, a plain state dict; returns the record written."""
    if not attacks:
        raise Refusal(f"no attack given; allowed: clean, {', '.join(PROTOCOLS)}, comma-separated")
    known_attacks(attacks, engine)
    known_curves(curves)
    for option, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise Refusal(f"{option} {value} given; allowed: 1 or more")
    if out is not None and out.suffix != ".json":
        raise Refusal(f"--out {out} given; name a file that ends in .json")
    if model and not checkpoint.has_header(source):
        subject = foreign(source, model, dataset, normalize, data_dir)
    else:
        subject = own(source, model, dataset, data_dir)
        if normalize is not None:
            raise Refusal(
                f"--normalize {normalize} given, but {source} carries its normalisation with it; leave it out"
            )
    if norm not in (None, subject.ball.norm) and eps is None:
        raise Refusal(f"--norm {norm} needs --eps: {subject.ball.eps:g} is a radius in {subject.ball.norm}")
    if eps == 0:
        raise Refusal("--eps 0 given; allowed: above 0; at 0 the accuracy is the clean one")
    ball = Ball(norm or subject.ball.norm, subject.ball.eps if eps is None else eps)
    images = subject.images.first(min(limit or len(subject.images), len(subject.images)))
    target = destination(source, out, len(images), attacks, curves, ball, display)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tested, on_device = subject.model.to(device), images.to(device)
    around = environment.describe(device)
    determining = {key: value for key, value in around.items() if key not in ("command", "platform")}
    weights = {key: value for key, value in subject.about.items() if key != "source"}
    ledger = Ledger(target, {"model": weights, "environment": determining}, display.line)
    try:
        measurement = measure(
            tested,
            on_device.pixels(slice(None)),
            on_device.labels,
            attacks,
            ball=ball,
            batch_size=batch_size,
            seed=seed,
            engine=engine,
            search=search,
            curves=curves,
            checks=CHECKS,
            classes=images.classes,
            bar=display.bar,
            ledger=ledger,
        )
    except KeyboardInterrupt:
        kept = f"the same command goes on from {ledger.path}" if ledger.path else "--out FILE.json would have kept it"
        raise KeyboardInterrupt(f"stopped; {kept}") from None
    record = {
        **measurement.record,
        "model": subject.about,
        "data": {"name": images.name, "split": images.split, "images": len(images), "sha256": images.sha256},
        "environment": around,
    }
    if target:
        save(target, record, measurement.outcomes)
        ledger.close()
        display.line(f"written: {target}")
    return record


def save(target: Path, record: dict[str, Any], outcomes: Any) -> None:
    """Write the outcomes, then the record with their digest, then its card."""
    own_name = target.name == runs.EVALUATION
    arrays = target.with_name(runs.OUTCOMES if own_name else f"{target.stem}.npz")
    runs.write(arrays, lambda partial: save_arrays(partial, outcomes))
    record["outcomes"] = {"file": arrays.name, "sha256": hashlib.sha256(arrays.read_bytes()).hexdigest()}
    runs.write_json(target, record)
    runs.write_text(target.with_name(runs.CARD if own_name else f"{target.stem}.md"), card(record))


def own(source: str, trusted: str | None, dataset: str | None, data_dir: str | None) -> Subject:
    """A model that carries its architecture, its data set and its threat model with it."""
    model, header = checkpoint.load_with_header(source, trusted)
    if trusted not in (None, header["model"]["name"]):
        raise Refusal(f"--model {trusted} given, but {source} says that it is {header['model']['name']}; leave it out")
    images = data.load(dataset or header["data"], "test", data_dir)
    if list(images.classes) != header["classes"]:
        raise Refusal(f"{source} was trained on the classes of {header['data']}, not on those of {images.name}")
    threat = yaml.safe_load(header["recipe"])["threat"]
    recipe_name = yaml.safe_load(header["recipe"])["name"]
    about = {"source": str(source), "recipe": recipe_name, **header["model"], **digest(source)}
    return Subject(model, about, images, Ball(threat["norm"], threat["eps"]))


def foreign(source: str, model: str, dataset: str | None, normalize: str | None, data_dir: str | None) -> Subject:
    """A plain state dict, about which the user has to say what the file does not."""
    if dataset is None or normalize is None:
        raise Refusal("--model needs --data and --normalize as well: a state dict says neither; nothing is guessed")
    images = data.load(dataset, "test", data_dir)
    shape = (images.images.shape[1], images.images.shape[2], images.images.shape[3])
    mean, std = normalisation(normalize, shape[0])
    loaded = checkpoint.load_foreign(source, model, len(images.classes), shape, (mean, std))
    about = {"source": str(source), "name": model, "mean": list(mean), "std": list(std), **digest(source)}
    return Subject(loaded, about, images, Ball("linf", PAPER_EPS))


def normalisation(text: str, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """'none', a data set's name, or 'mean,mean,mean:std,std,std' with pixels in [0, 1]."""
    if text == "none":
        return [0.0] * channels, [1.0] * channels
    try:
        given = NORMALISATIONS.get(text) or [[float(v) for v in part.split(",")] for part in text.split(":")]
        mean, std = given
    except ValueError:
        mean, std = [], []
    if (
        len(mean) != channels
        or len(std) != channels
        or not all(map(math.isfinite, mean))
        or not all(0 < value < math.inf for value in std)
    ):
        allowed = f"none, cifar10, or {channels} means:{channels} deviations such as 0.5,0.5,0.5:0.25,0.25,0.25"
        raise Refusal(f"--normalize {text} given; allowed: {allowed}, in units of [0, 1] pixels")
    return mean, std


def digest(source: str) -> dict[str, str]:
    return {"sha256": hashlib.sha256(checkpoint.weights_file(source).read_bytes()).hexdigest()}


def destination(
    source: str,
    out: Path | None,
    images: int,
    attacks: Sequence[str],
    curves: Sequence[str],
    ball: Ball,
    display: Display,
) -> Path | None:
    """Where the record goes: --out, else into the run, unless that holds numbers that this evaluation would lose."""
    if out is None and not Path(source).is_dir():
        return None
    target = out or Path(source) / runs.EVALUATION
    runs.check_writable(target)
    if out is None and target.exists() and not covered(runs.read_json(target), images, attacks, curves, ball):
        display.line(f"kept: {target}, which this evaluation does not cover; --out FILE.json saves it")
        return None
    return target


def covered(record: dict[str, Any], images: int, attacks: Sequence[str], curves: Sequence[str], ball: Ball) -> bool:
    """Whether `attacks` and `curves` on `images` images in `ball` measure again all that a record holds."""
    try:
        held = [(result["attack"], result["norm"], result["eps"]) for result in record["results"]]
        fewer = record["data"]["images"] <= images
    except (KeyError, TypeError):
        return True  # no record of ours: nothing is lost
    planned = {("clean", None, None) if attack == "clean" else (attack, ball.norm, ball.eps) for attack in attacks}
    return fewer and set(held) <= planned and set(record.get("curves", {})) <= set(curves)


def save_arrays(path: Path, arrays: Any) -> None:
    with path.open("wb") as handle:
        np.savez_compressed(handle, **arrays)
