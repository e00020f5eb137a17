"""How the training went, and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..compared import cost as cost_sheet
from ..compared import equal
from ..sheet import Sheet
from .dossier import Dossier
from .figures import Chart, Figure, Line, lines, percent_axis, plain
from .parts import Block, Section, missing, named
from .together import Entry, Together
from .verdict import points

Facts = Mapping[str, Any]
# Lines of a log point that count and time it; all others are measured.
COUNTS = ("step", "epoch", "seconds")
WORDS = {
    "validation_clean": "validation, clean",
    "validation_robust": "validation, under attack",
    "batch_accuracy": "training batches",
    "loss": "loss",
    "cross_entropy": "cross-entropy",
    "contrast": "contrastive loss",
    "lr": "learning rate",
    "images_per_s": "images per second",
    "memory_mb": "memory at most, MB",
}
# What is drawn after the loss and whatever its parts are.
AROUND = ("lr", "images_per_s", "memory_mb")
ACCURACIES = ("validation_clean", "validation_robust", "batch_accuracy")


def training(page: Together) -> Section:
    """A chart for each thing that was logged; the accuracies of a single run share one."""
    having = [entry for entry in page.entries if entry.dossier.metrics]
    says = [said for entry in page.entries if (said := missing(page, entry, "training"))]
    found = {key for entry in having for run in entry.seeds for line in run.metrics for key in line}
    known = [key for key in WORDS if key not in AROUND]
    ordered = [*known, *sorted(found - {*WORDS, *COUNTS}), *AROUND]
    logged = [key for key in ordered if key in found and numeric(key, having)]
    groups = [[key] for key in logged]
    if len(having) == 1 and len(having[0].seeds) == 1:
        groups = [[key for key in logged if key in ACCURACIES], *([key] for key in logged if key not in ACCURACIES)]
        says += best(having[0].dossier)
    return Section("training", "Training", says, [Block("", [panel(keys, having)]) for keys in groups if keys])


def numeric(key: str, having: Sequence[Entry]) -> bool:
    values = [line[key] for entry in having for run in entry.seeds for line in run.metrics if key in line]
    return all(isinstance(value, int | float) for value in values)


def best(dossier: Dossier) -> list[str]:
    validated = [line for line in dossier.metrics if "validation_robust" in line]
    if not validated:
        return []
    top = max(reversed(validated), key=lambda line: line["validation_robust"])
    clean = f", {points(top['validation_clean'])} clean" if "validation_clean" in top else ""
    robust = points(top["validation_robust"])
    return [f"Most robust on the validation split after epoch {top['epoch']}: {robust} under attack{clean}."]


def panel(keys: Sequence[str], having: Sequence[Entry]) -> Chart:
    percents = keys[0] in ACCURACIES
    drawn = [
        line_of(run, key, entry, several=len(keys) > 1, first=place == 0)
        for key in keys
        for entry in having
        for place, run in enumerate(entry.seeds)
        if any(key in line for line in run.metrics)
    ]
    name = word(keys[0])
    title = "Accuracy" if len(keys) > 1 else name[:1].upper() + name[1:]
    axis: Figure = percent_axis() if percents else {"automargin": True, "title": {"text": plain(name)}}
    figure = lines(drawn, {"title": {"text": "epoch"}}, axis, height=260)
    rows = [[line.name, f"{x:g}", f"{y:.6g}"] for line in drawn for x, y in zip(line.x, line.y, strict=True)]
    unit = " %" if percents else ""
    ends = [f"from {line.y[0]:.4g} to {line.y[-1]:.4g}{unit}" for line in drawn]
    says = "; ".join(f"{line.name}: {end}" for line, end in zip(drawn, ends, strict=True) if line.legend) + "."
    if len(drawn) == 1:
        says = f"{ends[0].capitalize()} over {len(drawn[0].x)} log points."
    return Chart(title, says, figure, Sheet("", ["line", "epoch", "value" + unit], rows))


def line_of(run: Dossier, key: str, entry: Entry, several: bool, first: bool) -> Line:
    lines = [line for line in run.metrics if key in line]
    scale = 100 if key in ACCURACIES else 1
    return Line(
        word(key) if several else entry.label,
        [line["epoch"] for line in lines],
        [scale * line[key] for line in lines],
        colour="" if several else entry.colour,
        legend=first,
    )


def word(key: str) -> str:
    return WORDS.get(key, key.replace("cross_entropy", "cross-entropy").replace("_", " "))


def cost(page: Together) -> Section:
    """What training and evaluation took."""
    if page.comparisons:
        facts = next(iter(page.comparisons.values()))
        sheets = [cost_sheet(facts), *equal(facts)]
        return Section("cost", "Cost", [], [Block("", sheets)])
    blocks = [
        Block(named(page, entry), [Sheet("", ["what", "how much"], spent(entry.dossier))]) for entry in page.entries
    ]
    return Section("cost", "Cost", [], blocks)


def spent(dossier: Dossier) -> list[list[str]]:
    around, settings, rows = dossier.environment, dossier.settings, []
    if dossier.metrics:
        last = dossier.metrics[-1]
        rows.append(["training", duration(last.get("seconds", 0))])
        batch = settings.get("optimise.batch_size")
        rows += [["images seen in training", f"{last['step'] * batch:,}"]] if batch else []
    passes = around.get("passes")
    rows += [["passes through the network, of an image in one step", str(passes)]] if passes else []
    parameters = around.get("parameters")
    rows += [["parameters", f"{parameters:,}"]] if parameters else []
    for file, record in dossier.records.items():
        timed = [*record["results"], *(point for points in record.get("curves", {}).values() for point in points)]
        seconds = sum(each.get("seconds", 0) for each in timed)
        rows.append([f"evaluation on {record['data']['images']:,} images, {file}", duration(seconds)])
    return rows


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"
