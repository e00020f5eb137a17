"""Results as tables on standard output."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ..console import Console

Record = Mapping[str, Any]

# What results and stages state beside an attack's own settings.
STATED = {
    *("attack", "label", "norm", "eps", "steps", "step_size", "restarts", "start", "loss", "dtype", "engine", "search"),
    *("images", "accuracy", "interval", "seconds", "per_class", "stages", "stage", "fell"),
}


def show(record: Record) -> None:
    """One model: a row per attack with all its conventions, a row per class, and the checks."""
    console = output()
    data = record["data"]
    title = f"{record['model']['source']} on {data['name']} {data['split']}, {data['images']:,} images"
    table = Table(title=title, title_justify="left")
    table.add_column("attack", no_wrap=True)
    table.add_column("conventions")
    for heading in ("accuracy", "95 % interval", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in record["results"]:
        table.add_row(
            result["label"],
            conventions(result),
            percent(result["accuracy"]),
            interval(result),
            f"{result['seconds']:.1f}",
        )
    console.print(table)
    for result in record["results"]:
        if result.get("stages"):
            console.print(stages(result))
    for name, points in record.get("curves", {}).items():
        console.print(curve(name, points))
    if record.get("corruptions"):
        console.print(corruptions(record["corruptions"]))
    console.print(classes(record["results"]))
    for check in record["checks"]:
        told = f"{check['verdict']}: {check['name']}: {check['detail']}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)


def output() -> Console:
    """Standard output, for words as they are; wide enough not to break lines where no terminal sets the width."""
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(width=160, markup=False, emoji=False)


def conventions(result: Record) -> str:
    """Everything that an accuracy depends on, in one line."""
    if result["norm"] is None:
        return result["dtype"]
    stages = result.get("stages")
    told = [" + ".join(stage["stage"] for stage in stages)] if stages else settings(result)
    told += [f"by {result['engine']}"] if result.get("engine", "anchor") != "anchor" else []
    told += [f"searched in {result['search']}"] if result.get("search", "float32") != "float32" else []
    return ", ".join([f"{result['norm']} eps {result['eps']:.4g}", *told, result["dtype"]])


def settings(attack: Record) -> list[str]:
    """How an attack searches: what every attack states, then what is its own."""
    steps, step_size, restarts = attack.get("steps"), attack.get("step_size"), attack.get("restarts")
    told = []
    if steps is not None:
        told.append(f"{steps} steps" if step_size is None else f"{steps} x {step_size:.4g}")
    told += [f"{attack['start']} start"] if attack.get("start", "none") not in (None, "none") else []
    told += [f"{restarts} restart" + "s" * (restarts != 1)] if restarts else []
    told += [attack["loss"]] if attack.get("loss") else []
    return told + [f"{key} {value}" for key, value in attack.items() if key not in STATED and value is not None]


def stages(result: Record) -> Table:
    """How many images each stage of one attack took."""
    table = Table(
        "stage", "images", "fell", "seconds", title=f"{result['label']}, stage by stage", title_justify="left"
    )
    for stage in result["stages"]:
        table.add_row(stage["stage"], f"{stage['images']:,}", f"{stage['fell']:,}", f"{stage['seconds']:.1f}")
    return table


OF_ITS_OWN = (
    "Each point is an attack with a random start of its own, and may differ from another of the same settings by a few "
    "images."
)


def curve(name: str, points: Sequence[Record]) -> Table:
    """Accuracy against the ball's eps or the attack's steps."""
    table = Table(name, "accuracy", "95 % interval", title=f"accuracy against {name}", title_justify="left")
    table.caption, table.caption_justify = OF_ITS_OWN, "left"
    for point in points:
        table.add_row(f"{point[name]:.4g}", percent(point["accuracy"]), interval(point))
    return table


def corruptions(entries: Sequence[Record]) -> Table:
    """Accuracy under each corruption, a column per severity."""
    table = Table("corruption", title="common corruptions, by severity", title_justify="left")
    for severity in severities(entries):
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right")
    for row in corruption_rows(entries):
        table.add_row(*row)
    return table


def severities(entries: Sequence[Record]) -> list[int]:
    return list(dict.fromkeys(entry["severity"] for entry in entries))


def corruption_rows(entries: Sequence[Record]) -> list[list[str]]:
    """Name, an accuracy per severity, their mean; a row per corruption."""
    by_name: dict[str, list[float]] = {}
    for entry in entries:
        by_name.setdefault(entry["corruption"], []).append(entry["accuracy"])
    return [[name, *map(percent, found), percent(sum(found) / len(found))] for name, found in by_name.items()]


def classes(results: Sequence[Record]) -> Table:
    """Accuracy per class under each attack."""
    table = Table("class", title="per class", title_justify="left")
    for result in results:
        table.add_column(result["label"], justify="right")
    # Row by row, not by name, which two classes may share.
    for of_class in zip(*(result["per_class"] for result in results), strict=True):
        table.add_row(of_class[0]["class"], *(percent(row["accuracy"]) for row in of_class))
    return table


def compare(records: Mapping[str, Record], title: str) -> Table:
    """Several models on the same images: a row each, a column per attack with its interval."""
    table = Table("model", title=title, title_justify="left")
    labels = list(dict.fromkeys(result["label"] for record in records.values() for result in record["results"]))
    for label in labels:
        table.add_column(label, justify="right")
    for name, record in records.items():
        cells = {result["label"]: f"{percent(result['accuracy'])} {interval(result)}" for result in record["results"]}
        table.add_row(name, *(cells.get(label, "") for label in labels))
    return table


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def interval(result: Record) -> str:
    low, high = result["interval"]
    return f"[{100 * low:.1f}, {100 * high:.1f}]"
