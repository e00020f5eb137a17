"""Clean and robust accuracy: per image, per class, with intervals, every convention stated beside its number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import environment
from ..attacks import Attack
from ..attacks.base import Model, check_ball, check_count
from ..checks import IMAGES, Finding, drawn, examine
from ..checks.finding import beyond, finding
from ..data import Given, Labelled, check_pixels
from ..errors import Refusal
from ..losses import check_tensor
from ..threat import Ball
from .course import Bar, Course, Endured, silent_bar
from .curves import known_curves, points
from .protocols import PAPER_EPS, Engine, Planned, comparable, known_attacks, plan, within
from .resuming import Ledger
from .searching import Precision, compiled, laid_out, searched
from .summaries import accuracy, summary
from .verdicts import batches, check_labels, evaluating

SCHEMA = 1


@dataclass
class Measurement:
    """`record` as in evaluation.json, `outcomes` as in outcomes.npz: arrays [n] by name."""

    record: dict[str, Any]
    outcomes: dict[str, np.ndarray]


def evaluate(
    model: Model,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[str | Attack] = ("clean", "pgd20"),
    *,
    ball: Ball | None = None,
    batch_size: int = 500,
    seed: int = 0,
    checks: bool = True,
) -> dict[str, Any]:
    """Accuracy of `model` on images x [n c h w] in [0, 1] with labels y [n], clean and under attacks.

    `model` maps pixels to logits [n k]; a module is put into evaluation mode meanwhile. `attacks` are names, as of
    `anchor evaluate --attacks`, or attacks of your own with a ball of their own. `ball` is the threat model of the
    names, L-inf 0.031 if not given. All is computed in float32; an image counts as held under an attack only if it is
    classified rightly both clean and attacked, so images that are wrong already are not attacked. Returns a record
    like evaluation.json, unless `checks` is off with what speaks for and against its numbers (`anchor_robust.checks`).
    Raises Refusal for unknown attacks, pixels outside [0, 1], labels without a logit, an eps of 0, or settings that
    are no whole numbers in their range.
    """
    check_tensors(x, y)
    check_settings(ball, batch_size, seed)
    return measure(model, Given(x, y), attacks, ball=ball, batch_size=batch_size, seed=seed, checks=checks).record


def measure(
    model: Model,
    images: Labelled,
    attacks: Sequence[str | Attack | Planned] = ("clean", "pgd20"),
    *,
    ball: Ball | None = None,
    batch_size: int = 500,
    seed: int = 0,
    engine: Engine = "anchor",
    search: Precision = "float32",
    curves: Sequence[str] = (),
    checks: bool = False,
    sibling: Model | None = None,
    classes: Sequence[str] | None = None,
    bar: Bar = silent_bar,
    ledger: Ledger | None = None,
) -> Measurement:
    """`evaluate`, with the outcome of every image; images are looked at a batch at a time.

    `engine` "reference" runs AutoAttack by its authors' code. `search` "bf16" looks for adversarials in bfloat16; the
    verdict is the model's in float32 all the same, and a check tells what a search in float32 finds beyond it.
    `curves` are `eps`, `steps`; `checks` are run at the end, with attacks from `sibling` if one is given.
    `bar(label, images)` opens a progress bar, and `ledger` keeps what is finished.
    """
    environment.keep_freed_memory()
    check_given(model, attacks, ball, curves)
    known_attacks(attacks, engine)
    known_curves(curves)
    ball, ledger, y = ball or Ball("linf", PAPER_EPS), ledger or Ledger(), images.labels
    first = laid_out(model, images.pixels(slice(batch_size)))
    device = first.device
    with evaluating(model, device):
        planned = plan(attacks, ball, count_classes(model, first, y), engine)
        sketched = {curve: points(curve, ball) for curve in curves}
        stages = [[each.name, each.conventions(), described(each)] for each in planned]
        drawn = [described(point) for curve in sketched.values() for point in curve]
        ledger.open(stages=stages, curves=drawn, batch_size=batch_size, seed=seed, search=search, data=images.sha256)
        fast = searched(model, search, first)
        course = Course(model, fast, compiled(fast, device), search, images, device, batch_size, seed, ledger, bar)
        predictions, seconds = course.predictions()
        correct = predictions == y.cpu()
        outcomes = {"label": y.cpu().numpy(), "clean_prediction": predictions.numpy()}
        results = [summary("clean", {}, correct, y, classes, seconds)] if "clean" in attacks else []
        found, inside = [], True
        for each in planned:
            endured = course.endure(each, correct)
            inside &= endured.inside
            if course.searched_in(each) == "bf16":
                contained, told = searched_again(course, each, endured.held)
                inside &= contained
                found.append(told)
            results.append(result(course, each, endured, classes))
            outcomes[f"held_{each.name}"] = endured.held.numpy()
            # What is wrong already is not attacked: its answer stays the clean one.
            outcomes[f"prediction_{each.name}"] = torch.where(correct, endured.answers, predictions).numpy()
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "model": {"source": type(model).__name__},
            "data": {"name": "tensors", "split": "given", "images": len(images), "sha256": images.sha256},
            "seed": seed,
            "batch_size": batch_size,
            "threat": {"norm": ball.norm, "eps": ball.eps},
            "results": results,
            "checks": [recheck(inside), *found] if planned else [],
        }
        together = [each.name for each in planned if within(each, ball)]
        if len(together) > 1:
            held_all = torch.from_numpy(np.all([outcomes[f"held_{name}"] for name in together], 0))
            record["worst_case"] = {"attacks": together, **accuracy(held_all)}
        if curves:
            record["curves"] = {
                name: drawn_curve(course, name, ball, curve, correct, classes) for name, curve in sketched.items()
            }
        measurement = Measurement(record, outcomes)
        if checks and planned:
            held = {each.name: outcomes[f"held_{each.name}"] for each in planned if comparable(each, ball)}
            record["checks"] += examined(course, ball, held, sibling)
    return measurement


def examined(course: Course, ball: Ball, held: Mapping[str, np.ndarray], sibling: Model | None) -> list[Finding]:
    """`checks.run` on images of the course."""
    generator = torch.Generator(course.device).manual_seed(0)
    chosen = drawn(len(course.images), IMAGES, generator)
    x, y = course.of(chosen)
    found = {name: torch.from_numpy(outcome)[chosen.cpu()].to(course.device) for name, outcome in held.items()}
    return examine(course.model, x, y, ball, found, sibling, generator, IMAGES, course.batch_size)


def drawn_curve(
    course: Course, name: str, ball: Ball, curve: Sequence[Planned], correct: Tensor, classes: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The points of one curve as results; that against eps begins at 0, where nothing is moved."""
    clean = {"label": "clean", "norm": ball.norm, "eps": 0.0}
    results = [summary("eps 0", clean, correct, course.y, classes, 0.0)] if name == "eps" else []
    return results + [result(course, point, course.endure(point, correct), classes) for point in curve]


