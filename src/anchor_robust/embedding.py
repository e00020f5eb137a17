"""A run's embeddings in numbers: load, embed and attack the test images, write embedding.json.

Two spaces, both on the unit sphere: `features`, what the linear head sees, and `projection`, the projection head's
output, where there is one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint, data, environment, geometry, runs
from .attacks import Attack
from .data import ImageSet
from .display import Display
from .errors import Refusal
from .evaluation import PROTOCOLS, evaluating
from .evaluation.protocols import pgd20
from .intervals import wilson
from .models import Classifier
from .subject import Named, Subject, under_test

SCHEMA = 1
NEIGHBOURS, TEMPERATURE = 200, 0.07  # of the nearest-neighbour vote

Spaces = dict[str, Tensor]


def measure(
    source: str,
    *,
    limit: int | None = None,
    batch_size: int = 500,
    seed: int = 0,
    out: Path | None = None,
    model: str | None = None,
    data_dir: str | None = None,
    display: Display,
) -> dict[str, Any]:
    """Measure the embeddings of a run directory or a weights file; returns the record that is written.

    The first `limit` test images are measured (all if None), clean and under PGD-20 through the composed model, and
    read by classifiers that are fitted to about as many training images, in which classes keep their shares. The
    record goes to `out`, else into the run.
    """
    for option, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise Refusal(f"{option} {value} given; allowed: 1 or more")
    if not checkpoint.has_header(source):
        raise Refusal(f"{source} does not say its architecture; give a run or weights that anchor train has written")
    device = environment.accelerator()
    subject = under_test(Named(source, model, data_dir=data_dir), device)
    weights = subject.about["sha256"]
    target = destination(source, out, min(limit or len(subject.images), len(subject.images)), weights, display)
    training = data.load(subject.images.name, "train", data_dir)
    bank = data.sample(training, limit) if limit else training
    images = subject.images.first(limit or len(subject.images))
    attack = pgd20(subject.ball)
    spaces = compare(subject, bank.to(device), images.to(device), attack, batch_size, seed, display)
    record = {
        "schema": SCHEMA,
        "model": subject.about,
        "data": about(images),
        "fitted_to": about(bank),
        "attack": {"label": PROTOCOLS["pgd20"].label(subject.ball), "seed": seed, **attack.describe()},
        "nearest_neighbours": {"neighbours": min(NEIGHBOURS, len(bank)), "temperature": TEMPERATURE},
        "spaces": spaces,
        "warnings": warnings(spaces),
        "environment": environment.describe(device),
    }
    if target:
        runs.write_json(target, record)
        display.line(f"written: {target}")
    return record


def compare(
    subject: Subject, bank: ImageSet, images: ImageSet, attack: Attack, batch_size: int, seed: int, display: Display
) -> dict[str, Any]:
    """Every space's numbers by its name."""
    model = subject.model.to(bank.labels.device)
    classifier: Classifier = model.classifier  # type: ignore[assignment] # torch types every child as a Module
    generator = torch.Generator(images.labels.device).manual_seed(seed)
    fitted, clean, attacked = [], [], []
    with display.bar("embed", len(bank)) as advance:
        for indices in torch.arange(len(bank), device=bank.labels.device).split(batch_size):
            fitted.append(embed(classifier, bank.pixels(indices)))
            advance(len(indices))
    with display.bar("PGD-20", len(images)) as advance:
        for indices in torch.arange(len(images), device=images.labels.device).split(batch_size):
            x, y = images.pixels(indices), images.labels[indices]
            clean.append(embed(classifier, x))
            attacked.append(embed(classifier, attack(model, x, y, generator=generator)))
            advance(len(indices))
    of_bank, of_clean, of_attacked = joined(fitted), joined(clean), joined(attacked)
    return {name: numbers(of_bank[name], bank.labels, of_clean[name], of_attacked[name], images) for name in of_clean}


@torch.no_grad()
def embed(classifier: Classifier, x: Tensor) -> Spaces:
    """`Classifier.spaces` of pixels x [n c h w], in evaluation mode and float32."""
    with evaluating(classifier, x.device):
        return classifier.spaces(x)


def joined(parts: Sequence[Spaces]) -> Spaces:
    return {name: torch.cat([spaces[name] for spaces in parts]) for name in parts[0]}


def numbers(bank: Tensor, labels: Tensor, z: Tensor, attacked: Tensor, images: ImageSet) -> dict[str, Any]:
    """One space's entry, of training embeddings `bank` [m d] with `labels` [m] and test embeddings z, `attacked` [n d].

    An attack moves an image by |z - z_adv|, in [0, 2].
    """
    y, moved = images.labels, (z.double() - attacked.double()).norm(dim=1)
    neighbours = geometry.nearest_neighbours(z, bank, labels, NEIGHBOURS, TEMPERATURE)
    return {
        "dimensions": z.shape[1],
        "linear_probe": accuracy(geometry.linear_probe(z, bank, labels) == y),
        "nearest_neighbours": accuracy(neighbours == y),
        "alignment": geometry.alignment(z, y),
        "uniformity": geometry.uniformity(z),
        "mean_cosine": geometry.mean_cosine(z),
        "min_cosine": geometry.min_cosine(z),
        "effective_rank": geometry.effective_rank(z),
        "moved_by_attack": moved.mean().item(),
        "per_class": [
            {"class": name, "images": int(members.sum()), "moved_by_attack": moved[members].mean().item()}
            for name, members in ((name, y == label) for label, name in enumerate(images.classes))
            if members.any()
        ],
    }


def accuracy(right: Tensor) -> dict[str, Any]:
    return {"accuracy": right.double().mean().item(), "interval": list(wilson(int(right.sum()), len(right)))}


def warnings(spaces: dict[str, Any]) -> list[str]:
    """A sentence for every space in which all images lie at one point."""
    return [
        f"the {name} space has collapsed: two images have a cosine of {space['mean_cosine']:.5g} on average and "
        f"{space['min_cosine']:.5g} at least, so nearly all lie at one point"
        for name, space in spaces.items()
        if space["mean_cosine"] > geometry.NEARLY_ONE_POINT
    ]


def about(images: ImageSet) -> dict[str, Any]:
    return {"name": images.name, "split": images.split, "images": len(images), "sha256": images.sha256}


def destination(source: str, out: Path | None, images: int, weights: str, display: Display) -> Path | None:
    """Where the record goes: `out`, else into the run, unless that holds one of the same weights of more images."""
    if out is None and not Path(source).is_dir():
        return None
    target = out or Path(source) / runs.EMBEDDING
    runs.check_json(target, "spaces", "a measurement of embeddings")
    if out is None and target.exists() and images_in(runs.read_json(target), weights) > images:
        display.line(f"kept: {target}, which holds more images; --json FILE saves this one")
        return None
    return target


def images_in(record: Any, weights: str) -> int:
    try:
        return int(record["data"]["images"]) if record["model"]["sha256"] == weights else 0
    except (KeyError, TypeError):
        return 0  # no record of ours: nothing is lost
