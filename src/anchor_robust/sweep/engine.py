"""The runs of a sweep, one after another: which are done, which go on, which start, which fail, and the table.

No test image is ever touched. Every run is a directory of its own, named by what was swept; the same command goes on
where it was stopped, and a larger grid keeps the runs that are done.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from .. import checkpoint, data, runs, train
from ..display import Display
from ..errors import Refusal, one_line
from ..recipe import Recipe, as_mapping, merge, settle
from ..report.dotted import flat, short
from ..report.ranking import ranked, sheet
from ..settings import from_yaml, scalar
from . import axes
from .axes import Axis, Point

RECORD, TABLE = "sweep.json", "sweep.md"
SCHEMA = 1


@dataclass(frozen=True)
class Planned:
    """One run that is to be: its directory's name, what was swept, and all its settings."""

    name: str
    point: Point
    recipe: Recipe


@dataclass
class Sweep:
    """What was asked, and in `found` what came of each run by its name.

    `identity` tells one sweep from another: values, seeds, tries and ranges may change from one command to the next.
    What was done `before` and is not asked for again, or not yet, stays in the record.
    """

    source: str
    settings: Sequence[str]
    seeds: int
    out: Path
    data_dir: str | None
    display: Display
    identity: dict[str, Any]
    selects_on: str
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, dict[str, Any]] = field(default_factory=dict)

    def planned(self, point: Point) -> list[Planned]:
        """The runs of one combination: one a seed."""
        return [
            Planned(f"{label(point)},seed={seed}", point, settled(self.source, self.settings, point, seed))
            for seed in range(self.seeds)
        ]

    def recall(self) -> None:
        """Note what the directory's record knows of finished runs that are still there; refuse other recipes' runs."""
        held = runs.read_json(self.out / RECORD)["runs"] if (self.out / RECORD).exists() else []
        for run in held:
            if "failed" not in run and (self.out / run["run"] / runs.METRICS).exists():
                point = {key: scalar(value) for key, value in run["settings"].items()}
                check_same(self.out / run["run"], settled(self.source, self.settings, point, run["seed"]))
                self.before[run["run"]] = run

    def take_stock(self, points: Sequence[Point]) -> None:
        """Refuse directories that hold runs of other recipes, and note what is done already."""
        plan = [run for point in points for run in self.planned(point)]
        for run in plan:
            check_same(self.out / run.name, run.recipe)
        for run in plan:
            if finished(self.out / run.name, run.recipe):
                self.found[run.name] = trained(self.out, run, self.data_dir, self.display)

    def visit(self, point: Point) -> float | None:
        """Train at `point` with every seed; the mean validation accuracy over them, None if one failed."""
        try:
            plan = self.planned(point)
        except Refusal as refusal:  # each setting of a search is allowed, not every combination that it draws
            self.refused(point, one_line(refusal))
            return None
        for run in plan:
            if run.name not in self.found:
                self.found[run.name] = trained(self.out, run, self.data_dir, self.display)
                self.write()
        found = [self.found[run.name] for run in plan]
        failed = any("failed" in run for run in found)
        return None if failed else mean(run[f"validation_{self.selects_on}"] for run in found)

    def refused(self, point: Point, why: str) -> None:
        settings = {key: from_yaml(value) for key, value in point.items()}
        for seed in range(self.seeds):
            name = f"{label(point)},seed={seed}"
            self.found[name] = {"run": name, "settings": settings, "seed": seed, "failed": why}
        self.display.line(f"failed: {label(point)}: {why}")
        self.write()

    def known(self) -> list[dict[str, Any]]:
        return list((self.before | self.found).values())

    def write(self) -> dict[str, Any]:
        """Put all that is known by now into sweep.json and sweep.md."""
        record = {
            "schema": SCHEMA,
            **self.identity,
            "selects_on": self.selects_on,
            "combinations": ranked(self.known(), self.selects_on),
            "runs": self.known(),
        }
        runs.write_json(self.out / RECORD, record)
        runs.write_text(self.out / TABLE, "\n".join(sheet(record).markdown()) + "\n")
        return record


def sweep(
    source: str,
    over: Sequence[str],
    *,
    settings: Sequence[str] = (),
    seeds: int = 3,
    tries: int | None = None,
    out: Path | None = None,
    data_dir: str | None = None,
    display: Display,
) -> tuple[dict[str, Any], Path]:
    """Train the recipe `source` at every combination of `over` (KEY=VALUES), or at `tries` that a search picks.

    Each combination is trained with seeds 0 to `seeds` - 1. Returns what sweep.json holds, and the directory. Raises
    Refusal before the first run for whatever no run could start with, and KeyboardInterrupt with all state saved; a
    run that is refused or diverges later is recorded with its reason, and the others go on.
    """
    for option, value in (("--seeds", seeds), ("--tries", tries)):
        if value is not None and value < 1:
            raise Refusal(f"{option} {value} given; allowed: 1 or more")
    swept = axes.parse(over, settings, search=tries is not None)
    name = settled(source, settings, axes.corners(swept)[0], 0).name
    out = out or Path("runs") / f"sweep-{name}"
    swept = as_before(out, swept)
    points = axes.grid(swept) if tries is None else axes.corners(swept)
    recipes = [settled(source, settings, point, 0) for point in points]
    asked = Sweep(
        source,
        settings,
        seeds,
        out,
        data_dir,
        display,
        {"recipe": name, "settings": merge({}, settings), "swept": [axis.key for axis in swept]},
        "robust" if any(recipe.objective.selects_on == "robust" for recipe in recipes) else "clean",
    )
    check_distinct(points, recipes)
    if tries is not None:
        axes.optional_optuna()
    images = {name: data.load(name, "train", data_dir) for name in {recipe.data.name for recipe in recipes}}
    for recipe in recipes:
        train.check_fits(recipe, images[recipe.data.name])
    claim(asked.out, asked.identity)
    with runs.alone(asked.out):
        asked.recall()
        if tries is None:
            asked.take_stock(points)
        count, kind = (len(points), "combinations") if tries is None else (tries, "tries")
        display.line(f"{asked.out}: {count} {kind} x {seeds} seeds = {count * seeds} runs")
        asked.write()
        try:
            if tries is None:
                for point in points:
                    asked.visit(point)
            else:
                axes.search(swept, whole_numbers(swept, recipes[0]), tries, asked.visit)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped after {len(asked.known())} runs; the same anchor sweep command goes on"
            ) from None
        return asked.write(), asked.out


