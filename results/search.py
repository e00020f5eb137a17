"""Tries on validation splits alone: the search for every method's settings, and trainings on few images."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from anchor_robust import runs
from anchor_robust.intervals import wilson
from anchor_robust.report.conventions import bounds
from anchor_robust.report.dotted import flat, shortened, spelled
from anchor_robust.report.ranking import numbers
from anchor_robust.report.sheet import spread
from grid import grid

FOLDER = Path(__file__).resolve().parent / "search"
FEW = FOLDER.parent / "few-images"
WHICH = ("robust", "clean")
IMAGES = 5000
REST = 45000  # held out where 5,000 are trained on
# What all tries of a round share is said once: settings, and what a reader has to know of it.
TWO_STEPS = {"attack.steps": 2, "attack.step_size": 0.0233, "validation.images": IMAGES}
BATCHES = {"optimise.batch_size": 128, "optimise.lr": 0.8, "optimise.ema": 0.9975}
FIVE_STEPS = {"optimise.epochs": 4, "validation.images": IMAGES}

Try = tuple[dict[str, Any], dict[str, Any]]  # a sweep's record, and one of its combinations


def tried(steps: int) -> list[Try]:
    """The tries with so many attack steps, each method's best first."""
    return [each for each in all_in(FOLDER) if settings(each).get("attack.steps", 5) == steps]


def all_in(folder: Path) -> list[Try]:
    """The tries of every sweep in a folder, each method's best first."""
    found = [each for path in sorted(folder.glob("*/sweep.json")) for each in combinations(path.parent)]
    return sorted(found, key=lambda each: (each[0]["recipe"], -each[1]["mean"]))


def combinations(folder: Path) -> list[Try]:
    record = runs.read_json(folder / "sweep.json")
    return [(record, each) for each in record["combinations"]]


def table() -> str:
    """Both rounds."""
    return "\n\n".join(
        (
            "**Two attack steps of 0.0233.** What is not named is as in `five-steps/`.",
            *told(tried(2), TWO_STEPS, "after 7 epochs, 28 passes (PGD-AT, whose step is cheaper, after 9 and 27)"),
            "**Five attack steps of 0.01.** What is not named is as before this search, lr at 0.2.",
            *told(tried(5), FIVE_STEPS, "after 4 epochs, 28 passes (PGD-AT 24)"),
        )
    )


def few() -> str:
    """Trainings on 5,000 images, measured on all others."""
    shared = TWO_STEPS | {"validation.images": REST, "optimise.epochs": 70} | BATCHES
    rows = []
    for record, each in all_in(FEW):
        seeds, robust, interval, _, _ = numbers(each, WHICH)
        clean = each["validation_clean"]
        told = f"{spread(clean, decimals=1)} {bounds(wilson(fmean(clean) * REST, REST))}"
        rows.append([record["recipe"], words((record, each), shared), f"{robust} {interval}", told, seeds])
    note = (
        f"Accuracy in % on {REST:,} held-out training images, under PGD-10 and clean, after 70 epochs of the other "
        "5,000 (PGD-AT, whose step is cheaper, after 93): the mean over the seeds ± their deviation where there are "
        "several, with its 95 % Wilson interval."
    )
    return grid(["recipe", "settings", "robust", "clean", "seeds"], rows, note, words=2)


def settings(of: Try) -> dict[str, Any]:
    record, each = of
    return {**flat(record["settings"]), **each["settings"]}


def words(of: Try, shared: dict[str, Any]) -> str:
    """What a try has that not all have."""
    named = {key: value for key, value in settings(of).items() if shared.get(key) != value}
    named.pop("validation.every")  # the last epoch
    return spelled(shortened(dict(sorted(named.items()))))


def told(tries: Sequence[Try], shared: dict[str, Any], length: str) -> list[str]:
    rows = []
    for record, each in tries:
        _, robust, interval, clean, _ = numbers(each, WHICH)
        rows.append([record["recipe"], words((record, each), shared), f"{robust} {interval}", clean])
    counted = Counter(record["recipe"].removeprefix("cifar10-resnet8-") for record, _ in tries)
    return [
        grid(["recipe", "settings", "robust", "clean"], rows, words=2),
        f"Accuracy in % on {IMAGES:,} held-out training images, under PGD-10 and clean, {length}, seed 0. Tries: "
        f"{', '.join(f'{method} {number}' for method, number in counted.items())}.",
    ]
