"""From a run or a weights file to its numbers: load, attack the test images, write the record and what goes with it.

outcomes.npz is written first and evaluation.json holds its digest, so that a pair of two evaluations is detected.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import environment, runs
from .display import Display
from .errors import Refusal
from .evaluation import PROTOCOLS, Engine, Ledger, Precision, known_attacks, known_curves, measure
from .report.card import card
from .subject import Named, under_test
from .threat import Ball, Norm


def audit(
    source: str | None,
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
    model_args: str | None = None,
    dataset: str | None = None,
    normalize: str | None = None,
    data_dir: str | None = None,
    display: Display,
) -> dict[str, Any]:
    """Evaluate the model that `source`, `model` and their like name (see `subject`); returns the record written."""
    if not attacks:
        raise Refusal(f"no attack given; allowed: clean, {', '.join(PROTOCOLS)}, comma-separated")
    known_attacks(attacks, engine)
    known_curves(curves)
    for option, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise Refusal(f"{option} {value} given; allowed: 1 or more")
    if out is not None and out.suffix != ".json":
        raise Refusal(f"--out {out} given; name a file that ends in .json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject = under_test(Named(source, model, model_args, dataset, normalize, data_dir), device)
    if subject.note:
        display.line(subject.note)
    if norm not in (None, subject.ball.norm) and eps is None:
        raise Refusal(f"--norm {norm} needs --eps: {subject.ball.eps:g} is a radius in {subject.ball.norm}")
    if eps == 0:
        raise Refusal("--eps 0 given; allowed: above 0; at 0 the accuracy is the clean one")
    ball = Ball(norm or subject.ball.norm, subject.ball.eps if eps is None else eps)
    images = subject.images.first(min(limit or len(subject.images), len(subject.images)))
    target = destination(subject.run, out, len(images), attacks, curves, ball, display)
    on_device = images.to(device)
    around = environment.describe(device)
    determining = {key: value for key, value in around.items() if key not in ("command", "platform")}
    weights = {key: value for key, value in subject.about.items() if key != "source"}
    ledger = Ledger(target, {"model": weights, "environment": determining}, display.line)
    try:
        measurement = measure(
            subject.model,
            on_device.pixels(slice(None)),
            on_device.labels,
            attacks,
            ball=ball,
            batch_size=batch_size,
            seed=seed,
            engine=engine,
            search=search,
            curves=curves,
            checks=True,
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


def destination(
    run: Path | None,
    out: Path | None,
    images: int,
    attacks: Sequence[str],
    curves: Sequence[str],
    ball: Ball,
    display: Display,
) -> Path | None:
    """Where the record goes: --out, else into the run, unless that holds numbers that this evaluation would lose."""
    target = out or (run and run / runs.EVALUATION)
    if target is None:
        return None
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