def as_before(out: Path, swept: Sequence[Axis]) -> list[Axis]:
    """The axes in the order of the sweep that `out` holds, if it has the same: runs are named in that order."""
    held = runs.read_json(out / RECORD).get("swept", []) if (out / RECORD).exists() else []
    same = sorted(held) == sorted(axis.key for axis in swept)
    return sorted(swept, key=lambda axis: held.index(axis.key)) if same else list(swept)


def settled(source: str, settings: Sequence[str], point: Point, seed: int) -> Recipe:
    return settle(source, [*settings, *(f"--{key}={value}" for key, value in point.items()), f"--seed={seed}"])


def whole_numbers(swept: Sequence[Axis], recipe: Recipe) -> list[str]:
    """The swept settings of `recipe` that are counted, such as steps."""
    held = flat(as_mapping(recipe))
    return [axis.key for axis in swept if isinstance(held[axis.key], int)]


def label(point: Point) -> str:
    """`hardness=2,contrast=0.3`, in characters that every shell and file system takes."""
    return ",".join(f"{key}={safe(value)}" for key, value in zip(short(list(point)), point.values(), strict=True))


def safe(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", value.strip("[]'\""))


def check_distinct(points: Sequence[Point], recipes: Sequence[Recipe]) -> None:
    """Refuse a grid that holds one recipe twice, or two under one name."""
    seen: dict[str, Point] = {}
    for point, recipe in zip(points, recipes, strict=True):
        for same in (label(point), recipe.text()):
            if same in seen:
                raise Refusal(
                    f"--over gives one run twice, as {spelled(seen[same])} and {spelled(point)}; drop one of them"
                )
        seen |= {label(point): point, recipe.text(): point}


def spelled(point: Point) -> str:
    return " ".join(f"{key}={value}" for key, value in point.items())


def claim(out: Path, identity: dict[str, Any]) -> None:
    """Make the sweep's directory, or refuse one that holds something else."""
    if not (out / RECORD).exists():
        runs.create(out)
        return
    held = runs.read_json(out / RECORD)
    for key, value in identity.items():
        if held.get(key) != value:
            raise Refusal(
                f"{out} holds another sweep ({key}: {held.get(key)}, not {value}); name a new directory with --out"
            )


def check_same(run: Path, recipe: Recipe) -> None:
    """Refuse a run directory that holds the run of another recipe."""
    if not (run / runs.RECIPE).exists():
        return
    held, asked = (flat(as_mapping(each)) for each in (settle(str(run / runs.RECIPE)), recipe))
    other = [key for key in held | asked if held.get(key) != asked.get(key)]
    if other:
        raise Refusal(f"{run} holds a run of another recipe ({', '.join(other)} differ); name another --out")


def trained(out: Path, run: Planned, data_dir: str | None, display: Display) -> dict[str, Any]:
    """Bring one run to its end, from wherever it stands, and say what came of it."""
    directory = out / run.name
    settings = {key: flat(as_mapping(run.recipe))[key] for key in run.point}
    facts = {
        "run": run.name,
        "settings": json.loads(json.dumps(settings)),  # as sweep.json will give them back: a tuple is a list there
        "seed": run.recipe.seed,
    }
    check_same(directory, run.recipe)
    try:
        if finished(directory, run.recipe):
            display.line(f"done before: {directory}")
        else:
            go_on(directory, run.recipe, data_dir, display)
        return facts | outcome(directory, run.recipe)
    except Exception as error:  # out of memory, or a fault of the user's own objective: the others go on
        told = one_line(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {one_line(error)}"
        display.line(f"failed: {run.name}: {told}")
        return facts | {"failed": told}


def finished(directory: Path, recipe: Recipe) -> bool:
    """Whether the log has the last epoch, whose weights are kept before it is written."""
    return any(line["epoch"] == recipe.optimise.epochs for line in runs.read_metrics(directory))


def go_on(directory: Path, recipe: Recipe, data_dir: str | None, display: Display) -> None:
    if (directory / runs.LAST).exists():
        train.resume(directory, data_dir, display)
        return
    if directory.is_dir():
        # A kill while the run began: what it left holds no training.
        runs.clear_partial(directory)
        for name in (runs.RECIPE, runs.ENVIRONMENT):
            (directory / name).unlink(missing_ok=True)
    train.start(recipe, directory, data_dir, display)


def outcome(directory: Path, recipe: Recipe) -> dict[str, Any]:
    """Epoch and validation accuracies of the kept weights, as these say themselves, and what the run cost."""
    lines = runs.read_epochs(directory)
    header, _ = checkpoint.read_weights(directory / runs.WEIGHTS)
    return {
        **header["validation"],
        "validation_images": recipe.validation.images,
        "images_seen": lines[-1]["step"] * recipe.optimise.batch_size,
        "seconds": lines[-1]["seconds"],
    }