def result(course: Course, planned: Planned, endured: Endured, classes: Sequence[str] | None) -> dict[str, Any]:
    stated = planned.conventions() | {"search": course.searched_in(planned)}
    stated |= {"stages": endured.stages} if len(endured.stages) > 1 else {}
    return summary(planned.name, stated, endured.held, course.y, classes, endured.seconds)


def searched_again(course: Course, planned: Planned, held: Tensor) -> tuple[bool, Finding]:
    """Attack the first batch of those that withstood a bf16 search again, in bf16 and in float32; was all in the ball?

    Both start from the same new points, so that another start breaks as many for one as for the other. The accuracy
    stays that of the attack as it is stated.
    """
    sample = torch.zeros_like(held)
    for indices in batches(held, course.batch_size)[:1]:
        sample[indices] = True
    exact = replace(course, search=course.model, compiled=course.model)
    in_bf16, in_float32 = (
        each.endure(
            replace(planned, name=f"{planned.name} {precision} again", label=f"{planned.label} {precision} again"),
            sample,
            drawn_as=f"{planned.name} again",
        )
        for each, precision in ((course, "bf16"), (exact, "float32"))
    )
    missed = int((in_bf16.held & ~in_float32.held).sum())
    found = int((in_float32.held & ~in_bf16.held).sum())
    seen = (
        f"of {int(sample.sum())} images that it left standing, attacked again from the same new start in both, "
        f"{missed} fall in float32 alone and {found} in bf16 alone (a warning takes more of the first than tosses of a "
        "coin give once in 1,000 times)"
    )
    told = finding(
        f"bf16 search of {planned.label}",
        beyond(missed, missed + found, 0.5),
        seen,
        "the search in bf16 misses adversarials; read the accuracy as an upper bound",
    )
    return in_bf16.inside and in_float32.inside, told


def recheck(inside: bool) -> dict[str, str]:
    passed = "every adversarial image lies in the ball and in [0, 1]; its prediction was taken again in float32"
    warned = "some adversarial images left the ball or [0, 1]; the robust accuracies do not count"
    return {
        "name": "adversarials re-checked",
        "verdict": "pass" if inside else "warn",
        "detail": passed if inside else warned,
    }


def described(planned: Planned) -> list[dict[str, Any]]:
    return [{"stage": stage.name, **attack.describe()} for stage in planned.stages for attack in stage.attacks]


@torch.no_grad()
def count_classes(model: Model, x: Tensor, y: Tensor) -> int:
    logits = model(x[:1])
    check_labels(y[:1], logits)
    return logits.shape[1]


def check_given(model: object, attacks: object, ball: object, curves: Sequence[str]) -> None:
    """Refuse what a notebook hands over by mistake."""
    if not callable(model):
        raise Refusal(
            f"model {model!r:.60} given; allowed: a module or a function of images; anchor_robust.load opens files"
        )
    if isinstance(model, type):
        raise Refusal(f"model {model.__name__} given, a class; allowed: a module; make one: {model.__name__}()")
    if isinstance(attacks, str) or not (attacks or curves):
        raise Refusal(f"attacks {attacks!r} given; allowed: one or more in a tuple, such as ('clean', 'pgd20')")
    if ball is not None:
        check_ball(ball)


def check_settings(ball: Ball | None, batch_size: Any, seed: Any) -> None:
    """Refuse what the command line would not take either."""
    check_count("batch_size", batch_size, 1)
    if not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32:
        raise Refusal(f"seed {seed!r} given; allowed: a whole number, 0 to {2**32 - 1}")
    if isinstance(ball, Ball) and ball.eps == 0:
        raise Refusal(f"ball {ball} given; allowed: eps above 0; at 0 nothing is attacked")


def check_tensors(x: Tensor, y: Tensor) -> None:
    check_tensor("images", x)
    check_tensor("labels", y)
    check_pixels(x)
    if y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        raise Refusal(f"labels {list(y.shape)} {y.dtype} given for {len(x)} images; allowed: one integer for each")
