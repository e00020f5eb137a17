"""Draw the figures of the README and of the documentation from the run files in this folder: `make results`."""

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import forms
import search
from anchor_robust import runs
from anchor_robust.intervals import wilson
from anchor_robust.recipe import settle
from anchor_robust.report.conventions import conventions
from svg import legend, line, linear, page, polygon, polyline, rows, shares, tag, text
from table import EXPERIMENT, HELD, HERE, METHODS, ROOT, found, measured_in, results_of
from table import seeds as runs_of

FIGURES = ROOT / "docs" / "figures"
COLOURS = dict(zip(HELD, ("blue", "orange", "green", "black"), strict=True))
WIDTH = 760
CURVES = "curves.json"  # beside evaluation.json, from anchor evaluate --curve eps --out
TRIED = {"pgd-at": "orange", "trades": "green", "mart": "blue", "supcon-at": "purple", "anchor": "black"}
LINES = {"standard": "blue", "pgd-at": "orange", "trades": "green", "anchor": "black"}


def plain(method: str) -> str:
    return METHODS[method].strip("*")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def robustness() -> str:
    """A bar for each method and attack, with its interval and, where there are several, its seeds."""
    methods = found(HERE, METHODS)
    left, right, lane, gap, top = 210, WIDTH - 60, 17, 14, 66
    x = linear((0, 1), (left, right))
    attacks = measured_in(HERE)
    block = lane * len(attacks) + gap
    bottom = top + block * len(methods)
    drawn = legend(left, [(COLOURS[label], label) for label in attacks])
    drawn += vertical_grid(x, top - 8, bottom - gap + 8)
    told = []
    for place, (method, folders) in enumerate(methods.items()):
        y = top + block * place
        accuracies = {label: results_of(folders, *held) for label, held in attacks.items()}
        drawn += heading(method, folders, y + lane * len(attacks) / 2)
        for row, (label, results) in enumerate(accuracies.items()):
            drawn += bar(label, results, x, y + lane * row, lane)
        means = [f"{label} {percent(mean(results))} %" for label, results in accuracies.items() if results]
        told.append(f"{plain(method)}: {', '.join(means)}.")
    drawn.append(text(left, bottom + 26, "accuracy in %, with its 95 % interval", "muted"))
    drawn += [text(16, bottom + 48 + 16 * row, part, "muted") for row, part in enumerate(small_print())]
    height = bottom + 48 + 16 * len(small_print())
    return page(WIDTH, height, "Accuracy on CIFAR-10, clean and under attack", " ".join(told), *drawn)


def small_print() -> list[str]:
    results = {label: results_of(runs_of("anchor", HERE), *held) for label, held in measured_in(HERE).items()}
    told = [
        f"{label}: {result[0]['images']:,} images" + (f", {conventions(result[0])}" if result[0]["norm"] else "")
        for label, result in results.items()
        if result
    ]
    return textwrap.wrap("; ".join(told), 118)


def mean(results: Sequence[Mapping[str, Any]]) -> float:
    return fmean(result["accuracy"] for result in results)


def vertical_grid(x: Any, top: float, bottom: float) -> list[str]:
    marks = [share / 100 for share in range(0, 101, 20)]
    return [
        *(line(x(mark), top, x(mark), bottom, "grid") for mark in marks),
        *(text(x(mark), bottom + 14, f"{100 * mark:.0f}", "muted middle") for mark in marks),
    ]


def heading(method: str, folders: Sequence[Path], middle: float) -> list[str]:
    """The method's name, then its cost and its seeds, around a height."""
    lines = textwrap.wrap(plain(method), 24)
    passes = settle(str(folders[0] / runs.RECIPE)).passes()
    cost = f"{passes:g} pass{'es' * (passes > 1)}, {len(folders)} seed{'s' * (len(folders) > 1)}"
    top = middle - 15 * len(lines) / 2 + 4
    return [
        *(text(16, top + 15 * row, part, "bold") for row, part in enumerate(lines)),
        text(16, top + 15 * len(lines), cost, "muted"),
    ]


