"""The search for every method's settings, on the validation split alone: one table of results/search/*/sweep.json."""

from collections import Counter
from pathlib import Path

from anchor_robust import runs
from anchor_robust.report.dotted import flat, shortened, spelled
from anchor_robust.report.ranking import numbers

FOLDER = Path(__file__).resolve().parent / "search"
WHICH = ("robust", "clean")
USUAL = {"optimise.epochs": 4, "validation.images": 5000}  # said once, where a try does not differ


def table() -> str:
    """Each method's tries, best first."""
    records = [runs.read_json(path) for path in sorted(FOLDER.glob("*/sweep.json"))]
    tried = [(record, each) for record in records for each in record["combinations"]]
    tried.sort(key=lambda pair: (pair[0]["recipe"], -pair[1]["mean"]))
    lines = ["| recipe | settings | robust | clean |", "|---|---|---:|---:|"]
    for record, each in tried:
        beside = {key: value for key, value in flat(record["settings"]).items() if USUAL.get(key) != value}
        beside.pop("validation.every")  # the last epoch
        _, robust, interval, clean, _ = numbers(each, WHICH)
        settings = spelled(shortened(dict(sorted({**each["settings"], **beside}.items()))))
        lines.append(f"| {record['recipe']} | {settings} | {robust} {interval} | {clean} |")
    counted = Counter(record["recipe"] for record, _ in tried)
    told = (
        f"Accuracy in % on {USUAL['validation.images']:,} held-out training images, under PGD-10 and clean, after "
        f"{USUAL['optimise.epochs']} epochs, seed 0; what is not named as the recipe had it before this search, lr "
        f"at 0.2. Tries: {', '.join(f'{recipe} {number}' for recipe, number in counted.items())}."
    )
    return "\n".join([*lines, "", told])
