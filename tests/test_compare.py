"""Comparisons from run files that are written here by hand."""

import hashlib
import io
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from anchor_robust import runs
from anchor_robust.cli import main
from anchor_robust.errors import Refusal
from anchor_robust.intervals import wilson
from anchor_robust.report.compare import comparison, most_robust
from anchor_robust.report.compared import markdown, sheets
from anchor_robust.report.conventions import bounds
from anchor_robust.report.dotted import flat, short, spelled
from anchor_robust.report.paired import mcnemar, paired_t
from anchor_robust.report.pauses import without_pauses
from anchor_robust.report.sheet import Sheet, spread

IMAGES = 200
RESULTS = Path(__file__).parents[1] / "results"
PGD = {"norm": "linf", "eps": 0.031, "steps": 20, "step_size": 0.003, "restarts": 1, "start": "uniform", "loss": "ce"}


def held_at(seed: int, rate: float, images: int = IMAGES) -> np.ndarray:
    return np.random.default_rng(seed).random(images) < rate


def robust(seeds: list[dict[str, float]] | None) -> list[float] | None:
    return seeds and [seed["robust"] for seed in seeds]


def write_run(
    run: Path,
    method: str = "anchor",
    seed: int = 0,
    rate: float = 0.5,
    *,
    name: str = "method",
    settings: dict[str, Any] | None = None,
    pgd: dict[str, Any] | None = None,
    sha256: str = "same",
    images: int = IMAGES,
    device: str = "a processor",
    passes: int | None = None,
    epochs: int | None = None,
    log: tuple[tuple[float, float], ...] = ((5.0, 0.3), (10.0, 0.5)),
) -> Path:
    """A run directory as train and evaluate leave it; `log` has seconds and validation robust accuracy an epoch.

    Validation clean accuracy is 0.5 above the robust one."""
    run.mkdir(parents=True)
    recipe = {
        "name": name,
        "seed": seed,
        "data": {"name": "toy"},
        "threat": {"norm": "linf", "eps": 0.031},
        "objective": {"name": method, **(settings or {})},
        "optimise": {"batch_size": 10, "epochs": epochs or len(log)},
        "validation": {"images": 50, "steps": 10, "step_size": 0.007},
    }
    (run / runs.RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False))
    environment = {"device": device, "threads": 2, "precision": "32-true", "data": {"train": {"sha256": "train"}}}
    environment |= {"passes": passes} if passes else {}
    runs.write_json(run / runs.ENVIRONMENT, environment)
    for epoch, (seconds, robust) in enumerate(log, start=1):
        line = {"step": 7 * epoch, "epoch": epoch, "validation_robust": robust, "validation_clean": robust + 0.5}
        runs.append_metrics(run, line | {"seconds": seconds})
    clean, held = held_at(seed, 0.9, images), held_at(seed + 100, rate, images)
    labels = np.arange(images) % 10
    np.savez(run / runs.OUTCOMES, label=labels, clean_prediction=np.where(clean, labels, 11), held_pgd20=held)
    stated = {"dtype": "float32", "images": images}
    results = [
        {"attack": "clean", "label": "clean", **dict.fromkeys(PGD), **stated, "accuracy": float(clean.mean())},
        {"attack": "pgd20", "label": "PGD-20", **PGD, **(pgd or {}), **stated, "accuracy": float(held.mean())},
    ]
    data = {"name": "toy", "split": "test", "images": images, "sha256": sha256}
    runs.write_json(run / runs.EVALUATION, {"schema": 1, "model": {}, "data": data, "results": results})
    return run


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "pgd-at"), write_run(tmp_path / "b", epochs=9)]
    with pytest.raises(Refusal, match=r"b has had 2 of 9 epochs; end it: anchor train --resume"):
        comparison(paths)


def test_a_run_that_was_trained_on_since_is_refused(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "pgd-at"), write_run(tmp_path / "b")]
    record = runs.read_json(paths[1] / runs.EVALUATION)
    (paths[1] / runs.WEIGHTS).write_bytes(b"weights")
    told = hashlib.sha256(b"weights").hexdigest()
    runs.write_json(paths[1] / runs.EVALUATION, record | {"model": {"sha256": told}})
    assert comparison(paths)["methods"]
    (paths[1] / runs.WEIGHTS).write_bytes(b"others")
    with pytest.raises(Refusal, match="b has other weights than those that its record tells of"):
        comparison(paths)


