"""The fast paths of training: the same numbers as the plain ones, and no step that waits for the device."""

import dataclasses
import functools
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.overrides import TorchFunctionMode

from anchor_robust import data, environment, runs, train
from anchor_robust.attacks import PGD
from anchor_robust.checkpoint import State
from anchor_robust.cli import main
from anchor_robust.data import augment
from anchor_robust.display import Display
from anchor_robust.errors import Refusal
from anchor_robust.models import Classifier, Folded, backbone
from anchor_robust.objectives import Step
from anchor_robust.optimise import Optimise
from anchor_robust.recipe import settle
from anchor_robust.threat import Ball
from anchor_robust.train.loop import save_state

SMALL = ("--optimise.batch_size=128", "--model.width=4", "--attack.steps=2", "--validation.images=200")
BATCH = torch.arange(128)


def built(run: Path, *settings: str, patience: int = 1) -> train.Training:
    training = train.build(settle("digits-anchor", [*SMALL, *settings]), data.load("digits", "train"), run)
    training.patience = patience
    return training


class NothingWaits(TorchFunctionMode):
    """Raises where a value would travel from an accelerator to the host, or back: there the processor has to wait.

    What is drawn from a generator that `on_host` gave is the host's own, and may be looked at.
    """

    WAITING = frozenset(("item", "tolist", "cpu", "numpy", "nonzero", "equal", "allclose", "unique")) | frozenset(
        ("new_tensor", "tensor", "as_tensor", "__bool__", "__float__", "__int__", "__index__", "__contains__")
    )

    def __init__(self) -> None:
        super().__init__()
        self.generators: list[torch.Generator] = []
        self.drawn: list[Tensor] = []

    def on_host(self, generator: torch.Generator) -> torch.Generator:
        self.generators.append(torch.Generator().manual_seed(generator.initial_seed()))
        return self.generators[-1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in self.WAITING or (name == "__getitem__" and masked(args[1])):
            assert any(args[0] is own for own in self.drawn), f"{name} waits for the device"
        result = func(*args, **kwargs)
        if any(kwargs.get("generator") is own for own in self.generators):
            self.drawn.append(result)
        return result


def masked(index: Any) -> bool:
    """Whether picking by `index` needs to know how many there are."""
    each = index if isinstance(index, tuple) else (index,)
    return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in each)


WITHOUT_WAITING = {
    "anchor": ("--data.flip=true",),
    "averages": ("--optimise.ema=0.9", "--optimise.clip=1"),
    "cutmix": ("--data.mix=cutmix",),
    "mixup": ("--data.mix=mixup", "--attack.ramp=0.5"),
    "joint attack": ("--objective.attack_contrast=0.1", "--objective.hardness_ramp=0.5"),
    "perturbed weights": ("--optimise.awp=0.01",),
    "trades": ("--objective.name=trades",),
    "mart": ("--objective.name=mart",),
    "ascl": ("--objective.name=ascl",),
    "bf16": ("--objective.name=pgd-at", "--optimise.precision=bf16"),
}


@pytest.mark.parametrize("settings", WITHOUT_WAITING.values(), ids=WITHOUT_WAITING)
def test_only_every_hundredth_step_waits_for_the_device(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, watch = built(tmp_path, *settings, patience=100), NothingWaits()
    for room in ("augment", "mix"):
        monkeypatch.setattr(f"anchor_robust.data.{room}.on_host", watch.on_host)
    with watch:
        reported = train.update.step(training, 1, 300, BATCH)
    assert torch.isfinite(reported["loss"])
    with watch, pytest.raises(AssertionError, match="tolist waits"):
        train.update.step(training, 100, 300, BATCH)


def test_colour_images_are_augmented_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = NothingWaits()
    monkeypatch.setattr(augment, "on_host", watch.on_host)
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with watch:
        augment.strong(augment.light(x, 1, True, torch.Generator()), True, torch.Generator())


class OfAnAccelerator:
    """A generator as CUDA's is seen from the host: its state is seed and offset."""

    device = torch.device("cuda")

    def __init__(self, seed: int, offset: int) -> None:
        self.state = torch.tensor([seed, offset]).view(torch.uint8)

    def get_state(self) -> Tensor:
        return self.state


def test_what_the_host_decides_follows_from_the_generators_state() -> None:
    def drawn(seed: int, offset: int) -> list[float]:
        return torch.rand(4, generator=augment.on_host(OfAnAccelerator(seed, offset))).tolist()  # type: ignore[arg-type]

    assert drawn(0, 4) == drawn(0, 4)
    assert len({tuple(drawn(seed, offset)) for seed in (0, 1) for offset in (0, 4)}) == 4
    own = torch.Generator()
    assert augment.on_host(own) is own


def test_trust_changes_no_image_and_keeps_the_checks_that_cost_nothing() -> None:
    x, y = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
    model, attack = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)), PGD(Ball("linf", 0.1))
    assert torch.equal(attack(model, x, y, trusted=True), attack(model, x, y))
    for images, labels in ((x.half(), y), (x, y[:3]), (x, y.float())):
        with pytest.raises(Refusal, match="given"):
            attack(model, images, labels, trusted=True)


