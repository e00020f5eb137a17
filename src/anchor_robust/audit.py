"""From a run or a weights file to its numbers: load, attack the test images, have the record written."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import Any

from . import data, environment, processes, runs
from .attacks import EmbeddingAttack, Transfer
from .display import Display
from .errors import Refusal
from .evaluation import PROTOCOLS, Engine, Ledger, Precision, known_attacks, known_curves, measure
from .evaluation.corrupted import corrupted
from .evaluation.protocols import Planned, alone, pgd20
from .exhibit import exhibit
from .models import LogitsOnly
from .record import Asked, destination, in_run, save
from .subject import Named, Subject, ball_asked, says_all, under_test
from .threat import Ball, Norm

REFERENCES = 1000  # training images that attacks on the embedding measure themselves by


def audit(
    named: Named,
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
    display: Display,
) -> dict[str, Any]:
    """Evaluate the model that the user's words name; returns the record, which is written as well.

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
    device = environment.accelerator()
    with processes.refusing_together():
        subject = under_test(named, device)
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
    known = Named(transfer_from, data=named.data or images.name, data_dir=named.data_dir)
    if transfer_from and not says_all(known):
        raise Refusal(
            f"--transfer-from {transfer_from} given; allowed: a run or weights of anchor train, or a Hugging Face "
            "folder; from Python any model: attacks=(Transfer(model, attack),)"
        )
    sibling = under_test(known, device) if transfer_from else None
    planned = [in_context(attack, subject, sibling, ball, named.data_dir) for attack in attacks]
    asked = Asked(
        *(images, attacks, curves, ball, engine, search, corruptions),
        origin=origin(sibling) if sibling else "",
        weights=subject.about.get("sha256", ""),
    )
    target = destination(subject.run, out, asked, (named.source, named.data), display.line)
    unseen = [each.about["source"] for each in (subject, sibling) if each and "sha256" not in each.about]
    if target is None:
        more = ", and a stopped evaluation goes on from there" if not unseen else ""
        display.warning(f"nothing is kept; --out FILE.json keeps the record{more}")
    on_device = images.to(device)
    around = environment.describe(device)
    determining = {key: value for key, value in around.items() if key not in ("command", "platform")}
    others = {"sibling": identity(sibling)} if sibling else {}
    settled = {"model": identity(subject), **others, "environment": determining}
    # What was finished under weights that nobody sees is nothing to go on from.
    ledger = Ledger(None if unseen else target, settled, display.line)
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
        raise KeyboardInterrupt(f"stopped; {after_a_stop(ledger, target, unseen)}") from None
    record = {
        **measurement.record,
        "model": subject.about,
        "data": {"name": images.name, "split": images.split, "images": len(images), "sha256": images.sha256},
        **({"transfer_from": sibling.about} if sibling else {}),
        "classes": list(images.classes),
        "environment": around,
    }
    if target and processes.first():
        with runs.turn(subject.run / runs.WEIGHTS) if subject.run else nullcontext():
            if subject.run and target == subject.run / runs.EVALUATION:
                target, why = in_run(target, asked)
                if target.name != runs.EVALUATION:
                    display.line(why)
            save(target, record, measurement.outcomes, shown)
        ledger.close()
        shows = subject.run if subject.run and target == subject.run / runs.EVALUATION else target
        display.line(f"written: {target}; next: anchor report {quote(str(shows))}")
    return record


def after_a_stop(ledger: Ledger, target: Path | None, unseen: Sequence[str]) -> str:
    """What the same command would do now."""
    if ledger.path:
        return f"the same command goes on from {ledger.path}"
    if unseen:
        told = f"nobody can see whether the weights of {' and '.join(unseen)} are the same then"
        return f"the same command begins anew, as {told}"
    return "run the same command again" if target else "--out FILE.json would have kept it"


def identity(subject: Subject) -> dict[str, Any]:
    """What decides a model's answers, as far as it can be seen."""
    answers = {"answers": subject.answers} if subject.answers else {}
    return {key: value for key, value in subject.about.items() if key != "source"} | answers


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
