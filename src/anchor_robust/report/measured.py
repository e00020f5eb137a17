"""What evaluations measured, as tables: for the terminal, the card and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from . import sheet
from .conventions import Record, conventions, interval, measured, percent, settings
from .sheet import Sheet

OF_ITS_OWN = (
    "Each point is an attack with a random start of its own, and may differ from another of the same settings by a few "
    "images."
)


def show(record: Record) -> None:
    """One model on standard output: its tables, and the checks."""
    sheet.show(sheets(record))
    console = sheet.output()
    for check in record["checks"]:
        told = f"{check['verdict']}: {check['name']}: {check['detail']}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)


def sheets(record: Record) -> list[Sheet]:
    """Every table that a record has: accuracies, stages of an attack, curves, corruptions, classes."""
    data, results, corrupted = record["data"], record["results"], record.get("corruptions")
    on = f"{record['model']['source']} on {data['name']} {data['split']}, {data['images']:,} images"
    return [
        replace(accuracies(results, on), notes=worst_case(record)),
        *(stages(result) for result in results if result.get("stages")),
        *(curve(name, points) for name, points in record.get("curves", {}).items()),
        *([corruptions(corrupted)] if corrupted else []),
        *([classes(results)] if results else []),
    ]


def accuracies(results: Sequence[Record], title: str) -> Sheet:
    rows = [
        [each["label"], conventions(each), percent(each["accuracy"]), interval(each), f"{each['seconds']:.1f}"]
        for each in results
    ]
    return Sheet(title, ["attack", "conventions", "accuracy", "95 % interval", "seconds"], rows, wrapped=2)


def worst_case(record: Record) -> list[str]:
    """What no attack of several fooled, image by image; an attacker picks the one that does."""
    found = record.get("worst_case")
    if not found:
        return []
    labels = [result["label"] for result in record["results"] if result["attack"] in found["attacks"]]
    return [f"Withstand every attack, {' and '.join(labels)}: {measured(found)}"]


def stages(result: Record) -> Sheet:
    """How many images each stage of one attack took."""
    rows = [
        [each["stage"], ", ".join(settings(each)), f"{each['images']:,}", f"{each['fell']:,}", f"{each['seconds']:.1f}"]
        for each in result["stages"]
    ]
    headings = ["stage", "settings", "images attacked", "fell", "seconds"]
    return Sheet(f"{result['label']}, stage by stage", headings, rows, wrapped=2)


def curve(name: str, points: Sequence[Record]) -> Sheet:
    """Accuracy against the ball's eps or the attack's steps."""
    rows = [[f"{point[name]:.4g}", conventions(point), percent(point["accuracy"]), interval(point)] for point in points]
    headings = [name, "conventions", "accuracy", "95 % interval"]
    return Sheet(f"Accuracy against {name}", headings, rows, [OF_ITS_OWN], wrapped=2)


def corruptions(entries: Sequence[Record]) -> Sheet:
    """Accuracy under each corruption, a column per severity, and their mean."""
    severities = dict.fromkeys(entry["severity"] for entry in entries)
    by_name: dict[str, list[float]] = {}
    for entry in entries:
        by_name.setdefault(entry["corruption"], []).append(entry["accuracy"])
    rows = [[name, *map(percent, found), percent(sum(found) / len(found))] for name, found in by_name.items()]
    headings = ["corruption", *map(str, severities), "mean"]
    return Sheet("Accuracy under common corruptions, by severity", headings, rows)


def classes(results: Sequence[Record]) -> Sheet:
    """Accuracy of each class under each attack."""
    # Row by row, not by name, which two classes may share.
    rows = [
        [of_class[0]["class"], f"{of_class[0]['images']:,}", *map(measured, of_class)]
        for of_class in zip(*(result["per_class"] for result in results), strict=True)
    ]
    headings = ["class", "images", *(result["label"] for result in results)]
    return Sheet("Accuracy of each class", headings, rows, wrapped=len(headings))


def compare(records: Mapping[str, Record], title: str) -> Sheet:
    """Several models on the same images: a row each, a column per attack with its interval."""
    labels = list(dict.fromkeys(result["label"] for record in records.values() for result in record["results"]))
    rows = []
    for name, record in records.items():
        cells = {result["label"]: measured(result) for result in record["results"]}
        rows.append([name, *(cells.get(label, "") for label in labels)])
    return Sheet(title, ["model", *labels], rows, wrapped=1 + len(labels))
