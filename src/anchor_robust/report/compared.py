"""The facts of a comparison as tables, for the terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .conventions import bounds, conventions
from .dotted import spelled
from .methods import ASSUMED, CONVENTIONS
from .pauses import TIMES
from .sheet import Sheet, spread

Facts = Mapping[str, Any]
PAIRS_NOTE = (
    "alone: images that only this method holds : that only the first one holds, counted with each seed; p: McNemar's "
    "exact test on them. Pooled over seeds it takes images x seeds for independent pairs, which they are not quite; p "
    "by seed does not. The difference is in points, with a 95 % t-interval over seeds where there are three or more."
)


def markdown(facts: Facts) -> list[str]:
    """A comparison as lines of Markdown: its tables with their notes."""
    return [line for sheet in sheets(facts) for line in ("", *sheet.markdown())][1:]


def sheets(facts: Facts) -> list[Sheet]:
    tables = [methods(facts), *(accuracies(entry) for entry in facts["results"]), pairs(facts), cost(facts)]
    return [sheet for sheet in [*tables, *equal(facts)] if sheet.rows or sheet.notes]


def methods(facts: Facts) -> Sheet:
    rows = [[each["method"], spelled(each["differs"]), ", ".join(map(str, each["seeds"]))] for each in facts["methods"]]
    return Sheet("Methods", ["method", "differs in", "which seeds"], rows, wrapped=2)


def accuracies(entry: Facts) -> Sheet:
    data = entry["data"]
    stated = conventions({key: entry[key] for key in (*CONVENTIONS, *ASSUMED)})
    title = f"{entry['label']} ({stated}), {entry['images']:,} images of {data['name']} {data['split']}"
    rows = [
        [each["method"], spread(each["values"]), bounds(each["interval"]), ", ".join(map(str, each["seeds"]))]
        for each in entry["accuracies"]
    ]
    several = any(len(each["seeds"]) > 1 for each in entry["accuracies"])
    note = "Mean ± sample deviation over seeds; Wilson interval at the mean, as the seeds share the images."
    return Sheet(title, ["method", "accuracy %", "95 % interval", "which seeds"], rows, [note] if several else [])


def pairs(facts: Facts) -> Sheet:
    compared = [(entry["label"], pair) for entry in facts["results"] for pair in entry["pairs"]]
    rows = [
        [
            f"{label}: {pair['method']}",
            f"{pair['only_method']} : {pair['only_first']}",
            probability(pair["p"]),
            ", ".join(map(probability, pair["p_by_seed"])),
            difference(pair),
        ]
        for label, pair in compared
        if pair["seeds"]
    ]
    left_out = [
        f"{label}: {pair['method']} is not paired: {pair['why_not']}." for label, pair in compared if not pair["seeds"]
    ]
    title = f"Against {facts['methods'][0]['method']}, seed by seed and image by image"
    headings = ["attack: method", "alone", "p", "p by seed", "difference"]
    return Sheet(title, headings, rows, [*([PAIRS_NOTE] if rows else []), *left_out])


def probability(p: float) -> str:
    return f"{p:.2g}" if p > 1e-16 else "<1e-16"


def difference(pair: Facts) -> str:
    low_high = pair["difference_interval"]
    return f"{100 * pair['difference']:+.2f}" + (f" {bounds(low_high)}" if low_high else "")


def cost(facts: Facts) -> Sheet:
    rows = [
        [
            each["method"],
            f"{each['images_seen']:,}",
            f"{each['image_passes']:,}" if each["image_passes"] else "not said",
            f"{each['seconds']:.0f}",
        ]
        for each in facts["cost"]
    ]
    hardware = sorted({where for each in facts["cost"] for where in each["hardware"]})
    note = (
        f"Mean over seeds, on {'; '.join(hardware)}. Images seen: steps x batch size; passes: how often one of them "
        "went forward and backward through the network, attacks included."
    )
    paused = {run: seconds for each in facts["cost"] for run, seconds in each["paused"].items()}
    if paused:
        told = ", ".join(f"{Path(run).name} {seconds:.0f} s" for run, seconds in paused.items())
        note += f" Not counted are pauses, each in an epoch that took over {TIMES} times the usual one: {told}."
    return Sheet("Cost of training", ["method", "images seen", "passes", "seconds"], rows, [note])


def equal(facts: Facts) -> list[Sheet]:
    """What was reached at the cost of the cheapest method, in epochs, in time and in passes."""
    epochs, seconds, passes = facts["equal_epochs"], facts["equal_seconds"], facts["equal_passes"]
    return [
        reached("epochs", epochs, f"within {epochs.get('budget', 0)} epochs"),
        reached("wall-clock", seconds, f"within {seconds.get('budget', 0):.0f} s"),
        reached("passes", passes, f"within {passes.get('budget', 0):,.0f} passes"),
    ]


def reached(what: str, facts: Facts, budget: str) -> Sheet:
    if "all" in facts:
        told = f"All were trained for {facts['all']} {what}: every accuracy above is at equal {what}."
        return Sheet(f"At equal {what}", ["method"], [], [told])
    if "why_not" in facts:
        return Sheet(f"At equal {what}", ["method"], [], [f"No comparison at equal {what}: {facts['why_not']}."])
    rows = [[each["method"], *until_then(each), both(each["at_the_end"])] for each in facts["accuracies"]]
    note = (
        "Not test accuracy: of the most robust epoch on the validation split until the cheapest method was done, and "
        "of all. A costlier method is cut off in the middle of its learning rate schedule, and at its last validation "
        "before: counted is the share of the cost that had been spent by then."
    )
    note += f" Of the runs on {facts['hardware']}." if "hardware" in facts else ""
    if facts.get("left_out"):
        note += f" Not trained there, and left out: {', '.join(facts['left_out'])}."
    title = f"At equal {what}: validation accuracy %, robust / clean"
    return Sheet(title, ["method", budget, "counted", "in all"], rows, [note])


def until_then(accuracy: Facts) -> list[str]:
    if accuracy["by_then"] is None:
        return ["none yet", ""]
    return [both(accuracy["by_then"]), f"{100 * accuracy['counted']:.0f} %"]


def both(seeds: Sequence[Facts]) -> str:
    return " / ".join(spread([seed[which] for seed in seeds], decimals=1) for which in ("robust", "clean"))