def test_costs_are_means_over_seeds(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / str(seed), seed=seed, passes=3, log=((1.0, 0.3),) * (1 + seed)) for seed in (0, 1)]
    for path in paths:  # one method though one has two epochs
        text = (path / runs.RECIPE).read_text().replace("epochs: 2", "epochs: 1")
        (path / runs.RECIPE).write_text(text)
    (cost,) = comparison(paths)["cost"]
    assert (cost["images_seen"], cost["image_passes"]) == (105, 315)


def test_a_head_is_not_compared_at_equal_cost(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "pgd-at", passes=3), write_run(tmp_path / "b", passes=1)]
    environment = runs.read_json(paths[1] / runs.ENVIRONMENT)
    runs.write_json(paths[1] / runs.ENVIRONMENT, environment | {"second_stage": {"epochs": 1}})
    facts = comparison(paths)
    assert all("head on an encoder" in facts[key]["why_not"] for key in ("equal_passes", "equal_seconds"))


def three_seeds(folder: Path) -> list[Path]:
    """Two methods, three seeds each."""
    rates = {"pgd-at": 0.5, "anchor": 0.65}
    return [
        write_run(folder / f"{method}-{seed}", method, seed, rate, name=method)
        for method, rate in rates.items()
        for seed in range(3)
    ]


def entry(facts: dict[str, Any], label: str = "PGD-20") -> dict[str, Any]:
    (found,) = [each for each in facts["results"] if each["label"] == label]
    return found


def test_seeds_are_pooled_and_every_number_is_re_derived(tmp_path: Path) -> None:
    paths = three_seeds(tmp_path)
    facts = comparison(paths)
    assert [(each["method"], each["seeds"]) for each in facts["methods"]] == [
        ("pgd-at", [0, 1, 2]),
        ("anchor", [0, 1, 2]),
    ]
    assert facts["methods"][1]["differs"] == {"objective.name": "anchor"}
    first, second = ([np.load(path / runs.OUTCOMES)["held_pgd20"] for path in paths[i : i + 3]] for i in (0, 3))
    for row, arrays in zip(entry(facts)["accuracies"], (first, second), strict=True):
        accuracies = [array.sum() / IMAGES for array in arrays]
        assert row["values"] == pytest.approx(accuracies)
        assert row["mean"] == pytest.approx(sum(accuracies) / 3)
        assert row["deviation"] == pytest.approx(math.sqrt(sum((a - row["mean"]) ** 2 for a in accuracies) / 2))
        assert row["interval"] == pytest.approx(wilson(IMAGES * row["mean"], IMAGES))
    (pair,) = entry(facts)["pairs"]
    alone = [[0, 0], [0, 0], [0, 0]]
    for seed in range(3):
        for theirs, ours in zip(first[seed], second[seed], strict=True):
            alone[seed][0] += int(ours and not theirs)
            alone[seed][1] += int(theirs and not ours)
    assert (pair["only_method"], pair["only_first"]) == (sum(a for a, _ in alone), sum(b for _, b in alone))
    assert pair["p"] == mcnemar(pair["only_method"], pair["only_first"])
    assert pair["p_by_seed"] == [mcnemar(*counts) for counts in alone]
    differences = [ours.mean() - theirs.mean() for ours, theirs in zip(second, first, strict=True)]
    assert pair["difference"] == pytest.approx(np.mean(differences))
    expected = stats.ttest_rel([ours.mean() for ours in second], [theirs.mean() for theirs in first])
    assert pair["difference_interval"] == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_paired_t_by_hand() -> None:
    # t = 12.7062 for one degree of freedom, 4.30265 for two
    assert paired_t([1.0, 3.0]) == pytest.approx((2 - 12.7062047364, 2 + 12.7062047364))
    assert paired_t([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.30265273 / math.sqrt(3), 2 + 4.30265273 / math.sqrt(3)))


