"""Charts as Plotly figures in plain JSON; colours of the page around them come when it is drawn.

Plotly reads texts as a little HTML of its own, so every word that is not ours goes through `plain`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np

from ..sheet import Sheet

Facts = Mapping[str, Any]
Figure = dict[str, Any]
# Readable on white and on nearly black alike: luminance between 0.13 and 0.3.
COLOURS = (
    *("#3b82f6", "#e8710a", "#1e9e5a", "#d6409f", "#8b6cef"),
    *("#0e9aa7", "#e5484d", "#a1752b", "#7a7f87", "#5b5bd6"),
)
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}  # tags and, between dollars, formulas
GREY = "#7a7f87"
LONGEST = 24  # characters of a name on an axis; tables have all of them


@dataclass(frozen=True)
class Chart:
    """A figure, what it says in a sentence, and its numbers as a table for those who cannot see it."""

    title: str
    says: str
    figure: Figure
    numbers: Sheet


@dataclass(frozen=True)
class Line:
    """Values over x; `low` and `high` bound them where they are measured with an interval."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: str = ""
    legend: bool = True


def plain(text: object, longest: int = LONGEST) -> str:
    """`text` for Plotly, which is to show and not to interpret it; where it is too long for an axis, its middle is cut.

    Names of one sweep begin alike, and those of one data set's classes may.
    """
    words = " ".join(str(text).split())
    kept = longest - 1
    short = words if len(words) <= longest else f"{words[: kept - kept // 2]}…{words[len(words) - kept // 2 :]}"
    for character, entity in ENTITIES.items():
        short = short.replace(character, entity)
    return short


def colours(count: int) -> list[str]:
    return list(islice(cycle(COLOURS), count))


def percents(fractions: Iterable[float]) -> list[float]:
    return [100 * fraction for fraction in fractions]


def percent_axis() -> Figure:
    return {"title": {"text": "accuracy in %"}, "rangemode": "tozero", "automargin": True}


def lines(drawn: Sequence[Line], x: Figure, y: Figure, height: int = 300) -> Figure:
    """Lines with markers and, where there are intervals, bars of error."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(line.name, 40),
            "x": list(line.x),
            "y": list(line.y),
            "line": {"color": line.colour or colour, "width": 2},
            "marker": {"size": 5},
            "showlegend": line.legend,
            "hovertemplate": "%{x:.4~g}: %{y:.4~g}<extra>" + plain(line.name, 40) + "</extra>",
            **error_bars("y", line, line.colour or colour),
        }
        for line, colour in zip(drawn, colours(len(drawn)), strict=True)
    ]
    legend = sum(line.legend for line in drawn) > 1
    layout = {"xaxis": {"automargin": True} | x, "yaxis": y, "height": height, "showlegend": legend}
    return {"data": traces, "layout": layout}


def error_bars(axis: str, line: Line, colour: str) -> Figure:
    if not line.low:
        return {}
    above = [high - y for y, high in zip(line.y, line.high, strict=True)]
    below = [y - low for y, low in zip(line.y, line.low, strict=True)]
    looks = {"thickness": 1, "width": 3, "color": colour}
    return {f"error_{axis}": {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **looks}}


def bars(names: Sequence[str], groups: Sequence[Line]) -> Figure:
    """Groups of horizontal bars, a group of them for each name from above; x of a line is not used."""
    places = list(range(len(names)))
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(group.name, 40),
            "x": list(group.y),
            "y": places,
            "marker": {"color": colour},
            "hovertemplate": "%{customdata}: %{x:.1f} %<extra>" + plain(group.name, 40) + "</extra>",
            "customdata": [plain(name, 60) for name in names],
            **error_bars("x", group, GREY),
        }
        for group, colour in zip(groups, colours(len(groups)), strict=True)
    ]
    # Places and not names: two long names may look alike once they are cut.
    ticks = {"tickvals": places, "ticktext": [plain(name) for name in names]}
    return {
        "data": traces,
        "layout": {
            "barmode": "group",
            "bargap": 0.25,
            "xaxis": percent_axis() | {"range": [0, 100]},
            "yaxis": {"autorange": "reversed", "automargin": True, "ticklabelstandoff": 4, **ticks},
            "height": 120 + len(names) * max(22, 14 * len(groups)),
        },
    }


def heatmap(counts: np.ndarray, names: Sequence[str], shown: bool) -> Figure:
    """Of each true class (a row), the share that gets each answer; counts [k k], written into cells if `shown`."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    places = list(range(len(names)))
    ticks = {"tickvals": places, "ticktext": [plain(name, 12) for name in names], "automargin": True}
    trace = {
        "type": "heatmap",
        "z": (100 * shares).round(2).tolist(),
        "customdata": [
            [f"{plain(true, 60)} answered as {plain(said, 60)}: {counts[i, j]}" for j, said in enumerate(names)]
            for i, true in enumerate(names)
        ],
        "hovertemplate": "%{customdata} (%{z:.1f} %)<extra></extra>",
        "coloraxis": "coloraxis",
        "xgap": 1,
        "ygap": 1,
    }
    if shown:
        trace |= {"text": counts.tolist(), "texttemplate": "%{text}"}
    return {
        "data": [trace],
        "layout": {
            "xaxis": {"title": {"text": "answered", "standoff": 10}, "tickangle": -45, **ticks},
            "yaxis": {"title": {"text": "true", "standoff": 10}, "autorange": "reversed", **ticks},
            "coloraxis": {"cmin": 0, "cmax": 100, "showscale": False},
            "height": min(640, 190 + 30 * len(names)),
        },
    }


def intervals(rows: Sequence[str], points: Sequence[Line]) -> Figure:
    """Accuracies in % with their intervals, a row for each method; x of a point are the rows that it has."""
    places = list(range(len(rows)))
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plain(point.name, 40),
            "x": list(point.y),
            "y": list(point.x),
            "marker": {"size": 10, "color": colour},
            "cliponaxis": False,
            "hovertemplate": "%{x:.2f} %<extra>" + plain(point.name, 40) + "</extra>",
            **error_bars("x", point, colour),
        }
        for point, colour in zip(points, colours(len(points)), strict=True)
    ]
    ticks = {"tickvals": places, "ticktext": [plain(row, 32) for row in rows]}
    return {
        "data": traces,
        "layout": {
            "xaxis": percent_axis() | {"range": [0, 100]},
            "yaxis": {"range": [len(rows) - 0.5, -0.5], "automargin": True, "ticklabelstandoff": 8, **ticks},
            "height": 150 + 44 * len(rows),
        },
    }
