"""Clean and robust accuracy: per image, per class, with intervals, every convention stated beside its number."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .attacks import PGD, Attack
from .data import check_pixels
from .errors import Refusal
from .intervals import wilson
from .threat import Ball

SCHEMA = 1
PAPER_EPS = 0.031
Model = Callable[[Tensor], Tensor]
Advance = Callable[[int], None]
Bar = Callable[[str, int], AbstractContextManager[Advance]]


@dataclass(frozen=True)
class Protocol:
    """A named attack: its label in tables for a ball, and how it is built for one."""

    label: Callable[[Ball], str]
    build: Callable[[Ball], Attack]


def quarter_label(ball: Ball) -> str:
    return "PGD-20 (2/255)" if (ball.norm, ball.eps) == ("linf", 8 / 255) else "PGD-20 (eps/4)"


PROTOCOLS: dict[str, Protocol] = {
    # TRADES: 20 steps of 0.003 at eps 0.031 from a uniform start; at another eps the step keeps its share of eps.
    "pgd20": Protocol(lambda ball: "PGD-20", lambda ball: PGD(ball, steps=20, step_size=0.003 * ball.eps / PAPER_EPS)),
    # AWP, AdvCL: 20 steps of 2/255 at 8/255, a quarter of eps.
    "pgd20-2-255": Protocol(quarter_label, lambda ball: PGD(ball, steps=20, step_size=ball.eps / 4)),
}


@contextmanager
def silent_bar(label: str, images: int) -> Iterator[Advance]:
    yield lambda done: None


@dataclass
class Measurement:
    """`record` as in evaluation.json, `outcomes` as in outcomes.npz: arrays [n] by name."""

    record: dict[str, Any]
    outcomes: dict[str, np.ndarray]


def evaluate(
    model: Model,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[str] = ("clean", "pgd20"),
    *,
    ball: Ball | None = None,
    batch_size: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of `model` on images x [n c h w] in [0, 1] with labels y [n], clean and under attacks.

    `model` maps pixels to logits [n k]; a module is put into evaluation mode meanwhile. `ball` is the threat model,
    L-inf 0.031 if not given. All is computed in float32; an image counts as held under an attack only if it is
    classified rightly both clean and attacked, so images that are wrong already are not attacked. Returns a record
    like evaluation.json. Raises Refusal for unknown attacks, pixels outside [0, 1], or labels without a logit.
    """
    return measure(model, x, y, attacks, ball=ball, batch_size=batch_size, seed=seed).record


def measure(
    model: Model,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[str] = ("clean", "pgd20"),
    *,
    ball: Ball | None = None,
    batch_size: int = 500,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    bar: Bar = silent_bar,
) -> Measurement:
    """`evaluate`, with the outcome of every image; `bar(label, images)` opens a progress bar."""
    wanted = known_attacks(attacks)
    check_pixels(x)
    check_shape(x, y)
    ball = ball or Ball("linf", PAPER_EPS)
    x = x.float()
    with evaluating(model, x.device), bar("clean", len(x)) as advance:
        started = time.perf_counter()
        predictions = predict(model, x, y, batch_size, advance)
        seconds = time.perf_counter() - started
    correct = predictions == y.cpu()
    results = [summary("clean", {}, correct, y, classes, seconds)] if "clean" in attacks else []
    outcomes = {"label": y.cpu().numpy(), "clean_prediction": predictions.numpy()}
    inside = True
    for name in wanted:
        attack, label = PROTOCOLS[name].build(ball), PROTOCOLS[name].label(ball)
        generator = torch.Generator(x.device).manual_seed(seed)
        with evaluating(model, x.device), bar(label, int(correct.sum())) as advance:
            started = time.perf_counter()
            held, contained = withstand(model, attack, x, y, correct, generator, batch_size, advance)
            seconds = time.perf_counter() - started
        inside &= contained
        results.append(summary(name, {"label": label, **attack.describe()}, held, y, classes, seconds))
        outcomes[f"held_{name}"] = held.numpy()
    record = {
        "schema": SCHEMA,
        "model": {"source": type(model).__name__},
        "data": {"name": "tensors", "split": "given", "images": len(x), "sha256": digest(x, y)},
        "seed": seed,
        "results": results,
        "checks": [recheck(inside)] if wanted else [],
    }
    return Measurement(record, outcomes)


