"""The command line as a user types it: what is written, what is said, and the exit status."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anchor_robust
from anchor_robust import data, quickstart, runs
from anchor_robust.cli import main, settings_apart
from anchor_robust.models import backbone
from anchor_robust.recipe import settle
from anchor_robust.report.card import card
from anchor_robust.report.record import read

DIGITS = Path(__file__).parents[1] / "results" / "digits-anchor"
TINY = ("--optimise.epochs=1", "--model.width=4", "--attack.steps=1", "--validation.steps=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits-anchor", "--out", str(directory), *TINY]) == 0
    return directory


def test_evaluate_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--attacks", "clean,pgd20,pgd20-2-255"]) == 0
    printed = capsys.readouterr().out
    for expected in ("PGD-20", "PGD-20 (eps/4)", "0.15", "360", "95 % interval", "each class", "pass"):
        assert expected in printed
    record = json.loads((run / runs.EVALUATION).read_text())
    assert {"schema", "model", "data", "results", "checks"} <= record.keys()
    assert {"name", "split", "images", "sha256"} == record["data"].keys()
    assert record["data"]["split"] == "test"
    expected_keys = [
        "attack",
        "label",
        "norm",
        "eps",
        "steps",
        "step_size",
        "restarts",
        "start",
        "loss",
        "dtype",
        "images",
        "accuracy",
        "interval",
        "seconds",
    ]
    for result in record["results"]:
        assert set(expected_keys) <= result.keys()
    outcomes = np.load(run / runs.OUTCOMES)
    under = {f"{what}_{attack}" for what in ("held", "prediction") for attack in ("pgd20", "pgd20-2-255")}
    assert set(outcomes.files) == {"label", "clean_prediction"} | under
    clean = outcomes["clean_prediction"] == outcomes["label"]
    assert record["results"][0]["accuracy"] == clean.mean()
    assert record["results"][1]["accuracy"] == outcomes["held_pgd20"].mean()


def test_the_weights_load_in_python_and_give_the_same_accuracy(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    main(["evaluate", str(run), "--out", str(out)])
    record = runs.read_json(out)
    images = data.load("digits", "test")
    model = anchor_robust.load(run)
    from anchor_robust.threat import Ball

    measured = anchor_robust.evaluate(model, images.pixels(slice(None)), images.labels, ball=Ball("linf", 0.15))
    assert [r["accuracy"] for r in measured["results"]] == [r["accuracy"] for r in record["results"]]


def test_evaluate_a_weights_file_elsewhere(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    weights = run / runs.WEIGHTS
    assert main(["evaluate", str(weights), "--limit", "20", "--eps", "8/255", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["results"][1]["eps"] == 8 / 255
    assert record["data"]["images"] == 20
    assert (tmp_path / "numbers.npz").exists()


def test_a_quiet_evaluation_prints_its_result_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), "--attacks", "clean", "--limit", "5", "--out", str(tmp_path / "numbers.json")]
    assert main([*words, "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "clean" in told.out


def test_a_card_lies_beside_the_record(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    assert main(["evaluate", str(run), "--limit", "50", "--curve", "steps,eps", "--out", str(out)]) == 0
    names = ["numbers-pictures.npz", "numbers.json", "numbers.md", "numbers.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    record, _ = read(out)
    assert out.with_suffix(".md").read_text() == card(record)
    assert record["curves"].keys() == {"steps", "eps"}
    assert record["batch_size"] == 500


def test_a_record_with_curves_is_not_lost_to_one_without(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    for name in (runs.EVALUATION, runs.OUTCOMES, runs.CARD):
        (copied / name).unlink(missing_ok=True)
    assert main(["evaluate", str(copied), "--attacks", "clean", "--curve", "steps", "--limit", "20"]) == 0
    assert (copied / runs.CARD).exists()
    assert main(["evaluate", str(copied), "--attacks", "clean", "--limit", "20"]) == 0
    (beside,) = copied.glob("evaluation-clean-digits-linf-0.15-20-*.json")
    told = capsys.readouterr().err
    assert f"kept: {copied / runs.EVALUATION}" in told
    assert f"next: anchor report {beside}" in told
    assert "curves" in runs.read_json(copied / runs.EVALUATION)
    assert "curves" not in runs.read_json(beside), "what a run's record would lose is saved under a name of its own"


@pytest.mark.parametrize(
    "claim, attack, status", (("0", None, 0), ("1", None, 1), ("0", "clean", 0), ("1", "clean", 1))
)
def test_a_claim_decides_the_exit_status(
    claim: str, attack: str | None, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        str(DIGITS),
        "--attacks",
        "clean,fgsm",
        "--out",
        str(tmp_path / "claim.json"),
        "--claim",
        claim,
    ]
    assert main([*words, *(["--claim-attack", attack] if attack else [])]) == status
    refuting = [line for line in capsys.readouterr().err.splitlines() if "does not hold" in line]
    assert len(refuting) == status
    assert all(f"under {attack or 'FGSM'}" in line for line in refuting)
    assert (tmp_path / "claim.json").exists(), "a refuted claim is still a result"


def test_checks_of_every_audit_join_the_record(tmp_path: Path) -> None:
    out = tmp_path / "checked.json"
    assert main(["evaluate", str(DIGITS), "--attacks", "fgsm", "--limit", "9", "--out", str(out)]) == 0
    names = [check["name"] for check in runs.read_json(out)["checks"]]
    assert {"outputs are logits", "gradients reach the pixels"} <= set(names)


def test_evaluate_a_plain_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"state_dict": backbone("resnet8", 10, (1, 8, 8)).state_dict()}, tmp_path / "plain.pt")
    out = tmp_path / "plain.json"
    words = ["evaluate", str(tmp_path / "plain.pt"), "--model", "resnet8", "--data", "digits", "--limit", "10"]
    assert main([*words, "--normalize", "0.5:0.25", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert (record["model"]["mean"], record["model"]["std"]) == ([0.5], [0.25])
    assert record["results"][1]["eps"] == 0.031


def test_recipes_lists_every_recipe_and_prints_one_to_start_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name in ("digits-anchor", "cifar10-resnet8-anchor", "cifar10-resnet18-pgd-at"):
        assert name in listed
    assert main(["recipes", "digits-anchor"]) == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(capsys.readouterr().out)
    assert settle(str(mine)) == settle("digits-anchor")


def test_train_says_as_much_as_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = (*TINY, "--attack.steps=10", "--validation.steps=10")  # no warning that the attack is short
    told = {}
    for how in ("--quiet", "--json", ""):
        out = tmp_path / f"run{how}"
        assert main(["train", "digits-anchor", "--out", str(out), *full, *([how] if how else [])]) == 0
        told[how] = capsys.readouterr()
    assert told["--quiet"] == (f"{tmp_path}/run--quiet\n", "")
    assert told[""].out == f"{tmp_path}/run\n"
    assert "epoch 1/1" in told[""].err
    assert "finished: " in told[""].err
    assert told["--json"].err == ""
    events = [json.loads(line) for line in told["--json"].out.splitlines()]
    (logged,) = runs.read_metrics(tmp_path / "run--json")
    assert [event["event"] for event in events] == ["start", "epoch", "finished"]
    assert events[1] == {"event": "epoch", **logged}
    assert events[2]["run"] == f"{tmp_path}/run--json"
    assert events[2]["best"] == logged["validation_robust"]


@pytest.mark.parametrize(
    "typed, words, settings",
    (
        ("train --optimise.epochs 1 NAME --out x", "train NAME --out x", "--optimise.epochs 1"),
        ("train --a.b=1 NAME --c.d -2 --e.f --quiet", "train NAME --quiet", "--a.b=1 --c.d -2 --e.f"),
        ("sweep NAME --over a.b=1,2 --out ./x.y", "sweep NAME --over a.b=1,2 --out ./x.y", ""),
        ("train --seed 1 NAME --name=x", "train NAME", "--seed 1 --name=x"),
        ("evaluate --seed 1 RUN", "evaluate --seed 1 RUN", ""),
    ),
)
def test_settings_may_stand_anywhere(typed: str, words: str, settings: str) -> None:
    assert settings_apart(typed.split()) == (words.split(), settings.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"anchor {anchor_robust.__version__}\n"


# What is typed, and what the one line of the answer must name.
WRONG: dict[str, tuple[str, ...]] = {
    "frobnicate": ("frobnicate", "quickstart"),
    "train": ("recipe", "--resume"),
    "train digits-anchr": ("digits-anchr", "did you mean digits-anchor"),
    "train digits-anchor --optimise.lrr 1": ("optimise.lrr", "did you mean lr"),
    "train digits-anchor --optimize.lr 1": ("optimize", "did you mean optimise"),
    "train digits-anchor --optimise.lr fast": ("optimise.lr", "a number", "fast"),
    "train digits-anchor --optimise.epochs 1.5": ("optimise.epochs", "a whole number", "1.5"),
    "train digits-anchor --optimise.epochs 0": ("optimise.epochs", "1 or more"),
    "train digits-anchor --objective.name ancor": ("ancor", "did you mean anchor"),
    "train digits-anchor --objective.temperature 0": ("temperature", "above 0"),
    "train digits-anchor --objective.views=[clean]": ("views", "adversarial"),
    "train digits-anchor --model.name resnet9": ("resnet9", "resnet8"),
    "train digits-anchor --model.depth 3": ("model.depth", "width"),
    "train digits-anchor --threat.eps 8": ("8", "8/255"),
    "train digits-anchor --threat.eps=-0.1": ("-0.1",),
    "train digits-anchor --threat.norm l1": ("l1", "linf"),
    "train digits-anchor --data.name mnist": ("mnist", "digits"),
    "train digits-anchor --validation.images 5000": ("5000",),
    "train digits-anchor --seed": ("--seed",),
    "train digits-anchor --out {tmp}": ("not empty", "--out"),
    "train digits-anchor --out {tmp}/file": ("is a file",),
    "train digits-anchor --out {tmp}/file/below": ("cannot write",),
    "train cifar10-resnet8-anchor --data-dir {tmp}": ("no CIFAR-10", "cifar-10-batches-py"),
    "train --resume {tmp}/nowhere": ("last.ckpt", "does not exist"),
    "train --resume {tmp} --optimise.lr 1": ("--resume RUN takes no recipe or settings",),
    "train {tmp}/broken.yaml": ("broken.yaml", "cannot be read"),
    "train {tmp}/list.yaml": ("list.yaml", "key: value"),
    "train digits-anchor --quiet --json": ("--quiet", "--json"),
    "train digits-anchor --logger tensorbord": ("tensorbord", "did you mean tensorboard"),
    "train --resume {tmp} --logger wandb": ("--resume RUN takes no recipe or settings",),
    "watch {tmp}": ("recipe.yaml", "anchor train"),
    "watch {run} --port 65536": ("65536", "65535"),
    "attack {tmp}/file --run {run}": ("file", "PNG or JPEG"),
    "attack {tmp}/file": ("--run",),
    "evaluate {tmp}/nowhere": ("nowhere", "does not exist"),
    "evaluate {tmp}": ("weights.safetensors",),
    "evaluate {tmp}/file": ("--model",),
    "evaluate {tmp}/file --model resnet8": ("--data", "--normalize"),
    "evaluate {tmp}/file --model resnet8 --data digits --normalize none": ("file", "cannot be read"),
    "evaluate {tmp}/file --model resnet8 --data digits --normalize half": ("half", "none"),
    "evaluate {run} --attacks clean,pgd21": ("pgd21", "pgd20"),
    "evaluate {run} --limit 0": ("--limit 0",),
    "evaluate {run} --limit ten": ("ten",),
    "evaluate {run} --eps huge": ("huge", "8/255"),
    "evaluate {run} --eps 8": ("8/255",),
    "evaluate {run} --eps 0": ("--eps 0", "above 0"),
    "evaluate {run} --normalize none": ("--normalize none", "leave it out"),
    "evaluate {run} --norm l2": ("--norm l2", "--eps"),
    "evaluate {run} --attacks ,": ("no attack", "clean"),
    "evaluate {run} --curve eps,step": ("'step'", "eps, steps"),
    "evaluate {run} --engine reference": ("autoattack", "--attacks"),
    "evaluate {run} --engine foolbox": ("foolbox", "reference"),
    "evaluate {run} --search fp8": ("fp8", "bf16"),
    "evaluate {run} --claim 52": ("--claim 52", "0.52"),
    "evaluate {run} --claim high": ("high",),
    "evaluate {run} --claim-attack pgd20": ("--claim-attack pgd20", "--claim"),
    "evaluate {run} --claim 0.5 --claim-attack autoattack": ("--claim-attack autoattack", "--attacks clean,pgd20"),
    "evaluate {run} --model resnet18": ("resnet18", "resnet8"),
    "evaluate {run} --out {tmp}/nowhere/numbers.json": ("cannot write",),
    "train digits-anchor --data.crop 20": ("data.crop 20", "8"),
    "train digits-anchor --model.width 0": ("width",),
    "train digits-anchor --seed 99999999999999999999": ("seed",),
    "evaluate {run} --seed 99999999999999999999": ("--seed", "0 to 4294967295"),
    "train digits-anchor --name ../elsewhere": ("name", "/"),
    "train digits-anchor --threat.eps -8/255": ("-0.03",),
    "evaluate {run} --out {tmp}/numbers.txt": (".json",),
    "evaluate {run} --optimise.lr 1": ("--optimise.lr", "not understood"),
    "evaluate {run} --data mnist": ("mnist", "digits"),
    "evaluate {run} --data cifar10 --data-dir {tmp}": ("no CIFAR-10",),
    "recipes nope": ("nope", "digits-anchor"),
    "data cifar10 --data-dir {tmp}": ("no CIFAR-10",),
    "quickstart --out {tmp}": ("not empty",),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_cannot_be_done_is_said_in_one_line(
    typed: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANCHOR_DATA", raising=False)
    (tmp_path / "file").touch()
    (tmp_path / "broken.yaml").write_text("name: [unclosed")
    (tmp_path / "list.yaml").write_text("- name")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(typed.format(tmp=tmp_path, run=run).split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("anchor: ")
    for word in WRONG[typed]:
        assert word in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "something half-written stayed behind"


def test_our_own_fault_exits_1_with_one_line_and_debug_raises(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("in the depths")

    monkeypatch.setattr("anchor_robust.cli.explained.explained", broken)
    assert main(["recipes", "digits-anchor"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "ZeroDivisionError: in the depths" in told
    with pytest.raises(ZeroDivisionError):
        main(["recipes", "digits-anchor", "--debug"])


@pytest.mark.parametrize(
    "error",
    (torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")),
)
def test_a_lack_of_memory_is_told_with_what_helps(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(name: str) -> None:
        raise error

    monkeypatch.setattr("anchor_robust.cli.explained.explained", large)
    assert main(["recipes", "digits-anchor"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    for word in ("memory does not suffice", "--optimise.micro_batch", "--batch-size", str(error)):
        assert word in told


def test_a_stopped_quickstart_says_how_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: Any, **words: Any) -> None:
        raise KeyboardInterrupt("stopped at step 9; anchor train --resume goes on")

    monkeypatch.setattr(quickstart, "audit", stopped)
    monkeypatch.setattr(quickstart, "start", lambda *given: tmp_path)
    out = tmp_path / "quickstart"
    assert main(["quickstart", "--out", str(out)]) == 130
    assert f"stopped; delete {out}, or give another --out, and start again" in capsys.readouterr().err


def test_quickstart_shows_what_the_tool_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "quickstart"
    assert main(["quickstart", "--out", str(out)]) == 0
    accuracy = {}
    for method in quickstart.METHODS:
        names = {path.name for path in (out / method).iterdir()}
        assert {runs.RECIPE, runs.WEIGHTS, runs.METRICS, runs.EVALUATION, runs.OUTCOMES} <= names
        results = runs.read_json(out / method / runs.EVALUATION)["results"]
        accuracy[method] = {result["label"]: result["accuracy"] for result in results}
    assert accuracy["standard"]["clean"] > 0.95
    assert accuracy["standard"]["PGD-20"] < 0.2
    for method in ("pgd-at", "anchor"):
        assert accuracy[method]["clean"] > 0.9
        assert accuracy[method]["PGD-20"] > 0.6
    printed = capsys.readouterr().out
    assert all(method in printed for method in quickstart.METHODS)
    assert "written:" in printed
    assert printed.splitlines()[-1] == f"open in a browser: {out / runs.REPORT}"
    page = (out / runs.REPORT).read_text()
    assert all(f"<b>{method}</b> holds" in page for method in quickstart.METHODS)


@pytest.mark.parametrize("method", ["standard", "pgd-at", "anchor"])
def test_real_cifar10_trains_and_evaluates(
    method: str, cifar_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps on some real images: the whole path, not the accuracy."""
    out, load = tmp_path / method, data.load
    monkeypatch.setattr(data, "load", lambda *asked: load(*asked).first(1000))
    tiny = [*TINY, "--optimise.batch_size=250", "--validation.images=200"]
    words = ["train", f"cifar10-resnet8-{method}", "--out", str(out), "--data-dir", str(cifar_dir)]
    assert main([*words, *tiny]) == 0
    assert main(["evaluate", str(out), "--limit", "50", "--data-dir", str(cifar_dir)]) == 0
    record = runs.read_json(out / runs.EVALUATION)
    assert record["data"]["name"] == "cifar10"
    assert record["data"]["images"] == 50


