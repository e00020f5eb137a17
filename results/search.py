"""The search for every method's settings, on the validation split alone: tables of results/search/*/sweep.json."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchor_robust import runs
from anchor_robust.report.dotted import flat, shortened, spelled
from anchor_robust.report.ranking import numbers
from grid import grid

FOLDER = Path(__file__).resolve().parent / "search"
WHICH = ("robust", "clean")
IMAGES = 5000
# What all tries of a round share is said once: settings, and what a reader has to know of it.
TWO_STEPS = {"attack.steps": 2, "attack.step_size": 0.0233, "validation.images": IMAGES}
FIVE_STEPS = {"optimise.epochs": 4, "validation.images": IMAGES}

Try = tuple[dict[str, Any], dict[str, Any]]  # a sweep's record, and one of its combinations


def tried(steps: int) -> list[Try]:
    """The tries with so many attack steps, each method's best first."""
    found = [each for path in sorted(FOLDER.glob("*/sweep.json")) for each in combinations(path.parent)]
    chosen = [each for each in found if settings(each).get("attack.steps", 5) == steps]
    return sorted(chosen, key=lambda each: (each[0]["recipe"], -each[1]["mean"]))


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