def test_two_seeds_have_no_interval_of_the_difference(tmp_path: Path) -> None:
    paths = three_seeds(tmp_path)
    (pair,) = entry(comparison([*paths[:2], *paths[3:5]]))["pairs"]
    assert pair["difference_interval"] is None
    assert len(pair["p_by_seed"]) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"pgd": {"eps": 8 / 255}},
        {"pgd": {"steps": 10}},
        {"pgd": {"step_size": 0.004}},
        {"pgd": {"restarts": 2}},
        {"pgd": {"start": "none"}},
        {"pgd": {"loss": "dlr"}},
        {"pgd": {"engine": "pyautoattack"}},
        {"pgd": {"search": "bf16"}},
        {"sha256": "others"},
        {"images": 100},
    ],
    ids=str,
)
def test_what_was_measured_otherwise_never_shares_a_column(other: dict[str, Any], tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "pgd-at"), write_run(tmp_path / "b", "anchor", **other)]
    entries = [each for each in comparison(paths)["results"] if each["label"] == "PGD-20"]
    assert [[row["method"] for row in each["accuracies"]] for each in entries] == [
        ["method objective.name=pgd-at"],
        ["method objective.name=anchor"],
    ]
    (pair,) = entries[1]["pairs"]
    assert "was not measured in this way" in pair["why_not"]
    told = "\n".join(markdown(comparison(paths)))
    assert "PGD-20: method objective.name=anchor is not paired" in told


def test_other_seeds_are_not_paired(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "pgd-at", 0), write_run(tmp_path / "b", "anchor", 1)]
    assert "no seed in common" in entry(comparison(paths))["pairs"][0]["why_not"]


def test_without_outcomes_there_are_accuracies_but_no_pairs(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "pgd-at"), write_run(tmp_path / "b", "anchor")]
    (paths[1] / runs.OUTCOMES).unlink()
    found = entry(comparison(paths))
    assert len(found["accuracies"]) == 2
    assert "outcomes.npz is missing" in found["pairs"][0]["why_not"]


def test_methods_of_one_name_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / f"{contrast}-{seed}", seed=seed, settings={"contrast": contrast, "views": ["a", "b"]})
        for contrast in (0.1, 1.0)
        for seed in (0, 1)
    ]
    assert [each["method"] for each in comparison(paths)["methods"]] == ["method contrast=0.1", "method contrast=1"]


def test_methods_that_differ_in_the_seventh_digit_are_two(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / str(place), rate=rate, settings={"weight": weight})
        for place, (rate, weight) in enumerate(((0.2, 8 / 255), (0.9, 0.0313725)))
    ]
    assert len({row["method"] for row in entry(comparison(paths))["accuracies"]}) == 2


def test_records_of_early_versions_lie_beside_their_outcomes(tmp_path: Path) -> None:
    """Such a record does not name the file; that of another evaluation is not taken for it."""
    paths = [write_run(tmp_path / method, method, rate=0.5) for method in ("pgd-at", "anchor")]
    for path in paths:
        (path / runs.EVALUATION).rename(path / "full.json")
        (path / runs.OUTCOMES).rename(path / "full.npz")
    assert entry(comparison(paths, "full.json"))["pairs"][0]["seeds"] == [0]


def test_names_of_settings() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
    assert short(["a.x", "b.x", "b.y", "c.name"]) == ["a.x", "b.x", "y", "c.name"]
    assert spelled({"a": 2.0, "b": ["c", "d"], "e": True, "f": 0.1}) == "a=2 b=c,d e=True f=0.1"
    assert spelled({"a": 8 / 255}) == "a=0.03137254901960784"


def test_cost_and_equal_wall_clock_by_hand(tmp_path: Path) -> None:
    quick, slow = ((4.0, 0.2), (8.0, 0.35)), ((6.0, 0.3), (12.0, 0.5))
    paths = [
        write_run(tmp_path / "a", "pgd-at", 0, log=quick),
        write_run(tmp_path / "b", "pgd-at", 1, log=((4.0, 0.25), (9.0, 0.45))),
        write_run(tmp_path / "c", "anchor", 0, log=slow),
        write_run(tmp_path / "d", "late", 0, log=((9.5, 0.6),)),
    ]
    facts = comparison(paths)
    assert [(each["images_seen"], each["seconds"]) for each in facts["cost"]] == [(140, 8.5), (140, 12.0), (70, 9.5)]
    equal = facts["equal_seconds"]
    assert equal["budget"] == 9.0
    assert [robust(each["by_then"]) for each in equal["accuracies"]] == [[0.35, 0.45], [0.3], None]
    assert [robust(each["at_the_end"]) for each in equal["accuracies"]] == [[0.35, 0.45], [0.5], [0.6]]
    assert [each["counted"] for each in equal["accuracies"]] == [8 / 9, 6 / 9, None]
    assert equal["accuracies"][1]["at_the_end"] == [{"robust": 0.5, "clean": 1.0}]
    told = "\n".join(markdown(facts))
    assert "within 9 s" in told
    assert "Not test accuracy" in told
    assert "Of the runs on 2 threads of a processor." in told
    assert "| none yet |  | 60.0 / 110.0 |" in told
    assert "| 30.0 / 80.0 | 67 % | 50.0 / 100.0 |" in told


