"""From a run or a weights file to its numbers: load, attack the test images, write the record and what goes with it.

outcomes.npz is written first and evaluation.json holds its digest, so that a pair of two evaluations is detected.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import data, environment, processes, runs
from .attacks import EmbeddingAttack, Transfer
from .display import Display
from .errors import Refusal
from .evaluation import PROTOCOLS, Engine, Ledger, Model, Precision, known_attacks, known_curves, measure
from .evaluation.corrupted import corrupted
from .evaluation.protocols import Planned, alone, pgd20
from .exhibit import Exhibit, exhibit
from .models import LogitsOnly
from .report.card import card
from .subject import Named, Subject, ball_asked, under_test
from .threat import Ball, Norm

Arrays = Mapping[str, np.ndarray]
REFERENCES = 1000  # training images that attacks on the embedding measure themselves by


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
    corruptions: bool = False,
    transfer_from: str | None = None,
    out: Path | None = None,
    model: str | None = None,
    model_args: str | None = None,
    dataset: str | None = None,
    normalize: str | None = None,
    data_dir: str | None = None,
    display: Display,
) -> dict[str, Any]:
    """Evaluate the model that `source`, `model` and their like name (see `subject`); returns the record written.

    `transfer_from` names a second run of the same classes, whose adversarials are tried on the model.
    """
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
    ball = ball_asked(subject.ball, norm, eps)
    if transfer_from is None and "transfer" in attacks:
        raise Refusal("attack transfer needs --transfer-from RUN, the run whose adversarials are tried on the model")
    images = subject.images.first(min(limit or len(subject.images), len(subject.images)))
    sibling = transfer_from and under_test(Named(transfer_from, data=images.name, data_dir=data_dir), device).model
    planned = [in_context(attack, subject, sibling, ball, data_dir) for attack in attacks]
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
            planned,
            ball=ball,
            batch_size=batch_size,
            seed=seed,
            engine=engine,
            search=search,
            curves=curves,
            checks=True,
            sibling=sibling or None,
            classes=images.classes,
            bar=display.bar,
            ledger=ledger,
        )
        shown = None
        if target and processes.first() and set(attacks) != {"clean"}:
            shown = exhibit(subject.model, on_device, ball, batch_size=batch_size, seed=seed, bar=display.bar)
    except KeyboardInterrupt:
        kept = f"the same command goes on from {ledger.path}" if ledger.path else "--out FILE.json would have kept it"
        raise KeyboardInterrupt(f"stopped; {kept}") from None
    if corruptions:
        pixels = on_device.pixels(slice(None))
        measurement.record["corruptions"] = corrupted(
            subject.model, pixels, on_device.labels, images.classes, batch_size, seed, display.bar
        )
    record = {
        **measurement.record,
        "model": subject.about,
        "data": {"name": images.name, "split": images.split, "images": len(images), "sha256": images.sha256},
        "classes": list(images.classes),
        "environment": around,
    }
    if target and processes.first():
        save(target, record, measurement.outcomes, shown)
        ledger.close()
        shows = subject.run if subject.run and target == subject.run / runs.EVALUATION else target
        display.line(f"written: {target}; next: anchor report {shows}")
    return record


def in_context(
    attack: str, subject: Subject, sibling: Model | str | None, ball: Ball, data_dir: str | None
) -> str | Planned:
    """The attacks that need more than a model and a ball, with what they need; other names as they are."""
    if attack == "transfer" and callable(sibling):
        return Planned(attack, "PGD-20 (transferred)", alone(Transfer(sibling, pgd20(ball))))
    if not attack.startswith("embedding-"):
        return attack
    if not isinstance(subject.model, LogitsOnly):
        raise Refusal(f"attack {attack} given; it needs the embedding of a model that anchor train has written")
    references = data.load(subject.images.name, "train", data_dir).first(REFERENCES).to(subject.model.device)
    search = EmbeddingAttack(
        pgd20(ball),
        subject.model.embed,
        references.pixels(slice(None)),
        references.labels,
        loss="centroid" if attack == "embedding-centroid" else "contrast",
    )
    label = "PGD-20 (from centroid)" if attack == "embedding-centroid" else "PGD-20 (contrast)"
    return Planned(attack, label, alone(search))


def save(target: Path, record: dict[str, Any], outcomes: Arrays, shown: Exhibit | None) -> None:
    """Write outcomes and pictures, then the record with their digests, then its card."""
    own_name = target.name == runs.EVALUATION
    record["outcomes"] = kept(target.with_name(runs.OUTCOMES if own_name else f"{target.stem}.npz"), outcomes)
    if shown:
        pictures = target.with_name(runs.PICTURES if own_name else f"{target.stem}-{runs.PICTURES}")
        record["pictures"] = kept(pictures, shown.arrays) | shown.facts
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
    """Where the record goes: --out, else into the run, beside its record where that holds numbers of its own."""
    target = out or (run and run / runs.EVALUATION)
    if target is None:
        return None
    runs.check_writable(target)
    if out is None and target.exists() and not covered(runs.read_json(target), images, attacks, curves, ball):
        # A name that the same command has again, so that it goes on there after a stop.
        what = [*attacks, *(f"curve-{curve}" for curve in curves), ball.norm, f"{ball.eps:g}", str(images)]
        beside = target.with_name(f"{target.stem}-{'-'.join(what)}.json")
        display.line(f"kept: {target}, which holds other numbers; this evaluation goes to {beside.name}")
        return beside
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


def kept(path: Path, arrays: Arrays) -> dict[str, str]:
    """Write `arrays`; the name and the digest by which a record finds them again."""
    runs.write(path, lambda partial: save_arrays(partial, arrays))
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def save_arrays(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as handle:
        np.savez_compressed(handle, **arrays)  # type: ignore[arg-type] # its stubs take the keywords for its own
