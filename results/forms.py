"""Tries under two attacks on the images of the search: forms of ANCHOR beside rivals, and what strengthens it."""

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import search
from anchor_robust.intervals import wilson
from anchor_robust.report.conventions import bounds, conventions
from anchor_robust.report.paired import mcnemar, stated
from anchor_robust.report.record import read
from grid import grid
from svg import legend, line, linear, page, tag, text

Form = tuple[str, dict[str, Any], np.ndarray]  # a try's folder, its results by attack, which images hold against both

HERE = Path(__file__).resolve().parent
LOSSES = HERE / "losses"  # what these tries and some of the search hold, image by image
WIDTH = 760
ATTACKS = ("clean", "pgd20", "pgd20-margin")


@dataclass(frozen=True)
class Series:
    """Tries of which no setting was chosen, told beside the one that they vary.

    Attributes:
        folders: Where their sweeps lie, and the README in the first.
        ours: The one that the others vary.
        called: What the table says of it.
        settings: What it has, which no row says again.
    """

    folders: tuple[Path, ...]
    ours: str
    called: str
    settings: dict[str, Any]


FORMS = Series(  # and rivals
    (HERE / "forms", search.FOLDER),
    "anchor-two-steps-batch128",
    "ANCHOR at `clean` 0.25",
    search.TWO_STEPS
    | search.BATCHES
    | {
        "optimise.epochs": 7,
        "objective.views": ["clean", "adversarial"],
        "objective.contrast": 0.5,
        "objective.clean": 0.25,
        "objective.margin": 1,
        "objective.consistency": 5,
    },
)
STRENGTHENERS = Series(
    (HERE / "strengtheners",),
    "anchor-two-steps-clean05-contrast02",
    "the recipe",
    FORMS.settings | {"objective.contrast": 0.2, "objective.clean": 0.5},
)


def measured(series: Series) -> list[Form]:
    """What each record says, the try that holds most images against both attacks first."""
    found = []
    for path in sorted(LOSSES.glob("*.json")):
        if path.stem == series.ours or any((folder / path.stem).is_dir() for folder in series.folders):
            record, outcomes = read(path)
            results = {result["attack"]: result for result in record["results"]}
            found.append((path.stem, results, outcomes["held_pgd20"] & outcomes["held_pgd20-margin"]))
    return sorted(found, key=lambda form: -form[2].sum())


def table(series: Series) -> str:
    """A row a try; against the one that they vary, image by image, by what holds against both attacks."""
    headings = ("recipe", "settings", "clean", "PGD-20", "CW-PGD-20", "both", f"both: {series.called} alone")
    rows = []
    ours = next(both for name, _, both in measured(series) if name == series.ours)
    for name, results, both in measured(series):
        shares = [*(results[attack]["accuracy"] for attack in ATTACKS), both.mean()]
        told = [f"{100 * share:.1f} {bounds(wilson(share * search.IMAGES, search.IMAGES))}" for share in shares]
        alone = int((ours & ~both).sum()), int((both & ~ours).sum())
        paired = "" if name == series.ours else f"{alone[0]} : {alone[1]} ({stated(mcnemar(*alone))})"
        rows.append([*tried(name, series), *told, paired])
    said = "; ".join(f"{results[attack]['label']}: {conventions(results[attack])}" for attack in ATTACKS[1:])
    note = (
        f"Accuracy in % on {search.IMAGES:,} held-out training images; both: what holds against each of the two "
        f"attacks, and what of it {series.called} alone : the row alone holds, with McNemar's exact test. {said}."
    )
    return grid(headings, rows, note, words=2)


def figure() -> str:
    """What each form holds under the two attacks; what lies between them is what the cross-entropy does not see."""
    found = measured(FORMS)
    left, right, top, lane = 460, WIDTH - 40, 92, 26
    bottom = top + lane * len(found)
    shares = [results[attack]["accuracy"] for _, results, _ in found for attack in ATTACKS[1:]]
    ends = (math.floor(100 * min(shares)), math.ceil(100 * max(shares)))
    x = linear((ends[0] / 100, ends[1] / 100), (left, right))
    drawn = legend(300, [("black", "CW-PGD-20, on the margin"), ("orange", "PGD-20, on the cross-entropy")], 210)
    for mark in range(ends[0], ends[1] + 1, 2):
        drawn += [
            line(x(mark / 100), top - 12, x(mark / 100), bottom, "grid"),
            text(x(mark / 100), bottom + 16, f"{mark}", "muted middle"),
        ]
    told = []
    for row, (name, results, _) in enumerate(found):
        y, (pgd, cw) = top + lane * row, (results[attack]["accuracy"] for attack in ATTACKS[1:])
        words = " ".join(tried(name, FORMS)).removeprefix("cifar10-resnet8-").strip()
        shown = textwrap.wrap(words, 58)
        drawn += [text(16, y + 4 + 14 * (at - (len(shown) - 1) / 2), part) for at, part in enumerate(shown)]
        drawn.append(line(x(cw), y, x(pgd), y, "range"))
        drawn += [
            tag("circle", kind=f"{kind} dot", cx=x(at), cy=y, r=4) for kind, at in (("black", cw), ("orange", pgd))
        ]
        told.append(f"{words}: {100 * pgd:.1f} % under PGD-20, {100 * cw:.1f} % under CW-PGD-20.")
    note = (
        f"Accuracy in % on {search.IMAGES:,} held-out training images, uncertain by 1.3; most under both attacks above."
    )
    drawn.append(text(16, bottom + 40, note, "muted"))
    return page(WIDTH, bottom + 56, "The same networks under two losses", " ".join(told), *drawn)


def tried(name: str, series: Series) -> tuple[str, str]:
    """Recipe of a try, and what it has that the one they vary has not."""
    folder = next(where / name for where in (*series.folders, search.FOLDER) if (where / name).is_dir())
    (one,) = search.combinations(folder)
    return one[0]["recipe"], search.words(one, series.settings)
