"""What every training method promises, whichever there are, and what each of them computes."""

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anchor_robust import objectives, recipe
from anchor_robust.attacks import PGD
from anchor_robust.data import augment
from anchor_robust.data.mix import mix
from anchor_robust.errors import Refusal
from anchor_robust.losses import boosted_cross_entropy, hard_supcon, kl_divergence, selective_supcon
from anchor_robust.models import Classifier, Folded
from anchor_robust.models.resnet import resnet8
from anchor_robust.objectives import Learner, Objective, Step
from anchor_robust.objectives.anchor import Anchor
from anchor_robust.objectives.pgd_at import PGDAdversarialTraining
from anchor_robust.threat import Ball

IMAGES, CLASSES = 12, 5
BALL = Ball("linf", 0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def buffers(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class TrainingPass:
    """The `forward` handle; notes the buffers before and after each call."""

    def __init__(self, network: Classifier) -> None:
        self.network = network
        self.images = 0
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.network.training
        assert torch.is_grad_enabled()
        self.images += len(x)
        self.before.append(buffers(self.network))
        outputs = self.network(x)
        self.after.append(buffers(self.network))
        return outputs


class Bench:
    """A small network under training, the same on every call, with images and labels."""

    def __init__(self, objective: Objective, label_smoothing: float = 0.0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = resnet8(CLASSES, 3, width=4)
            self.network = Classifier(network, (0.5,) * 3, (0.25,) * 3, objective.projection_width).train()
        self.network.backbone.layer1[0].bn1.eval()  # a frozen child, as in fine-tuning
        self.x = torch.rand(IMAGES, 3, 12, 12, generator=seeded(1))
        self.y = torch.arange(IMAGES) % CLASSES
        self.objective = objective
        self.training_pass = TrainingPass(self.network)
        self.learner = Learner(
            net=Folded(self.network),
            forward=self.training_pass,
            attack=PGD(BALL, steps=2, step_size=0.05),
            light=lambda x, generator: augment.light(x, 1, True, generator),
            strong=lambda x, generator: augment.strong(x, True, generator),
            label_smoothing=label_smoothing,
        )

    def step(self, seed: int = 0) -> Step:
        return self.objective(self.learner, self.x, self.y, seeded(seed))

    def gradients(self) -> list[Tensor]:
        found = [parameter.grad for parameter in self.network.backbone.parameters()]
        assert all(gradient is not None for gradient in found)
        return found


# --- the contract of every objective ---------------------------------------------------------------------------------

MEMBERS = objectives.discover()
every_objective = pytest.mark.parametrize("method", MEMBERS.values(), ids=MEMBERS)
precisions = pytest.mark.parametrize("bf16", (False, True), ids=("float32", "bf16"))


@every_objective
def test_it_is_a_frozen_dataclass_with_defaults(method: type[Objective]) -> None:
    objective = method()
    assert "__dataclass_fields__" in method.__dict__, "decorated itself, not only its parent"
    assert method.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert objective == method()
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.projection_width = 1  # type: ignore[misc]
    assert objective.projection_width >= 0
    assert method.selects_on in ("clean", "robust")


@every_objective
def test_its_name_is_that_of_its_file(method: type[Objective]) -> None:
    stem = Path(inspect.getfile(method)).stem
    assert method.name == stem.replace("_", "-")
    assert objectives.find(method.name) is method
    assert getattr(objectives, method.__name__) is method


@every_objective
def test_it_says_what_it_is(method: type[Objective]) -> None:
    assert "name" in method.__dict__
    assert method.__doc__
    assert not method.__doc__.startswith(f"{method.__name__}("), "a docstring of its own, not the dataclass's"
    assert inspect.getmodule(method).__doc__


@every_objective
@precisions
def test_a_step_gives_a_loss_that_trains_the_backbone(method: type[Objective], bf16: bool) -> None:
    bench = Bench(method())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        outcome = bench.step()
    assert isinstance(outcome, Step)
    assert outcome.loss.shape == ()
    assert outcome.loss.dtype == torch.float32
    assert torch.isfinite(outcome.loss)
    outcome.loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in bench.gradients())
    assert all(gradient.abs().sum() > 0 for gradient in bench.gradients())


@every_objective
@precisions
def test_a_step_gives_logits_and_the_parts_of_its_loss(method: type[Objective], bf16: bool) -> None:
    bench = Bench(method())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        outcome = bench.step()
    assert outcome.logits.shape == (IMAGES, CLASSES)
    assert torch.isfinite(outcome.logits).all()
    assert outcome.parts
    for name, part in outcome.parts.items():
        assert isinstance(part, Tensor), name
        assert part.shape == (), name
        assert part.dtype == torch.float32, name
        assert torch.isfinite(part), name


@every_objective
def test_the_training_pass_is_taken_once_and_alone_moves_the_norms(method: type[Objective]) -> None:
    bench = Bench(method())
    start = buffers(bench.network)
    modes = [module.training for module in bench.network.modules()]
    bench.step()
    assert len(bench.training_pass.before) == 1
    assert same(bench.training_pass.before[0], start)
    assert not same(bench.training_pass.after[0], start)
    assert same(buffers(bench.network), bench.training_pass.after[0])
    assert [module.training for module in bench.network.modules()] == modes
    assert all(parameter.requires_grad for parameter in bench.network.parameters())
    assert all(parameter.grad is None for parameter in bench.network.parameters())


@every_objective
def test_the_generator_alone_decides(method: type[Objective]) -> None:
    state = torch.get_rng_state()
    first, again, other = Bench(method()).step(3), Bench(method()).step(3), Bench(method()).step(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.logits, other.logits)


@every_objective
@precisions
def test_it_learns_from_mixed_images(method: type[Objective], bf16: bool) -> None:
    bench = Bench(method())
    mixed = mix(bench.x, bench.y, CLASSES, "cutmix", 1.0, seeded(5))
    plain = bench.objective(bench.learner, mixed.images, mixed.labels, seeded())
    learner = dataclasses.replace(bench.learner, targets=mixed.targets)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        outcome = bench.objective(learner, mixed.images, mixed.labels, seeded())
    outcome.loss.backward()
    assert torch.isfinite(outcome.loss)
    assert not torch.allclose(outcome.loss, plain.loss), "the shares of the labels reach the loss"


@every_objective
def test_one_hot_targets_are_labels(method: type[Objective]) -> None:
    bench = Bench(method())
    learner = dataclasses.replace(bench.learner, targets=F.one_hot(bench.y, CLASSES).float())
    outcome = bench.objective(learner, bench.x, bench.y, seeded())
    torch.testing.assert_close(outcome.loss, Bench(method()).step().loss)


@every_objective
def test_its_cost_is_what_passes_through_the_network(method: type[Objective]) -> None:
    bench = Bench(method())
    steps = bench.learner.attack.steps
    gradients = []

    def counted(attack: PGD, model: Any, loss: Any, x: Tensor, generator: torch.Generator) -> Tensor:
        gradients.append(attack.steps * len(x))
        return climb(attack, model, loss, x, generator)

    climb = PGD._climb_once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PGD, "_climb_once", counted)
        bench.step()
    passed = (sum(gradients) + bench.training_pass.images) / IMAGES
    # The slice that Fast-AT's guard attacks is rounded to whole images.
    assert method().passes(steps) == pytest.approx(passed, abs=0.51 * steps / IMAGES)


@every_objective
def test_images_and_labels_stay_as_they_are(method: type[Objective]) -> None:
    bench = Bench(method())
    x, y = bench.x.clone(), bench.y.clone()
    bench.step()
    assert torch.equal(bench.x, x)
    assert torch.equal(bench.y, y)


@every_objective
def test_it_has_a_recipe(method: type[Objective]) -> None:
    assert any(recipe.settle(name).objective.name == method.name for name in recipe.built_in())


@pytest.mark.parametrize("name", recipe.built_in())
def test_a_built_in_recipe_names_an_objective_that_is_here(name: str) -> None:
    assert type(recipe.settle(name).objective) in MEMBERS.values()


def test_every_file_of_the_folder_is_found() -> None:
    files = {path.stem.replace("_", "-") for path in Path(objectives.__file__).parent.glob("*.py")}
    assert set(MEMBERS) == files - {"--init--", "base"}


def test_a_new_file_is_found_by_being_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(inspect.getfile(PGDAdversarialTraining)).read_text(encoding="utf-8")
    source = source.replace("PGDAdversarialTraining", "Fresh").replace('"pgd-at"', '"fresh"')
    (tmp_path / "fresh.py").write_text(source.replace("from .base", "from anchor_robust.objectives.base"))
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    try:
        assert objectives.find("fresh").__name__ == "Fresh"
        assert objectives.Fresh.name == "fresh"
    finally:
        sys.modules.pop(f"{objectives.__name__}.fresh", None)
        vars(objectives).pop("fresh", None)


# --- finding one -----------------------------------------------------------------------------------------------------


class Own(PGDAdversarialTraining):
    """A user's objective."""


def test_a_users_objective_is_found_by_its_path() -> None:
    assert objectives.find(f"{__name__}.Own") is Own


@pytest.mark.parametrize(
    "name",
    ("pgdat", "no_such_package.Method", f"{__name__}.NoSuchClass", "./method.py", f"{__name__}.Bench", "math.pi"),
)
def test_what_is_no_objective_is_refused(name: str) -> None:
    with pytest.raises(Refusal, match=name.replace(".", r"\.")):
        objectives.find(name)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refusal, match=".*".join(MEMBERS)):
        objectives.find("pgdat")


