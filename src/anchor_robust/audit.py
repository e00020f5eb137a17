"""From a run or a weights file to its numbers: load, attack the test images, write the record and what goes with it.

outcomes.npz is written first and evaluation.json holds its digest, so that a pair of two evaluations is detected.
"""

import hashlib
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import data, environment, processes, runs
from .attacks import EmbeddingAttack, Transfer
from .data import ImageSet
from .display import Display
from .errors import Refusal
from .evaluation import PROTOCOLS, Engine, Ledger, Precision, known_attacks, known_curves, measure
from .evaluation.corrupted import corrupted
from .evaluation.protocols import REFERENCE, Planned, alone, pgd20
from .evaluation.reference import NAME
from .exhibit import Exhibit, exhibit
from .models import LogitsOnly
from .report.card import TITLE, card
from .subject import Named, Subject, ball_asked, says_all, under_test
from .threat import Ball, Norm

Say = Callable[[str], None]
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
    with processes.refusing_together():
        subject = under_test(Named(source, model, model_args, dataset, normalize, data_dir), device)
    if subject.note:
        display.line(subject.note)
    ball = ball_asked(subject.ball, norm, eps)
    if transfer_from is None and "transfer" in attacks:
        raise Refusal("attack transfer needs --transfer-from RUN, the run whose adversarials are tried on the model")
    images = subject.images.first(min(limit or len(subject.images), len(subject.images)))
    absent = len(subject.images.labels.unique()) - len(images.labels.unique())
    if absent and len(images) >= 10 * len(images.classes):  # as many in any order would hardly leave one out
        display.warning(
            f"the first {len(images)} images lack {absent} of the classes; shuffle the arrays or raise --limit"
        )
    known = Named(transfer_from, data=dataset or images.name, data_dir=data_dir)
    if transfer_from and not says_all(known):
        raise Refusal(
            f"--transfer-from {transfer_from} given; allowed: a run or weights of anchor train, or a Hugging Face "
            "folder; from Python any model: attacks=(Transfer(model, attack),)"
        )
    sibling = under_test(known, device) if transfer_from else None
    planned = [in_context(attack, subject, sibling, ball, data_dir) for attack in attacks]
    asked = Asked(images, attacks, curves, ball, engine, search, corruptions, origin(sibling) if sibling else "")
    target = destination(subject.run, out, asked, (source, dataset), display.line)
    if target is None:
        display.line("nothing is kept; --out FILE.json keeps the record, and a stopped evaluation goes on from there")
    on_device = images.to(device)
    around = environment.describe(device)
    determining = {key: value for key, value in around.items() if key not in ("command", "platform")}
    others = {"sibling": identity(sibling)} if sibling else {}
    ledger = Ledger(target, {"model": identity(subject), **others, "environment": determining}, display.line)
    try:
        measurement = measure(
            subject.model,
            on_device,
            planned,
            ball=ball,
            batch_size=batch_size,
            seed=seed,
            engine=engine,
            search=search,
            curves=curves,
            checks=True,
            sibling=sibling.model if sibling else None,
            classes=images.classes,
            bar=display.bar,
            ledger=ledger,
        )
        shown = None
        if target and processes.first() and set(attacks) != {"clean"}:
            shown = exhibit(subject.model, on_device, ball, batch_size=batch_size, seed=seed, bar=display.bar)
        if corruptions:
            measurement.record["corruptions"] = corrupted(
                subject.model, on_device, images.classes, batch_size, seed, display.bar
            )
    except KeyboardInterrupt:
        kept = f"the same command goes on from {ledger.path}" if ledger.path else "--out FILE.json would have kept it"
        raise KeyboardInterrupt(f"stopped; {kept}") from None
    record = {
        **measurement.record,
        "model": subject.about,
        "data": {"name": images.name, "split": images.split, "images": len(images), "sha256": images.sha256},
        **({"transfer_from": sibling.about} if sibling else {}),
        "classes": list(images.classes),
        "environment": around,
    }
    if target and processes.first():
        save(target, record, measurement.outcomes, shown)
        ledger.close()
        shows = subject.run if subject.run and target == subject.run / runs.EVALUATION else target
        display.line(f"written: {target}; next: anchor report {shows}")
    return record


def identity(subject: Subject) -> dict[str, Any]:
    """What decides a model's answers. Where its weights cannot be seen, it is never the same as another time."""
    seen = {} if "sha256" in subject.about else {"unseen": uuid.uuid4().hex}
    return {key: value for key, value in subject.about.items() if key != "source"} | seen


def in_context(
    attack: str, subject: Subject, sibling: Subject | None, ball: Ball, data_dir: str | None
) -> str | Planned:
    """The attacks that need more than a model and a ball, with what they need; other names as they are."""
    if attack == "transfer" and sibling:
        return Planned(attack, f"PGD-20 (from {origin(sibling)})", alone(Transfer(sibling.model, pgd20(ball))))
    if not attack.startswith("embedding-"):
        return attack
    if not isinstance(subject.model, LogitsOnly):
        raise Refusal(f"attack {attack} given; it needs the embedding of a model that anchor train has written")
    references = data.sample(data.load(subject.trained_on, "train", data_dir), REFERENCES).to(subject.model.device)
    search = EmbeddingAttack(
        pgd20(ball),
        subject.model.embed,
        references.pixels(slice(None)),
        references.labels,
        loss="centroid" if attack == "embedding-centroid" else "contrast",
    )
    label = "PGD-20 (from centroid)" if attack == "embedding-centroid" else "PGD-20 (contrast)"
    return Planned(attack, label, alone(search))


def origin(sibling: Subject) -> str:
    """Which model transferred adversarials come from: the name of its file, and the beginning of its digest."""
    return " ".join([Path(sibling.about["source"]).name, sibling.about.get("sha256", "")[:8]]).strip()


