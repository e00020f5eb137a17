"""Every benchmark runs, and its JSON is complete; how fast things are is no test."""

import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anchor_robust import cli, runs
from anchor_robust.attacks import PGD
from anchor_robust.losses import hard_supcon
from anchor_robust.threat import Ball

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = ("--model", "resnet8", "--batch", "4", "--images", "32", "--attack-steps", "2", "--compile", "never")
STEPPING = (*SMALL, "--steps", "2", "--workers", "0")
TOY = {
    "train_step": ("train_step-resnet8-4", STEPPING),
    "attack": ("attack-resnet8-4", (*SMALL, "--rounds", "2")),
    "data_pipeline": ("data_pipeline-4", ("--batch", "4", "--images", "32", "--rounds", "2")),
    "mapped_data": ("mapped_data-4", ("--batch", "4", "--images", "32", "--side", "8", "--rounds", "2")),
    "evaluation": ("evaluation-resnet8", ("--model", "resnet8", "--images", "4", "--batch", "3", "--rounds", "1")),
    "breakdown": ("breakdown-resnet8-4", STEPPING),
    "cost": ("cost-resnet8", (*STEPPING, "--few", "--axes", "attack_steps", "views")),
    "step_memory": ("step_memory-resnet8", ("--model", "resnet8", "--images", "64", "--few")),
    "startup": ("startup", ("--rounds", "2")),
    "estimate": ("estimate", ()),
}


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Scripts find each other in their own folder, as when python runs one of them."""
    folders = [str(ROOT / "benchmarks"), str(ROOT / "results")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What every benchmark writes, by its name; the files lie in one folder."""
    folder = tmp_path_factory.mktemp("benchmarks") / "not there yet"
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        cheap = {"plain": ("-c", "import json"), "anchor": ("-m", "anchor_robust", "--help"), "anchor recipes": ("-V",)}
        patch.setattr(script("startup"), "COMMANDS", cheap)
        for name, (file, words) in TOY.items():
            script(name).main([*words, "--json", str(folder / f"{file}.json")])
            found[name] = json.loads((folder / f"{file}.json").read_text())
    found["folder"] = {"path": folder}
    return found


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", TOY)
def test_every_record_says_what_was_run_and_where(name: str, records: dict[str, Any]) -> None:
    record = records[name]
    assert record["benchmark"] == name
    asked = {word.removeprefix("--").replace("-", "_") for word in TOY[name][1] if word.startswith("--")}
    assert asked <= record["settings"].keys()
    assert {"command", "versions", "device", "threads", "bf16", "cores", "load", "cuda"} <= record["environment"].keys()


@pytest.mark.parametrize("name", ["train_step", "attack", "data_pipeline", "mapped_data", "evaluation"])
def test_a_comparison_has_medians_spread_and_ratio(name: str, records: dict[str, Any]) -> None:
    record = records[name]
    rounds = record["settings"].get("rounds") or record["settings"]["steps"]
    images = record["settings"]["images"] if name == "evaluation" else record["settings"]["batch"]
    for way in ("plain", "anchor"):
        timing = record[way]
        assert len(timing["samples_s"]) == rounds
        assert timing["median_s"] == median(timing["samples_s"])
        low, high = timing["quartiles_s"]
        assert min(timing["samples_s"]) <= low <= timing["median_s"] <= high <= max(timing["samples_s"])
        assert timing["warm_up_s"] > 0
        assert record[f"{way}_images_per_s"] == pytest.approx(images / timing["median_s"])
    assert record["ratio"] == pytest.approx(record["anchor_images_per_s"] / record["plain_images_per_s"])
    assert record["ratio_quartiles"][0] <= record["ratio_quartiles"][1]


def test_the_step_says_what_it_needed(records: dict[str, Any]) -> None:
    record = records["train_step"]
    assert record["passes"] == 4  # two of the attack, two views
    assert record["flops_per_image"] > 0
    rate = record["limits"]["bf16" if record["precision"] == "bfloat16" else "float32"]
    reached = record["flops_per_image"] * record["anchor_images_per_s"] / rate
    assert record["flop_utilisation"] == pytest.approx(reached)


