"""A killed evaluation goes on: nothing finished is done again, and the outcomes are those of an unbroken one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anchor_robust import runs
from anchor_robust.attacks import PGD
from anchor_robust.attacks.base import Model
from anchor_robust.cli import main
from anchor_robust.data import Given
from anchor_robust.errors import Refusal
from anchor_robust.evaluation import Ledger, Measurement, curves, measure
from anchor_robust.evaluation.course import unit_seed
from anchor_robust.report import record as report
from anchor_robust.threat import Ball

BALL = Ball("linf", 0.1)
# The weaker one leaves its random start, so that the outcomes depend on the seed of each unit.
ATTACKS = ("clean", PGD(BALL, steps=0, step_size=0.05), PGD(BALL, steps=2, step_size=0.05))


def subject() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model and images on whose margin a random start decides."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, 12, generator=generator))
        model[1].bias.zero_()
    x = torch.rand(23, 3, 2, 2, generator=generator) * 0.6 + 0.2
    with torch.no_grad():
        return model, x, model(x).argmax(1)


class Killed(Exception):
    pass


class Bar:
    """A progress bar whose `fatal`-th advance kills the evaluation (by 1; never, if None)."""

    def __init__(self, fatal: int | None = None) -> None:
        self.fatal, self.advanced = fatal, 0

    @contextmanager
    def __call__(self, label: str, images: int) -> Iterator[Any]:
        yield self.advance

    def advance(self, done: int) -> None:
        self.advanced += 1
        if self.advanced == self.fatal:
            raise Killed


@pytest.fixture(autouse=True)
def short_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "STEPS", (1, 2))


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each search was given."""
    calls: list[int] = []
    search = PGD.search

    def noted(self: PGD, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(x))
        return search(self, model, x, y, generator)

    monkeypatch.setattr(PGD, "search", noted)
    return calls


def run(ledger: Ledger | None = None, bar: Bar | None = None, **settings: Any) -> Measurement:
    model, x, y = subject()
    settings = {"batch_size": 5, "attacks": ATTACKS, "curves": ("steps",), **settings}
    return measure(model, Given(x, y), ball=BALL, bar=bar or Bar(), ledger=ledger, **settings)


def same(first: Measurement, second: Measurement) -> bool:
    def timeless(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: timeless(value) for key, value in content.items() if key != "seconds"}
        return [timeless(each) for each in content] if isinstance(content, list) else content

    return timeless(first.record) == timeless(second.record) and all(
        np.array_equal(first.outcomes[name], second.outcomes[name]) for name in {**first.outcomes, **second.outcomes}
    )


def test_the_seed_matters_to_these_outcomes() -> None:
    """Else the tests below would not see a unit that is drawn anew."""
    assert same(run(), run())
    assert not same(run(), run(seed=1))


def test_killed_after_any_unit_it_goes_on_to_the_same_outcomes(tmp_path: Path, searched: list[int]) -> None:
    whole_bar = Bar()
    whole, searches = run(bar=whole_bar), list(searched)
    for fatal in range(1, whole_bar.advanced + 1):
        (tmp_path / str(fatal)).mkdir()
        record = tmp_path / str(fatal) / "record.json"
        searched.clear()
        with pytest.raises(Killed):
            run(Ledger(record), Bar(fatal))
        resumed = run(Ledger(record))
        assert same(resumed, whole), f"killed after unit {fatal}"
        assert searched == searches, "a finished unit was searched again"


def test_killed_twice_and_cut_short_while_writing(tmp_path: Path) -> None:
    whole, said = run(), list[str]()
    for fatal in (4, 9):
        with pytest.raises(Killed):
            run(Ledger(tmp_path / "record.json"), Bar(fatal))
        (partial,) = tmp_path.iterdir()
        with partial.open("a") as handle:
            handle.write('{"unit": "pgd-2/0/1", "outcomes": [1, 1')
    ledger = Ledger(tmp_path / "record.json", say=said.append)
    assert same(run(ledger), whole)
    assert said == [f"going on after 9 finished batches, from {partial}"]
    assert all(line.endswith("}\n") for line in partial.read_text().splitlines(keepends=True))
    ledger.close()
    assert not list(tmp_path.iterdir())


def test_it_goes_on_where_the_record_is_to_have_another_name_by_now(tmp_path: Path, searched: list[int]) -> None:
    """Another evaluation of the run has taken the usual name meanwhile."""
    whole, said = run(), list[str]()
    with pytest.raises(Killed):
        run(Ledger(tmp_path / "evaluation.json"), Bar(6))
    (partial,) = tmp_path.iterdir()
    ledger = Ledger(tmp_path / "evaluation-clean-square.json", say=said.append)
    assert same(run(ledger), whole)
    assert said == [f"going on after 6 finished batches, from {partial}"]
    ledger.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other",
    (
        {"seed": 1},
        {"batch_size": 6},
        {"attacks": ATTACKS[:2]},
        {"attacks": ("clean", ATTACKS[1], PGD(BALL, steps=3, step_size=0.05))},
        {"attacks": ("clean", ATTACKS[1], PGD(Ball("linf", 0.11), steps=2, step_size=0.05))},
        {"curves": ()},
        {"search": "bf16"},
    ),
    ids=lambda other: next(iter(other)),
)
def test_any_other_evaluation_starts_anew(other: dict[str, Any], tmp_path: Path, searched: list[int]) -> None:
    expected, searches = run(**other), list(searched)
    with pytest.raises(Killed):
        run(Ledger(tmp_path / "record.json"), Bar(12))
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    searched.clear()
    assert same(run(Ledger(tmp_path / "record.json"), **other), expected)
    assert searched == searches
    assert all((tmp_path / name).read_text() == text for name, text in before.items()), "the first can still go on"


