"""Sweeps: what is typed, what is trained and in which order, what a stop, a failure and a larger grid change."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from anchor_robust import checkpoint, data, runs, train
from anchor_robust.cli import main
from anchor_robust.display import Display
from anchor_robust.intervals import wilson
from anchor_robust.recipe import settle
from anchor_robust.report.ranking import ranked
from anchor_robust.settings import scalar
from anchor_robust.sweep import axes, engine

STEPS = 2
SMALL = (
    *("--optimise.epochs=1", "--optimise.batch_size=512", "--model.width=2"),
    *("--validation.images=100", "--validation.every=1", "--validation.steps=1"),
)
OVER = ("--over", "optimise.lr=0.05,0.2", "--over", "optimise.label_smoothing=0.1")


def sweeping(out: Path, *more: str, over: tuple[str, ...] = OVER, seeds: int = 2) -> int:
    return main(["sweep", "digits-standard", *over, "--seeds", str(seeds), "--out", str(out), *SMALL, *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "sweep"
    assert sweeping(out) == 0
    return out


def record_of(out: Path) -> dict[str, Any]:
    return runs.read_json(out / "sweep.json")


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.is_dir())


NAMES = [f"lr={lr},label_smoothing=0.1,seed={seed}" for lr in (0.05, 0.2) for seed in (0, 1)]


# What is typed.

values = st.one_of(st.integers(-9, 9), st.floats(-5, 5).map(lambda v: round(v, 3)), st.booleans(), st.just("clean"))


@given(st.lists(st.one_of(values, st.lists(values, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_values_are_split_as_yaml_splits_them(listed: list[Any]) -> None:
    parsed = axes.axis(f"section.key={','.join(scalar(value) for value in listed)}")
    assert (parsed.key, parsed.scale) == ("section.key", "values")
    assert [yaml.safe_load(value) for value in parsed.values] == listed


@pytest.mark.parametrize(
    "typed, values, scale",
    [
        ("0.1..1", ("0.1", "1"), "linear"),
        ("log:1e-4..1e-1", ("1e-4", "1e-1"), "log"),
        ("1/255..8/255", ("1/255", "8/255"), "linear"),
        ("-2..-1", ("-2", "-1"), "linear"),
        (".5..1.5", (".5", "1.5"), "linear"),
        ("../there,here", ("../there", "here"), "values"),
    ],
)
def test_ranges(typed: str, values: tuple[str, ...], scale: str) -> None:
    assert axes.axis(f"key={typed}") == axes.Axis("key", values, scale)


def test_grid_and_corners() -> None:
    swept = [axes.Axis("a", ("1", "2")), axes.Axis("b", ("3", "4"))]
    assert axes.grid(swept) == [{"a": a, "b": b} for a, b in ("13", "14", "23", "24")]
    assert axes.corners(swept) == [{"a": a, "b": b} for a, b in ("13", "23", "14")]


def test_names_are_readable_and_safe() -> None:
    assert engine.label({"objective.hardness": "2", "objective.views": "[clean, adversarial]"}) == (
        "hardness=2,views=clean-adversarial"
    )
    assert engine.label({"attack.steps": "1", "validation.steps": "2"}) == "attack.steps=1,validation.steps=2"
    assert engine.label({"objective.name": "own.Method", "threat.eps": "8/255", "x.y": "-0.5"}) == (
        "objective.name=own.Method,eps=8-255,y=-0.5"
    )


WRONG: dict[str, tuple[str, ...]] = {
    "": ("nothing to sweep", "--over"),
    "--over optimise.lr": ("optimise.lr", "value,value"),
    "--over optimise.lr=": ("optimise.lr=", "value,value"),
    "--over optimise.lr=1,,2": ("1,,2", "commas"),
    "--over optimise.lr={{a:1}}": ("{a:1}",),
    "--over optimise.lrr=1,2": ("optimise.lrr", "did you mean lr"),
    "--over optimise.lr=0.1,fast": ("optimise.lr", "fast"),
    "--over optimise.lr=0.1,0.10": ("optimise.lr=0.1", "drop one"),
    "--over optimise.lr=1,1.0": ("twice", "optimise.lr=1.0"),
    "--over optimise.lr=0.1..1": ("range", "--tries"),
    "--over optimise.lr=0.1,1 --over optimise.lr=2": ("2 times",),
    "--over optimise.lr=0.1,1 --optimise.lr 2": ("one of the two",),
    "--over optimise.lr=0.1,1 --optimise.lrr 2": ("optimise.lrr",),
    "--over optimise.lr=0.1,1 --seed 3": ("--seed 3", "--seeds"),
    "--over seed=1,2": ("seed", "--seeds"),
    "--over name=a,b": ("name",),
    "--over optimise.lr=0.1,1 --seeds 0": ("--seeds 0",),
    "--over optimise.lr=0.1..1 --tries 0": ("--tries 0",),
    "--over optimise.lr=1..0.1 --tries 2": ("lower end",),
    "--over optimise.lr=log:0..1 --tries 2": ("above 0",),
    "--over optimise.lr=1e..2 --tries 2": ("range of numbers",),
    "--over data.crop=0.5..2 --tries 2": ("data.crop", "0.5"),
    "--over data.crop=1,8": ("data.crop 8", "8 pixels"),
    "--over optimise.batch_size=64,5000": ("optimise.batch_size 5000",),
    "--over optimise.lr=0.1,1 --out {tmp}": ("not empty",),
    "--over optimise.lr=0.1,1 --out {tmp}/file": ("is a file",),
    "--over optimise.lr=0.1,1 --data.name cifar10 --data-dir {tmp}": ("no CIFAR-10",),
    "--over threat.eps=0.1,0.2": ("threat.eps", "how hard the validation is"),
    "--over validation.steps=1,20": ("validation.steps", "how hard the validation is"),
    "--over optimise.lr=0.1,1 --out {whole} {small}": ("another sweep", "swept"),
    "--over optimise.lr=0.1,1 --over optimise.label_smoothing=0.1 --out {whole}": ("another sweep", "settings"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_cannot_be_swept_is_said_in_one_line_before_the_first_run(
    typed: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert (
        main(["sweep", "digits-standard", *typed.format(tmp=tmp_path, whole=whole, small=" ".join(SMALL)).split()]) == 2
    )
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    for word in WRONG[typed]:
        assert word in told.err
    assert sorted(tmp_path.rglob("*")) == before


# What is trained.


def test_a_grid_trains_every_combination_with_every_seed(whole: Path) -> None:
    assert names(whole) == sorted(NAMES)
    for name in NAMES:
        lr, smoothing, seed = (float(part.split("=")[1]) for part in name.split(","))
        expected = settle("digits-standard", [*SMALL, f"--optimise.lr={lr}", f"--optimise.label_smoothing={smoothing}"])
        held = settle(str(whole / name / runs.RECIPE))
        assert (held.optimise, held.seed) == (expected.optimise, seed)


def test_the_record_says_what_the_runs_say(whole: Path) -> None:
    record = record_of(whole)
    assert record["selects_on"] == "clean"
    assert [run["run"] for run in record["runs"]] == NAMES
    for run in record["runs"]:
        (line,) = runs.read_metrics(whole / run["run"])
        assert run["images_seen"] == STEPS * 512
        assert run["validation_images"] == 100
        for key in ("epoch", "validation_clean", "validation_robust", "seconds"):
            assert run[key] == line[key]
    for combination in record["combinations"]:
        accuracies = [r["validation_clean"] for r in record["runs"] if r["settings"] == combination["settings"]]
        assert combination["mean"] == pytest.approx(mean(accuracies))
        assert combination["deviation"] == pytest.approx(stdev(accuracies))
        assert combination["interval"] == pytest.approx(wilson(100 * mean(accuracies), 100))
    means = [combination["mean"] for combination in record["combinations"]]
    assert means == sorted(means, reverse=True)
    table = (whole / "sweep.md").read_text()
    assert table.index("| lr=0.05") > 0 < table.index("| lr=0.2")
    assert "100 validation images" in table


def test_the_kept_epoch_counts_not_the_last(tmp_path: Path) -> None:
    recipe = settle("digits-standard", ["--optimise.epochs=3"])
    for epoch, clean in enumerate((0.5, 0.7, 0.7), start=1):
        line = {"step": 10 * epoch, "epoch": epoch, "validation_clean": clean, "validation_robust": 1 - clean}
        assert not engine.finished(tmp_path, recipe)
        runs.append_metrics(tmp_path, line | {"seconds": float(epoch)})
    assert engine.finished(tmp_path, recipe)
    kept = {"epoch": 2, "validation_clean": 0.7, "validation_robust": 0.3}
    save_file({"w": torch.zeros(1)}, tmp_path / runs.WEIGHTS, {checkpoint.HEADER: json.dumps({"validation": kept})})
    found = engine.outcome(tmp_path, recipe)
    assert (found["epoch"], found["validation_clean"], found["seconds"]) == (2, 0.7, 3.0)
    assert found["images_seen"] == 30 * recipe.optimise.batch_size


def test_no_test_image_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, load = set(), data.load
    monkeypatch.setattr(data, "load", lambda name, split, folder=None: asked.add(split) or load(name, split, folder))
    assert sweeping(tmp_path / "sweep", over=("--over", "optimise.lr=0.1"), seeds=1) == 0
    assert asked == {"train"}


def same_weights(first: Path, second: Path) -> bool:
    one, two = (load_file(run / runs.WEIGHTS) for run in (first, second))
    return all(bool((one[name] == two[name]).all()) for name in one)


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_a_stopped_sweep_goes_on_to_the_same_weights(
    how: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, step, taken = tmp_path / "sweep", train.loop.step, []

    def stopped(training: train.Training, *rest: Any) -> Any:
        taken.append(training.run.name)
        if len(taken) == 2 * STEPS + 2:  # the last step of the third run
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "step", stopped)
        if how == "kill":
            with pytest.raises(Killed):
                sweeping(out)
        else:
            assert sweeping(out) == 130
    if how == "interrupt":
        assert "the same anchor sweep command goes on" in capsys.readouterr().err
    assert names(out) == sorted(NAMES[:3])
    assert [run["run"] for run in record_of(out)["runs"]] == NAMES[:2]
    done = {path: path.stat().st_mtime_ns for name in NAMES[:2] for path in (out / name).iterdir()}
    assert sweeping(out) == 0
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    assert all(same_weights(out / name, whole / name) for name in NAMES)
    assert [run["validation_clean"] for run in record_of(out)["runs"]] == [
        run["validation_clean"] for run in record_of(whole)["runs"]
    ]


def test_a_stop_does_not_forget_what_comes_later(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "sweep"))
    shutil.rmtree(out / NAMES[0])

    def interrupted(*asked: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "start", interrupted)
    assert sweeping(out) == 130
    assert [run["run"] for run in record_of(out)["runs"]] == NAMES[1:]


def test_a_kill_while_a_run_began_loses_nothing(tmp_path: Path) -> None:
    out, over = tmp_path / "sweep", ("--over", "optimise.lr=0.1")
    assert sweeping(out, over=over, seeds=1) == 0
    (run,) = (out / name for name in names(out))
    for name in (runs.LAST, runs.METRICS, runs.WEIGHTS):
        (run / name).unlink()
    (run / f".{runs.ENVIRONMENT}.1.partial").touch()
    assert sweeping(out, over=over, seeds=1) == 0
    assert (run / runs.WEIGHTS).exists()
    assert "failed" not in record_of(out)["runs"][0]


def test_a_larger_grid_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, started, start = tmp_path / "sweep", [], train.start
    assert sweeping(out, over=("--over", "optimise.lr=0.1"), seeds=1) == 0
    monkeypatch.setattr(
        train, "start", lambda recipe, run, *rest: started.append(run.name) or start(recipe, run, *rest)
    )
    assert sweeping(out, over=("--over", "optimise.lr=0.1,0.2"), seeds=2) == 0
    assert started == ["lr=0.1,seed=1", "lr=0.2,seed=0", "lr=0.2,seed=1"]
    recipe = out / "lr=0.1,seed=0" / runs.RECIPE
    recipe.write_text(recipe.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    capsys.readouterr()
    assert sweeping(out, over=("--over", "optimise.lr=0.1,0.2"), seeds=2) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "lr=0.1,seed=0" in told
    assert "optimise.momentum" in told


def test_other_values_and_fewer_seeds_keep_what_is_known(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "sweep"))
    other = ("--over", "optimise.lr=0.1", "--over", "optimise.label_smoothing=0.1")
    assert sweeping(out, over=other, seeds=1) == 0
    assert {run["run"] for run in record_of(out)["runs"]} == {*NAMES, "lr=0.1,label_smoothing=0.1,seed=0"}
    assert [len(each["seeds"]) for each in record_of(out)["combinations"]].count(2) == 2
    shutil.rmtree(out / NAMES[0])
    recipe = out / NAMES[1] / runs.RECIPE
    recipe.write_text(recipe.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    capsys.readouterr()
    assert sweeping(out, over=other, seeds=1) == 2
    assert f"{NAMES[1]} holds a run of another recipe (optimise.momentum" in capsys.readouterr().err


def test_the_order_of_the_axes_is_that_of_the_first_command(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "sweep"))
    assert sweeping(out, over=(*OVER[2:], *OVER[:2])) == 0
    assert (names(out), record_of(out)) == (NAMES, record_of(whole))


def test_a_run_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    assert sweeping(out, over=("--over", "optimise.lr=1e30,0.1"), seeds=1) == 2
    failed, done = record_of(out)["runs"]
    assert "lower optimise.lr" in failed["failed"]
    assert done["validation_clean"] > 0
    assert [each["failed"] for each in record_of(out)["combinations"]] == [[], [0]]
    told = capsys.readouterr()
    assert "1 of 2 runs failed" in told.err.splitlines()[-1]
    for place in (told.out, (out / "sweep.md").read_text()):
        assert "failed: lr=1.0e+30,seed=0" in place
    assert "next: anchor evaluate" in told.out
    assert sweeping(tmp_path / "none", over=("--over", "optimise.lr=1e30"), seeds=1) == 2
    assert "next:" not in capsys.readouterr().out


def test_what_runs_out_of_memory_does_not_take_the_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, start = tmp_path / "sweep", train.start

    def narrow(recipe: Any, run: Path, *rest: Any) -> Path:
        if recipe.optimise.lr == 0.2:
            raise MemoryError("no room")
        return start(recipe, run, *rest)

    monkeypatch.setattr(train, "start", narrow)
    assert sweeping(out, over=("--over", "optimise.lr=0.2,0.1"), seeds=1) == 2
    failed, done = record_of(out)["runs"]
    assert failed["failed"] == "MemoryError: no room"
    assert done["validation_clean"] > 0


def test_a_combination_with_a_failed_seed_ranks_last() -> None:
    def run(h: int, seed: int, robust: float) -> dict[str, Any]:
        told = {"validation_robust": robust, "validation_clean": 0.9, "epoch": 1, "seconds": 1, "validation_images": 50}
        return {"run": "r", "settings": {"h": h}, "seed": seed, **told}

    broken = {"run": "r", "settings": {"h": 1}, "seed": 1, "failed": "diverged"}
    order = ranked([run(1, 0, 0.9), broken, run(2, 0, 0.3), run(2, 1, 0.5), run(3, 0, 0.6), run(3, 1, 0.4)], "robust")
    assert [each["settings"]["h"] for each in order] == [3, 2, 1]
    assert order[0]["deviation"] == pytest.approx(stdev((0.6, 0.4)))


# Search.

SPACE = [
    axes.Axis("lr", ("0.01", "1"), "log"),
    axes.Axis("width", ("2", "9"), "linear"),
    axes.Axis("views", ("[a, b]", "[c]")),
]


def picked(tries: int, score: Any = lambda point: -abs(float(point["lr"]) - 0.1)) -> list[dict[str, str]]:
    points: list[dict[str, str]] = []
    axes.search(SPACE, ["width"], tries, lambda point: points.append(point) or score(point))
    return points


def test_a_search_draws_inside_its_space_and_again_the_same() -> None:
    first = picked(25)
    assert first[:12] == picked(12), "more tries begin with the same ones"
    for point in first:
        assert list(point) == ["lr", "width", "views"]
        assert 0.01 <= float(point["lr"]) <= 1
        assert int(point["width"]) in range(2, 10)
        assert point["views"] in ("[a, b]", "[c]")
    assert {point["views"] for point in first} == {"[a, b]", "[c]"}


def test_a_search_learns_from_scores_and_survives_failures() -> None:
    near = [abs(float(point["lr"]) - 0.1) for point in picked(40)]
    assert mean(near[20:]) < mean(near[:10])
    assert len(picked(12, lambda point: None if point["views"] == "[c]" else 0.5)) == 12


def test_a_search_by_hand_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, started, start = tmp_path / "sweep", [], train.start
    over = ("--over", "optimise.lr=log:0.01..1", "--over", "optimise.batch_size=256..512")
    fixed = [word for word in SMALL if "batch_size" not in word]

    def searching(tries: int) -> int:
        words = ["sweep", "digits-standard", *over, "--seeds", "1", "--tries", str(tries), "--out", str(out), *fixed]
        return main(words)

    assert searching(2) == 0
    before = [run["run"] for run in record_of(out)["runs"]]
    assert len(before) == 2
    assert all(isinstance(run["settings"]["optimise.batch_size"], int) for run in record_of(out)["runs"])
    monkeypatch.setattr(
        train, "start", lambda recipe, run, *rest: started.append(run.name) or start(recipe, run, *rest)
    )
    assert searching(3) == 0
    after = [run["run"] for run in record_of(out)["runs"]]
    assert after[:2] == before
    assert started == after[2:]
    recipe = out / after[0] / runs.RECIPE
    recipe.write_text(recipe.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    assert searching(3) == 2
    assert [run["run"] for run in record_of(out)["runs"]] == after, "what stopped the command took nothing away"


def test_a_search_passes_over_what_a_recipe_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the combinations: micro-batches of 512 out of batches of 256."""
    over = ("--over", "optimise.batch_size=512,256", "--over", "optimise.micro_batch=0,512")
    fixed = [word for word in SMALL if "batch_size" not in word]
    words = ["sweep", "digits-standard", *over, "--seeds", "1", "--tries", "6", "--out", str(tmp_path / "sweep")]
    assert main([*words, *fixed]) == 2, "some runs failed, and all else is done"
    failed = [run for run in record_of(tmp_path / "sweep")["runs"] if "failed" in run]
    assert [run["settings"] for run in failed] == [{"optimise.batch_size": 256, "optimise.micro_batch": 512}]
    assert "optimise.micro_batch 512 given" in failed[0]["failed"]
    assert len(record_of(tmp_path / "sweep")["runs"]) > 1
    assert "failed: batch_size=256,micro_batch=512" in capsys.readouterr().err


