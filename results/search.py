"""The search for every method's settings, on the validation split alone: one table of results/search/*/sweep.json."""

from pathlib import Path

from anchor_robust import runs
from anchor_robust.report.dotted import flat, shortened, spelled
from anchor_robust.report.ranking import numbers

FOLDER = Path(__file__).resolve().parent / "search"
WHICH = ("robust", "clean")
SHARED = ("optimise.epochs", "validation.images", "validation.every")  # alike in all of them


def table() -> str:
    """Each method's tries, best first."""
    records = [runs.read_json(path) for path in sorted(FOLDER.glob("*/sweep.json"))]
    lines = ["| recipe | settings | robust | clean |", "|---|---|---:|---:|"]
    for record in records:
        beside = {key: value for key, value in flat(record["settings"]).items() if key not in SHARED}
        for each in record["combinations"]:
            _, robust, interval, clean, _ = numbers(each, WHICH)
            settings = spelled(shortened({**each["settings"], **beside}))
            cells = (record["recipe"], settings, f"{robust} {interval}", clean)
            lines.append(f"| {' | '.join(cells)} |")
    first, fixed = records[0]["combinations"][0], records[0]["settings"]
    return "\n".join(
        [
            *lines,
            "",
            f"Accuracy in % on {first['validation_images']:,} held-out training images, under PGD-10 and clean, after "
            f"{fixed['optimise']['epochs']} epochs, seed 0; the rest as the recipe has it.",
        ]
    )