def test_other_images_another_model_or_other_hardware_start_anew(tmp_path: Path, searched: list[int]) -> None:
    model, x, y = subject()
    measure(model, Given(x, y), ATTACKS, ledger=Ledger(tmp_path / "record.json", {"model": "a"}))
    searched.clear()
    measure(model, Given(x, y), ATTACKS, ledger=Ledger(tmp_path / "record.json", {"model": "a"}))
    assert searched == []
    said: list[str] = []
    measure(model, Given(x, y), ATTACKS, ledger=Ledger(tmp_path / "record.json", {"model": "b"}, said.append))
    assert searched
    assert [line.split(":")[0] for line in said] == ["beginning anew"]
    searched.clear()
    measure(model, Given(x, (y + 1) % 3), ATTACKS, ledger=Ledger(tmp_path / "record.json", {"model": "a"}))
    measure(model, Given(x.flip(0), y.flip(0)), ATTACKS, ledger=Ledger(tmp_path / "record.json", {"model": "a"}))
    assert searched


def test_no_two_units_and_no_two_seeds_draw_alike() -> None:
    names = [f"{attack}/{stage}/{place}" for attack in "ab" for stage in range(12) for place in range(12)]
    assert len({unit_seed(seed, name) for seed in range(-2, 12) for name in names}) == 14 * len(names)


# --- the command line ------------------------------------------------------------------------------------------------

TRAINED = Path(__file__).parents[1] / "results" / "digits-pgd-at"
ASKED = ("--attacks", "clean,fgsm,pgd20", "--batch-size", "30", "--limit", "180")


def evaluated(out: Path, *more: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    assert main(["evaluate", str(TRAINED), *ASKED, "--out", str(out), *more]) == 0
    return report.read(out)


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, whole = evaluated(tmp_path / "whole.json")
    search, calls = PGD.search, list[int]()

    def interrupted(self: PGD, *given: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return search(self, *given)

    monkeypatch.setattr(PGD, "search", interrupted)
    out = tmp_path / "broken.json"
    assert main(["evaluate", str(TRAINED), *ASKED, "--out", str(out)]) == 130
    (partial,) = tmp_path.glob("broken.partial-*.jsonl")
    assert f"the same command goes on from {partial}" in capsys.readouterr().err
    assert not out.exists()
    _, resumed = evaluated(out)
    assert "going on after 9 finished batches" in capsys.readouterr().err, "6 of clean images, 3 of FGSM"
    assert all(np.array_equal(resumed[name], whole[name]) for name in {**whole, **resumed})
    assert not partial.exists()


SLOW = """
import sys, time
from anchor_robust.attacks import PGD
from anchor_robust.cli import main
search = PGD.search
def slow(self, *given):
    time.sleep(0.2)
    return search(self, *given)
PGD.search = slow
sys.exit(main(sys.argv[1:]))
"""


def test_a_real_kill(tmp_path: Path) -> None:
    _, whole = evaluated(tmp_path / "whole.json")
    out = tmp_path / "killed.json"
    words = ["evaluate", str(TRAINED), *ASKED, "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    while process.poll() is None:
        finished = [path.read_text() for path in tmp_path.glob("killed.partial-*.jsonl")]
        if any("fgsm" in line for text in finished for line in text.splitlines()[1:]):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    (partial,) = tmp_path.glob("killed.partial-*.jsonl")
    assert 7 <= len(partial.read_text().splitlines()) - 1 <= 12, "within FGSM"
    _, resumed = evaluated(out)
    assert all(np.array_equal(resumed[name], whole[name]) for name in {**whole, **resumed})
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_mixed_pair_is_detected(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    record, outcomes = evaluated(first)
    assert record["outcomes"]["file"] == "first.npz"
    assert record["results"][-1]["accuracy"] == outcomes["held_pgd20"].mean()
    evaluated(second, "--eps", "0.02")
    # As if the second had been killed between its two writes.
    second.with_suffix(".npz").replace(first.with_suffix(".npz"))
    with pytest.raises(Refusal, match=r"first\.npz does not belong to .*first\.json.*evaluate again"):
        report.read(first)
    first.with_suffix(".npz").unlink()
    with pytest.raises(Refusal, match=r"first\.npz is missing"):
        report.read(first)


def test_the_outcomes_are_there_before_the_record_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, content: Any) -> None:
        assert path.with_suffix(".npz").exists()
        raise Refusal("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_json", full_disk)
        assert main(["evaluate", str(TRAINED), *ASKED, "--out", str(tmp_path / "full.json")]) == 2
    assert list(tmp_path.glob("full.partial-*")), "what was measured is not lost with the record"
    evaluated(tmp_path / "full.json")


def test_records_from_before_the_digest_are_read(tmp_path: Path) -> None:
    (tmp_path / runs.EVALUATION).write_text(json.dumps({"results": []}))
    np.savez_compressed(tmp_path / runs.OUTCOMES, label=np.arange(3))
    record, outcomes = report.read(tmp_path / runs.EVALUATION)
    assert record == {"results": []}
    assert outcomes["label"].tolist() == [0, 1, 2]


def test_what_left_the_ball_before_a_kill_is_told_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Ball, "contains", lambda self, x_adv, x: torch.zeros(len(x), dtype=torch.bool))
        with pytest.raises(Killed):
            run(Ledger(tmp_path / "record.json"), Bar(8), curves=())
    assert run(Ledger(tmp_path / "record.json"), curves=()).record["checks"][0]["verdict"] == "warn"
