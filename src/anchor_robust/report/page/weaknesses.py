"""Where a model gives way: with which eps, in which classes, and to which answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .. import measured
from ..sheet import Sheet
from .dossier import Dossier, Record
from .figures import GREY, Chart, Figure, Line, bars, heatmap, lines, percent_axis, percents
from .parts import Block, Section, named, unmeasured
from .together import Entry, Together
from .verdict import points, radius

MOST_CLASSES, MOST_CELLS, WITH_COUNTS = 60, 100, 12  # bars of classes; rows of a confusion matrix, and with counts
MISTAKES = 10
CURVES = {"eps": "eps, the size of the ball", "steps": "steps of the attack"}
BESIDE = {"yref": "paper", "line": {"dash": "dash", "width": 1, "color": GREY}}


def curves(page: Together) -> Section:
    """Accuracy against eps and against steps."""
    parts = []
    for name, words in CURVES.items():
        having = [(entry, record) for entry in page.entries if (record := entry.dossier.curve(name))]
        # Radii of two norms are no points of one axis.
        norms = dict.fromkeys(threat(record).get("norm") for _, record in having)
        for norm in norms:
            of_norm = [(entry, record) for entry, record in having if threat(record).get("norm") == norm]
            parts.append(curve(name, f"{words}, {norm}" if len(norms) > 1 else words, of_norm))
    lacking = [entry for entry in page.entries if not any(map(entry.dossier.curve, CURVES))]
    says = [
        f"No curves of {entry.label} were measured; this does it: {entry.dossier.evaluated('--curve eps,steps')}"
        for entry in lacking
    ]
    return Section("curves", "Accuracy against eps and steps", says, [Block("", [part]) for part in parts])


def threat(record: Record) -> Record:
    """The threat model's norm and eps; records of early versions do not state them."""
    return record.get("threat", {})


def curve(name: str, words: str, having: Sequence[tuple[Entry, Record]]) -> Chart:
    drawn, rows = [], []
    for entry, record in having:
        found = record["curves"][name]
        low, high = zip(*(point["interval"] for point in found), strict=True)
        x, y = [point[name] for point in found], percents(point["accuracy"] for point in found)
        drawn.append(Line(entry.label, x, y, percents(low), percents(high), entry.colour))
        table = measured.curve(name, found)
        rows += [[entry.label, *row] for row in table.rows]
    leading = having[0][0]
    threats = sorted({threat(record)["eps"] for _, record in having if threat(record)})
    axis: Figure = {"title": {"text": words}} | {"rangemode": "tozero"}
    if name == "steps":
        axis |= {"type": "log", "tickvals": drawn[0].x, "ticktext": [str(steps) for steps in drawn[0].x]}
    figure = lines(drawn, axis, percent_axis())
    if name == "eps":
        figure["layout"]["shapes"] = [
            {"type": "line", "x0": eps, "x1": eps, "y0": 0, "y1": 1} | BESIDE for eps in threats
        ]
    first, last = drawn[0].y[0], drawn[0].y[-1]
    says = (
        f"{leading.label}: from {first:.1f} % at {name} {drawn[0].x[0]:.4g} to {last:.1f} % at {drawn[0].x[-1]:.4g}. "
        + (
            f"The dashed line is the threat model's eps{', one for each' if len(threats) > 1 else ''}. "
            "A sound model falls to nothing on the right."
            if name == "eps"
            else "Once more steps find nothing more, the attack has converged."
        )
        + f" {measured.OF_ITS_OWN}"
    )
    return Chart(
        f"Accuracy against {words}",
        says,
        figure,
        Sheet("", ["model", *table.headings], rows),
    )


def classes(page: Together) -> Section:
    blocks = [
        Block(named(page, entry), [per_class(entry)])
        for entry in page.entries
        if entry.dossier.record and any(result.get("per_class") for result in entry.dossier.record["results"])
    ]
    says = [] if blocks else ["No accuracy per class was measured.", *unmeasured(page)]
    return Section("classes", "Class by class", says, blocks)


