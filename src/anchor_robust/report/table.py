"""Results as tables on standard output."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Record = Mapping[str, Any]


def show(record: Record) -> None:
    """One model: a row per attack with all its conventions, a row per class, and the checks."""
    console = Console()
    data = record["data"]
    title = f"{record['model']['source']} on {data['name']} {data['split']}, {data['images']:,} images"
    table = Table(title=title, title_justify="left")
    for heading in ("attack", "norm", "eps", "steps x size", "restarts", "start", "loss", "dtype"):
        table.add_column(heading)
    for heading in ("accuracy", "95 % interval", "seconds"):
        table.add_column(heading, justify="right")
    for result in record["results"]:
        steps = "" if result["steps"] is None else f"{result['steps']} x {result['step_size']:.4g}"
        conventions = (result["norm"], plain(result["eps"]), steps, result["restarts"], result["start"], result["loss"])
        table.add_row(
            result["label"],
            *("" if value is None else str(value) for value in conventions),
            result["dtype"],
            percent(result["accuracy"]),
            interval(result),
            f"{result['seconds']:.1f}",
        )
    console.print(table)
    console.print(classes(record["results"]))
    for check in record["checks"]:
        console.print(f"{check['verdict']}: {check['name']}: {check['detail']}", highlight=False, markup=False)


def classes(results: Sequence[Record]) -> Table:
    """Accuracy per class under each attack."""
    table = Table("class", title="per class", title_justify="left")
    for result in results:
        table.add_column(result["label"], justify="right")
    rows: dict[str, list[str]] = {row["class"]: [] for row in results[0]["per_class"]} if results else {}
    for result in results:
        for row in result["per_class"]:
            rows[row["class"]].append(percent(row["accuracy"]))
    for name, cells in rows.items():
        table.add_row(name, *cells)
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


def plain(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
