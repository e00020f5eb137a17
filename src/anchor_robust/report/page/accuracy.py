"""The accuracies of a page, and whether they can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..conventions import bounds, conventions
from ..measured import accuracies, corruptions, stages, worst_case
from ..methods import ASSUMED, CONVENTIONS
from ..sheet import Sheet, spread
from .dossier import Dossier, Record
from .explanations import why
from .figures import Chart, Line, intervals, percents
from .parts import Block, Section, named, unmeasured
from .together import Entry, Together, mark
from .verdict import AUTOATTACK, FLATTERS, headline, radius

Facts = Mapping[str, Any]
SAYS = {"skip": 0, "pass": 1, "warn": 2}  # how much a verdict says
OF_ALL = (
    "Shares are of all images: one that is answered wrongly without an attack is lost under every attack. An image is "
    "held if no stage and no restart of the attack finds a wrong answer. Intervals are Wilson's, at 95 %."
)


def results(page: Together) -> Section:
    """Every accuracy with every convention; several methods in one table only where all conventions agree."""
    says = [page.why_not] if page.why_not else []
    says += unmeasured(page)
    blocks = [compared(facts) for facts in page.comparisons.values()]
    inside = {method["method"] for facts in page.comparisons.values() for method in facts["methods"]}
    alone = [entry for entry in page.entries if entry.dossier.record and entry.label not in inside]
    blocks += [Block(named(page, entry), measured(entry.dossier.records)) for entry in alone]
    blocks += [
        Block(named(page, entry, seed), measured(left))
        for entry in page.entries
        for seed in entry.seeds
        if entry.label in inside and (left := uncompared(page, seed))
    ]
    found = [headline(entry.records) for entry in page.entries]
    if any(each and each[1]["label"] != AUTOATTACK for each in found):
        says.append(FLATTERS)
    return Section("results", "Results", [*says, OF_ALL] if blocks else says, blocks)


def uncompared(page: Together, seed: Dossier) -> dict[str, Record]:
    """The evaluations of a compared run that no other run has under that name."""
    return {file: record for file, record in seed.records.items() if file not in page.comparisons}


def measured(records: Mapping[str, Record]) -> list[Sheet]:
    """Every accuracy of every evaluation, and beside it on how many images and in which file it is."""
    of_file = [(file, record, accuracies(record["results"], "")) for file, record in records.items()]
    rows = [
        [*row, f"{result['images']:,}", file]
        for file, record, sheet in of_file
        for row, result in zip(sheet.rows, record["results"], strict=True)
    ]
    headings = [*accuracies([], "").headings, "images", "file"]
    staged = [stages(each) for _, record, _ in of_file for each in record["results"] if each.get("stages")]
    withstood = [told for _, record, _ in of_file for told in worst_case(record)]
    corrupted = next((record["corruptions"] for record in records.values() if record.get("corruptions")), None)
    return [
        Sheet("Accuracy under each attack", headings, rows, withstood),
        *staged,
        *([corruptions(corrupted)] if corrupted else []),
    ]


def compared(facts: Facts) -> Block:
    """Accuracies of the methods, an entry for each attack with all its conventions, and McNemar's marks."""
    methods = [each["method"] for each in facts["methods"]]
    images = sorted({entry["images"] for entry in facts["results"]})
    title = f"Accuracy on {' or '.join(f'{count:,}' for count in images)} images, with 95 % intervals"
    says = "Each mark is a method's accuracy under one attack; the bar is its interval."
    labels = told_apart(facts["results"])
    rows = [
        [label, row["method"], spread(row["values"]), bounds(row["interval"])]
        for label, entry in zip(labels, facts["results"], strict=True)
        for row in entry["accuracies"]
    ]
    numbers = Sheet("", ["attack", "method", "accuracy %", "95 % interval"], rows)
    drawn = [
        in_percent(label, entry["accuracies"], methods) for label, entry in zip(labels, facts["results"], strict=True)
    ]
    return Block("", [Chart(title, says, intervals(methods, drawn), numbers), *map(marked, facts["results"])])


def told_apart(results: Sequence[Facts]) -> list[str]:
    """The attacks' labels, with the ball where one label stands for several."""
    labels = [entry["label"] for entry in results]
    return [
        f"{label}, {radius(entry)}" if labels.count(label) > 1 else label
        for label, entry in zip(labels, results, strict=True)
    ]


def marked(entry: Facts) -> Sheet:
    stated = conventions({key: entry[key] for key in (*CONVENTIONS, *ASSUMED)})
    marks = {pair["method"]: mark(pair) for pair in entry["pairs"]}
    rows = [
        [
            row["method"],
            spread(row["values"]),
            bounds(row["interval"]),
            ", ".join(map(str, row["seeds"])),
            marks.get(row["method"], "the yardstick"),
        ]
        for row in entry["accuracies"]
    ]
    title = (
        f"{entry['label']} ({stated}), {entry['images']:,} images of {entry['data']['name']} {entry['data']['split']}"
    )
    headings = ["method", "accuracy %", "95 % interval", "which seeds", "McNemar's exact test, image by image"]
    return Sheet(title, headings, rows)


def in_percent(label: str, rows: Sequence[Facts], methods: Sequence[str]) -> Line:
    low, high = zip(*(row["interval"] for row in rows), strict=True)
    x = [methods.index(row["method"]) for row in rows]
    return Line(label, x, percents(row["mean"] for row in rows), percents(low), percents(high))


@dataclass(frozen=True)
class Checks:
    """The masking checks: a column of verdicts for each of `headings`."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]


def checks(page: Together) -> Section:
    having = [entry for entry in page.entries if any(record["checks"] for record in entry.records.values())]
    found = {entry.label: by_name(entry) for entry in having}
    names = list(dict.fromkeys(name for verdicts in found.values() for name in verdicts))
    none = ("skip", "not checked")
    rows = [(name, why(name), [verdicts.get(name, none) for verdicts in found.values()]) for name in names]
    says = [
        "A model can look robust because the attack fails rather than because the model holds. Each check looks for "
        "one way in which that happens."
    ]
    if not rows:
        lacking = next((entry.dossier.evaluated() for entry in page.entries), "anchor evaluate")
        return Section(
            "checks", "Can the numbers be trusted?", [f"No checks were made; an evaluation makes them: {lacking}"]
        )
    return Section("checks", "Can the numbers be trusted?", says, [Block("", [Checks(list(found), rows)])])


def by_name(entry: Entry) -> dict[str, tuple[str, str]]:
    """Verdict and detail of each check; of several evaluations or seeds the one that says most."""
    found: dict[str, tuple[str, str]] = {}
    for record in entry.records.values():
        for check in record["checks"]:
            before, _ = found.get(check["name"], ("", ""))
            if SAYS.get(check["verdict"], 0) > SAYS.get(before, -1):
                found[check["name"]] = (check["verdict"], check["detail"])
    return found