def test_measures_are_added_from_the_plain_way_to_ours(records: dict[str, Any]) -> None:
    lines = records["attack"]["measures"]
    assert [lines[0]["measure"], lines[-1]["measure"]] == ["plain", "step and projection as one clamp"]
    gained = math.prod(line["gain"] for line in lines)
    assert gained == pytest.approx(records["attack"]["ratio"])
    assert all(math.isfinite(line["predicted_gain"]) and line["predicted_s"] > 0 for line in lines)


def test_the_parts_of_a_step_are_the_whole(records: dict[str, Any]) -> None:
    record = records["breakdown"]
    assert sum(part["share"] for part in record["parts"]) == pytest.approx(1)
    names = {part["part"] for part in record["parts"]}
    expected = {"attack", "light augmentation", "strong augmentation", "optimizer", "averaged weights"}
    assert expected | {"training pass, forward", "training pass, backward", "twin refreshed"} <= names
    assert record["operations"]


def test_cost_varies_one_setting_at_a_time(records: dict[str, Any]) -> None:
    points = records["cost"]["points"]
    assert [(point["axis"], point["value"]) for point in points] == [
        ("attack_steps", 0),
        ("attack_steps", 1),
        ("views", 1),
        ("views", 2),
    ]
    assert [point["passes"] for point in points] == [2, 3, 3, 4]


def test_both_evaluations_come_to_the_same_verdicts(records: dict[str, Any]) -> None:
    assert records["evaluation"]["same_verdicts"] == 1
    assert set(records["evaluation"]["robust_accuracy"]) == {"plain", "anchor"}


