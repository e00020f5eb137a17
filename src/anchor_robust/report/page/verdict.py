"""What an evaluation says, in plain words."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from ..conventions import interval

Facts = Mapping[str, Any]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
AUTOATTACK = "AutoAttack"
USUALLY_SKIPPED = 1  # the check that needs a second model
FLATTERS = (
    "PGD alone flatters: AutoAttack usually leaves some points less, and published numbers are AutoAttack's. "
    "anchor evaluate RUN --attacks clean,pgd20,autoattack measures it."
)


def headline(records: Mapping[str, Facts]) -> tuple[Facts, Facts] | None:
    """The record and the result that count: AutoAttack if there is one, else the attack that left least; None if none.

    Each says that the model holds at most so much, and the lowest upper end of an interval says most. Of the ball and
    the data of the first record, the run's own, alone: another ball is another question.
    """
    attacked = [
        (record, result) for record in records.values() for result in record["results"] if result["label"] != "clean"
    ]
    if not attacked:
        return None
    same = [found for found in attacked if question(*found) == question(*attacked[0])]
    full = [(record, result) for record, result in same if result["label"] == AUTOATTACK]
    return min(full or same, key=lambda found: found[1]["interval"][1])


def question(record: Facts, result: Facts) -> tuple[Any, ...]:
    return result.get("norm"), result.get("eps"), record.get("data", {}).get("name")


def verdict(records: Mapping[str, Facts]) -> str:
    """One sentence: how often the model is right under attack, with which threat, on what, and how many checks warn."""
    found = headline(records)
    if found is None:
        return clean_only(records)
    record, result = found
    clean = unattacked(record, result)
    without = "" if clean is None else f" ({points(clean)} without an attack)"
    told, deviation = seeds(result), result.get("deviation")
    spread = f", ± {100 * deviation:.1f} over {told}," if deviation is not None else f" ({told})" if told else ""
    return (
        f"holds {points(result['accuracy'])} {interval(result)} of its answers{spread} under {result['label']} at "
        f"{radius(result)}{without}, on {result['images']:,} images; {warnings(records)}"
    )


def by_seed(result: Facts) -> Facts:
    """The accuracies that are pooled in a result; its own where it is of one run."""
    return result.get("by_seed", {None: result["accuracy"]})


def unattacked(record: Facts, result: Facts) -> float | None:
    """The clean accuracy of the same seeds on the same images; None where it was not measured."""
    for each in record["results"]:
        known, asked, alike = by_seed(each), by_seed(result), each.get("data") == result.get("data")
        if each["label"] == "clean" and alike and asked.keys() <= known.keys():
            return mean(known[seed] for seed in asked)
    return None


def seeds(result: Facts) -> str:
    """`3 seeds`, or `1 of 3 seeds` where not all were measured in this way; empty where it is of one run."""
    there = result.get("seeds", 1)
    return "" if there == 1 else some_of(result) or f"{there} seeds"


def some_of(result: Facts) -> str:
    """`1 of 3 seeds`; empty where all were measured in this way."""
    there, measured = result.get("seeds", 1), len(by_seed(result))
    return f"{measured} of {there} seeds" if measured < there else ""


def clean_only(records: Mapping[str, Facts]) -> str:
    results = [result for record in records.values() for result in record["results"]]
    if not results:
        return "has not been evaluated: what it is worth is not known"
    clean = results[0]
    told = f"{points(clean['accuracy'])} {interval(clean)} of {clean['images']:,} images"
    return f"answers {told} rightly without an attack; under attack it has not been measured"


def warnings(records: Mapping[str, Facts]) -> str:
    """`two warnings`, each check counted once, and how many could not be made: what was not looked at cannot warn."""
    checks = [(check["name"], check["verdict"]) for record in records.values() for check in record["checks"]]
    warned = {name for name, verdict in checks if verdict == "warn"}
    made = {name for name, verdict in checks if verdict != "skip"}
    missing = {name for name, _ in checks} - made
    told = f"{in_words(len(warned))} warning{'s' * (len(warned) != 1)}"
    if len(missing) <= USUALLY_SKIPPED:
        return told
    return f"{told}, but {len(missing)} of {len(made | missing)} checks could not be made"


def in_words(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def radius(result: Facts) -> str:
    """`8/255` where eps is a whole number of grey levels, else `0.031`; the norm where it is not L-inf."""
    eps, norm = result["eps"], result["norm"]
    if eps is None:
        return "no eps"
    levels = 255 * eps
    if norm == "linf":
        return f"{round(levels)}/255" if levels >= 1 and abs(levels - round(levels)) < 1e-6 else f"{eps:.4g}"
    return f"{norm} {eps:.4g}"


def points(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