def test_values_that_would_share_a_directory_are_no_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over = ("--over", "optimise.lr=0.1,0.10", "--tries", "2")
    assert sweeping(tmp_path / "sweep", over=over) == 2
    assert "gives one run twice" in capsys.readouterr().err


@given(st.floats(0.9, 0.99999))
def test_what_is_drawn_stays_in_its_range(value: float) -> None:
    assert 0.9 <= float(axes.written(value, axes.Axis("optimise.ema", ("0.9", "0.99999"), "linear"))) <= 0.99999


def test_a_search_is_led_by_the_mean_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[float | None] = []
    monkeypatch.setattr(axes, "search", lambda swept, whole, tries, visit: scores.append(visit({"optimise.lr": "0.1"})))
    reached, trained = iter((0.2, 0.5)), engine.trained
    monkeypatch.setattr(engine, "trained", lambda *given: trained(*given) | {"validation_clean": next(reached)})
    words = ("--over", "optimise.lr=log:0.01..1", "--seeds", "2", "--tries", "1", "--out", str(tmp_path / "sweep"))
    assert main(["sweep", "digits-standard", *words, *SMALL]) == 0
    assert scores == [pytest.approx(0.35)]


@pytest.mark.parametrize("whole", (False, True))
def test_a_logarithmic_range_is_drawn_from_as_one(whole: bool) -> None:
    drawn = axes.distribution(axes.optional_optuna(), axes.Axis("x", ("1", "100"), "log"), whole)
    assert (drawn.low, drawn.high, drawn.log) == (1, 100, True)
    assert not axes.distribution(axes.optional_optuna(), axes.Axis("x", ("1", "100"), "linear"), whole).log


