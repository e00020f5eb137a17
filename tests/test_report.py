"""Tables and tests on results."""

import subprocess
import sys
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from anchor_robust.attacks.pgd import LEAST_LIKELY
from anchor_robust.errors import Refusal
from anchor_robust.report.card import card
from anchor_robust.report.conventions import conventions
from anchor_robust.report.measured import show
from anchor_robust.report.page.accuracy import measured
from anchor_robust.report.page.dossier import Dossier
from anchor_robust.report.page.weaknesses import per_class
from anchor_robust.report.paired import mcnemar
from anchor_robust.report.record import read, refuted

ROOT = Path(__file__).parents[1]


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(3, 3) == 1
    assert mcnemar(0, 0) == 1


@pytest.mark.parametrize("counts", ((-3, 5), (5, -3)))
def test_mcnemar_refuses_counts_below_0(counts: tuple[int, int]) -> None:
    with pytest.raises(Refusal, match=rf"^counts {counts[0]} and {counts[1]} given; allowed: 0 or more") as refusal:
        mcnemar(*counts)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("accuracies", "count", "told"),
    [
        ((1.0, 1.0), 2, "No class is weaker than another: of each, 100.0 % of the images at the least."),
        ((0.5, 0.2), 2, "Weakest: 1, 20.0 % of 10 images under PGD-20."),
        (
            (0.0,),
            61,
            "No class is weaker than another: of each, 0.0 % of the images at the least. Drawn are the first 60 of",
        ),
        ((0.5, 0.2), 61, "Weakest: 1, 20.0 % of 10 images under PGD-20. Drawn are the weakest 60 of 61."),
    ],
)
def test_of_equal_classes_none_is_called_the_weakest(accuracies: tuple[float, ...], count: int, told: str) -> None:
    rows = [
        {"class": str(place), "accuracy": accuracy, "interval": [0, 1], "images": 10}
        for place, accuracy in zip(range(count), cycle(accuracies), strict=False)
    ]
    entry: Any = SimpleNamespace(dossier=SimpleNamespace(record={"results": [{"label": "PGD-20", "per_class": rows}]}))
    assert per_class(entry).says.startswith(told)


def test_names_in_a_table_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    record = read(ROOT / "results" / "digits-anchor" / "evaluation.json")[0]
    names = ["dog [small]", "[/b]", "crane", "crane", ":cat:"]
    rows = [
        {"class": name, "accuracy": place / 10, "interval": [0, 1], "images": 1} for place, name in enumerate(names)
    ]
    results = [result | {"per_class": rows} for result in record["results"]]
    show(record | {"results": results, "model": record["model"] | {"source": "runs/[v2]/m.pt"}})
    told = capsys.readouterr().out
    assert [name in told for name in ("runs/[v2]/m.pt", *names)] == [True] * 6
    assert [line.split()[5] for line in told.splitlines() if "crane" in line] == ["20.00", "30.00"]


def test_conventions_leave_nothing_out() -> None:
    pgd = {"norm": "linf", "eps": 0.031, "steps": 20, "step_size": 0.003, "restarts": 2, "start": "uniform"}
    told = conventions({**pgd, "loss": "ce", "dtype": "float32"})
    assert told == "linf eps 0.031, 20 x 0.003, uniform start, 2 restarts, ce, float32"
    for target, words in ((LEAST_LIKELY, "target least likely"), (2, "target 2")):
        aimed = conventions({**pgd, "loss": "ce", "target": target, "dtype": "float32"})
        assert aimed.endswith(f", ce, {words}, float32")
    clean = dict.fromkeys(pgd) | {"loss": None, "dtype": "float32"}
    assert conventions(clean) == "float32"


