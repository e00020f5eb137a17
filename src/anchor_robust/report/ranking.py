"""The combinations of a sweep, best first."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from ..intervals import wilson
from .conventions import bounds
from .dotted import shortened, spelled
from .sheet import Sheet, spread

Facts = Mapping[str, Any]


def ranked(runs: Sequence[Facts], selects_on: str) -> list[dict[str, Any]]:
    """The runs pooled over their seeds, sorted by the mean validation accuracy `selects_on`.

    Combinations with a failed run come last: a mean over the seeds that survived would flatter them. The interval is
    Wilson's at the mean on the validation images, which all seeds share.
    """
    pooled: list[list[Facts]] = []
    for run in runs:
        same = next((group for group in pooled if group[0]["settings"] == run["settings"]), None)
        same.append(run) if same else pooled.append([run])
    combinations = [combination(group, selects_on) for group in pooled]
    return sorted(combinations, key=lambda each: (not each["failed"], each["mean"] or 0.0), reverse=True)


def combination(group: Sequence[Facts], selects_on: str) -> dict[str, Any]:
    done = [run for run in group if "failed" not in run]
    told = {
        "settings": group[0]["settings"],
        "seeds": [run["seed"] for run in done],
        "failed": [run["seed"] for run in group if "failed" in run],
    }
    if not done:
        return told | {"mean": None}
    columns = ("validation_robust", "validation_clean", "epoch", "seconds")
    listed: dict[str, list[Any]] = {column: [run[column] for run in done] for column in columns}
    selected, images = listed[f"validation_{selects_on}"], done[0]["validation_images"]
    return {
        **told,
        "mean": mean(selected),
        "deviation": stdev(selected) if len(done) > 1 else None,
        "interval": list(wilson(mean(selected) * images, images)),
        "validation_images": images,
        **listed,
    }


def sheet(record: Facts) -> Sheet:
    """The ranking of a sweep.json as a table."""
    which = ("robust", "clean") if record["selects_on"] == "robust" else ("clean", "robust")
    headings = ["settings", "seeds", f"{which[0]} %", "95 % interval", f"{which[1]} %", "seconds"]
    rows = [[spelled(shortened(each["settings"])), *numbers(each, which)] for each in record["combinations"]]
    return Sheet(f"{record['recipe']}: accuracy on the validation split", headings, rows, notes(record))


def numbers(each: Facts, which: Sequence[str]) -> list[str]:
    seeds = " + ".join([str(len(each["seeds"])), *([f"{len(each['failed'])} failed"] if each["failed"] else [])])
    if not each["seeds"]:
        return [seeds, "", "", "", ""]
    first, second = (spread(each[f"validation_{name}"], decimals=1) for name in which)
    return [seeds, first, bounds(each["interval"]), second, f"{mean(each['seconds']):.0f}"]


def notes(record: Facts) -> list[str]:
    counts = sorted({each["validation_images"] for each in record["combinations"] if each["seeds"]})
    explained = (
        f"Sorted by the {record['selects_on']} accuracy on {' or '.join(f'{n:,}' for n in counts) or 'the'} validation "
        "images: mean over seeds ± sample deviation, Wilson interval at the mean (the seeds share the images), mean "
        "seconds of training. The best of many is flattered by having been picked: report its test accuracy."
    )
    return [explained, *(f"failed: {run['run']}: {run['failed']}" for run in record["runs"] if "failed" in run)]