def test_a_pause_is_no_cost(tmp_path: Path) -> None:
    """The second of three epochs of 100 s took 600: a machine that slept must not make the other method look quick."""
    paths = [
        write_run(tmp_path / "slept", "pgd-at", log=((100.0, 0.2), (700.0, 0.3), (800.0, 0.4))),
        write_run(tmp_path / "slow", "anchor", log=((200.0, 0.3), (400.0, 0.4), (600.0, 0.5))),
    ]
    facts = comparison(paths)
    assert [each["seconds"] for each in facts["cost"]] == [300.0, 600.0]
    assert [each["paused"] for each in facts["cost"]] == [{str(tmp_path / "slept"): 500.0}, {}]
    assert facts["equal_seconds"]["budget"] == 300.0
    assert "over 3 times the usual one: slept 500 s." in "\n".join(markdown(facts))
    assert "Not counted" not in "\n".join(markdown(comparison([paths[1], write_run(tmp_path / "quick", "standard")])))


@given(st.lists(st.floats(100, 199), min_size=1, max_size=8), st.integers(0, 7), st.floats(500, 1e5))
def test_pauses_by_hand(took: list[float], at: int, pause: float) -> None:
    """Epochs that differ by less than twice hold no pause; one of them and 500 s more, of three or more alike, does."""
    lines = [{"epoch": epoch, "seconds": seconds} for epoch, seconds in enumerate(itertools.accumulate(took), 1)]
    assert without_pauses(lines) == (lines, 0.0)
    if len(took) > 2:
        at %= len(took)
        late = [line | {"seconds": line["seconds"] + (pause if i >= at else 0)} for i, line in enumerate(lines)]
        usual = statistics.median(each + (pause if i == at else 0) for i, each in enumerate(took))
        found, paused = without_pauses(late)
        assert paused == pytest.approx(took[at] + pause - usual)
        assert found[-1]["seconds"] == pytest.approx(lines[-1]["seconds"] + pause - paused)


def test_a_validation_is_no_pause() -> None:
    """Validated every third epoch, which then takes five times as long."""
    took = [(100.0, False), (100.0, False), (500.0, True)] * 3
    lines = [
        {"seconds": sum(each for each, _ in took[: i + 1])} | ({"validation_robust": 0.3} if its else {})
        for i, (_, its) in enumerate(took)
    ]
    assert without_pauses(lines) == (lines, 0.0)


def test_other_hardware_has_no_equal_wall_clock(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "pgd-at"), write_run(tmp_path / "b", "anchor", device="another")]
    assert "hardware" in comparison(paths)["equal_seconds"]["why_not"]
    assert "2 threads of a processor; 2 threads of another" in "\n".join(markdown(comparison(paths)))


def test_equal_wall_clock_takes_the_machine_that_all_were_trained_on(tmp_path: Path) -> None:
    """Seed 0 of the one method on the quick machine, and of both methods on the slow one, which is therefore taken."""
    quick, slow = ((1.0, 0.9), (2.0, 0.9)), ((4.0, 0.2), (8.0, 0.35))
    paths = [
        write_run(tmp_path / "a", "pgd-at", 0, log=quick, device="a quick one"),
        write_run(tmp_path / "b", "pgd-at", 1, log=slow),
        write_run(tmp_path / "c", "anchor", 0, log=((6.0, 0.3), (12.0, 0.5))),
        write_run(tmp_path / "d", "anchor", 1, log=((6.0, 0.4), (12.0, 0.6))),
    ]
    equal = comparison(paths)["equal_seconds"]
    assert (equal["hardware"], equal["budget"]) == ("2 threads of a processor", 8.0)
    assert [robust(each["by_then"]) for each in equal["accuracies"]] == [[0.35], [0.3, 0.4]]