@pytest.mark.parametrize("look", ["the next look", "saving"])
def test_a_loss_that_is_not_finite_is_found_later_and_never_saved(
    look: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = built(tmp_path, patience=4)
    save_state(training, State())
    runs.append_metrics(tmp_path, {"step": 0})  # an epoch is done
    saved = (tmp_path / runs.LAST).read_bytes()
    objective = type(training.recipe.objective)
    plain = objective.__call__
    train.update.step(training, 0, 9, BATCH)

    def overflowing(*given: Any) -> Step:
        outcome = plain(*given)
        return dataclasses.replace(outcome, loss=outcome.loss * torch.inf)

    monkeypatch.setattr(objective, "__call__", overflowing)
    for number in (1, 2):
        train.update.step(training, number, 9, BATCH)
    with pytest.raises(Refusal, match=r"the loss is inf at step 1 \(cross_entropy .*contrast") as refusal:
        train.update.step(training, 3, 9, BATCH) if look == "the next look" else save_state(training, State(step=3))
    assert str(tmp_path / runs.LAST) in str(refusal.value)
    assert (tmp_path / runs.LAST).read_bytes() == saved


def test_what_is_fast_everywhere_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels last from the images to the weights of the search, one launch for all weights, freed memory kept."""
    pixels = torch.randint(256, (600, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = data.ImageSet(pixels, torch.arange(600) % 10, tuple("0123456789"), "random", "train")
    asked: list[int] = []
    monkeypatch.setattr(environment, "keep_freed_memory", lambda: asked.append(1))
    training = train.build(settle("digits-anchor", SMALL), images, tmp_path)
    assert asked == [1]
    assert all(group["fused"] for group in training.optimizer.param_groups)

    def channels_last(x: Tensor) -> bool:
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()

    _, x, _ = train.update.batch(training, BATCH, 0, 10)
    assert channels_last(x)
    for network in (training.network.backbone, training.search.twin.backbone):
        assert channels_last(network.layer1.get_submodule("0").conv1.weight)
    searched: list[bool] = []
    monkeypatch.setattr(
        Folded, "forward", lambda twin, x: searched.append(channels_last(x)) or torch.zeros(len(x), 10) + x.mean()
    )
    training.learner.attacked(
        training.learner.light(x, training.generator), training.train.labels[BATCH], training.generator
    )
    assert searched
    assert all(searched)


def test_the_search_on_cuda_is_recorded_as_graphs() -> None:
    told: list[dict[str, Any]] = []
    for is_cuda in (True, False):
        fast = SimpleNamespace(twin=SimpleNamespace(compile=lambda **given: told.append(given) or 1 / 0))
        fault = train.fast.compiled(fast, fast, fast, SimpleNamespace(is_cuda=is_cuda), None)  # type: ignore[arg-type]
        assert "ZeroDivisionError" in fault
    assert told == [{"dynamic": False, "mode": "reduce-overhead"}, {"dynamic": False}]


def said(display: Display) -> str:
    return display.console.file.getvalue()  # type: ignore[attr-defined]


def listening() -> Display:
    return Display(Console(file=io.StringIO(), width=200))


def compile_by(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short runs too, and by `backend` in place of a compiler."""
    monkeypatch.setattr(train.fast, "COMPILED_FROM", 0)
    monkeypatch.setattr(train.fast.environment, "has_compiler", lambda device: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))


def doubled(graph: Any, inputs: Any) -> Any:
    """A compiler whose every result is twice too large."""
    return lambda *given: tuple(2 * result for result in graph(*given))


def doubled_backwards(graph: Any, inputs: Any) -> Any:
    """A compiler whose results are right and whose gradients are twice too large."""
    return lambda *given: tuple(2 * result - result.detach() for result in graph(*given))


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no such\nheader")


