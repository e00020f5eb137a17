"""Training: what a run leaves behind, and that stopping and going on changes nothing."""

import dataclasses
import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anchor_robust import audit, checkpoint, data, objectives, runs, train
from anchor_robust.attacks import PGD
from anchor_robust.data import augment
from anchor_robust.data.mix import Mixed, mix
from anchor_robust.display import Display, Plan, Quiet
from anchor_robust.errors import Refusal
from anchor_robust.evaluation import evaluating
from anchor_robust.optimise import learning_rate
from anchor_robust.recipe import Recipe, settle
from anchor_robust.subject import Named

EPOCHS, STEPS_PER_EPOCH = 3, 9
OWN = f"{__name__}.WithDropout"
SMALL = (
    f"--optimise.epochs={EPOCHS}",
    "--optimise.batch_size=128",
    "--model.width=4",
    "--attack.steps=1",
    "--validation.every=1",
    "--validation.images=200",
    "--validation.steps=2",
)


def small(method: str = "anchor", *more: str) -> Recipe:
    return settle(f"digits-{method}", [*SMALL, *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    return train.start(small(), tmp_path_factory.mktemp("whole") / "run", None, Display())


def same_weights(first: Path, second: Path) -> bool:
    one, two = (checkpoint.read_state(run / runs.LAST) for run in (first, second))
    kept_one, kept_two = (load_file(run / runs.WEIGHTS) for run in (first, second))
    return (
        all(torch.equal(one["network"][name], two["network"][name]) for name in one["network"])
        and all(torch.equal(one["average"][name], two["average"][name]) for name in one["average"])
        and all(torch.equal(kept_one[name], kept_two[name]) for name in kept_one)
    )


def test_a_run_leaves_what_the_design_promises(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {runs.RECIPE, runs.ENVIRONMENT, runs.METRICS, runs.WEIGHTS, runs.LAST}
    assert settle(str(whole / runs.RECIPE)) == small()
    lines = runs.read_metrics(whole)
    assert [line["step"] for line in lines] == [STEPS_PER_EPOCH * (epoch + 1) for epoch in range(EPOCHS)]
    for line in lines:
        assert {"epoch", "lr", "loss", "cross_entropy", "contrast", "validation_clean", "validation_robust"} <= set(
            line
        )
    around = runs.read_json(whole / runs.ENVIRONMENT)
    assert "images in all do not repay it" in around["not_compiled"]
    splits = around["data"]
    parts = data.hold_out(data.load("digits", "train"), 200)
    for part in parts:
        assert splits[part.split] == {"images": len(part), "sha256": part.sha256}


def test_training_learns(whole: Path) -> None:
    lines = runs.read_metrics(whole)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


class Counting(Quiet):
    """Counts what a display asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: Plan | None = None
        self.steps, self.readings, self.epochs = 0, [], []

    @contextmanager
    def training(self, plan: Plan) -> Iterator["Counting"]:
        self.plan = plan
        yield self

    def step(self, reading: Callable[[], dict[str, Any]]) -> None:
        self.steps += 1
        if self.steps % 3 == 0:
            self.readings.append((self.steps, reading()))

    def epoch(self, line: dict[str, Any]) -> None:
        self.epochs.append(line)

    def finished(self, weights: Path, best: float) -> None:
        self.ending = (weights, best)


def test_what_follows_a_training_is_told_all_and_changes_nothing(whole: Path, tmp_path: Path) -> None:
    counting = Counting()
    run = train.start(small(), tmp_path / "run", None, counting)
    assert same_weights(whole, run)
    assert counting.plan == Plan("anchor", run, EPOCHS, STEPS_PER_EPOCH, 128, "robust", done=0, best=None)
    assert counting.steps == EPOCHS * STEPS_PER_EPOCH
    assert counting.epochs == runs.read_metrics(run)
    for step, line in counting.readings:
        assert (line["step"], line["epoch"]) == (step, -(-step // STEPS_PER_EPOCH))
        assert line.keys() == counting.epochs[0].keys() - {"validation_clean", "validation_robust"}
        assert line["memory_mb"] > 50
        assert line["images_per_s"] > 0
    last = dict(counting.readings)[2 * STEPS_PER_EPOCH]
    assert last["loss"] == counting.epochs[1]["loss"], "the mean of the epoch, not of the training"
    assert counting.ending == (run / runs.WEIGHTS, max(line["validation_robust"] for line in counting.epochs))


def test_nothing_is_read_from_the_device_unless_somebody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    means = checkpoint.State.means
    monkeypatch.setattr(checkpoint.State, "means", lambda state: read.append(state.step) or means(state))
    train.start(small(), tmp_path / "run", None, Display())
    assert read == [STEPS_PER_EPOCH * (epoch + 1) for epoch in range(EPOCHS)], "once an epoch, for its log point"


def test_the_kept_weights_are_the_best_on_validation(whole: Path) -> None:
    lines = runs.read_metrics(whole)
    best = max(reversed(lines), key=lambda line: line["validation_robust"])
    _, header = checkpoint.load_with_header(whole)
    assert header["validation"] == {key: best[key] for key in ("epoch", "validation_clean", "validation_robust")}


def test_of_epochs_that_validation_cannot_tell_apart_the_later_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter((0.2, 0.5, 0.5, 0.4))
    monkeypatch.setattr(
        train.loop, "validate", lambda training: {"validation_clean": 0.1, "validation_robust": next(found)}
    )
    run = train.start(small("pgd-at", "--optimise.epochs=4"), tmp_path / "run", None, Display())
    assert checkpoint.load_with_header(run)[1]["validation"]["epoch"] == 3
    assert checkpoint.read_state(run / runs.LAST)["best"] == 0.5


def test_a_run_says_what_a_step_costs(whole: Path) -> None:
    assert runs.read_json(whole / runs.ENVIRONMENT)["passes"] == small().passes() == 3


def test_training_never_loads_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = data.load
    monkeypatch.setattr(data, "load", lambda name, split, folder=None: asked.append(split) or load(name, split, folder))
    train.start(small("standard", "--optimise.epochs=1"), tmp_path / "run", None, Display())
    assert asked == ["train"]


def test_same_recipe_same_weights_another_seed_others(whole: Path, tmp_path: Path) -> None:
    again = train.start(small(), tmp_path / "again", None, Display())
    assert same_weights(whole, again)
    other = train.start(small("anchor", "--seed=1"), tmp_path / "other", None, Display())
    assert not same_weights(whole, other)


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_a_random_step_changes_nothing(
    seed: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at = random.Random(seed).randrange(EPOCHS * STEPS_PER_EPOCH)
    step, run = train.loop.step, tmp_path / "run"

    def step_until_killed(training: train.Training, number: int, *rest: object) -> object:
        if number == killed_at:
            raise Killed
        return step(training, number, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "step", step_until_killed)
        with pytest.raises(Killed):
            train.start(small(), run, None, Display())
    train.resume(run, None, Display())
    assert same_weights(whole, run)
    assert [line["step"] for line in runs.read_metrics(run)] == [line["step"] for line in runs.read_metrics(whole)]


STRENGTHENERS = {
    "awp": ("--optimise.awp=0.01", "--optimise.awp_from=0.3"),
    "late averaging": ("--optimise.ema=0.9", "--optimise.ema_from=0.5"),
    "eps ramp": ("--attack.ramp=0.5",),
    "mixup": ("--data.mix=mixup",),
    "cutmix": ("--data.mix=cutmix",),
    "label smoothing": ("--optimise.label_smoothing=0.1",),
    "silu": ("--model.activation=silu",),
    "bf16, the first half": (
        "--optimise.precision=bf16",
        "--optimise.awp=0.01",
        "--data.mix=cutmix",
        "--attack.ramp=0.5",
    ),
    "bf16, the other half": (
        *("--optimise.precision=bf16", "--data.mix=mixup", "--optimise.label_smoothing=0.1"),
        *("--model.activation=silu", "--optimise.ema=0.9", "--optimise.ema_from=0.5"),
    ),
}


@pytest.mark.parametrize("method", objectives.discover())
@pytest.mark.parametrize("strengthener", STRENGTHENERS)
def test_every_method_takes_every_strengthener(method: str, strengthener: str, tmp_path: Path) -> None:
    train_two_steps([f"--objective.name={method}", *STRENGTHENERS[strengthener]], tmp_path)


@pytest.mark.parametrize("own", ("--objective.hardness_ramp=0.8", "--objective.attack_contrast=0.2"))
@pytest.mark.parametrize("precision", ("float32", "bf16"))
def test_contrast_takes_strengtheners_of_its_own(own: str, precision: str, tmp_path: Path) -> None:
    train_two_steps(["--objective.name=anchor", own, f"--optimise.precision={precision}"], tmp_path)


def train_two_steps(settings: Sequence[str], tmp_path: Path) -> None:
    recipe = settle("digits-pgd-at", [*SMALL, *settings])
    recipe = dataclasses.replace(recipe, optimise=dataclasses.replace(recipe.optimise, epochs=1))
    images = data.load("digits", "train").first(520)
    training = train.build(recipe, images, tmp_path)
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    for number in (0, 1):
        reported = train.update.step(training, number, 2, torch.arange(128) + 128 * number)
    assert all(torch.isfinite(value) for value in reported.values())
    moved = [name for name, tensor in training.network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {"backbone.conv1.weight", "backbone.linear.weight", "backbone.bn1.running_mean"} <= set(moved)


def test_what_changes_on_the_way_reaches_the_learner(tmp_path: Path) -> None:
    recipe = small("anchor", "--attack.ramp=0.5", "--optimise.label_smoothing=0.1", "--data.mix=mixup")
    training = train.build(recipe, data.load("digits", "train"), tmp_path)
    for number, share in ((0, 0.2), (2, 0.6), (4, 1.0), (9, 1.0)):
        learner, _, y = train.update.batch(training, torch.arange(128), number, 10)
        assert learner.progress == pytest.approx((number + 1) / 10)
        assert learner.attack.ball.eps == pytest.approx(share * recipe.threat.eps)
        assert learner.attack.step_size == pytest.approx(share * recipe.attack.step_size)
        assert learner.label_smoothing == 0.1
        assert learner.targets is not None
        torch.testing.assert_close(learner.targets.sum(1), torch.ones(128))
        assert torch.equal(learner.targets.argmax(1), y)
        assert ((learner.targets > 0).sum(1) == 2).any()


def test_the_loss_of_a_step_is_that_of_the_learner_at_its_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `batch` has prepared is what the objective sees."""
    seen = []
    monkeypatch.setattr(train.update, "outcome_of", lambda objective, *given: seen.append(given) or 1 / 0)
    training = train.build(
        small("anchor", "--attack.ramp=0.5", "--data.mix=mixup"), data.load("digits", "train"), tmp_path
    )
    with pytest.raises(ZeroDivisionError):
        train.update.step(training, 2, 10, torch.arange(128))
    ((learner, x, y, _),) = seen
    assert (learner.progress, learner.targets.shape, len(x), len(y)) == (0.3, (128, 10), 128, 128)
    assert learner.attack.ball.eps == pytest.approx(0.6 * training.recipe.threat.eps)


def test_weights_are_perturbed_from_where_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = train.build(
        small("pgd-at", "--optimise.awp=0.05", "--optimise.awp_from=0.5"), data.load("digits", "train"), tmp_path
    )
    descend, numbers = train.update.descend, []
    monkeypatch.setattr(train.update, "descend", lambda *given: numbers.append(given[-1]) or descend(*given))
    for number in range(4):
        train.update.step(training, number, 4, torch.arange(128))
    assert numbers == [0, 1, 2, 2, 3, 3]


def test_the_average_begins_where_the_recipe_says(tmp_path: Path) -> None:
    training = train.build(
        small("pgd-at", "--optimise.ema=0.9", "--optimise.ema_from=0.5"), data.load("digits", "train"), tmp_path
    )
    same = []
    for number in range(4):
        train.update.step(training, number, 4, torch.arange(128))
        weights = [each.state_dict()["backbone.conv1.weight"] for each in (training.network, training.average.network)]
        same.append(torch.equal(*weights))
    assert same == [True, True, False, False]


def test_every_epoch_takes_each_image_once_in_an_order_and_at_a_rate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen, rates, recipe = train.loop.step, [], [], small("standard", "--seed=1")

    def noted(training: train.Training, number: int, steps: int, indices: Tensor) -> object:
        reported = step(training, number, steps, indices)
        seen.append(indices)
        rates.append(training.optimizer.param_groups[0]["lr"])
        return reported

    monkeypatch.setattr(train.loop, "step", noted)
    train.start(recipe, tmp_path / "run", None, Display())
    orders = torch.cat(seen).view(EPOCHS, -1)
    assert all(len(order.unique()) == STEPS_PER_EPOCH * 128 for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == EPOCHS
    assert not torch.equal(train.shuffled(99, 0, 0), train.shuffled(99, 1, 0))
    steps = EPOCHS * STEPS_PER_EPOCH
    assert rates == [learning_rate(recipe.optimise, number, steps) for number in range(steps)]


def test_a_step_attacks_the_weights_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, batch = train.build(small("pgd-at"), data.load("digits", "train"), tmp_path), train.update.batch

    def noted(*given: Any) -> Any:
        x = training.train.pixels(torch.arange(9))
        with torch.no_grad(), evaluating(training.network, x.device):
            torch.testing.assert_close(training.search(x), training.network(x)[0], rtol=1e-4, atol=1e-4)
        return batch(*given)

    monkeypatch.setattr(train.update, "batch", noted)
    for number in (0, 1):
        train.update.step(training, number, 10, torch.arange(128))


def test_the_seed_decides_weights_and_random_numbers_each(tmp_path: Path) -> None:
    images = data.load("digits", "train")
    one, other = (train.build(small("anchor", f"--seed={seed}"), images, tmp_path) for seed in (0, 1))
    assert not torch.equal(one.network.backbone.conv1.weight, other.network.backbone.conv1.weight)
    assert not torch.equal(one.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("mixing", ["none", "mixup", "cutmix"])
def test_the_views_are_those_of_the_recipe(flip: bool, mixing: str, tmp_path: Path) -> None:
    settings = ("--data.crop=2", f"--data.flip={flip}", f"--data.mix={mixing}")
    training = train.build(small("anchor", *settings), data.load("digits", "train"), tmp_path)
    x, generators = training.train.pixels(torch.arange(64)), [torch.Generator().manual_seed(0) for _ in range(4)]
    assert torch.equal(training.learner.light(x, generators[0]), augment.light(x, 2, flip, generators[1]))
    strong = augment.strong(x, flip, generators[2], cut=mixing != "cutmix")
    assert torch.equal(training.learner.strong(x, generators[3]), strong)


def test_a_method_that_does_not_defend_keeps_its_best_clean_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([(0.5, 0.9), (0.8, 0.3), (0.7, 0.2)])
    validations = ({"validation_clean": clean, "validation_robust": robust} for clean, robust in measured)
    monkeypatch.setattr(train.loop, "validate", lambda training: next(validations))
    run = train.start(small("standard"), tmp_path / "run", None, Display())
    assert checkpoint.load_with_header(run)[1]["validation"]["epoch"] == 2


def test_validation_has_an_attack_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, seen = small("pgd-at", "--validation.step_size=0.04"), []
    training = train.build(recipe, data.load("digits", "train"), tmp_path)
    monkeypatch.setattr(train.loop, "withstand", lambda model, attack, *rest: seen.append(attack) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.validate(training)
    assert (seen[0].steps, seen[0].step_size, seen[0].ball) == (2, 0.04, recipe.threat)


def test_the_gradient_is_clipped_to_the_length_that_the_recipe_says(tmp_path: Path) -> None:
    training = train.build(small("pgd-at", "--optimise.clip=0.01"), data.load("digits", "train"), tmp_path)
    train.update.step(training, 0, 10, torch.arange(128))
    lengths = [each.grad.norm() for each in training.network.parameters() if each.grad is not None]
    assert torch.stack(lengths).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_mixing_and_perturbation_have_the_recipes_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small("pgd-at", "--data.mix=mixup", "--data.mix_alpha=0.3", "--optimise.awp=0.02")
    training, given = train.build(recipe, data.load("digits", "train"), tmp_path), []
    blend, perturbed = train.update.mix, train.update.perturbed
    monkeypatch.setattr(train.update, "mix", lambda *told: given.append(told[3:5]) or blend(*told))
    monkeypatch.setattr(train.update, "perturbed", lambda *told: given.append(told[2]) or perturbed(*told))
    train.update.step(training, 0, 10, torch.arange(128))
    assert given == [("mixup", 0.3), 0.02]


def test_images_are_mixed_after_their_crop_and_cut_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crop = ("--data.crop=2", "--data.flip=true")
    training = train.build(small("pgd-at", "--data.mix=cutmix", *crop), data.load("digits", "train"), tmp_path)
    state, indices = training.generator.get_state(), torch.arange(128)
    seen: list[Tensor] = []

    def noted(x: Tensor, *given: Any) -> Mixed:
        seen.append(x)
        return mix(x, *given)

    monkeypatch.setattr(train.update, "mix", noted)
    learner, x, _ = train.update.batch(training, indices, 0, 10)
    pixels = training.train.pixels(indices)
    assert torch.equal(seen[0], augment.light(pixels, 2, True, torch.Generator().set_state(state)))
    assert not torch.equal(seen[0], x)
    assert torch.equal(learner.light(x, training.generator), x)
    again = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(learner.strong(x, again[0]), augment.strong(x, True, again[1], cut=False))


def test_awp_takes_the_gradient_at_the_perturbed_weights_and_attacks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small("pgd-at", "--optimise.awp=0.05")
    training = train.build(recipe, data.load("digits", "train"), tmp_path)
    attacks, gradients = [], []
    search = PGD.search
    monkeypatch.setattr(PGD, "search", lambda *given: attacks.append(1) or search(*given))
    descend = train.update.descend
    monkeypatch.setattr(
        train.update,
        "descend",
        lambda *given: (
            descend(*given),
            gradients.append({n: p.grad.clone() for n, p in training.network.named_parameters()}),
        )[0],
    )
    start = {name: parameter.detach().clone() for name, parameter in training.network.named_parameters()}
    moved_norms = training.network.backbone.bn1.num_batches_tracked.item()
    train.update.step(training, 0, 10, torch.arange(128))
    assert len(attacks) == 1, "the views of a step are made once"
    assert len(gradients) == 2
    assert training.network.backbone.bn1.num_batches_tracked.item() == moved_norms + 1
    plain, perturbed = (each["backbone.conv1.weight"] for each in gradients)
    assert not torch.allclose(plain, perturbed, rtol=1e-2)
    # The step starts from the weights themselves, along the gradient at the perturbed ones.
    group = training.optimizer.param_groups[0]
    decayed = perturbed + group["weight_decay"] * start["backbone.conv1.weight"]
    step = group["lr"] * (1 + group["momentum"]) * decayed
    torch.testing.assert_close(
        training.network.backbone.conv1.weight.detach(), start["backbone.conv1.weight"] - step, rtol=1e-4, atol=1e-6
    )


def test_compiled_training_is_the_same_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    # Captured and differentiated as for the compiler, but run as it is: writing and building C++ takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    for compiled_from in (10**9, 0):
        monkeypatch.setattr(train.fast, "COMPILED_FROM", compiled_from)
        training = train.build(small(), data.load("digits", "train"), tmp_path)
        plain = training.search
        train.accelerate(training, Display())
        assert (training.search is not plain) == (compiled_from == 0)
        assert training.learner.net is training.search
        reported = train.update.step(training, 0, 10, torch.arange(128))
        losses.append(reported["loss"])
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_real_signal_then_resume_changes_nothing(number: int, tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    longer = [*SMALL, "--optimise.epochs=12"]
    command = [sys.executable, "-m", "anchor_robust", "train", "digits-anchor", "--out", str(run), *longer]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    deadline = time.monotonic() + 120
    while len(runs.read_metrics(run)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), told
    stopped_at = checkpoint.read_state(run / runs.LAST)["step"]
    assert 0 < stopped_at < 12 * STEPS_PER_EPOCH
    if number == signal.SIGINT:
        assert f"anchor train --resume {run}" in told
    done = subprocess.run([sys.executable, "-m", "anchor_robust", "train", "--resume", str(run)], check=False)
    assert done.returncode == 0
    train.start(settle("digits-anchor", longer), straight, None, Display())
    assert same_weights(straight, run)
    assert not list(run.glob(".*partial"))


class WithDropout(torch.nn.Module):
    """A backbone of a user's that draws from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_dropout_follows_the_seed_and_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = settle("digits-pgd-at", [word for word in SMALL if "width" not in word] + [f"--model.name={OWN}"])
    torch.manual_seed(1)
    straight = train.start(recipe, tmp_path / "straight", None, Display())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    step = train.loop.step

    def step_until_killed(training: train.Training, number: int, *rest: object) -> object:
        if number == 13:
            raise Killed
        return step(training, number, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "step", step_until_killed)
        with pytest.raises(Killed):
            train.start(recipe, tmp_path / "killed", None, Display())
    train.resume(tmp_path / "killed", None, Display())
    assert same_weights(straight, tmp_path / "killed")
    assert torch.equal(torch.get_rng_state(), before), "the caller's global generator was used"


def test_an_interrupted_epoch_is_logged_whole(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, run = train.loop.step, tmp_path / "run"

    def step_then_ask_to_stop(training: train.Training, number: int, *rest: object) -> object:
        if number == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, number, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "step", step_then_ask_to_stop)
        with pytest.raises(train.Interrupted, match="stopped at step 13"):
            train.start(small(), run, None, Display())
    train.resume(run, None, Display())
    for ours, theirs in zip(runs.read_metrics(run), runs.read_metrics(whole), strict=True):
        timings = {"seconds", "images_per_s", "memory_mb"}
        assert {k: v for k, v in ours.items() if k not in timings} == {
            k: v for k, v in theirs.items() if k not in timings
        }


def test_ctrl_c_in_the_last_validation_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate = train.loop.validate

    def validate_and_ask_to_stop(training: train.Training) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return validate(training)

    monkeypatch.setattr(train.loop, "validate", validate_and_ask_to_stop)
    with pytest.raises(train.Interrupted, match="is finished"):
        train.start(small("standard", "--optimise.epochs=1"), tmp_path / "run", None, Display())
    assert (tmp_path / "run" / runs.WEIGHTS).exists()


def test_resuming_a_finished_run_changes_nothing(whole: Path) -> None:
    before = (whole / runs.WEIGHTS).read_bytes()
    train.resume(whole, None, Display())
    assert (whole / runs.WEIGHTS).read_bytes() == before


def test_resume_refuses_the_random_numbers_of_another_kind_of_device(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    saved = torch.load(run / runs.LAST, weights_only=True)
    of_cuda = torch.zeros(16, dtype=torch.uint8)
    checkpoint.save_state(run / runs.LAST, saved | {"generator": of_cuda})
    with pytest.raises(Refusal, match="another kind of device"):
        train.resume(run, None, Display())


def test_resume_refuses_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train.start(small("standard", "--optimise.epochs=1"), tmp_path / "run", None, Display())
    images = data.load("digits", "train")
    monkeypatch.setattr(data, "load", lambda *_: images.subset(torch.arange(1, len(images))))
    with pytest.raises(Refusal, match="other images"):
        train.resume(run, None, Display())


@pytest.mark.parametrize("begun", ["bf16-mixed", "32-true"])
def test_resume_keeps_the_precision_that_the_run_was_begun_in(
    begun: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, launched, asked = shutil.copytree(whole, tmp_path / "run"), train.launched, []
    runs.write_json(run / runs.ENVIRONMENT, runs.read_json(run / runs.ENVIRONMENT) | {"precision": begun})
    monkeypatch.setattr(train, "launched", lambda *given: asked.append(given[2]) or launched(*given))
    train.resume(run, None, Display())
    assert asked == [begun]


@pytest.mark.parametrize("name", [runs.WEIGHTS, runs.RECIPE])
def test_a_run_whose_files_are_gone_does_not_go_on(name: str, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(Refusal, match=name):
        train.resume(run, None, Display())


def test_a_collapse_is_told_when_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, answers = list[str](), iter(["1", "", "3", "4", "5"])
    monkeypatch.setattr(objectives.find("anchor"), "warning", lambda *given: next(answers))
    display = Display()
    monkeypatch.setattr(display, "warning", told.append)
    train.start(small("anchor", "--optimise.epochs=5"), tmp_path / "run", None, display)
    assert [each for each in told if each in "12345"] == ["4"], "once is enough"


def test_a_second_process_does_not_train_the_same_run(whole: Path, tmp_path: Path) -> None:
    before = (whole / runs.METRICS).read_bytes()
    with runs.alone(whole), pytest.raises(Refusal, match="another process is at work"):
        train.resume(whole, None, Display())
    assert (whole / runs.METRICS).read_bytes() == before


def test_a_channel_that_is_the_same_everywhere_trains(tmp_path: Path) -> None:
    recipe = small("standard", "--optimise.epochs=1")
    digits = data.load("digits", "train").first(400)
    blank = torch.zeros_like(digits.images)
    images = dataclasses.replace(digits, images=torch.cat([digits.images, digits.images, blank], dim=1))
    training = train.build(recipe, images, tmp_path / "run")
    assert training.network.std.flatten()[2] == 1
    assert training.network(images.pixels(slice(4)))[0].isfinite().all()


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Refusal) as stopped:
        train.start(small("anchor", "--optimise.lr=1e12", "--optimise.warmup=0"), run, None, Display())
    told = str(stopped.value)
    assert "step" in told
    assert "cross_entropy" in told
    assert "contrast" in told
    # Of a first epoch that diverged there is nothing to go on from.
    assert "checkpoint" not in told
    assert not run.exists()


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_fails_leaves_what_its_epochs_reached_and_else_nothing(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = small("standard", "--optimise.epochs=2"), tmp_path / "run"
    update, fails_at = train.loop.step, epochs * STEPS_PER_EPOCH + 1

    def overflowing(training: train.Training, number: int, *given: Any) -> dict[str, Tensor]:
        reported = update(training, number, *given)
        if number == fails_at:
            training.unread.append((number, {"loss": torch.tensor(torch.inf)}))
        return reported

    monkeypatch.setattr(train.loop, "step", overflowing)
    with pytest.raises(Refusal, match=f"the loss is inf at step {fails_at}") as stopped:
        train.start(recipe, run, None, Display())
    assert run.exists() == bool(epochs)
    assert (f"the last good checkpoint is {run / runs.LAST};" in str(stopped.value)) == bool(epochs)
    if epochs:
        network = checkpoint.read_state(run / runs.LAST)["network"]
        assert all(torch.isfinite(tensor).all() for tensor in network.values())


def test_a_run_that_another_process_has_taken_up_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    @contextmanager
    def taken(directory: Path) -> Iterator[None]:
        raise Refusal(f"another process is at work in {directory}")
        yield

    monkeypatch.setattr(runs, "alone", taken)
    with pytest.raises(Refusal, match="another process"):
        train.start(small("standard"), run, None, Display())
    assert (run / runs.LAST).exists()


def test_the_weights_of_a_first_epoch_outlast_a_log_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Path, line: dict[str, Any]) -> None:
        raise Refusal("No space left on device")

    monkeypatch.setattr(runs, "append_metrics", full)
    with pytest.raises(Refusal, match="No space"):
        train.start(small("standard", "--optimise.epochs=2"), tmp_path / "run", None, Display())
    assert (tmp_path / "run" / runs.WEIGHTS).exists()


def test_an_objective_that_fails_at_its_first_step_leaves_the_name_of_the_run_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = small("standard", "--optimise.epochs=1"), tmp_path / "run"

    def unfinished(*given: Any) -> None:
        raise KeyError("later")

    with monkeypatch.context() as patched:
        patched.setattr(type(recipe.objective), "__call__", unfinished)
        with pytest.raises(KeyError, match="later"):
            train.start(recipe, run, None, Display())
    assert not run.exists()
    train.start(recipe, run, None, Display())


def test_a_run_that_cannot_begin_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Refusal, match=r"last\.ckpt: No space left on device"):
        train.start(small("standard"), tmp_path / "run", None, Display())
    assert not (tmp_path / "run").exists()


def test_bf16_training_gives_finite_weights(tmp_path: Path) -> None:
    recipe = small("anchor", "--optimise.precision=bf16", "--optimise.epochs=1")
    run = train.start(recipe, tmp_path / "run", None, Display())
    assert all(torch.isfinite(tensor).all() for tensor in load_file(run / runs.WEIGHTS).values())
    assert runs.read_json(run / runs.ENVIRONMENT)["precision"] == "bf16-mixed"


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="allowed: up to 1237, the training images"):
        train.start(small("anchor", "--optimise.batch_size=5000"), tmp_path / "run", None, Display())
    assert not (tmp_path / "run").exists()


def test_an_evaluated_run_holds_record_and_outcomes(whole: Path) -> None:
    record = audit.audit(Named(str(whole)), limit=100, display=Display())
    assert json.loads((whole / runs.EVALUATION).read_text()) == record
    assert record["data"]["images"] == 100
    assert [result["label"] for result in record["results"]] == ["clean", "PGD-20"]
    assert record["results"][1]["eps"] == 0.15
    lesser = (
        {"limit": 10},
        {"limit": 100, "attacks": ("clean",)},
        {"limit": 100, "eps": 0.2},
        {"norm": "l2", "eps": 1.0},
    )
    for settings in lesser:
        audit.audit(Named(str(whole)), **{"limit": 100, **settings}, display=Display())  # type: ignore[arg-type]
        assert runs.read_json(whole / runs.EVALUATION) == record
    more = audit.audit(Named(str(whole)), ("clean", "pgd20", "pgd20-2-255"), limit=110, display=Display())
    assert runs.read_json(whole / runs.EVALUATION) == more