def test_a_method_trained_elsewhere_does_not_forbid_the_comparison_of_others(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "a", name="away", device="elsewhere"),
        write_run(tmp_path / "b", name="anchor", log=((4.0, 0.2), (8.0, 0.35))),
        write_run(tmp_path / "c", name="mart", log=((6.0, 0.3), (12.0, 0.5))),
    ]
    equal = comparison([paths[1], paths[0], paths[2]])["equal_seconds"]
    assert (equal["budget"], equal["left_out"]) == (8.0, ["away"])
    assert [each["method"] for each in equal["accuracies"]] == ["anchor", "mart"]
    assert "Not trained there, and left out: away." in "\n".join(markdown(comparison(paths[1:] + paths[:1])))
    assert "why_not" in comparison(paths)["equal_seconds"], "the first method is alone on its machine"


def test_equal_epochs(tmp_path: Path) -> None:
    """A training of three epochs beside one of two is cut off after the second."""
    two, three = ((5.0, 0.2), (10.0, 0.4)), ((5.0, 0.1), (10.0, 0.3), (15.0, 0.5))
    paths = [write_run(tmp_path / "a", "pgd-at", log=two), write_run(tmp_path / "b", "anchor", log=three)]
    facts = comparison(paths)
    assert facts["equal_epochs"]["budget"] == 2
    assert [robust(each["by_then"]) for each in facts["equal_epochs"]["accuracies"]] == [[0.4], [0.3]]
    assert "within 2 epochs" in "\n".join(markdown(facts))
    alike = comparison([paths[0], write_run(tmp_path / "c", "mart", log=two)])
    assert alike["equal_epochs"] == {"all": 2}
    assert "All were trained for 2 epochs: every accuracy above" in "\n".join(markdown(alike))


def test_of_epochs_that_are_equally_robust_the_later_counts_as_in_training() -> None:
    lines = [{"validation_robust": robust, "validation_clean": clean} for robust, clean in ((4, 5), (4, 6), (3, 7))]
    assert most_robust(lines) == {"robust": 4, "clean": 6}


def test_equal_passes_know_no_hardware(tmp_path: Path) -> None:
    """7 steps of 10 images an epoch, 6 passes for the one method and 7 for the other, which then has two epochs."""
    log = ((5.0, 0.2), (10.0, 0.4), (15.0, 0.5))
    paths = [
        write_run(tmp_path / "a", "pgd-at", passes=6, log=log),
        write_run(tmp_path / "b", "anchor", passes=7, log=log, device="another"),
    ]
    facts = comparison(paths)
    equal = facts["equal_passes"]
    assert equal["budget"] == 3 * 7 * 10 * 6
    assert [robust(each["by_then"]) for each in equal["accuracies"]] == [[0.5], [0.4]]
    assert "within 1,260 passes" in "\n".join(markdown(facts))
    old = write_run(tmp_path / "c", name="early")
    assert comparison([*paths, old])["equal_passes"] == {"why_not": "early does not say its passes"}


def test_tables_are_whole_at_80_columns(tmp_path: Path) -> None:
    paths = three_seeds(tmp_path)
    facts = comparison([*paths, write_run(tmp_path / "x", name="a-name-of-[bold]-and-some-length", settings={"s": 1})])
    console = Console(width=80, record=True, file=io.StringIO())
    for sheet in sheets(facts):
        console.print(sheet.rich())
    printed = console.export_text()
    assert all(len(line) <= 80 for line in printed.splitlines())
    for sheet in sheets(facts):
        for row in sheet.rows:
            assert all(cell in printed for cell in row[sheet.wrapped :])
    assert "[bold]" in "".join(printed.split())


def test_a_sheet_by_hand() -> None:
    sheet = Sheet("Title", ["method", "%"], [["a|b", "1.00"]], ["A note."])
    assert sheet.markdown() == ["**Title**", "", "| method | % |", "| --- | ---: |", "| a\\|b | 1.00 |", "", "A note."]
    assert Sheet("Title", ["method"], [], ["A note."]).markdown() == ["**Title**", "", "A note."]
    assert spread([0.5, 0.6]) == "55.00 ± 7.07"
    assert spread([0.5], decimals=1) == "50.0"
    assert bounds((0.123, 0.456)) == "[12.3, 45.6]"