def test_documents_say_what_the_result_files_say() -> None:
    command = [sys.executable, "results/table.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the card and the claim ------------------------------------------------------------------------------------------


def numbers(accuracy: float, low: float, high: float, **other: Any) -> dict[str, Any]:
    stated = dict.fromkeys(("norm", "eps", "steps", "step_size", "restarts", "start", "loss"))
    row = {"images": 400, "accuracy": accuracy, "interval": [low, high]}
    per_class = [{"class": "cat|dog", **row}]
    return {**stated, "dtype": "float32", **row, "seconds": 1.5, "per_class": per_class, **other}


def full_record() -> dict[str, Any]:
    clean = numbers(0.8125, 0.77, 0.85, attack="clean", label="clean")
    pgd = {"norm": "linf", "eps": 0.031, "steps": 20, "step_size": 0.003, "restarts": 1, "start": "uniform"}
    attacked = numbers(0.51, 0.46, 0.56, attack="pgd20", label="PGD-20", **pgd, loss="ce")
    climb = {"steps": 100, "step_size": None, "start": "uniform", "loss": "ce", "rho": 0.75}
    stages = [
        {"stage": "apgd-ce", "images": 325, "fell": 120, "seconds": 7.25, **climb},
        {"stage": "square", "images": 205, "fell": 3, "seconds": 99.0, "queries": 5000, "loss": None},
    ]
    ball = {"norm": "linf", "eps": 0.031, "restarts": 1}
    worst = numbers(
        0.505, 0.4561, 0.5539, attack="autoattack", label="AutoAttack", **ball, stages=stages, engine="pyautoattack"
    )
    points = [numbers(1 - eps, 0, 1, attack=f"eps {eps}", label="PGD-20", **{**pgd, "eps": eps}) for eps in (0.25, 0.5)]
    return {
        "schema": 1,
        "model": {"source": "runs/mine", "name": "resnet8", "width": 16, "sha256": "feed" * 16},
        "data": {"name": "cifar10", "split": "test", "images": 400, "sha256": "beef" * 16},
        "seed": 3,
        "batch_size": 250,
        "threat": {"norm": "linf", "eps": 0.031},
        "results": [clean, attacked, worst],
        "worst_case": {"attacks": ["pgd20", "autoattack"], "images": 400, "accuracy": 0.5, "interval": [0.45, 0.55]},
        "curves": {"eps": points},
        "checks": [{"name": "masking", "verdict": "warn", "detail": "the loss does not grow"}],
        "environment": {
            "command": "anchor evaluate runs/mine",
            "device": "a processor",
            "threads": 2,
            "versions": {"torch": "2.13.0"},
        },
        "outcomes": {"file": "outcomes.npz", "sha256": "cafe" * 16},
    }


def test_the_card_leaves_nothing_out() -> None:
    told = card(full_record())
    expected = (
        "# Robustness of runs/mine",
        "400 images of cifar10 (test)",
        "at most 0.031 in linf",
        "| clean | float32 | 81.25 % | [77.0, 85.0] | 1.5 |",
        "linf eps 0.031, 20 x 0.003, uniform start, 1 restart, ce, float32",
        "| AutoAttack | linf eps 0.031, apgd-ce + square, by pyautoattack, float32 | 50.50 % | [45.6, 55.4] | 1.5 |",
        "Withstand every attack, PGD-20 and AutoAttack: 50.00 % [45.0, 55.0]",
        "| apgd-ce | 100 steps, uniform start, ce, rho 0.75 | 325 | 120 | 7.2 |",
        "| square | queries 5000 | 205 | 3 | 99.0 |",
        "## Accuracy against eps",
        "| 0.25 | linf eps 0.25, 20 x 0.003, uniform start, 1 restart, float32 | 75.00 % | [0.0, 100.0] |",
        "cat\\|dog",
        "warn: masking: the loss does not grow",
        "`anchor evaluate runs/mine`",
        "2 threads of a processor",
        "torch 2.13.0",
        "feed" * 16,
        "beef" * 16,
        "outcomes.npz, sha256 " + "cafe" * 16,
        "resnet8, width 16",
        "seed: 3",
        "batch size: 250",
        "time: 7.5 s",
    )
    for line in expected:
        assert line in told
    widths = [line.replace("\\|", "").count("|") for line in told.splitlines() if line.startswith("|")]
    assert set(widths) <= {5, 6}
    assert "None" not in told


@pytest.mark.parametrize(
    "file", sorted((ROOT / "results").rglob("evaluation.json")), ids=lambda file: str(file.parent.relative_to(ROOT))
)
def test_every_committed_record_has_a_card_and_its_outcomes(file: Path) -> None:
    record, outcomes = read(file)
    told = card(record)
    for result in record["results"]:
        assert f"| {result['label']} | {conventions(result)} | {100 * result['accuracy']:.2f} % |" in told
    assert (outcomes["clean_prediction"] == outcomes["label"]).mean() == record["results"][0]["accuracy"]


def test_the_page_says_what_withstands_every_attack() -> None:
    dossier = Dossier(Path("numbers.json"), record=full_record())
    (accuracies, *_) = measured(dossier.records)
    assert accuracies.notes == ["Withstand every attack, PGD-20 and AutoAttack: 50.00 % [45.0, 55.0]"]
    assert [row[0] for row in accuracies.rows] == ["clean", "PGD-20", "AutoAttack"]
    assert all(row[-2:] == ["400", "numbers.json"] for row in accuracies.rows)


def test_a_claim_falls_when_the_whole_interval_lies_below_it() -> None:
    record = full_record()
    assert refuted(record, 0.5539) is None
    assert refuted(record, 0.3) is None
    told = refuted(record, 0.554)
    assert told == ("the claim of 55.40 % under AutoAttack does not hold: measured 50.50 % [45.6, 55.4] on 400 images")
    assert refuted(record, 0.56, "pgd20") is None
    assert "under PGD-20" in str(refuted(record, 0.57, "pgd20"))


def test_conventions_name_the_search_and_the_stages() -> None:
    pgd = {"norm": "l2", "eps": 0.5, "steps": 7, "step_size": None, "restarts": None, "start": None, "loss": None}
    told = conventions({**pgd, "dtype": "float32", "search": "bf16", "engine": "anchor"})
    assert told == "l2 eps 0.5, 7 steps, searched in bf16, float32"