def per_class(entry: Entry) -> Chart:
    """The classes by name, the weakest MOST_CLASSES of them if there are more."""
    results = [result for result in (entry.dossier.record or {})["results"] if result.get("per_class")]
    rows = list(zip(*(result["per_class"] for result in results), strict=True))
    weakest = sorted(rows, key=lambda row: min(each["accuracy"] for each in row))
    drawn = rows if len(rows) <= MOST_CLASSES else weakest[:MOST_CLASSES]
    groups = [
        Line(
            result["label"],
            [],
            percents(row[place]["accuracy"] for row in drawn),
            percents(row[place]["interval"][0] for row in drawn),
            percents(row[place]["interval"][1] for row in drawn),
        )
        for place, result in enumerate(results)
    ]
    least, firmest = (min(row, key=lambda each: each["accuracy"]) for row in (weakest[0], weakest[-1]))
    label = results[weakest[0].index(least)]["label"]
    alike = least["accuracy"] == firmest["accuracy"]
    says = (
        f"No class is weaker than another: of each, {points(least['accuracy'])} of the images at the least."
        if alike
        else f"Weakest: {least['class']}, {points(least['accuracy'])} of {least['images']:,} images under {label}."
    )
    says += f" Drawn are the {'first' if alike else 'weakest'} {len(drawn)} of {len(rows)}." * (len(drawn) < len(rows))
    numbers = replace(measured.classes(results), title="")
    return Chart("Accuracy of each class", says, bars([row[0]["class"] for row in drawn], groups), numbers)


def confusions(page: Together) -> Section:
    blocks, says = [], []
    for entry in page.entries:
        if not entry.dossier.record:
            continue
        attacked = answered(entry.dossier)
        if "clean_prediction" not in entry.dossier.outcomes:
            says.append(entry.dossier.lacking.get("outcomes", "The outcome of each image was not kept."))
            continue
        if attacked is None:
            again = entry.dossier.evaluated()
            says.append(f"What {entry.label} answers under attack was not kept; this does it: {again}")
        clean = [("clean_prediction", "without an attack")] if len(page.entries) == 1 or not attacked else []
        kinds = clean + ([attacked] if attacked else [])
        blocks.append(Block(named(page, entry), [confusion(entry.dossier, *kind) for kind in kinds]))
    return Section("confusion", "What is taken for what", says if blocks or says else unmeasured(page), blocks)


def answered(dossier: Dossier) -> tuple[str, str] | None:
    """The outcomes' name of the answers under the attack that left least, and words for it."""
    kept = [
        result for result in (dossier.record or {})["results"] if f"prediction_{result['attack']}" in dossier.outcomes
    ]
    if not kept:
        return None
    least = min(kept, key=lambda result: result["accuracy"])
    return f"prediction_{least['attack']}", f"under {least['label']} at {radius(least)}"


def confusion(dossier: Dossier, key: str, words: str) -> Chart | Sheet:
    answered = dossier.outcomes[key] >= 0  # below: the logits were NaN, which is no answer
    labels, said = dossier.outcomes["label"][answered], dossier.outcomes[key][answered]
    size = max(len(dossier.classes), int(labels.max(initial=0)) + 1, int(said.max(initial=0)) + 1)
    names = [*dossier.classes, *map(str, range(len(dossier.classes), size))]
    counts = np.zeros((size, size), int)
    np.add.at(counts, (labels, said), 1)
    wrong = counts - np.diag(np.diag(counts))
    most = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]
    found = [
        (true, answer) for true, answer in zip(*np.unravel_index(most, wrong.shape), strict=True) if wrong[true, answer]
    ]
    rows = [
        [
            names[true],
            names[answer],
            f"{wrong[true, answer]:,} of {counts[true].sum():,}",
            points(wrong[true, answer] / counts[true].sum()),
        ]
        for true, answer in found
    ]
    table = Sheet(f"The most frequent mistakes {words}", ["true", "answered", "images", "share of the class"], rows)
    if size > MOST_CELLS:
        return table
    says = (
        f"Most often {rows[0][0]} is taken for {rows[0][1]}: {rows[0][2]} images." if rows else "There are no mistakes."
    )
    return Chart(f"Answers {words}", says, heatmap(counts, names, size <= WITH_COUNTS), table)