@pytest.mark.parametrize(("compiler", "fault"), [(doubled, "gradients are .* away"), (broken, "no such header")])
def test_a_compiled_search_that_fails_its_trial_is_not_used(
    compiler: Any, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_by(compiler, monkeypatch)
    training, display = built(tmp_path), listening()
    before = training.search, training.learner
    train.accelerate(training, display)
    assert (training.search, training.learner) == before
    assert re.search(f"not compiled.*{fault}", said(display))


class BrokenFrom:
    """A compiler that serves so many graphs and no more."""

    def __init__(self, served: int, fault: Any) -> None:
        self.served, self.fault = served, fault

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.served -= 1
        return graph if self.served >= 0 else self.fault(graph, inputs)


@pytest.mark.parametrize(
    ("compiler", "fault"),
    [
        (doubled, "its loss is .* the plain one"),
        (doubled_backwards, r"its gradients are 100.0% away from exact ones, the plain ones 0.0%"),
        (broken, "no such header"),
    ],
)
def test_a_compiled_training_pass_that_fails_its_trial_is_not_used(
    compiler: Any, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_by(BrokenFrom(1, compiler), monkeypatch)
    training, display = built(tmp_path), listening()
    search, forward = training.search, training.learner.forward
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    train.accelerate(training, display)
    assert training.search is training.learner.net is not search, "the search was served"
    assert training.learner.forward is forward
    assert re.search(f"training pass not compiled.*{fault}", said(display))
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.network.state_dict().items())
    assert all(parameter.grad is None for parameter in training.network.parameters())


class Drawing(torch.nn.Module):
    """A backbone with dropout that draws other numbers where it is compiled, as compilers do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16 * width), torch.nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            torch.rand(7)
        return F.dropout(self.layers(x), 0.5, self.training)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at casts
@pytest.mark.parametrize("settings", ((), ("--optimise.precision=bf16",), (f"--model.name={__name__}.Drawing",)))
def test_a_compiled_training_pass_that_is_as_good_is_used(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it rounds, and where it draws otherwise than the plain one does."""
    compile_by("eager", monkeypatch)
    training, display = built(tmp_path, *settings), listening()
    forward = training.learner.forward
    train.accelerate(training, display)
    assert "training pass" not in said(display)
    assert training.learner.forward is not forward


def test_a_compiled_search_is_judged_by_the_exact_gradient() -> None:
    """In bf16 it may be as far from the plain one as both are from the truth, and not much further from that."""
    network = Classifier(backbone("resnet8", 10, (3, 32, 32), {"width": 16}), (0.5,) * 3, (0.25,) * 3, 0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running_mean" in name or "bias" in name:
                tensor.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    x, y = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10

    class Noisy(Folded):
        """What it gives back is `share` of the gradient away from what it would be."""

        share = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * (1 + self.share))

    plain = Folded(network, torch.bfloat16)
    exact = train.fast.gradient(Folded(network, torch.float64).double(), x.double(), y)
    away = ((train.fast.gradient(plain, x, y) - exact).norm() / exact.norm()).item()
    assert 0.01 < away < 0.5, "bf16 rounds"
    for share, good in ((0.0, True), (0.5, False)):
        compiled = Noisy(network, torch.bfloat16)
        compiled.share = share
        compiled.twin.compile = lambda **_: None  # type: ignore[method-assign, assignment]
        assert (train.fast.compiled(compiled, plain, network, x, y) == "") == good


def test_the_trial_of_a_resumed_run_is_held_on_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_by("eager", monkeypatch)
    training, display = built(tmp_path), listening()
    plain = training.search
    with torch.no_grad():
        for parameter in training.network.parameters():
            parameter.mul_(2)
    assert train.accelerate(training, display) == ""
    assert training.search is not plain, said(display)
    assert hasattr(training.learner.forward, "_orig_mod"), "compiled too"


@pytest.mark.parametrize(
    ("settings", "bf16", "compiled"),
    [
        ((), False, False),
        (("--optimise.precision=bf16", "--optimise.epochs=500"), True, True),
        (("--optimise.compile=never", "--optimise.epochs=500"), False, False),
    ],
)
def test_what_is_explained_is_what_is_built(
    settings: tuple[str, ...], bf16: bool, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.fast.environment, "has_compiler", lambda device: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    training = built(tmp_path, *settings)
    told = train.explanation.explained(training)
    taken = {path.name: path.taken for path in told.paths}
    plain = training.search
    train.accelerate(training, listening())
    assert taken["bf16 mixed precision"] == bf16 == (training.search.dtype == torch.bfloat16)
    assert taken["compiled search and training pass"] == compiled == (training.search is not plain)
    assert taken["BatchNorm folded in the attack"]
    assert not taken["CUDA graphs"]
    assert all(path.why and path.otherwise for path in told.paths)
    # digits-anchor: two steps of attack, two views.
    assert "128 images x 4 forward-and-backward passes = 512; an epoch: 9 steps" in told.cost[0]


def test_explaining_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "fit", None)
    assert main(["train", "digits-anchor", "--explain", "--optimise.compile", "never"]) == 0
    told = capsys.readouterr().out
    assert "optimise.compile is never" in told
    assert "210 forward-and-backward passes" in told
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("anchor_robust.data.cifar.fetch", None)
    assert main(["train", "cifar10-resnet8-anchor", "--explain", "--optimise.compile", "never"]) == 0
    assert "an epoch: 382 steps" in capsys.readouterr().out, "CIFAR-10 is not fetched to be counted"
    for more in (["--out", "run"], ["--devices", "2"], ["--nodes", "2"], ["--json"]):
        assert main(["train", "digits-anchor", "--explain", *more]) == 2
        assert "--explain takes a recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "found", "triton", "expected"),
    [
        ("cpu", "g++", True, True),
        ("cpu", "gcc", True, False),
        ("cuda", "gcc", True, True),
        ("cuda", "gcc", False, False),
    ],
)
def test_a_compiler_is_what_the_device_needs(
    device: str, found: str, triton: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.shutil, "which", lambda name: name if name == found else None)
    monkeypatch.setattr(environment, "find_spec", lambda name: object() if triton else None)
    assert environment.has_compiler(torch.device(device)) == expected


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    (
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2", False),
    ),
)
def test_bf16_is_taken_where_its_units_are_faster(
    vendor: str, flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpuinfo", lambda: {"vendor_id": vendor, "flags": flags})
    path = train.fast.bf16(Optimise(), torch.device("cpu"))
    assert environment.has_bf16(torch.device("cpu")) == path.taken == expected
    assert train.fast.bf16(Optimise(precision="bf16"), torch.device("cpu")).taken


def obvious_pgd(model: torch.nn.Module, start: Tensor, x: Tensor, y: Tensor, attack: PGD) -> Tensor:
    """Ten lines of the textbook, image by image."""
    moved = []
    for image, original, label in zip(start, x, y, strict=True):
        for _ in range(attack.steps):
            image = image.detach().requires_grad_()
            F.cross_entropy(model(image[None])[0], label[None]).backward()
            gradient = image.grad
            assert gradient is not None
            step = gradient.sign() if attack.ball.norm == "linf" else gradient / gradient.norm()
            away = image.detach() + attack.step_size * step - original
            if attack.ball.norm == "linf":
                away = away.clamp(-attack.ball.eps, attack.ball.eps)
            else:
                away = away * min(1.0, attack.ball.eps / away.norm().item())
            image = (original + away).clamp(0, 1)
        moved.append(image)
    return torch.stack(moved)


@pytest.mark.parametrize("compiled", [False, True], ids=["folded", "compiled"])
@pytest.mark.parametrize("ball", [Ball("linf", 0.031), Ball("l2", 0.5)], ids=lambda ball: ball.norm)
def test_the_fast_attack_is_the_plain_one(
    ball: Ball, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network in evaluation mode, channels first, through every parameter; and what a step of training attacks.

    It is a smooth one, as rounding can tip a ReLU, after which two climbs part.
    """
    threat = (f"--threat.norm={ball.norm}", f"--threat.eps={ball.eps}")
    training = built(tmp_path, *threat, "--model.activation=silu", "--optimise.epochs=500")
    for number in range(3):  # so that BatchNorm has statistics to fold
        train.update.step(training, number, 10, BATCH)
    training.search.refresh()
    if compiled:
        monkeypatch.setattr(train.fast.environment, "has_compiler", lambda device: True)
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        plain = training.search
        train.accelerate(training, listening())
        assert training.search is not plain
    attack = PGD(ball, 10, ball.eps / 4)
    x, y = training.train.pixels(BATCH[:16]), training.train.labels[:16]
    start = ball.random_point(x, torch.Generator().manual_seed(0))
    fast = attack(training.search, x.contiguous(memory_format=torch.channels_last), y, trusted=True)
    plain = obvious_pgd(training.network.eval(), start, x, y, attack)
    apart = (fast - plain).abs()
    if ball.norm == "l2":
        assert apart.max() <= 1e-5
    else:
        # The sign of a gradient that is all but 0 is chance; everywhere else the two are the same.
        assert (apart > 1e-5).double().mean() <= 1e-3
        assert (fast - start).abs().max() > ball.eps