def test_the_command_prints_and_writes_the_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = three_seeds(tmp_path)
    assert main(["compare", *map(str, paths), "--json", str(tmp_path / "facts.json")]) == 0
    assert json.loads((tmp_path / "facts.json").read_text()) == comparison(paths)
    printed = capsys.readouterr().out
    for expected in ("pgd-at", "anchor", "PGD-20", "linf eps 0.031", "McNemar", "images x seeds", "t-interval", "140"):
        assert expected in printed


def test_the_committed_results_compare() -> None:
    runs_of = [
        sorted(RESULTS.glob(f"cifar10-resnet8-{method}{end}"))
        for method in ("mart", "anchor")
        for end in ("", "-seed*")
    ]
    facts = comparison([run for found in runs_of for run in found])
    (pair,) = entry(facts)["pairs"]
    document = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert f"| {pair['only_method']} : {pair['only_first']} (p = {pair['p']:.2g})" in document


WRONG: dict[str, tuple[str, ...]] = {
    "{tmp}/good": ("only", "two runs or more"),
    "{tmp}/good {tmp}/good": ("one recipe with one seed",),
    "{tmp}/good {tmp}/nowhere": ("nowhere does not exist", "anchor train"),
    "{tmp}/good {tmp}/good/recipe.yaml": ("recipe.yaml is a file",),
    "{tmp}/good {tmp}/unmeasured": ("evaluation.json", "anchor evaluate"),
    "{tmp}/good {tmp}/mixed": ("mixed", "do not tell of the same evaluation"),
    "{tmp}/good {tmp}/broken": ("outcomes.npz", "evaluate"),
    "{tmp}/good {tmp}/bare": ("bare", "KeyError"),
    "{tmp}/good {tmp}/empty": ("empty", "metrics.jsonl is missing or empty"),
    "{tmp}/good {tmp}/other --json {tmp}/no/where.json": ("cannot write",),
    "{tmp}/good {tmp}/other --json {tmp}/good/recipe.yaml": ("good/recipe.yaml", ".json"),
    "{tmp}/good {tmp}/other --json {tmp}/good/evaluation.json": ("something else than a comparison",),
    "{tmp}/good {tmp}/other --jsn x": ("--jsn", "not understood"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_cannot_be_compared_is_said_in_one_line(
    typed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "other", "unmeasured", "mixed", "broken", "bare", "empty"):
        write_run(tmp_path / name, name)
    (tmp_path / "unmeasured" / runs.EVALUATION).unlink()
    write_run(tmp_path / "half", rate=0.1)
    (tmp_path / "mixed" / runs.OUTCOMES).write_bytes((tmp_path / "half" / runs.OUTCOMES).read_bytes())
    (tmp_path / "broken" / runs.OUTCOMES).write_text("no archive")
    (tmp_path / "bare" / runs.EVALUATION).write_text("{}")
    (tmp_path / "empty" / runs.METRICS).write_text("")
    assert main(["compare", *typed.format(tmp=tmp_path).split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    for word in WRONG[typed]:
        assert word in told.err


@pytest.mark.parametrize("other", [{"precision": "bf16-mixed"}, {"data": {"train": {"sha256": "others"}}}], ids=str)
def test_other_images_or_another_precision_make_another_method(other: dict[str, Any], tmp_path: Path) -> None:
    paths = [write_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    runs.write_json(paths[1] / runs.ENVIRONMENT, runs.read_json(paths[1] / runs.ENVIRONMENT) | other)
    assert [each["seeds"] for each in comparison(paths)["methods"]] == [[0], [1]]


@pytest.mark.parametrize(
    "key",
    (
        *("data.name", "threat.norm", "threat.eps"),
        *("validation.steps", "validation.step_size", "validation.images"),
    ),
)
def test_what_was_validated_otherwise_has_no_equal_cost(key: str, tmp_path: Path) -> None:
    paths = [write_run(tmp_path / method, method, passes=3) for method in ("pgd-at", "anchor")]
    recipe, (section, setting) = yaml.safe_load((paths[1] / runs.RECIPE).read_text()), key.split(".")
    recipe[section][setting] = "other" if isinstance(recipe[section][setting], str) else 0.5
    (paths[1] / runs.RECIPE).write_text(yaml.safe_dump(recipe))
    facts = comparison(paths)
    assert all("not validated in the same way" in facts[each]["why_not"] for each in ("equal_passes", "equal_seconds"))
