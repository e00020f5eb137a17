"""The second stage: only the head moves, the attack sees the whole model, and the new run is like any other."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from anchor_robust import audit, checkpoint, data, models, runs, second_stage, train
from anchor_robust.attacks import PGD
from anchor_robust.cli import main
from anchor_robust.display import Display
from anchor_robust.errors import Refusal
from anchor_robust.evaluation import evaluating
from anchor_robust.models import LogitsOnly
from anchor_robust.optimise import learning_rate, sgd
from anchor_robust.recipe import settle
from anchor_robust.report.compare import comparison
from anchor_robust.subject import Named, digest
from anchor_robust.train import Training

SMALL = (
    "--optimise.epochs=3",
    "--optimise.batch_size=128",
    "--optimise.precision=float32",
    "--model.width=4",
    "--attack.steps=2",
    "--attack.step_size=0.04",
    "--threat.eps=0.06",
    "--validation.images=200",
    "--validation.steps=2",
    "--validation.step_size=0.04",
    "--validation.every=3",
)
HEAD = ("backbone.linear.weight", "backbone.linear.bias")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train.start(settle("digits-anchor", SMALL), tmp_path_factory.mktemp("encoder") / "run", None, Display())


resnet = models.BUILT_IN["resnet8"]
Second = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def heads(encoder: Path) -> dict[bool, Second]:
    """A clean head, and an adversarial one."""
    return {
        adversarial: second_stage.start(
            encoder,
            encoder.with_name(f"adversarial-{adversarial}"),
            None,
            Display(),
            adversarial=adversarial,
            epochs=3,
            lr=1.0,
        )
        for adversarial in (False, True)
    }


def around(source: Path) -> Training:
    recipe = settle(str(source / runs.RECIPE))
    return second_stage.encoder(source, recipe, data.load("digits", "train"), source)


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_encoder_keeps_every_bit_and_loses_its_projection_head(
    adversarial: bool, encoder: Path, heads: dict[bool, Second]
) -> None:
    before, after = load_file(encoder / runs.WEIGHTS), load_file(heads[adversarial][0] / runs.WEIGHTS)
    assert any("running_mean" in name for name in before)
    assert after.keys() == {name for name in before if not name.startswith("projection.")}
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (name not in HEAD), name


@pytest.mark.parametrize("adversarial, name", [(False, "clean"), (True, "adversarial")])
def test_the_new_run_is_like_any_other(adversarial: bool, name: str, encoder: Path, heads: dict[bool, Second]) -> None:
    run = heads[adversarial][0]
    assert {path.name for path in run.iterdir()} == {runs.RECIPE, runs.ENVIRONMENT, runs.METRICS, runs.WEIGHTS}
    theirs = settle(str(encoder / runs.RECIPE))
    plain = settle("digits-anchor", (*SMALL, "--optimise.ema=0", "--optimise.epochs=3", "--optimise.lr=1.0"))
    assert settle(str(run / runs.RECIPE)) == replace(plain, name=f"{theirs.name}-{name}-head")
    assert runs.read_json(run / runs.ENVIRONMENT)["passes"] == (theirs.attack.steps + 1 if adversarial else 1)
    model, header = checkpoint.load_with_header(run)
    done = {"adversarial": adversarial, "epochs": 3, "lr": 1.0, "encoder": str(encoder), **digest(str(encoder))}
    own = settle(str(encoder / runs.RECIPE)).optimise
    done["encoder_settings"] = {f"optimise.{key}": getattr(own, key) for key in ("lr", "ema")}
    assert header["second_stage"] == runs.read_json(run / runs.ENVIRONMENT)["second_stage"] == done
    assert header["projection_width"] == 0
    assert model.classifier.projection is None
    record = audit.audit(Named(str(run)), limit=50, display=Display())
    assert record["model"]["recipe"] == f"{theirs.name}-{name}-head"
    assert runs.read_json(run / runs.EVALUATION) == record


def test_the_recipe_of_a_head_has_no_setting_that_it_did_not_follow(encoder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    alone = ("--optimise.clip=9", "--optimise.awp=0.001", "--data.mix=cutmix", "--attack.ramp=0.2")
    runs.write_text(source / runs.RECIPE, settle(str(encoder / runs.RECIPE), alone).text())
    head, _ = second_stage.start(source, tmp_path / "head", None, Display(), epochs=3, lr=1.0)
    plain = ("--optimise.epochs=3", "--optimise.lr=1.0", "--optimise.ema=0", "--name=digits-anchor-clean-head")
    recipe = settle(str(head / runs.RECIPE))
    assert replace(recipe, name="") == replace(settle(str(encoder / runs.RECIPE), plain), name="")


def test_heads_on_encoders_of_two_kinds_are_two_methods(
    encoder: Path, heads: dict[bool, Second], tmp_path: Path
) -> None:
    other = train.start(
        settle("digits-anchor", [*SMALL, "--seed=1", "--optimise.awp=0.01"]), tmp_path / "other", None, Display()
    )
    head, _ = second_stage.start(other, tmp_path / "head", None, Display(), epochs=3, lr=1.0)
    first = Path(shutil.copytree(heads[False][0], tmp_path / "first"))
    for run in (first, head):
        audit.audit(Named(str(run)), ["clean"], limit=50, display=Display())
    methods = comparison([first, head])["methods"]
    assert [each["seeds"] for each in methods] == [[0], [1]]
    assert methods[1]["differs"]["encoder.optimise.awp"] == 0.01


def test_before_is_what_training_measured(encoder: Path, heads: dict[bool, Second]) -> None:
    validated = checkpoint.load_with_header(encoder)[1]["validation"]
    for _, records in heads.values():
        results = {result["label"]: result["accuracy"] for result in records[str(encoder)]["results"]}
        assert results == {"clean": validated["validation_clean"], "PGD-2": validated["validation_robust"]}


@pytest.mark.parametrize("adversarial", [False, True])
def test_after_is_what_the_kept_head_reaches(adversarial: bool, heads: dict[bool, Second]) -> None:
    run, records = heads[adversarial]
    best = checkpoint.load_with_header(run)[1]["validation"]
    again = train.validate(around(run))
    assert again == {key: best[key] for key in again}
    results = {result["label"]: result for result in records[str(run)]["results"]}
    assert results["clean"]["accuracy"] == best["validation_clean"]
    assert results["PGD-2"]["accuracy"] == best["validation_robust"]
    low, high = results["PGD-2"]["interval"]
    assert low < best["validation_robust"] < high


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_best_epoch_is_chosen_by_the_accuracy_that_the_head_is_for(
    adversarial: bool, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([(0.5, 0.5), (0.8, 0.3), (0.8, 0.4), (0.7, 0.6)])
    validations = ({"validation_clean": clean, "validation_robust": robust} for clean, robust in measured)
    monkeypatch.setattr(second_stage, "validate", lambda training: next(validations))
    run, _ = second_stage.start(encoder, tmp_path / "run", None, Display(), adversarial=adversarial, epochs=3)
    assert checkpoint.load_with_header(run)[1]["validation"]["epoch"] == (3 if adversarial else 2)


def robust_loss(run: Path) -> float:
    """Mean cross-entropy of the whole model under attack, on training images."""
    model, x, y = checkpoint.load(run), *pixels_and_labels()
    adversarial = PGD(settle(str(run / runs.RECIPE)).threat, steps=10, step_size=0.015)(model, x, y)
    with torch.no_grad():
        return F.cross_entropy(model(adversarial), y).item()


def pixels_and_labels() -> tuple[Tensor, Tensor]:
    images = data.load("digits", "train").first(500)
    return images.pixels(slice(None)), images.labels


def test_an_adversarial_head_has_the_lower_robust_loss(heads: dict[bool, Second]) -> None:
    assert robust_loss(heads[True][0]) < 0.9 * robust_loss(heads[False][0])


def test_a_step_follows_the_gradient_of_the_head_alone(encoder: Path) -> None:
    training = around(encoder)
    training.learner = replace(training.learner, light=lambda x, generator: x, label_smoothing=0.1)
    network, indices = training.network, torch.arange(128)
    linear = network.backbone.linear
    x, y = training.train.pixels(indices), training.train.labels[indices]
    with torch.no_grad(), evaluating(network, x.device):
        features = network.features(x).double()
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    settings = replace(training.recipe.optimise, lr=0.3, momentum=0.9, weight_decay=0.01)

    reported = second_stage.step(training, sgd(linear, settings), indices, adversarial=False)

    logits = features @ weight.T + bias
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    target = 0.9 * F.one_hot(y, 10).double() + 0.1 / 10
    assert reported["loss"].item() == pytest.approx(-(target * probability.log()).sum(1).mean().item(), rel=1e-5)
    gradient = (probability - target).T @ features / 128 + 0.01 * weight
    # Nesterov's first step goes 1 + momentum times as far.
    torch.testing.assert_close(linear.weight.detach().double(), weight - 0.3 * 1.9 * gradient, rtol=1e-4, atol=1e-6)
    moved = bias - 0.3 * 1.9 * (probability - target).mean(0)
    torch.testing.assert_close(linear.bias.detach().double(), moved, rtol=1e-4, atol=1e-6)


def test_the_attack_runs_through_the_head_as_it_is_now(encoder: Path) -> None:
    training = around(encoder)
    seen = []

    def attack(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, **_: object) -> Tensor:
        with torch.no_grad():
            seen.append((model(x), LogitsOnly(training.network).eval()(x)))
        return x

    training.learner = replace(training.learner, attack=attack)  # type: ignore[arg-type]
    optimizer = sgd(training.network.backbone.linear, training.recipe.optimise)
    for _ in range(2):
        second_stage.step(training, optimizer, torch.arange(64), adversarial=True)
    for searched, composed in seen:
        torch.testing.assert_close(searched, composed, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[0][1], seen[1][1], atol=1e-3)


def test_same_run_same_head(encoder: Path, heads: dict[bool, Second], tmp_path: Path) -> None:
    torch.manual_seed(5)
    again, _ = second_stage.start(encoder, tmp_path / "again", None, Display(), adversarial=True, epochs=3, lr=1.0)
    ours, theirs = load_file(again / runs.WEIGHTS), load_file(heads[True][0] / runs.WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_head_follows_seed_schedule_and_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*SMALL, "--seed=3", "--optimise.epochs=1", "--validation.every=1", "--data.flip=true")
    run = train.start(settle("digits-anchor", settings), tmp_path / "run", None, Display())
    step, seen, heads, light = second_stage.step, [], [], []

    def noted(training: Training, optimizer: torch.optim.Optimizer, indices: Tensor, adversarial: bool) -> object:
        heads.append(training.network.backbone.linear.weight.detach().clone())
        view = training.learner.light
        learner = replace(training.learner, light=lambda x, generator: light.append(len(x)) or view(x, generator))
        seen.append((indices, optimizer.param_groups[0]["lr"]))
        return step(replace(training, learner=learner), optimizer, indices, adversarial)

    monkeypatch.setattr(second_stage, "step", noted)
    head, _ = second_stage.start(run, tmp_path / "head", None, Display(), epochs=2, lr=0.7)
    recipe, steps = settle(str(head / runs.RECIPE)), len(seen)
    assert [rate for _, rate in seen] == [learning_rate(recipe.optimise, number, steps) for number in range(steps)]
    images = len(data.load("digits", "train")) - recipe.validation.images
    for epoch, order in enumerate(torch.cat([indices for indices, _ in seen]).view(2, -1), start=1):
        assert torch.equal(order, train.shuffled(images, 3, epoch)[: len(order)])
    assert light == [recipe.optimise.batch_size] * steps
    torch.manual_seed(3)
    assert torch.equal(heads[0], torch.nn.Linear(*reversed(heads[0].shape)).weight)


def test_the_old_head_leaves_no_trace(encoder: Path, heads: dict[bool, Second], tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "other")
    header, tensors = checkpoint.read_weights(encoder / runs.WEIGHTS)
    other = tensors | {name: tensors[name] + 1 for name in HEAD}
    save_file(other, tmp_path / "other" / runs.WEIGHTS, {checkpoint.HEADER: json.dumps(header)})
    run, _ = second_stage.start(tmp_path / "other", tmp_path / "run", None, Display(), epochs=3, lr=1.0)
    ours, theirs = load_file(run / runs.WEIGHTS), load_file(heads[False][0] / runs.WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_head_is_trained_in_float32_and_says_so_whatever_its_encoder_was(encoder: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(encoder, tmp_path / "mixed")
    told = (mixed / runs.RECIPE).read_text()
    (mixed / runs.RECIPE).write_text(told.replace("precision: float32", "precision: bf16"))
    head, _ = second_stage.start(mixed, tmp_path / "head", None, Display(), epochs=1)
    assert runs.read_json(head / runs.ENVIRONMENT)["precision"] == "32-true"

    training = around(mixed)
    assert training.fabric.strategy.precision.precision == "bf16-mixed"
    training.network.projection = None
    seen = set()
    for module in (training.network.backbone, training.network.backbone.linear):
        module.register_forward_hook(lambda module, given, output: seen.update({given[0].dtype, output.dtype}))
    linear = training.network.backbone.linear
    second_stage.step(training, sgd(linear, training.recipe.optimise), torch.arange(8), adversarial=False)
    assert seen == {torch.float32}


@pytest.mark.parametrize("section, name", [("model", "subprocess.getoutput"), ("objective", "os.system")])
def test_code_that_nobody_named_is_not_run(section: str, name: str, encoder: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(encoder, tmp_path / "foreign")
    recipe = yaml.safe_load((foreign / runs.RECIPE).read_text())
    (foreign / runs.RECIPE).write_text(yaml.safe_dump(recipe | {section: {"name": name, "cmd": "touch ran"}}))
    with pytest.raises(Refusal, match=f"if you trust its code, name it: --{section} {name}"):
        second_stage.start(foreign, tmp_path / "head", None, Display())


def test_a_run_of_ones_own_model_has_a_second_stage_where_it_is_named(encoder: Path, tmp_path: Path) -> None:
    own = f"{__name__}.resnet"
    mine = shutil.copytree(encoder, tmp_path / "mine")
    recipe = (mine / runs.RECIPE).read_text()
    (mine / runs.RECIPE).write_text(recipe.replace("name: resnet8", f"name: {own}"))
    assert second_stage.start(mine, tmp_path / "head", None, Display(), epochs=1, model=own)[0].is_dir()


def test_a_second_stage_follows_another(heads: dict[bool, Second], tmp_path: Path) -> None:
    run, _ = second_stage.start(heads[True][0], tmp_path / "third", None, Display(), epochs=1)
    ours, theirs = load_file(run / runs.WEIGHTS), load_file(heads[False][0] / runs.WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in HEAD)


def test_ctrl_c_leaves_nothing_behind(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = second_stage.step

    def step_then_ask_to_stop(*arguments: Any) -> dict[str, Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(second_stage, "step", step_then_ask_to_stop)
    assert main(["second-stage", str(encoder), "--out", str(tmp_path / "run")]) == 130
    assert not list(tmp_path.iterdir())


def test_other_images_are_refused(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = data.load("digits", "train")
    monkeypatch.setattr(data, "load", lambda *_: images.subset(torch.arange(1, len(images))))
    with pytest.raises(Refusal, match="other images"):
        second_stage.start(encoder, tmp_path / "run", None, Display())


def test_the_test_images_are_never_loaded(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, loaded = [], data.load
    monkeypatch.setattr(data, "load", lambda name, split, *rest: asked.append(split) or loaded(name, split, *rest))
    second_stage.start(encoder, tmp_path / "run", None, Display(), epochs=1)
    assert asked == ["train"]


def test_the_command_prints_before_and_after(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["second-stage", str(encoder), "--epochs", "1", "--lr", "0.2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for expected in ("before and after", "200 validation images", "clean", "PGD-2", encoder.name):
        assert expected in printed
    assert printed.splitlines()[-1] == str(out)
    assert checkpoint.load_with_header(out)[1]["second_stage"]["lr"] == 0.2


# What is typed, and what the one line of the answer must name.
WRONG: dict[str, tuple[str, ...]] = {
    "{tmp}/nowhere": ("nowhere", "does not exist", "anchor train"),
    "{tmp}/weightless": ("weightless", "weights.safetensors"),
    "{tmp}/foreign": ("another architecture", "backbone"),
    "{run}/weights.safetensors": ("is a file", "anchor train"),
    "{run} --epochs 0": ("--epochs 0", "1 or more"),
    "{run} --lr 0": ("--lr 0", "above 0"),
    "{run} --lr 1e30": ("no longer finite", "lower --lr"),
    "{run} --lr fast": ("--lr", "fast"),
    "{run} --out {tmp}": ("not empty",),
    "{run} --optimise.lr 1": ("--optimise.lr", "not understood"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_cannot_be_done_is_said_in_one_line(
    typed: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weightless", "foreign"):
        shutil.copytree(encoder, tmp_path / name)
        (tmp_path / name / runs.WEIGHTS).unlink()
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "foreign" / runs.WEIGHTS)
    words = typed.format(tmp=tmp_path, run=encoder).split()
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in words else ["--out", str(tmp_path / "new")]
    assert main(["second-stage", *words, *out]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("anchor: ")
    for word in WRONG[typed]:
        assert word in last
    assert sorted(tmp_path.rglob("*")) == before, "something half-written stayed behind"