PASSED_ON: dict[str, tuple[str, dict[str, object]]] = {
    "evaluate run --search bf16 --corruptions --transfer-from other --seed 7 --batch-size 9 --curve eps": (
        "audit.audit",
        {
            "search": "bf16",
            "corruptions": True,
            "transfer_from": "other",
            "seed": 7,
            "batch_size": 9,
            "curves": ["eps"],
        },
    ),
    "attack a.png --run run --seed 7 --norm l2 --eps 1 --attack fgsm --label cat": (
        "attack_pictures.attack_pictures",
        {"seed": 7, "norm": "l2", "eps": 1.0, "attack": "fgsm", "label": "cat"},
    ),
    "embedding run --seed 7 --limit 5 --batch-size 9": ("embedding.measure", {"seed": 7, "limit": 5, "batch_size": 9}),
    "second-stage run --adversarial --epochs 3 --lr 0.4": (
        "second_stage.start",
        {"adversarial": True, "epochs": 3, "lr": 0.4},
    ),
}


@pytest.mark.parametrize("typed", PASSED_ON)
def test_every_option_reaches_what_it_is_for(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (called, expected), given = PASSED_ON[typed], {}
    module, _, function = called.partition(".")
    found = importlib.import_module(f"anchor_robust.{module}")
    monkeypatch.setattr(found, function, lambda *_, **told: given.update(told) or 1 / 0)
    assert main(typed.split()) == 1
    assert {key: given.get(key) for key in expected} == expected