def test_a_setting_that_is_a_list_is_the_same_in_the_record_and_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = {"objective.views": "[clean, adversarial]"}
    recipes = [engine.settled("digits-anchor", [], point, seed) for seed in (0, 1)]
    planned = [engine.Planned(f"views,seed={recipe.seed}", point, recipe) for recipe in recipes]
    monkeypatch.setattr(engine, "finished", lambda directory, recipe: True)
    reached = {"validation_robust": 0.5, "validation_clean": 0.9, "epoch": 1, "seconds": 1.0, "validation_images": 100}
    monkeypatch.setattr(engine, "outcome", lambda directory, recipe: reached)
    before, now = (engine.trained(tmp_path, run, None, Display()) for run in planned)
    (pooled,) = ranked([json.loads(json.dumps(before)), now], "robust")
    assert pooled["seeds"] == [0, 1]


def test_a_search_forgets_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where it is stopped before it has come to all of them again, and not where its range has changed."""
    out, trained = tmp_path / "sweep", engine.trained

    def searching(tries: int, to: int = 1) -> int:
        over = ("--over", f"optimise.lr=log:0.01..{to}")
        return main(
            ["sweep", "digits-standard", *over, "--seeds", "1", "--tries", str(tries), "--out", str(out), *SMALL]
        )

    def stopped(*given: Any) -> dict[str, Any]:
        visits.append(given)
        if len(visits) == 2:
            raise KeyboardInterrupt
        return trained(*given)

    assert searching(3) == 0
    before = {run["run"] for run in record_of(out)["runs"]}
    visits: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(engine, "trained", stopped)
        assert searching(5) == 130
    assert {run["run"] for run in record_of(out)["runs"]} == before
    assert searching(1, to=2) == 0
    wider = {run["run"] for run in record_of(out)["runs"]}
    assert before < wider
    shutil.rmtree(out / min(before))
    assert searching(1, to=2) == 0
    assert {run["run"] for run in record_of(out)["runs"]} == wider - {min(before)}, "what is gone is not claimed"


def test_a_search_without_optuna_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweeping(tmp_path / "sweep", "--tries", "2") == 2
    assert "pip install 'anchor-robust[sweep]'" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_the_record_is_json(whole: Path) -> None:
    assert json.loads((whole / "sweep.json").read_text())["schema"] == 1


def test_two_sweeps_never_work_in_one_directory(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with runs.alone(whole):
        assert sweeping(whole) == 2
    assert "another process is at work in" in capsys.readouterr().err
    assert sweeping(whole) == 0