def save(target: Path, record: dict[str, Any], outcomes: Arrays, shown: Exhibit | None) -> None:
    """Write outcomes and pictures, then the record with their digests, then its card."""
    beside, pictures, told = beside_of(target)
    record["outcomes"] = kept(beside, outcomes)
    if shown:
        record["pictures"] = kept(pictures, shown.arrays) | shown.facts
    runs.write_json(target, record)
    runs.write_text(told, card(record))


@dataclass(frozen=True)
class Asked:
    """What an evaluation is to measure."""

    images: ImageSet
    attacks: Sequence[str]
    curves: Sequence[str]
    ball: Ball
    engine: Engine
    search: Precision
    corruptions: bool
    origin: str = ""

    def name(self) -> str:
        """A file name that the same command has again, so that it goes on there after a stop."""
        special = {
            "bf16": self.search == "bf16",
            "reference": self.engine == "reference",
            "corrupted": self.corruptions,
        }
        from_where = {"transfer": f"transfer-{self.origin.replace(' ', '-')}"}
        what = [
            *(from_where.get(attack, attack) for attack in self.attacks),
            *(f"curve-{curve}" for curve in self.curves),
            *(key for key in special if special[key]),
        ]
        which = f"{len(self.images)}-{self.images.sha256[:8]}"
        where = [Path(self.images.name).name, self.ball.norm, f"{self.ball.eps:g}", which]
        return f"evaluation-{'-'.join([*what, *where])}.json"

    def covers(self, record: dict[str, Any]) -> bool:
        """Whether this measures again, at least as well, all that a record holds."""
        try:
            about, results = record["data"], record["results"]
            held = [(result["attack"], result["norm"], result["eps"], result.get("engine")) for result in results]
            elsewhere = any(result["attack"] == "transfer" and self.origin not in result["label"] for result in results)
            same = (about["name"], about["split"]) == (self.images.name, self.images.split)
            fewer = about["images"] <= len(self.images)
            these = same and fewer and self.images.first(about["images"]).sha256 == about["sha256"]
        except (KeyError, TypeError):
            return True  # no record of ours: nothing is lost
        exact = self.search == "float32" or all(result.get("search") == "bf16" for result in results if result["norm"])
        measured = {self.result(attack) for attack in self.attacks}
        curves, corruptions = set(record.get("curves", {})), "corruptions" in record
        return (
            these
            and exact
            and not elsewhere
            and set(held) <= measured
            and curves <= set(self.curves)
            and corruptions <= self.corruptions
        )

    def result(self, attack: str) -> tuple[str, str | None, float | None, str | None]:
        """What tells a result from others: the attack, its ball and whose code it is."""
        if attack == "clean":
            return attack, None, None, None
        theirs = self.engine == "reference" and attack in REFERENCE
        return attack, self.ball.norm, self.ball.eps, NAME if theirs else "anchor"


def destination(run: Path | None, out: Path | None, asked: Asked, own: Sequence[str | None], say: Say) -> Path | None:
    """Where the record goes: --out, else into the run, beside its record where that holds numbers of its own.

    Raises Refusal where what lies beside the record would be written over a file that is not an evaluation's; `own` are
    the files that this one reads.
    """
    target = out or (run and run / runs.EVALUATION)
    if target is None:
        return None
    runs.check_writable(target)
    if out is None and target.exists() and not asked.covers(runs.read_json(target)):
        beside = target.with_name(asked.name())
        say(f"kept: {target}, which holds other numbers; this evaluation goes to {beside.name}")
        return beside
    if out is not None and target.exists() and not is_record(target):
        raise Refusal(f"--out {target} given; it holds something else than an evaluation; give another name")
    reserved = (runs.OUTCOMES, runs.PICTURES, runs.CARD)
    outcomes, pictures, told = sides = beside_of(target)
    # A card without its record may be anybody's, but for one in a run directory that begins as ours do.
    anybodys = (
        told.exists() and not target.exists() and (out is not None or not told.read_bytes().startswith(TITLE.encode()))
    )
    read = {Path(word).resolve() for word in own if word}
    for side in sides:
        taken = side.resolve() in read or (target.name != runs.EVALUATION and side.name in reserved)
        not_ours = (side == outcomes and foreign(side, "clean_prediction")) or (
            side == pictures and foreign(side, "gallery_index")
        )
        if taken or not_ours or (side == told and anybodys):
            raise Refusal(f"--out {target} given, and {side} would be written over; give another name")
    return target


def is_record(path: Path) -> bool:
    try:
        found = runs.read_json(path)
    except Refusal:
        return False
    return isinstance(found, dict) and {"model", "data", "results"} <= found.keys()


def beside_of(target: Path) -> tuple[Path, Path, Path]:
    """Outcomes, pictures and card of the record `target`."""
    if target.name == runs.EVALUATION:
        return target.with_name(runs.OUTCOMES), target.with_name(runs.PICTURES), target.with_name(runs.CARD)
    return target.with_suffix(".npz"), target.with_name(f"{target.stem}-{runs.PICTURES}"), target.with_suffix(".md")


def foreign(path: Path, ours: str) -> bool:
    """Whether there is such a file, and it has no array `ours`, as one of an evaluation has."""
    if not path.exists():
        return False
    try:
        with np.load(path) as held:
            return ours not in held.files
    except (OSError, ValueError, zipfile.BadZipFile):
        return True


def kept(path: Path, arrays: Arrays) -> dict[str, str]:
    """Write `arrays`; the name and the digest by which a record finds them again."""
    runs.write(path, lambda partial: save_arrays(partial, arrays))
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def save_arrays(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as handle:
        np.savez_compressed(handle, **arrays)  # type: ignore[arg-type] # its stubs take the keywords for its own