# --- what each computes ----------------------------------------------------------------------------------------------


class Stub:
    """A learner whose views can be told apart, and whose network is a formula: everything is known by hand."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.x = torch.rand(6, 4, generator=seeded(1), dtype=torch.float64)
        self.y = torch.tensor([0, 1, 2, 0, 1, 2])
        self.heads = torch.randn(2, 4, 3, generator=seeded(2), dtype=torch.float64)
        self.seen: list[Tensor] = []
        self.attacked: list[Tensor] = []
        light: Callable[..., Tensor] = lambda x, generator: x + 0.25  # noqa: E731
        strong: Callable[..., Tensor] = lambda x, generator: x * 3  # noqa: E731
        self.learner = Learner(
            net=lambda x: self.logits(x),
            forward=self.forward,
            attack=self.attack,  # type: ignore[arg-type]
            light=light,
            strong=strong,
            label_smoothing=label_smoothing,
        )
        clean = self.x + 0.25
        self.views = {"clean": clean, "augmented": self.x * 3, "adversarial": -2 * clean}

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.heads[0]

    def embeddings(self, x: Tensor) -> Tensor:
        return F.normalize(x @ self.heads[1], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(x)
        return self.logits(x), self.embeddings(x)

    def attack(self, net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, **_: object) -> Tensor:
        assert net is self.learner.net
        assert torch.equal(y, self.y)
        self.attacked.append(x)
        return -2 * x

    def step(self, objective: Objective) -> Step:
        return objective(self.learner, self.x, self.y, seeded())

    def cross_entropy(self, view: str) -> Tensor:
        log_probabilities = self.logits(self.views[view]).log_softmax(1)
        return -log_probabilities[torch.arange(6), self.y].mean()


@pytest.mark.parametrize("name, view", (("standard", "clean"), ("pgd-at", "adversarial")))
def test_plain_methods_take_the_cross_entropy_of_their_view(name: str, view: str) -> None:
    stub = Stub()
    outcome = stub.step(objectives.find(name)())
    torch.testing.assert_close(outcome.loss, stub.cross_entropy(view))
    torch.testing.assert_close(outcome.logits, stub.logits(stub.views[view]))
    assert set(outcome.parts) == {"cross_entropy"}
    assert torch.equal(outcome.parts["cross_entropy"], outcome.loss)
    assert len(stub.attacked) == (view == "adversarial")


VIEWS = (
    ("adversarial",),
    ("augmented", "adversarial"),
    ("adversarial", "augmented"),
    ("clean", "adversarial"),
    ("clean", "augmented", "adversarial"),
)


@pytest.mark.parametrize("views", VIEWS, ids="+".join)
@pytest.mark.parametrize("clean", (0.0, 0.7))
def test_anchor_equals_its_formula(views: tuple[str, ...], clean: float) -> None:
    stub = Stub()
    settings = {"temperature": 0.5, "hardness": 2.0, "hard_fraction": 0.6}
    outcome = stub.step(Anchor(contrast=0.3, clean=clean, views=views, **settings))

    embeddings = torch.cat([stub.embeddings(stub.views[view]) for view in views])
    parts = {
        "cross_entropy": stub.cross_entropy("adversarial"),
        "contrast": hard_supcon(embeddings, torch.cat([stub.y] * len(views)), **settings),
    }
    expected = parts["cross_entropy"] + 0.3 * parts["contrast"]
    if clean:
        parts["clean_cross_entropy"] = stub.cross_entropy("clean")
        expected = expected + clean * parts["clean_cross_entropy"]

    torch.testing.assert_close(outcome.loss, expected)
    torch.testing.assert_close(outcome.parts, parts)
    torch.testing.assert_close(outcome.logits, stub.logits(stub.views["adversarial"]))
    assert len(stub.attacked) == 1
    torch.testing.assert_close(stub.attacked[0], stub.views["clean"])


@pytest.mark.parametrize("views", VIEWS, ids="+".join)
@pytest.mark.parametrize("clean", (0.0, 0.7))
def test_anchor_forwards_its_views_in_their_order_and_each_once(views: tuple[str, ...], clean: float) -> None:
    stub = Stub()
    stub.step(Anchor(views=views, clean=clean))
    forwarded = [*views, "clean"] if clean and "clean" not in views else views
    assert len(stub.seen) == 1
    torch.testing.assert_close(stub.seen[0], torch.cat([stub.views[view] for view in forwarded]))


def test_anchor_without_contrast_is_adversarial_training() -> None:
    anchor = Bench(Anchor(contrast=0.0, clean=0.0, views=("adversarial",), projection_width=0))
    pgd_at = Bench(PGDAdversarialTraining())
    ours, theirs = anchor.step(5), pgd_at.step(5)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(ours.logits, theirs.logits)
    ours.loss.backward()
    theirs.loss.backward()
    assert all(map(torch.equal, anchor.gradients(), pgd_at.gradients()))


def test_the_contrast_trains_the_projection_head() -> None:
    bench = Bench(Anchor())
    bench.step().loss.backward()
    assert bench.network.projection is not None
    assert all(parameter.grad.abs().sum() > 0 for parameter in bench.network.projection.parameters())


def test_adversarial_views_lie_in_the_ball_around_the_light_view() -> None:
    bench = Bench(PGDAdversarialTraining())
    light = bench.learner.light(bench.x, seeded(7))
    adversarial = bench.learner.attacked(light, bench.y, seeded(8))
    assert BALL.contains(adversarial, light).all()
    assert BALL.distance(adversarial, light).min() > 0


# --- cross-entropy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", (0.0, 0.1, 0.6))
def test_label_smoothing_mixes_the_target_with_all_classes(smoothing: float) -> None:
    logits, y = torch.randn(6, 4, generator=seeded(), dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    log_probabilities = logits.log_softmax(1)
    target = (1 - smoothing) * F.one_hot(y, 4) + smoothing / 4
    expected = -(target * log_probabilities).sum(1).mean()
    torch.testing.assert_close(Stub(smoothing).learner.cross_entropy(logits, y), expected)


@pytest.mark.parametrize("mixed", (False, True))
@pytest.mark.parametrize("smoothing", (0.0, 0.3))
def test_what_is_expected_of_a_loss_per_class_is_its_mean_over_the_smoothed_target(
    smoothing: float, mixed: bool
) -> None:
    losses, y = torch.randn(6, 4, generator=seeded(), dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = torch.rand(6, 4, generator=seeded(1), dtype=torch.float64).softmax(1) if mixed else None
    total = 0.0
    for image in range(6):
        for label in range(4):
            share = float(y[image] == label) if targets is None else targets[image, label].item()
            total += ((1 - smoothing) * share + smoothing / 4) * losses[image, label].item() / 6
    learner = dataclasses.replace(Stub(smoothing).learner, targets=targets)
    assert learner.expected(losses, y).item() == pytest.approx(total)


def test_cross_entropy_is_taken_in_at_least_float32() -> None:
    logits, y = torch.randn(6, 4, generator=seeded()), torch.tensor([0, 1, 2, 3, 0, 1])
    learner = Stub().learner
    half = learner.cross_entropy(logits.bfloat16(), y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, F.cross_entropy(logits.bfloat16().float(), y))
    assert learner.cross_entropy(logits.double(), y).dtype == torch.float64


# --- TRADES, MART, ASCL, Fast-AT: equal to their formulas on fixed logits ---------------------------------------------


class FixedAttack(PGD):
    """The stub's attack, in a class that can be varied as a recipe's attack is."""

    def search(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        SEEN.append(self)
        return 1 - x


SEEN: list[PGD] = []


def fixed() -> tuple[Learner, Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """A learner that is a formula: logits and embeddings of the clean and the attacked view are known by hand."""
    SEEN.clear()
    stub = Stub()
    x = stub.x / 4
    learner = dataclasses.replace(
        stub.learner, net=stub.logits, attack=FixedAttack(Ball("linf", 1.0), 3, 0.4), light=lambda x, generator: x
    )
    views = {"clean": x, "adversarial": 1 - x}
    return (
        learner,
        x,
        stub.y,
        {name: stub.logits(view) for name, view in views.items()},
        {name: stub.embeddings(view) for name, view in views.items()},
    )


def cross_entropy(logits: Tensor, y: Tensor) -> float:
    return -sum(math.log(float(row.exp()[label] / row.exp().sum())) for row, label in zip(logits, y, strict=True)) / 6


@pytest.mark.parametrize("beta", (0.0, 6.0))
def test_trades_equals_its_formula(beta: float) -> None:
    learner, x, y, logits, _ = fixed()
    outcome = objectives.Trades(beta=beta)(learner, x, y, seeded())
    p, q = logits["clean"].softmax(1), logits["adversarial"].softmax(1)
    divergence = sum(float(a * math.log(a / b)) for a, b in zip(p.flatten(), q.flatten(), strict=True)) / 6
    assert outcome.loss.item() == pytest.approx(cross_entropy(logits["clean"], y) + beta * divergence)
    assert (SEEN[0].loss, SEEN[0].start, SEEN[0].steps, SEEN[0].step_size) == ("kl", "gaussian", 3, 0.4)


@pytest.mark.parametrize("beta", (0.0, 5.0))
def test_mart_equals_its_formula(beta: float) -> None:
    learner, x, y, logits, _ = fixed()
    outcome = objectives.Mart(beta=beta)(learner, x, y, seeded())
    expected = 0.0
    for clean, adversarial, label in zip(logits["clean"].softmax(1), logits["adversarial"].softmax(1), y, strict=True):
        strongest = max(float(adversarial[j]) for j in range(3) if j != label)
        expected -= math.log(adversarial[label]) + math.log(1 - strongest)
        kl = sum(float(a * math.log(a / b)) for a, b in zip(clean, adversarial, strict=True))
        expected += beta * kl * (1 - float(clean[label]))
    assert outcome.loss.item() == pytest.approx(expected / 6)
    assert (SEEN[0].loss, SEEN[0].start) == ("ce", "uniform")


def test_at_beta_0_trades_is_standard_training_and_mart_its_boosted_cross_entropy() -> None:
    learner, x, y, logits, _ = fixed()
    trades, mart = (method(beta=0.0)(learner, x, y, seeded()) for method in (objectives.Trades, objectives.Mart))
    standard = objectives.Standard()(learner, x, y, seeded())
    torch.testing.assert_close(trades.loss, standard.loss)
    torch.testing.assert_close(mart.loss, boosted_cross_entropy(logits["adversarial"])[torch.arange(6), y].mean())


@pytest.mark.parametrize("selection", ("all", "hard", "soft", "leaked"))
def test_ascl_equals_its_formula(selection: str) -> None:
    learner, x, y, logits, embeddings = fixed()
    weights = {"contrast": 0.3, "clean": 0.7, "smoothness": 1.3}
    outcome = objectives.find("ascl")(selection=selection, temperature=0.4, **weights)(learner, x, y, seeded())
    both = torch.cat([logits["clean"], logits["adversarial"]])
    contrast = selective_supcon(torch.cat(list(embeddings.values())), y.repeat(2), both.argmax(1), selection, 0.4)
    expected = (
        cross_entropy(logits["adversarial"], y)
        + 0.7 * cross_entropy(logits["clean"], y)
        + 1.3 * kl_divergence(logits["clean"], logits["adversarial"]).mean().item()
        + 0.3 * contrast.item()
    )
    assert outcome.loss.item() == pytest.approx(expected)


def test_fast_at_takes_one_step_until_that_no_longer_suffices() -> None:
    method = objectives.find("fast-at")

    class Overfitted(PGD):
        """Harmless in one step, and an image of another class in more."""

        def search(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            return x if self.steps == 1 else x.roll(1, 1)

    x, y = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
    stub = Stub()
    learner = dataclasses.replace(
        stub.learner,
        net=lambda x: 9 * x,
        forward=lambda x: (9 * x, x),
        attack=Overfitted(Ball("linf", 1.0), 5, 0.2),
        light=lambda x, generator: x,
    )
    guarded = method(guard=0.5)(learner, x, y, seeded())
    assert guarded.parts["guarded"] == 1
    torch.testing.assert_close(guarded.logits, 9 * x.roll(1, 1))
    assert method(guard=0.001)(learner, x, y, seeded()).parts["guarded"] == 1, "one image is looked at in any case"
    for unguarded in (method(guard=0.0), method(guard=0.5, gap=1.0)):
        outcome = unguarded(learner, x, y, seeded())
        assert outcome.parts["guarded"] == 0
        torch.testing.assert_close(outcome.logits, 9 * x)


def test_fast_at_steps_over_the_ball_by_a_quarter() -> None:
    learner, x, y, _, _ = fixed()
    objectives.find("fast-at")(guard=0.0)(learner, x, y, seeded())
    assert [(attack.steps, attack.step_size, attack.start) for attack in SEEN] == [(1, 1.25, "uniform")]


# --- what ANCHOR can do beside its formula ----------------------------------------------------------------------------


def test_the_two_view_control_is_cross_entropy_alone() -> None:
    stub = Stub()
    outcome = stub.step(Anchor(contrast=0.0, augmented=0.5))
    torch.testing.assert_close(outcome.loss, stub.cross_entropy("adversarial") + 0.5 * stub.cross_entropy("augmented"))


def test_the_margin_of_the_attacked_view_joins_by_its_weight() -> None:
    stub = Stub()
    parts = stub.step(Anchor(margin=0.5)).parts
    p = stub.logits(stub.views["adversarial"]).softmax(1)
    strongest = [max(p[i, j] for j in range(p.shape[1]) if j != y) for i, y in enumerate(stub.y.tolist())]
    expected = -sum(math.log(1 - each) for each in strongest) / len(strongest)
    assert parts["margin"].item() == pytest.approx(expected)
    without, with_it = (stub.step(Anchor(margin=weight)).loss for weight in (0.0, 0.5))
    assert (with_it - without).item() == pytest.approx(0.5 * expected)


@pytest.mark.parametrize("views", (("adversarial",), ("clean", "adversarial")))
def test_with_marts_terms_and_no_contrast_anchor_is_mart(views: tuple[str, ...]) -> None:
    learner, x, y, _, _ = fixed()
    anchor = Anchor(contrast=0.0, margin=1.0, consistency=5.0, views=views)
    mart = objectives.Mart(beta=5.0)(learner, x, y, seeded())
    torch.testing.assert_close(anchor(learner, x, y, seeded()).loss, mart.loss)
    assert anchor.passes(5) == objectives.Mart().passes(5)


def test_a_collapsed_contrast_is_told() -> None:
    batch, value = 256, math.log(2 * 256 - 1)
    assert "collapsed" in Anchor().warning({"contrast": value + 0.001}, batch)
    assert Anchor().warning({"contrast": value - 0.2}, batch) == ""
    assert Anchor(contrast=0.0).warning({"contrast": value}, batch) == "", "a control has no contrast to lose"
    assert PGDAdversarialTraining().warning({"cross_entropy": 1.0}, batch) == ""


def test_hardness_rises_along_its_ramp() -> None:
    stub = Stub()
    losses = {
        progress: Anchor(hardness=4.0, hardness_ramp=0.5)(
            dataclasses.replace(stub.learner, progress=progress), stub.x, stub.y, seeded()
        ).loss
        for progress in (0.0, 0.25, 0.5, 1.0)
    }
    for progress, hardness in ((0.0, 0.0), (0.25, 2.0), (0.5, 4.0), (1.0, 4.0)):
        torch.testing.assert_close(losses[progress], stub.step(Anchor(hardness=hardness)).loss)


@precisions
def test_the_attack_on_the_joint_loss_raises_it_further_than_the_plain_one(bf16: bool) -> None:
    raised = {}
    for weight in (0.0, 3.0):
        bench = Bench(Anchor(attack_contrast=weight, views=("clean", "adversarial")))
        bench.learner = dataclasses.replace(bench.learner, attack=PGD(BALL, steps=10, step_size=0.02))
        x = bench.learner.light(bench.x, seeded(1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            adversarial = bench.objective.attacked(bench.learner, x, bench.y, seeded(2))
        assert BALL.contains(adversarial, x).all()
        clean, attacked = bench.learner.net.embed(x)[1], bench.learner.net.embed(adversarial)[1]
        raised[weight] = bench.objective.contrastive((clean, attacked), bench.y, 0.0).item()
    assert raised[3.0] > raised[0.0]


def test_the_attack_on_the_joint_loss_climbs_both_of_its_parts() -> None:
    """One step from the image, against the gradient that is written down here."""
    bench = Bench(Anchor(attack_contrast=0.7, views=("clean", "adversarial")))
    attack = PGD(BALL, steps=1, step_size=0.01, start="none")
    bench.learner, net = dataclasses.replace(bench.learner, attack=attack), bench.learner.net
    clean = net.embed(bench.x)[1]

    def moved(weight: float) -> Tensor:
        x = bench.x.clone().requires_grad_()
        logits, embedding = net.embed(x)
        contrast = bench.objective.contrastive((clean, embedding), bench.y, 0.0)
        loss = F.cross_entropy(logits, bench.y, reduction="sum") + weight * IMAGES * contrast
        return BALL.project(bench.x + 0.01 * torch.autograd.grad(loss, x)[0].sign(), bench.x)

    adversarial = bench.objective.attacked(bench.learner, bench.x, bench.y, seeded())
    alike = [(adversarial == moved(weight)).double().mean().item() for weight in (0.7, 0.0, 1e9)]
    assert alike[0] > 0.999, "up to signs of gradients that are next to nothing"
    assert max(alike[1:]) < 0.98, "neither part alone"


@pytest.mark.parametrize("name", MEMBERS)
def test_the_recipes_label_smoothing_reaches_the_loss(name: str) -> None:
    plain, smoothed = (Bench(MEMBERS[name](), smoothing).step() for smoothing in (0.0, 0.5))
    assert torch.equal(plain.logits, smoothed.logits)
    assert not torch.allclose(plain.loss, smoothed.loss)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    (
        {"views": ()},
        {"views": ("clean", "augmented")},
        {"views": ("adversarial", "adversarial")},
        {"views": ("adversarial", "sideways")},
        {"contrast": -0.1},
        {"contrast": float("inf")},
        {"clean": -1.0},
        {"clean": float("nan")},
        {"hardness": -1.0},
        {"hardness": float("inf")},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"hard_fraction": 0.0},
        {"hard_fraction": 1.01},
        {"projection_width": -1},
        {"hardness_ramp": 1.1},
        {"attack_contrast": -1.0},
        {"margin": -1.0},
        {"consistency": -1.0},
        {"hardness": "2"},
        {"temperature": "0.1"},
        {"hard_fraction": None},
        {"hardness_ramp": [0.5]},
        {"projection_width": "128"},
    ),
    ids=str,
)
def test_bad_settings_of_anchor_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=rf"{next(iter(settings))} .* given; allowed"):
        Anchor(**settings)


def test_a_users_callable_is_enough_for_a_view() -> None:
    """What the contract asks of a learner is duck-typed: no class of ours is needed to try an objective."""
    stub = Stub()
    learner = SimpleNamespace(**{name: getattr(stub.learner, name) for name in ("forward", "light", "cross_entropy")})
    outcome = objectives.find("standard")()(learner, stub.x, stub.y, seeded())  # type: ignore[arg-type]
    torch.testing.assert_close(outcome.loss, stub.cross_entropy("clean"))