@torch.no_grad()
def predict(model: Model, x: Tensor, y: Tensor, batch_size: int, advance: Advance) -> Tensor:
    """Predicted classes [n], on the CPU; labels y are only checked against the number of logits."""
    predictions = []
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        logits = model(images)
        check_labels(labels, logits)
        predictions.append(logits.argmax(1).cpu())
        advance(len(images))
    return torch.cat(predictions)


def withstand(
    model: Model,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    standing: Tensor,
    generator: torch.Generator,
    batch_size: int,
    advance: Advance,
    search: Model | None = None,
) -> tuple[Tensor, bool]:
    """Which of the images that are `standing` [n] `model` still classifies rightly under `attack`.

    The attack may look for its adversarials on `search`, a faster form of the same model; the verdict is `model`'s.
    Returns held [n], on the CPU, and whether every adversarial lies in the ball and in [0, 1].
    """
    held, contained = torch.zeros_like(standing), True
    for indices in standing.nonzero().flatten().split(batch_size) if standing.any() else ():
        images, labels = x[indices.to(x.device)], y[indices.to(y.device)]
        adversarial = attack(search or model, images, labels, generator=generator)
        contained &= bool(attack.ball.contains(adversarial, images).all())
        with torch.no_grad():
            held[indices] = (model(adversarial).argmax(1) == labels).cpu()
        advance(len(indices))
    return held, contained


def summary(
    attack: str,
    conventions: Mapping[str, Any],
    held: Tensor,
    y: Tensor,
    classes: Sequence[str] | None,
    seconds: float,
) -> dict[str, Any]:
    """One entry of `results`: the accuracy with every convention that it depends on."""
    stated = dict.fromkeys(("norm", "eps", "steps", "step_size", "restarts", "start", "loss"))
    count, successes = len(held), int(held.sum())
    return {
        "attack": attack,
        "label": attack,
        **stated,
        **conventions,
        "dtype": "float32",
        "images": count,
        "accuracy": successes / count,
        "interval": list(wilson(successes, count)),
        "seconds": round(seconds, 3),
        "per_class": per_class(held, y.cpu(), classes),
    }


def per_class(held: Tensor, y: Tensor, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    names = classes or [str(label) for label in range(int(y.max()) + 1)]
    rows = []
    for label, name in enumerate(names):
        of_class = held[y == label]
        if len(of_class):
            low_high = list(wilson(int(of_class.sum()), len(of_class)))
            rows.append(
                {
                    "class": name,
                    "images": len(of_class),
                    "accuracy": of_class.double().mean().item(),
                    "interval": low_high,
                }
            )
    return rows


def recheck(inside: bool) -> dict[str, str]:
    passed = "every adversarial image lies in the ball and in [0, 1]; its prediction was taken again in float32"
    warned = "some adversarial images left the ball or [0, 1]; the robust accuracies do not count"
    return {
        "name": "adversarials re-checked",
        "verdict": "pass" if inside else "warn",
        "detail": passed if inside else warned,
    }


def known_attacks(names: Sequence[str]) -> list[str]:
    """The attacks of a list of names, clean left out, each once."""
    for name in names:
        if name != "clean" and name not in PROTOCOLS:
            raise Refusal(f"attack {name!r} is unknown; allowed: clean, {', '.join(PROTOCOLS)}")
    return [name for name in dict.fromkeys(names) if name != "clean"]


def digest(x: Tensor, y: Tensor) -> str:
    """SHA-256 of the images and labels as float32 and int64."""
    found = hashlib.sha256(f"{list(x.shape)}\n".encode())
    for values in (x.cpu().numpy(), y.cpu().long().numpy()):
        found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()


def check_shape(x: Tensor, y: Tensor) -> None:
    if y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        raise Refusal(f"labels {list(y.shape)} {y.dtype} given for {len(x)} images; allowed: one integer for each")


def check_labels(labels: Tensor, logits: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(labels):
        raise Refusal(
            f"the model gave logits of shape {list(logits.shape)} for {len(labels)} images; allowed: [n, classes]"
        )
    wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(wrong):
        raise Refusal(
            f"label {int(wrong[0])} given; allowed: 0 to {logits.shape[1] - 1}, the model's {logits.shape[1]} classes"
        )


@contextmanager
def evaluating(model: Model, device: torch.device) -> Iterator[None]:
    """Evaluation mode for a module and all inside it, without autocast; every module's own mode is put back."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        # TF32, which cuDNN's convolutions use unasked, keeps 10 of float32's 23 bits.
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