def test_the_document_shows_what_was_measured(records: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    performance = script("performance")
    monkeypatch.setattr(performance, "FOLDER", records["folder"]["path"])
    told = performance.filled()
    record = records["train_step"]
    on = f"{record['environment']['device']} | {record['precision']}"
    assert f"| resnet8, batch 4 | {on} | {performance.rate(record['plain_images_per_s'])} |" in told
    assert f"{record['ratio']:.2f}x" in told
    assert told.count("Not measured yet") == 4  # the loss, AutoAttack, parity and an accelerator
    monkeypatch.setattr(performance, "BLOCKS", {})
    with pytest.raises(SystemExit, match="asks for"):
        performance.filled()


def test_ways_take_turns_and_what_comes_first_is_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, called = script("timing"), []
    clock = iter(float(number * number) for number in range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    found = timing.alternated(
        {"one": lambda: called.append("one"), "two": lambda: called.append("two")}, rounds=3, device=CPU, warm_ups=1
    )
    assert called == ["one", "two", "one", "two", "two", "one", "one", "two"]
    # The n-th call lasts (2n + 1)^2 - (2n)^2 = 4n + 1 on this clock.
    assert found["one"] == {"warm_up_s": 1, "samples_s": [9, 21, 25], "median_s": 21, "quartiles_s": [15, 23]}
    assert found["two"]["samples_s"] == [13, 17, 29]
    assert timing.compared({"plain": found["two"], "anchor": found["one"]}, 42)["ratio"] == 17 / 21


def test_the_plain_loss_is_the_same_function() -> None:
    z = F.normalize(torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    y = torch.tensor([0, 1, 2, 0, 1, 3])
    plain = script("plain").supcon(z.chunk(2), y)
    torch.testing.assert_close(plain, hard_supcon(z, y.repeat(2), hardness=0), rtol=1e-6, atol=0)


def test_the_plain_attack_is_the_same_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BatchNorm, whose statistics it takes from the batch, and from the same start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.rand(6, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    start = x + torch.empty_like(x).uniform_(-0.031, 0.031)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.copy_(start - x))
    monkeypatch.setattr(Ball, "random_point", lambda *_: start.clamp(0, 1))
    plain = script("plain").attack(TwoResults(model), x, y, 5)
    torch.testing.assert_close(plain, PGD(Ball("linf", 0.031), 5, 0.007)(model, x, y))


class TwoResults(nn.Module):
    """A model as a training step calls it: logits, and an embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.model(x), None


def test_operations_and_bytes_are_counted() -> None:
    machine = script("machine")
    x, weight = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(5, 3, 3, 3)

    def forward_and_back() -> None:
        product = F.conv2d(x, weight, padding=1)
        torch.autograd.grad((product.view(2, -1) + 1).sum(), x)

    operations = machine.counted(forward_and_back)
    # Forward, and the gradient of the images alone: as many multiply-and-adds again.
    assert machine.flops(operations) == 2 * (2 * 2 * 5 * 8 * 8 * 3 * 9)
    added = [each for each in operations if each.name.startswith("aten.add")]
    assert [each.bytes for each in added] == [2 * 2 * 5 * 64 * 4]
    assert not any("view" in each.name for each in operations)
    limits = machine.Limits(bandwidth=1e9, float32=1e9, bf16=1e9)
    needed = machine.seconds_at_least(operations, limits)
    products = [each for each in operations if each.flops]
    others = sum(each.bytes for each in operations if not each.flops)
    assert needed == pytest.approx((sum(max(each.flops, each.bytes) for each in products) + others) / 1e9)
    assert machine.seconds_at_least(products, limits, fused=True) == pytest.approx(
        (sum(max(each.flops, each.bytes) for each in products) + 2 * sum(each.written for each in products)) / 1e9
    )


def test_the_estimate_is_its_formula(records: dict[str, Any]) -> None:
    imagenet = records["estimate"]["tasks"][1]
    # ResNet-50 as He et al. and torchvision count it: 25.6 million parameters, 4.1 billion multiply-and-adds forward.
    assert imagenet["parameters"] == 25_557_032
    assert imagenet["training_pass"] / 6 == pytest.approx(4.1e9, rel=0.02)
    assert imagenet["flops_per_image"] == 3 * imagenet["attack_pass"] + 2 * imagenet["training_pass"]
    alone, _, many = imagenet["on"]
    seconds = 90 * 1_281_167 * imagenet["flops_per_image"] / (750e12 * 0.3)
    assert alone["hours"] == pytest.approx(seconds / 3600)
    exchange = 2 * 63 / 64 * 4 * 25_557_032 / 50e9
    assert many["hours"] == pytest.approx((seconds + 90 * 1_281_167 / 64 * exchange) / 64 / 3600, rel=1e-6)


@pytest.fixture
def unattended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """gpu.py at toy size, the command line in this process."""
    gpu = script("gpu")
    said: list[list[str]] = []

    def anchor(words: list[str], seconds: float) -> tuple[int, str]:
        said.append(words)
        return cli.main(words), ["one line", "the last line"]

    monkeypatch.setattr(gpu, "anchor", anchor)
    monkeypatch.setattr(gpu, "TOY", gpu.TOY | {"batch": 4, "images": 16})
    run, out = tmp_path / "run", tmp_path / "gpu.json"
    small = ("optimise.epochs=1", "model.width=4", "attack.steps=1", "validation.steps=1")

    def started(*words: str) -> dict[str, Any]:
        chosen = [word for setting in small for word in ("--set", setting)]
        what = ("--toy", "--recipe", "digits-anchor", *chosen, "--run", str(run), "--limit", "8", "--json", str(out))
        gpu.main([*what, "--minutes", "5", *words])
        return {"said": said, **json.loads(out.read_text())}

    return started


def test_an_accelerator_is_measured_and_trained_on_unattended(
    unattended: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = script("gpu")
    with monkeypatch.context() as patch:
        patch.setattr(gpu.attack, "measured", broken)
        first = unattended()
    parts = first["parts"]
    names = ["limits", "train_step-resnet8-4", "attack-resnet8-4", "evaluation-resnet8-4", "loss-512", "training"]
    assert list(parts) == names
    assert parts["attack-resnet8-4"]["failed"] == "RuntimeError: out of memory"
    assert {"bandwidth", "float32", "bf16"} <= parts["limits"].keys()
    assert all("ratio" in parts[name] for name in names if name.startswith(("train_step", "evaluation", "loss")))
    assert parts["training"]["finished"]
    assert parts["training"]["segments"][0]["last"]["epoch"] == 1
    assert [result["label"] for result in parts["training"]["results"]] == ["clean", "PGD-20"]
    told = script("performance").accelerated(first)
    assert all(f"| {name} |" in told for name in names if name.startswith(("train_step", "evaluation", "loss")))
    assert "attack-resnet8-4 failed: RuntimeError: out of memory; trained to epoch 1 in" in told
    assert "; PGD-20 " in told
    # Once more: only what failed is measured again, and the run is left as it is.
    second = unattended()
    assert second["said"] == first["said"]
    assert "ratio" in second["parts"]["attack-resnet8-4"]
    assert all(second["parts"][name] == parts[name] for name in names if name != "attack-resnet8-4")


def broken(*_: object) -> None:
    raise RuntimeError("out of\nmemory")


def test_a_training_goes_on_where_its_time_was_up(
    unattended: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu, run = script("gpu"), tmp_path / "run"
    monkeypatch.setattr(gpu, "parts", lambda *_: {})
    status = iter([130, 130, 0, 2])
    said: list[list[str]] = []

    def anchor(words: list[str], seconds: float) -> tuple[int, str]:
        said.append(words[:2])
        run.mkdir(exist_ok=True)
        for name in (runs.LAST, runs.WEIGHTS):
            (run / name).touch()
        return next(status), ["told"]

    monkeypatch.setattr(gpu, "anchor", anchor)
    training = unattended()["parts"]["training"]
    assert said == [["train", "digits-anchor"], *[["train", "--resume"]] * 2, ["evaluate", str(run)]]
    assert [segment["status"] for segment in training["segments"]] == [130, 130, 0]
    assert training["evaluation"] == {"status": 2, "said": "told"}


def test_what_was_trained_further_is_evaluated_again_and_what_is_lost_begins_anew(
    unattended: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu, run, said, clock = script("gpu"), tmp_path / "run", [], [0.0]
    monkeypatch.setattr(gpu, "parts", lambda *_: {})
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    # Stopped after a segment, with the time of that call up; then trained to the end; then all is done.
    status = iter([130, 0, 0])

    def anchor(words: list[str], seconds: float) -> tuple[int, list[str]]:
        said.append(words[:2])
        if words[0] == "evaluate":
            runs.write_json(run / runs.EVALUATION, {"results": [len(said)]})
            return 0, ["told"]
        run.mkdir(exist_ok=True)
        (run / runs.WEIGHTS).touch()
        (run / runs.LAST).touch()
        runs.append_metrics(run, {"step": 10 * len(said), "epoch": len(said)})
        clock[0] = 1e6
        return next(status), ["told"]

    monkeypatch.setattr(gpu, "anchor", anchor)
    for finished, commands in ((False, 2), (True, 4), (True, 4)):
        clock[0] = 0.0
        training = unattended()["parts"]["training"]
        assert (training["finished"], len(said)) == (finished, commands)
        assert training["results"] == [commands]
    assert [words[1] for words in said] == ["digits-anchor", str(run), "--resume", str(run)]
    out = tmp_path / "gpu.json"
    record = json.loads(out.read_text())
    record["parts"]["training"]["finished"] = False
    out.write_text(json.dumps(record))
    (run / runs.LAST).unlink()
    clock[0] = 0.0
    training = unattended()["parts"]["training"]
    assert len(training["segments"]) == 1
    assert [words[1] for words in said[4:]] == ["digits-anchor", str(run)]


def test_a_command_is_asked_to_stop_when_its_time_is_up() -> None:
    assert script("gpu").anchor(["train", "digits-anchor", "--explain"], 0.01)[0] == 130
    assert script("gpu").anchor(["--version"], 60)[0] == 0


def test_a_command_that_hears_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "PATIENCE", (0.1, 0.1))
    deaf = (
        "import signal, sys, time; signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN); "
        "print('deaf', file=sys.stderr, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", deaf], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline() == "deaf\n"
    gpu.stopped(process)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "optimise.lrr=1"), "lrr"),
        (("--recipe", "cifar10-resnet8-anchor", "--data-dir", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_measured(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    usual = () if "--recipe" in words else ("--recipe", "digits-anchor")
    with pytest.raises(SystemExit, match=f"gpu.py: .*{told}"):
        script("gpu").main([*usual, *words, "--minutes", "1", "--json", str(tmp_path / "gpu.json")])
    assert not (tmp_path / "gpu.json").exists()


def test_what_is_measured_alone_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "parts", lambda *_: {"limits": lambda: {"bandwidth": 1.0}})
    gpu.main(["--measure-only", "--data-dir", "nowhere", "--minutes", "1", "--json", str(out)])
    assert json.loads(out.read_text())["parts"] == {"limits": {"bandwidth": 1.0}}


def test_parts_of_another_device_are_not_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps({"environment": {"device": "another"}, "parts": {}}))
    with pytest.raises(SystemExit, match="is the record of another, not"):
        script("gpu").main(["--measure-only", "--minutes", "1", "--json", str(out)])
    assert "parts" in json.loads(out.read_text())


@pytest.mark.parametrize(
    ("made", "asked", "told"),
    [
        (("--toy",), (), "toy True, not False"),
        ((), ("--threads", str(torch.get_num_threads())), "threads None, not"),
        ((), ("--recipe", "digits-anchor", "--data-dir", "elsewhere"), None),
    ],
)
def test_parts_that_were_measured_otherwise_are_not_taken_over(
    made: tuple[str, ...], asked: tuple[str, ...], told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "parts", lambda *_: {"limits": lambda: {"bandwidth": 1.0}})
    words = ("--measure-only", "--minutes", "1", "--json", str(out))
    gpu.main([*words, *made])
    if told is None:
        gpu.main([*words, *asked])
        return
    with pytest.raises(SystemExit, match=f"holds what was made with {told}.*; name a new file"):
        gpu.main([*words, *asked])
    assert json.loads(out.read_text())["parts"] == {"limits": {"bandwidth": 1.0}}


@pytest.mark.parametrize("changed", ({"recipe": "another"}, {"set": ["seed=1"]}, {"run": "another"}, {"toy": True}, {}))
def test_what_was_trained_otherwise_is_not_taken_over(changed: dict[str, Any], tmp_path: Path) -> None:
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    settings = {"toy": False, "threads": None, "recipe": "one", "set": [], "run": "runs/gpu"}
    about = {"environment": {"device": "cpu"}, "settings": settings}
    out.write_text(json.dumps(about | {"parts": {"limits": {}, "training": {"segments": []}}}))
    asked = about | {"settings": settings | changed}
    if not changed:
        assert gpu.earlier(out, asked).keys() == {"limits", "training"}
        return
    with pytest.raises(SystemExit, match=f"with {next(iter(changed))} .*; name a new file"):
        gpu.earlier(out, asked)


def test_the_speed_is_of_the_images_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation, out = script("evaluation"), tmp_path / "evaluation.json"
    few = evaluation.under_test(evaluation.Named(str(ROOT / "results" / "digits-anchor")), CPU)
    few = dataclasses.replace(few, images=few.images.first(3))
    monkeypatch.setattr(evaluation, "under_test", lambda *given: few)
    evaluation.main(["--run", "RUN", "--images", "500", "--rounds", "1", "--json", str(out)])
    told = json.loads(out.read_text())
    assert told["settings"]["images"] == 3
    assert told["anchor_images_per_s"] == pytest.approx(3 / told["anchor"]["median_s"])


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("train_step", ("--model", "resnet9"), "resnet9"),
        ("train_step", ("--batch", "0"), "a whole number from 1 on"),
        ("attack", ("--rounds", "-1"), "a whole number from 1 on"),
        ("contrastive_loss", ("--sizes", "512", "many"), "'many' given"),
        ("cost", ("--axes", "colour"), "colour"),
        ("gpu", ("--minutes", "0", "--json", "FILE"), "--minutes 0"),
        ("evaluation", ("--run", "nowhere"), "nowhere does not exist"),
    ],
)
def test_wrong_words_are_told_in_a_line(name: str, words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode != 0
    assert told in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_no_part_begins_in_the_second_half_of_the_time(
    unattended: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, clock = script("gpu"), iter([0.0, 100.0, 151.0, *[400.0] * 99])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(gpu, "parts", lambda *_: {name: lambda: {"ratio": 1} for name in ("early", "late")})
    assert list(unattended()["parts"]) == ["early"]


def test_a_step_takes_memory_for_its_batch_alone(records: dict[str, Any]) -> None:
    points = records["step_memory"]["points"]
    told = [tuple(point[key] for key in ("batch", "attack_steps", "updates")) for point in points]
    assert told == [(16, 1, 2), (32, 1, 2), (16, 4, 2), (16, 1, 4)]
    assert all(point["peak_mib"] > 0 for point in points)


def test_every_benchmark_of_the_suite_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    suite = ROOT / "benchmarks"
    done = subprocess.run([sys.executable, str(suite), "--list"], capture_output=True, text=True, check=True)
    commands = done.stdout.splitlines()
    assert len(commands) >= len(TOY)
    for command in commands:
        _, file, *words = command.split()
        name = Path(file).stem
        assert (suite / f"{name}.py").is_file()
        with pytest.raises(SystemExit) as left:
            script(name).main([*words, "--help"])  # every option before it is known
        assert left.value.code == 0
    unknown = subprocess.run([sys.executable, str(suite), "--only", "stp"], capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "--only stp is unknown" in unknown.stderr


def test_autoattack_against_its_authors(tmp_path: Path) -> None:
    out = tmp_path / "autoattack.json"
    # A network without a defence: every image falls to the first attack, in both.
    words = [
        str(ROOT / "results" / "digits-standard"),
        "--eps",
        "0.3",
        "--images",
        "8",
        "--chunk",
        "4",
        "--json",
        str(out),
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "autoattack.py"), *words, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["accuracy"] == {"ours": 0.0, "theirs": 0.0}
    assert (record["agreement"], record["differ"], record["data"]["images"]) == (1.0, [], 8)
    assert record["ratio"] == record["seconds"]["theirs"] / record["seconds"]["ours"]
    assert [len(record["chunks"][name]["samples_s"]) for name in ("theirs", "ours")] == [2, 2]
    assert record["ratio_quartiles"][0] <= record["ratio_quartiles"][1]
    assert record["plain_images_per_s"] == 8 / record["seconds"]["theirs"]
    assert record["anchor_images_per_s"] == 8 / record["seconds"]["ours"]
    assert (record["benchmark"], record["settings"]["chunk"], record["settings"]["threads"]) == ("autoattack", 4, 1)
    assert {"model", "norm", "eps", "theirs", "environment"} <= record.keys()


def test_below_four_classes_theirs_climbs_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the targeted DLR loss is undefined, and only there."""
    logits, y, target = torch.tensor([[1.0, 4.0, 2.5], [0.5, -1.0, 3.0]]), torch.tensor([1, 2]), torch.tensor([2, 0])
    climbed = {}

    def asked(self: Any, x: Tensor, y: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        climber = self.apgd_targeted
        climber.y_target = target
        climbed[climber.n_target_classes] = climber.dlr_loss_targeted(self.model(x), y)
        return x, y

    benchmark = script("autoattack")
    monkeypatch.setattr(benchmark.authors_code().AutoAttack, "run_standard_evaluation", asked)
    held = benchmark.theirs(nn.Flatten(), Ball("linf", 0.1), 3, False, 0, logits, y)
    assert held.tolist() == [True, True]
    torch.testing.assert_close(climbed[2], torch.tensor([2.5 - 4.0, 0.5 - 3.0]))
    four = torch.cat([logits, torch.tensor([[2.0], [1.0]])], dim=1)
    benchmark.theirs(nn.Flatten(), Ball("linf", 0.1), 4, False, 0, four, y)
    # Their own: (z_target - z_y) / (z_1 - (z_3 + z_4) / 2), the logits of each image sorted downwards.
    torch.testing.assert_close(climbed[3], torch.tensor([-1.5 / (4.0 - 1.5), -2.5 / (3.0 + 0.25)]))


def test_the_blockwise_loss_is_the_plain_one(tmp_path: Path) -> None:
    out = tmp_path / "contrastive_loss.json"
    words = ["--sizes", "1100", "--hard-fraction", "0.5", "--rounds", "2", "--json", str(out)]
    script("contrastive_loss").main(words)
    record = json.loads(out.read_text())
    assert record["settings"]["hard_fraction"] == 0.5
    (size,) = record["sizes"]
    assert size["embeddings"] == 1100
    assert size["ratio"] == size["plain_seconds"]["median"] / size["anchor_seconds"]["median"]
    for way in ("plain", "anchor"):
        low, high = size[f"{way}_seconds"]["quartiles"]
        assert 0 < low <= size[f"{way}_seconds"]["median"] <= high
        assert size[f"{way}_peak_mib"] > 0
    assert size["loss_differs"] < 1e-6
    assert size["gradient_differs"] < 1e-6


def test_the_plain_way_runs_in_a_process_of_its_own() -> None:
    with script("apart").apart(beside, os.getpid()) as way:
        assert [way(1), way(2)] == [(True, 1), (True, 2)]
        with pytest.raises(ZeroDivisionError):
            way(0)
        assert way(3) == (True, 3)


def beside(starter: int) -> Callable[[int], tuple[bool, int]]:
    return lambda given: (os.getpid() != starter, given // given * given)
