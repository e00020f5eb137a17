"""How the runs' embeddings lie, what attacks move, and what fresh heads on them hold: tables of results/embedding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchor_robust import runs
from anchor_robust.report.conventions import conventions, measured
from anchor_robust.report.embedding import MEASURES
from grid import grid

FOLDER = Path(__file__).resolve().parent / "embedding"

Record = dict[str, Any]


def tables(methods: Mapping[str, str]) -> list[str]:
    """Of what `anchor embedding` left of these methods, which are told by their names in tables."""
    paths = {told: FOLDER / f"cifar10-resnet8-{method}.json" for method, told in methods.items()}
    found = {told: runs.read_json(path) for told, path in paths.items() if path.exists()}
    return [geometry(found), by_class(found)]


def geometry(found: dict[str, Record]) -> str:
    """A row a method and space: what can be read from it, how it lies, how far an attack moves it."""
    rows = [
        [
            told,
            name,
            str(space["dimensions"]),
            *(measured(space[reader]) for reader in ("linear_probe", "nearest_neighbours")),
            *(f"{space[measure]:.3g}" for measure in MEASURES),
            f"{space['moved_by_attack']:.3f}",
        ]
        for told, record in found.items()
        for name, space in record["spaces"].items()
    ]
    record = next(iter(found.values()))
    voters, fitted, images = record["nearest_neighbours"], record["fitted_to"]["images"], record["data"]["images"]
    attack = record["attack"]
    note = (
        f"Accuracy in % on {images:,} test images of a linear probe fitted to {fitted:,} training images, and of a "
        f"vote of the {voters['neighbours']} nearest of them at temperature {voters['temperature']:g}. "
        f"{'; '.join(MEASURES.values())}; distance moved by {attack['label']}: "
        f"{conventions(attack | {'dtype': 'float32'})}. Unit embeddings, seed 0."
    )
    headings = ["training", "space", "dimensions", "linear probe", "nearest", *map(short, MEASURES), "moved"]
    return grid(headings, rows, note, words=2)


def short(measure: str) -> str:
    return measure.replace("_", " ").replace("mean cosine", "cosine").replace("min cosine", "least cosine")


def by_class(found: dict[str, Record]) -> str:
    """How far the attack moves the features of each class."""
    classes = [each["class"] for each in next(iter(found.values()))["spaces"]["features"]["per_class"]]
    moved = {
        told: {each["class"]: each["moved_by_attack"] for each in record["spaces"]["features"]["per_class"]}
        for told, record in found.items()
    }
    rows = [[name, *(f"{each[name]:.3f}" for each in moved.values())] for name in classes]
    return grid(["features moved by the attack", *moved], rows)