def bar(label: str, results: Sequence[Mapping[str, Any]], x: Any, y: float, lane: float) -> list[str]:
    if not results:
        return [text(x(0) + 6, y + lane - 5, f"{label}: not yet", "muted")]
    share, images, middle = mean(results), results[0]["images"], y + lane / 2
    low, high = wilson(share * images, images)
    drawn = [
        tag(
            "rect", kind=f"{COLOURS[label]} bar", x=x(0), y=y + 3, width=max(x(share) - x(0), 1), height=lane - 6, rx=2
        ),
        line(x(low), middle, x(high), middle, "casing"),
        line(x(low), middle, x(high), middle, "range"),
        text(max(x(high), x(share)) + 8, y + lane - 4, percent(share)),
    ]
    several = results if len(results) > 1 else ()
    return drawn + [tag("circle", kind="seed", cx=x(result["accuracy"]), cy=middle, r=2.5) for result in several]


def training() -> str:
    """Validation accuracy over the epochs, a panel for each method and a line for each seed."""
    methods = found(HERE, METHODS)
    across, panel, high, top = 3, (WIDTH - 32) / 3, 190, 70
    validation = settle(str(runs_of("anchor", HERE)[0] / runs.RECIPE)).validation
    drawn = legend(46, [("blue", "clean"), ("orange", f"under PGD-{validation.steps}")])
    told = []
    for place, (method, folders) in enumerate(methods.items()):
        left, y0 = 16 + panel * (place % across), top + high * (place // across)
        metrics = [validated(folder) for folder in folders]
        drawn += course(plain(method), metrics, left, y0, panel, high)
        last = metrics[0][-1]
        told.append(
            f"{plain(method)} ends at {percent(last['validation_clean'])} % clean and "
            f"{percent(last['validation_robust'])} % under attack."
        )
    bottom = top + high * -(-len(methods) // across)
    note = f"Accuracy in % on {validation.images:,} held-out training images, epoch by epoch; a line for each seed."
    drawn.append(text(16, bottom + 12, note, "muted"))
    return page(WIDTH, int(bottom + 28), "How training goes: validation accuracy on CIFAR-10", " ".join(told), *drawn)


def validated(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in runs.read_metrics(folder) if "validation_clean" in entry]


def course(
    title: str, metrics: Sequence[Sequence[Mapping[str, Any]]], left: float, top: float, wide: float, high: float
) -> list[str]:
    """One panel: clean and robust accuracy of each seed."""
    epochs = max(entries[-1]["epoch"] for entries in metrics)
    x = linear((0, epochs), (left + 30, left + wide - 34))
    y = linear((0, 1), (top + high - 40, top + 38))
    head, *rest = textwrap.wrap(title, 29)
    drawn = [text(left + 30, top + 14, head, "bold"), *(text(left + 30, top + 29, part, "bold") for part in rest[:1])]
    drawn += shares(y, x(0), x(epochs), (0, 0.5, 1))
    for mark in (0, epochs):
        drawn.append(text(x(mark), y(0) + 16, f"{mark}" if mark else "epoch 0", "muted middle"))
    for key, colour in (("validation_clean", "blue"), ("validation_robust", "orange")):
        for seed, entries in enumerate(metrics):
            points = [(x(entry["epoch"]), y(entry[key])) for entry in entries]
            drawn.append(polyline(points, f"{colour} line" + " faint" * (seed > 0)))
        end = fmean(entries[-1][key] for entries in metrics)
        drawn.append(text(x(epochs) + 6, y(end) + 4, f"{100 * end:.0f}"))
    return drawn


def against_eps(experiment: str, title: str) -> str:
    """Accuracy under PGD-20 against the ball's radius, with intervals; empty if no run of these has a curve."""
    folders = {method: HERE / f"{experiment}-{method}" for method in LINES}
    curves = {
        method: runs.read_json(folder / CURVES)["curves"]["eps"]
        for method, folder in folders.items()
        if (folder / CURVES).exists()
    }
    if not curves:
        return ""
    left, right, top, bottom = 52, WIDTH - 110, 66, 300
    longest = max(curves.values(), key=lambda points: points[-1]["eps"])
    x = linear((0, longest[-1]["eps"]), (left, right))
    y = linear((0, 1), (bottom, top))
    drawn = shares(y, left, right)
    drawn += [text(x(point["eps"]), bottom + 18, f"{point['eps']:.3g}", "muted middle") for point in longest[::2]]
    for method, points in curves.items():
        upper = [(x(point["eps"]), y(point["interval"][1])) for point in points]
        lower = [(x(point["eps"]), y(point["interval"][0])) for point in reversed(points)]
        middle = [(x(point["eps"]), y(point["accuracy"])) for point in points]
        drawn += [polygon([*upper, *lower], f"{LINES[method]} band"), polyline(middle, f"{LINES[method]} line")]
        drawn += [tag("circle", kind=f"{LINES[method]} dot", cx=at, cy=height, r=3) for at, height in middle]
    drawn += legend(left, [(LINES[method], plain(method)) for method in curves], 150)
    norm, images = longest[0]["norm"], longest[0]["images"]
    note = f"{norm} eps; accuracy in % under PGD-20, {images:,} images, 95 % interval shaded"
    drawn.append(text(left, bottom + 42, note, "muted"))
    told = [f"{plain(method)} falls to {percent(points[-1]['accuracy'])} %." for method, points in curves.items()]
    return page(WIDTH, bottom + 58, title, " ".join(told), *drawn)


def exchange() -> str:
    """Clean against robust validation accuracy of every try with two attack steps; a line along ANCHOR's best."""
    tries: dict[str, list[tuple[float, float]]] = {}
    for record, each in search.tried(2):
        method = record["recipe"].removeprefix(f"{EXPERIMENT}-")
        tries.setdefault(method, []).append((each["validation_clean"][0], each["mean"]))
    left, right, top, bottom = 60, WIDTH - 40, 74, 350
    spans = [
        (math.floor(50 * min(values)) / 50, math.ceil(50 * max(values)) / 50)
        for values in zip(*(point for points in tries.values() for point in points), strict=True)
    ]
    x, y = linear(spans[0], (left, right)), linear(spans[1], (bottom, top))
    drawn = rows(y, left, right, {mark: f"{100 * mark:.0f}" for mark in every_second(*spans[1])})
    drawn += [text(x(mark), bottom + 18, f"{100 * mark:.0f}", "muted middle") for mark in every_second(*spans[0])]
    edge = [(x(clean), y(robust)) for clean, robust in unbeaten(tries["anchor"])]
    drawn.append(polyline(edge, f"{TRIED['anchor']} line"))
    for method, points in tries.items():
        drawn += [
            tag("circle", kind=f"{TRIED[method]} dot", cx=x(clean), cy=y(robust), r=4) for clean, robust in points
        ]
    drawn += legend(left, [(TRIED[method], plain(method)) for method in tries], 125)
    note = (
        "Every try with two attack steps, after 28 passes: % that is right clean (across) and under PGD-10 (up),",
        f"of {search.IMAGES:,} held-out training images, uncertain by 1.3. The line: ANCHOR, more and more `clean`.",
    )
    drawn += [text(left, bottom + 42 + 16 * row, part, "muted") for row, part in enumerate(note)]
    told = [
        f"{plain(method)}: "
        + ", ".join(f"{percent(clean)} clean and {percent(robust)} robust" for clean, robust in points)
        for method, points in tries.items()
    ]
    return page(WIDTH, bottom + 76, "What robustness costs: clean against robust accuracy", ". ".join(told), *drawn)


def every_second(low: float, high: float) -> list[float]:
    """Whole even percentages from one to the other."""
    return [mark / 100 for mark in range(round(100 * low), round(100 * high) + 1, 2)]


def unbeaten(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of a falling line above which no other one lies, by the first."""
    edge: list[tuple[float, float]] = []
    for x, y in sorted(points):
        while edge and (y >= edge[-1][1] or (len(edge) > 1 and below(edge[-1], edge[-2], (x, y)))):
            edge.pop()
        edge.append((x, y))
    return edge


def below(point: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> bool:
    share = (point[0] - left[0]) / (right[0] - left[0])
    return point[1] <= left[1] + share * (right[1] - left[1])


def figures() -> dict[Path, str]:
    """What is drawn, by its file."""
    drawn = {
        "robustness": robustness(),
        "training": training(),
        "exchange": exchange(),
        "losses": forms.figure(),
        "eps-cifar10": against_eps(EXPERIMENT, "Accuracy against the size of the ball: CIFAR-10"),
        "eps-digits": against_eps("digits", "Accuracy against the size of the ball: 8x8 digits"),
    }
    return {FIGURES / f"{name}.svg": content for name, content in drawn.items() if content}


def main() -> None:
    """Draw; with --check, only say whether the figures are those of the result files."""
    for path, content in figures().items():
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            runs.write_text(path, content)
        elif not path.exists() or path.read_text(encoding="utf-8") != content:
            raise SystemExit(f"{path.relative_to(ROOT)} is not what the result files say; run make results")


if __name__ == "__main__":
    main()
