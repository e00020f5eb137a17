"""Intervals, verdicts and records: the numbers mean what they say, and measuring changes nothing."""

import importlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import anchor_robust
from anchor_robust import evaluation
from anchor_robust.attacks import APGD, PGD, Attack, Noise, Square
from anchor_robust.data import Given
from anchor_robust.errors import Refusal
from anchor_robust.evaluation import PROTOCOLS, evaluate, measure
from anchor_robust.evaluation.corrupted import corrupted
from anchor_robust.evaluation.curves import balls
from anchor_robust.evaluation.protocols import REFERENCE, plan
from anchor_robust.intervals import wilson
from anchor_robust.threat import Ball

ATTACKS = ("clean", "pgd20", "pgd20-2-255")
RESULT_FIELDS = {
    *("attack", "label", "norm", "eps", "steps", "step_size", "restarts", "start", "loss", "dtype", "images"),
    *("accuracy", "interval", "seconds"),
}


def images(n: int = 30, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def labels(n: int = 30, classes: int = 4) -> Tensor:
    return torch.arange(n) % classes


class ConvNet(nn.Module):
    """Four classes; batch statistics and dropout show whether it is in evaluation mode; `frozen` always is."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 8, 3)
            self.norm, self.dropout, self.frozen = nn.BatchNorm2d(8), nn.Dropout(0.5), nn.BatchNorm2d(8)
            self.linear = nn.Linear(128, 4)
        self.frozen.eval()
        self.seen: list[torch.dtype] = []
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.dtype)
        if self.fails:
            raise RuntimeError("out of memory, say")
        features = self.dropout(self.frozen(F.relu(self.norm(self.conv(x - 0.5)))))
        return self.linear(features.flatten(1))


def truthful(model: nn.Module, x: Tensor, wrong: int = 10) -> Tensor:
    """Labels that the model gets right, but for the last `wrong` images."""
    with torch.no_grad(), evaluation.evaluating(model, torch.device("cpu")):
        predictions = model(x).argmax(1)
    y = predictions.clone()
    y[len(y) - wrong :] = (predictions[len(y) - wrong :] + 1) % 4
    return y


def test_evaluating_takes_tf32_from_cudnn_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = torch.backends.cudnn
    kept = ("enabled", "benchmark", "deterministic")
    monkeypatch.setattr(cudnn, "deterministic", True)
    before = [getattr(cudnn, name) for name in kept]
    with evaluation.evaluating(nn.Identity(), torch.device("cpu")):
        assert not cudnn.allow_tf32
        assert [getattr(cudnn, name) for name in kept] == before
    assert cudnn.allow_tf32
    assert [getattr(cudnn, name) for name in kept] == before


# --- Wilson's interval -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "successes, count, low, high",
    (
        (0, 10, 0.0, 0.2775),  # z^2 / (n + z^2)
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (81, 263, 0.2553, 0.3662),  # this and those below: Newcombe 1998, Statistics in Medicine 17, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ),
)
def test_wilson_gives_the_published_intervals(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=6e-5)


def test_wilson_takes_other_levels() -> None:
    z, n = 3.0, 7
    assert wilson(0, n, z) == pytest.approx((0.0, z * z / (n + z * z)), abs=1e-12)


@pytest.mark.parametrize("counts", ((0, 0), (11, 10), (-1, 10), (math.nan, 10), (0, -1)))
def test_wilson_refuses_what_is_no_share(counts: tuple[float, int]) -> None:
    with pytest.raises(Refusal, match=f"^{counts[0]} of {counts[1]} given; allowed: 0 to all of 1 image or more$"):
        wilson(*counts)


counts = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_lies_in_0_to_1_around_the_share(given_: tuple[int, int]) -> None:
    successes, count = given_
    low, high = wilson(successes, count)
    assert 0 <= low < high <= 1
    assert low - 1e-12 <= successes / count <= high + 1e-12


@given(counts)
def test_wilson_solves_its_equation(given_: tuple[int, int]) -> None:
    """Each bound q is where the share lies z standard deviations of q away: (p - q)^2 = z^2 q (1 - q) / n."""
    successes, count = given_
    for q in wilson(successes, count):
        deviation = 1.959963984540054**2 * q * (1 - q) / count
        assert (successes / count - q) ** 2 == pytest.approx(deviation, rel=1e-6, abs=1e-12)


@given(counts, st.integers(2, 50))
def test_wilson_narrows_with_more_images_and_mirrors(given_: tuple[int, int], times: int) -> None:
    successes, count = given_
    low, high = wilson(successes, count)
    narrow_low, narrow_high = wilson(successes * times, count * times)
    assert narrow_high - narrow_low < high - low
    assert wilson(count - successes, count) == pytest.approx((1 - high, 1 - low), abs=1e-12)


# --- the verdict, where it is known ----------------------------------------------------------------------------------


def linear_model(norm: str, eps: float, shares: list[float]) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear two-class model and images whose margin is `shares` of what the ball can take away.

    logits = (0, w . x + b); the attacker moves w . x by at most eps |w|_1 (linf) or eps |w|_2 (l2).
    """
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(48, generator=generator)
    reach = eps * (weight.abs().sum() if norm == "linf" else weight.norm())
    centre = 0.5 + 0.1 * (torch.rand(len(shares), 48, generator=generator) - 0.5)
    y = torch.arange(len(shares)) % 2
    wanted = torch.tensor(shares) * reach * (2 * y - 1)
    x = centre + ((wanted - centre @ weight) / weight.square().sum())[:, None] * weight  # b = 0
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(48), weight]))
        model[1].bias.zero_()
    return model, x.view(-1, 3, 4, 4), y


@pytest.mark.parametrize("attack", [name for name in PROTOCOLS if name != "noise"])  # which is no search
@pytest.mark.parametrize("norm, eps", (("linf", 0.031), ("linf", 8 / 255), ("l2", 0.1)))
def test_on_a_linear_model_the_margin_decides(attack: str, norm: Any, eps: float) -> None:
    # 0.9 and 1.1 rather than 1: twenty steps of 0.003 reach 94 % of the way from the farthest start.
    shares = [-0.5, -0.01, 0.01, 0.3, 0.6, 0.9, 1.1, 1.2, 1.5, 1.2, 1.1, 0.9, 0.6, -0.3]
    model, x, y = linear_model(norm, eps, shares)
    if (attack, norm) == ("square", "l2"):
        shares = [share for share in shares if not 0.5 < share < 1]  # random search does not get to the very edge
        model, x, y = linear_model(norm, eps, shares)
    assert x.min() > eps, "no image touches the box"
    assert x.max() < 1 - eps
    outcomes = measure(model, Given(x, y), ("clean", attack), ball=Ball(norm, eps)).outcomes
    assert (outcomes["clean_prediction"] == y.numpy()).tolist() == [share > 0 for share in shares]
    assert outcomes[f"held_{attack}"].tolist() == [share > 1 for share in shares]


def test_a_ball_of_nothing_leaves_the_clean_accuracy() -> None:
    model, x, y = linear_model("linf", 0.031, [-0.5, 0.01, 0.5, 2.0])
    clean, attacked = evaluate(model, x, y, ("clean", "pgd20-2-255"), ball=Ball("linf", 1e-9))["results"]
    assert clean["accuracy"] == attacked["accuracy"] == 0.75


def test_the_protocols_are_the_published_ones() -> None:
    paper, grey_levels = Ball("linf", 0.031), Ball("linf", 8 / 255)
    published = {
        ("pgd20", paper): PGD(paper, steps=20, step_size=0.003, start="uniform", restarts=1),
        ("pgd20-2-255", grey_levels): PGD(grey_levels, steps=20, step_size=2 / 255),
        ("pgd100", grey_levels): PGD(grey_levels, steps=100, step_size=2 / 255, restarts=10),
        ("fgsm", paper): PGD(paper, steps=1, step_size=0.031, start="none"),
        ("apgd-ce", paper): APGD(paper, steps=100, restarts=1, loss="ce"),
        ("square", paper): Square(paper, queries=5000),
        ("pgd20-margin", paper): PGD(paper, steps=20, step_size=0.003, loss="margin"),
        ("pgd20-targeted", paper): PGD(paper, steps=20, step_size=0.003, target=-1),
        ("noise", paper): Noise(paper, draws=100),
    }
    for (name, ball), attack in published.items():
        assert [stage.attacks for stage in PROTOCOLS[name].stages(ball, 10)] == [(attack,)]
    assert PROTOCOLS["pgd20"].label(paper) == "PGD-20"
    assert PROTOCOLS["pgd20-2-255"].label(grey_levels) == "PGD-20 (2/255)"
    assert PROTOCOLS["pgd20-2-255"].label(paper) == "PGD-20 (eps/4)", "at another eps the step is not 2/255"
    (least_likely,) = PROTOCOLS["pgd20-targeted"].stages(paper, 10)
    assert least_likely.describe().items() >= {"target": -1}.items()
    assert "targets" not in least_likely.describe(), "one target, and which; AutoAttack's are several"
    wider: Any = PROTOCOLS["pgd20"].stages(Ball("linf", 0.062), 10)[0].attacks[0]
    assert wider.step_size == pytest.approx(0.006)


# --- the record ------------------------------------------------------------------------------------------------------


def test_the_record_states_every_convention() -> None:
    model, x, y = linear_model("linf", 0.031, [0.5, 2.0, -1.0, 2.0])
    record = evaluate(model, x, y, checks=False)
    assert json.loads(json.dumps(record)) == record
    assert record["schema"] == 1
    assert [result["label"] for result in record["results"]] == ["clean", "PGD-20"]
    clean, attacked = record["results"]
    for result in record["results"]:
        assert result.keys() >= RESULT_FIELDS
        assert result["images"] == 4
        assert result["dtype"] == "float32"
        assert result["interval"] == list(wilson(round(result["accuracy"] * 4), 4))
        assert result["seconds"] >= 0
    assert (clean["attack"], clean["accuracy"], clean["eps"], clean["steps"]) == ("clean", 0.75, None, None)
    stated = {
        key: attacked[key] for key in ("attack", "norm", "eps", "steps", "step_size", "restarts", "start", "loss")
    }
    assert stated == {
        "attack": "pgd20",
        "norm": "linf",
        "eps": 0.031,
        "steps": 20,
        "step_size": 0.003,
        "restarts": 1,
        "start": "uniform",
        "loss": "ce",
    }
    assert attacked["accuracy"] == 0.5
    assert [check["verdict"] for check in record["checks"]] == ["pass"]
    assert record["checks"][0].keys() == {"name", "verdict", "detail"}


@dataclass(frozen=True, eq=False)
class Noted(Given):
    """Images that note how many of them are asked for at once."""

    asked: list[int] = field(default_factory=list)

    def pixels(self, indices: Tensor | slice) -> Tensor:
        found = super().pixels(indices)
        self.asked.append(len(found))
        return found


def test_images_are_looked_at_a_batch_at_a_time() -> None:
    model, x = ConvNet(), images()
    noted = Noted(x, truthful(model, x))
    measure(model, noted, ATTACKS, batch_size=7, curves=("eps",))
    evaluation.withstand(model, PGD(Ball("linf", 0.031)), noted, torch.Generator(), 7)
    corrupted(model, noted, None, 7, 0, evaluation.silent_bar)
    assert max(noted.asked) == 7 < len(x)


def test_the_outcomes_say_what_happened_to_every_image() -> None:
    model, x = ConvNet(), images()
    y = truthful(model, x)
    measurement = measure(model, Given(x, y), ATTACKS, batch_size=7)
    outcomes = measurement.outcomes
    attacks = ("pgd20", "pgd20-2-255")
    under = {f"{what}_{attack}" for what in ("held", "prediction") for attack in attacks}
    assert outcomes.keys() == {"label", "clean_prediction"} | under
    assert outcomes["label"].tolist() == y.tolist()
    right = outcomes["clean_prediction"] == y.numpy()
    assert right.sum() == 20
    for result in measurement.record["results"]:
        held = right if result["attack"] == "clean" else outcomes[f"held_{result['attack']}"]
        assert held.dtype == np.bool_
        assert held.shape == (30,)
        assert result["accuracy"] == held.mean()
        assert not (held & ~right).any(), "an image that is wrong already cannot hold"
    assert 0 < outcomes["held_pgd20"].sum() < 20, "the attack must have something to tell"
    for attack in attacks:
        said = outcomes[f"prediction_{attack}"]
        assert ((said == y.numpy()) == outcomes[f"held_{attack}"]).all()
        assert (said == outcomes["clean_prediction"])[~right].all(), "what is wrong already is not attacked"
        assert set(said.tolist()) <= set(range(4))


def test_an_image_that_is_wrong_clean_is_not_held_where_noise_would_put_it_right() -> None:
    def grey_is_1_all_else_0(x: Tensor) -> Tensor:
        noisy = ((x - 0.5).abs().flatten(1).amax(1) > 1e-4).float() + 0 * x.sum()
        return torch.stack([noisy, 1 - noisy], dim=1)

    x = torch.full((2, 3, 4, 4), 0.5)
    outcomes = measure(grey_is_1_all_else_0, Given(x, torch.tensor([0, 1]))).outcomes
    assert outcomes["clean_prediction"].tolist() == [1, 1]
    assert outcomes["held_pgd20"].tolist() == [False, False]
    assert outcomes["prediction_pgd20"].tolist() == [1, 0]


@pytest.mark.parametrize("classes", (None, ("ant", "bee", "cat", "dog")))
def test_classes_add_up(classes: tuple[str, ...] | None) -> None:
    model, x = ConvNet(), images()
    y = truthful(model, x)
    measurement = measure(model, Given(x, y), ATTACKS, classes=classes)
    names = list(classes or "0123")
    present = [names[label] for label in sorted(set(y.tolist()))]
    for result in measurement.record["results"]:
        rows = result["per_class"]
        assert [row["class"] for row in rows] == present
        assert [row["images"] for row in rows] == [int((y == names.index(name)).sum()) for name in present]
        assert sum(row["accuracy"] * row["images"] for row in rows) == pytest.approx(result["accuracy"] * 30)
        for row in rows:
            low, high = wilson(round(row["accuracy"] * row["images"]), row["images"])
            assert row["interval"] == [low, high]
    right = measurement.outcomes["clean_prediction"] == y.numpy()
    clean_rows = measurement.record["results"][0]["per_class"]
    assert [row["accuracy"] for row in clean_rows] == [
        pytest.approx(right[y.numpy() == names.index(name)].mean()) for name in present
    ]


def test_adversarials_that_leave_the_ball_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = linear_model("linf", 0.031, [0.5, 2.0])
    monkeypatch.setattr(Ball, "contains", lambda self, x_adv, x: torch.tensor([True] * (len(x) - 1) + [False]))
    assert [check["verdict"] for check in evaluate(model, x, y, checks=False)["checks"]] == ["warn"]


@pytest.mark.parametrize(
    "attacks, labels_",
    (
        (("clean",), ["clean"]),
        (("pgd20",), ["PGD-20"]),
        (("pgd20", "clean", "pgd20"), ["clean", "PGD-20"]),
        (("pgd20-2-255", "pgd20"), ["PGD-20 (eps/4)", "PGD-20"]),
    ),
)
def test_only_what_was_asked_for_is_told_and_once(attacks: tuple[str, ...], labels_: list[str]) -> None:
    model, x, y = linear_model("linf", 0.031, [0.5, 2.0])
    record = evaluate(model, x, y, attacks)
    assert [result["label"] for result in record["results"]] == labels_
    assert bool(record["checks"]) == any(label != "clean" for label in labels_)


# --- what measuring must not depend on, nor change -------------------------------------------------------------------


def told(record: dict[str, Any]) -> list[Any]:
    return [{**result, "seconds": None} for result in record["results"]]


def test_clean_accuracy_does_not_depend_on_the_batch_size() -> None:
    model, x = ConvNet(), images()
    y = truthful(model, x)
    records = [told(evaluate(model, x, y, ("clean",), batch_size=size)) for size in (1, 7, 30, 500)]
    assert all(record == records[0] for record in records)


def test_the_seed_alone_decides() -> None:
    model, x = ConvNet(), images()
    y = truthful(model, x)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    first = measure(model, Given(x, y), seed=5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = measure(model, Given(x, y), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert told(first.record) == told(again.record)
    assert all(np.array_equal(first.outcomes[name], again.outcomes[name]) for name in first.outcomes)


def test_the_seed_reaches_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def noted(self: PGD, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        seeds.append(generator.initial_seed())
        return x

    monkeypatch.setattr(PGD, "search", noted)
    model, x, y = linear_model("linf", 0.031, [0.5, 2.0])
    for seed in (5, 6):
        evaluate(model, x, y, seed=seed)
    evaluate(model, x, y, seed=5)
    assert len(set(seeds)) == 2
    assert seeds[0] == seeds[2]


@pytest.mark.parametrize("fails", (False, True))
def test_the_model_comes_back_as_it_was(fails: bool) -> None:
    model, x = ConvNet().train(), images()
    model.frozen.eval()
    y = truthful(model, x)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.fails = fails
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            evaluate(model, x, y)
    else:
        evaluate(model, x, y)
    assert [module.training for module in model.modules()] == modes
    assert modes.count(False) == 1
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_images_and_labels_stay_as_they_are() -> None:
    model, x = ConvNet(), images()
    y = truthful(model, x)
    x_before, y_before = x.clone(), y.clone()
    evaluate(model, x, y, ATTACKS)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


def test_a_model_in_training_mode_is_measured_in_evaluation_mode() -> None:
    model, x = ConvNet(), images()
    y = truthful(model, x)
    training = told(evaluate(model.train(), x, y))
    assert training == told(evaluate(model.eval(), x, y))


def test_a_bound_method_is_measured_in_evaluation_mode_too() -> None:
    model, x = ConvNet(), images()
    y = truthful(model, x)
    expected = told(evaluate(model, x, y))
    model.train()
    assert told(evaluate(model.forward, x, y)) == expected
    assert model.norm.running_mean.eq(0).all(), "an attack or a verdict moved the statistics"


def test_the_batch_size_bounds_every_pass_the_checks_included() -> None:
    model, x = ConvNet(), images(60)
    y, longest = truthful(model, x, 3), 0

    def noted(x: Tensor) -> Tensor:
        nonlocal longest
        longest = max(longest, len(x))
        return model(x)

    model.eval()
    record = evaluate(noted, x, y, ball=Ball("linf", 0.05), batch_size=16)
    assert longest == 16
    assert {check["name"] for check in record["checks"] if check["verdict"] != "skip"} > {"stronger than noise"}


def test_checks_do_not_throw_away_what_a_graph_cut_off_has_left() -> None:
    model, x = ConvNet().eval(), images()
    y = truthful(model, x)
    record = evaluate(lambda x: model(x.detach()), x, y, ("clean", "noise"))
    assert [result["attack"] for result in record["results"]] == ["clean", "noise"]
    assert {check["name"]: check["verdict"] for check in record["checks"]}["gradients reach the pixels"] == "warn"


@pytest.mark.parametrize("ball", (Ball("linf", 0.5), Ball("l2", 500_000)))
def test_a_curve_ends_where_there_are_no_larger_balls(ball: Ball) -> None:
    assert 2 * ball.eps == max(each.eps for each in balls(ball))


@pytest.mark.parametrize("name", REFERENCE)
def test_the_authors_stages_tell_their_settings(name: str) -> None:
    pytest.importorskip("pyautoattack")
    (planned,) = plan([name], Ball("linf", 0.05), 10, "reference")
    assert planned.conventions()["norm"] == "linf"


def test_at_eps_0_the_checks_have_nothing_to_attack() -> None:
    model, x = ConvNet(), images()
    given = Given(x, truthful(model, x))
    record = measure(model, given, ("clean", "noise"), ball=Ball("linf", 0), checks=True).record
    assert record["results"][0]["accuracy"] == record["results"][1]["accuracy"]
    skipped = [check["detail"] for check in record["checks"] if check["verdict"] == "skip"]
    assert "at eps 0 nothing is attacked" in skipped


def test_no_answer_is_nobodys_class() -> None:
    """An image whose logits turn to NaN under attack is not held, whatever its label."""
    model, x = ConvNet(), torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
    y = truthful(model, x, 0)

    def brittle(x: Tensor) -> Tensor:
        levels = ((x * 255).round() / 255 - x).abs().flatten(1).amax(1) < 1e-4
        return torch.where(levels[:, None], model(x), torch.nan)

    model.eval()
    measured = measure(brittle, Given(x, y), ("clean", "noise"), ball=Ball("linf", 0.01))
    assert [result["accuracy"] for result in measured.record["results"]] == [1, 0]
    assert set(measured.outcomes["prediction_noise"]) == {-1}


def test_all_is_computed_in_float32() -> None:
    model, x = ConvNet(), images()
    y = truthful(model, x)
    in_float32 = told(evaluate(model, x, y))
    model.seen.clear()
    assert told(evaluate(model, x.double(), y)) == in_float32
    assert set(model.seen) == {torch.float32}


def test_surrounding_autocast_does_not_lower_the_precision() -> None:
    """The record says float32."""
    seen: set[torch.dtype] = set()
    linear, x, y = linear_model("linf", 0.031, [0.5, 2.0])

    def model(x: Tensor) -> Tensor:
        logits = linear(x)
        seen.add(logits.dtype)
        return logits

    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluate(model, x, y)
    assert seen == {torch.float32}


@pytest.mark.parametrize("wrap", (lambda m: m, lambda m: m.forward), ids=("module", "callable"))
def test_any_callable_that_gives_scores_will_do(wrap: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
    model, x, y = linear_model("linf", 0.031, [-0.5, 0.5, 2.0, 3.0])
    record = evaluate(wrap(model), x, y)
    assert [result["accuracy"] for result in record["results"]] == [0.75, 0.5]


def test_probabilities_will_do() -> None:
    model, x, y = linear_model("linf", 0.031, [-0.5, 0.5, 2.0, 3.0])
    record = evaluate(nn.Sequential(model, nn.Softmax(1)), x, y)
    assert [result["accuracy"] for result in record["results"]] == [0.75, 0.5]


@pytest.mark.parametrize("dtype", (torch.int32, torch.uint8))
def test_labels_of_any_integer_type_will_do(dtype: torch.dtype) -> None:
    model, x, y = linear_model("linf", 0.031, [-0.5, 0.5, 2.0, 3.0])
    assert [result["accuracy"] for result in evaluate(model, x, y.to(dtype))["results"]] == [0.75, 0.5]


# --- refusals --------------------------------------------------------------------------------------------------------


@dataclass
class Mine(Attack):
    """Changes nothing; as a mutable dataclass it has no hash."""

    ball: Ball

    def search(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return x


def test_an_attack_of_ones_own_stands_beside_the_protocol_of_its_name() -> None:
    model, x, y = linear_model("linf", 0.031, [0.5, 2.0])
    mine = Square(Ball("linf", 1e-4), queries=5)
    record = evaluate(model, x, y, ("clean", mine, Mine(Ball("linf", 0.1)), "square", mine), checks=False)
    assert [(result["attack"], result["eps"]) for result in record["results"]] == [
        ("clean", None),
        ("square-2", 1e-4),
        ("mine", 0.1),
        ("square", 0.031),
    ]


@dataclass(frozen=True)
class Lit(Attack):
    """All pixels brighter by `light`, or darker."""

    ball: Ball
    light: float

    def search(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return x + self.light


def test_the_worst_case_is_what_withstands_every_attack_in_the_ball() -> None:
    def bright_or_not(x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1)
        return torch.stack([0.5 - brightness, brightness - 0.5], 1)

    x = torch.tensor([0.45, 0.55, 0.2]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    ball = Ball("linf", 0.1)
    brighter, darker, far = Lit(ball, 0.1), Lit(ball, -0.1), Lit(Ball("linf", 0.5), 0.5)
    labels = torch.tensor([0, 1, 0])
    record = evaluate(bright_or_not, x, labels, (brighter, darker, far), ball=ball, checks=False)
    assert [result["accuracy"] for result in record["results"]] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert record["worst_case"] == {
        "attacks": ["lit", "lit-2"],
        "images": 3,
        "accuracy": pytest.approx(1 / 3),
        "interval": list(wilson(1, 3)),
    }
    assert "worst_case" not in evaluate(bright_or_not, x, labels, (brighter, far), ball=ball, checks=False)


def test_the_class_of_an_attack_is_none() -> None:
    model, x, y = linear_model("linf", 0.031, [0.5, 2.0])
    with pytest.raises(Refusal, match="allowed: a name, or an attack with its ball"):
        evaluate(model, x, y, ("clean", PGD))  # type: ignore[arg-type] # the mistake itself


def test_an_unknown_attack_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refusal, match=r"'pgd21'.*did you mean pgd20.*clean, .*pgd20-2-255"):
        evaluate(ConvNet(), images(), labels(), ("clean", "pgd21"))


@pytest.mark.parametrize(
    "x",
    (
        images() * 255,
        images() - 0.5,
        torch.full((30, 3, 6, 6), math.nan),
        (images() * 255).byte(),
        images()[:, 0],
        images()[:0],
    ),
    ids=("0 to 255", "negative", "nan", "bytes", "three dimensions", "none"),
)
def test_bad_pixels_are_refused(x: Tensor) -> None:
    with pytest.raises(Refusal, match="allowed"):
        evaluate(ConvNet(), x, labels())


@pytest.mark.parametrize("wrong", (4, -1))
@pytest.mark.parametrize("attacks", (("clean",), ("pgd20",)))
def test_a_label_without_a_logit_is_refused(wrong: int, attacks: tuple[str, ...]) -> None:
    y = labels()
    y[17] = wrong
    with pytest.raises(Refusal, match=rf"label {wrong} given; allowed: 0 to 3"):
        evaluate(ConvNet(), images(), y, attacks, batch_size=7)


@pytest.mark.parametrize("count", (29, 31, 60))
@pytest.mark.parametrize("batch_size", (10, 30, 500))
def test_more_or_fewer_labels_than_images_are_refused(count: int, batch_size: int) -> None:
    with pytest.raises(Refusal):
        evaluate(ConvNet(), images(), labels(count), ("clean",), batch_size=batch_size)


@pytest.mark.parametrize("y", (labels().float(), F.one_hot(labels())), ids=("floats", "one-hot"))
def test_labels_that_are_no_class_numbers_are_refused(y: Tensor) -> None:
    with pytest.raises(Refusal, match="label"):
        evaluate(ConvNet(), images(), y, ("clean",))


@pytest.mark.parametrize(
    "given, told",
    (
        ({"x": images().numpy()}, "images given as ndarray"),
        ({"y": labels().tolist()}, "labels given as list"),
        ({"model": "runs/anchor"}, r"model 'runs/anchor' given; .*anchor_robust\.load"),
        ({"model": lambda x: (x, x)}, "the model gave a tuple"),
        ({"model": lambda x: x.flatten(1)[:, :1]}, "one logit an image"),
        ({"attacks": "clean,pgd20"}, "attacks 'clean,pgd20' given"),
        ({"attacks": ()}, "attacks .* given"),
        ({"ball": 0.031}, "ball 0.031 given"),
        ({"ball": Ball("linf", 0.0)}, r"ball .*eps=0\.0.* given; allowed: eps above 0; at 0 nothing is attacked"),
        ({"model": ConvNet}, r"model ConvNet given, a class; allowed: a module; make one: ConvNet\(\)"),
        *(({"batch_size": size}, f"^batch_size {size!r} given; allowed: .*, 1 or more") for size in (0, -1, 2.5, "9")),
        *(({"seed": seed}, f"^seed {seed!r} given; allowed: .* 0 to 4294967295") for seed in ("a", 1.5, -1, 2**32)),
    ),
)
def test_what_a_notebook_hands_over_by_mistake_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(Refusal, match=told) as refusal:
        evaluate(**({"model": ConvNet(), "x": images(), "y": labels()} | given))
    assert "\n" not in str(refusal.value)


def test_numpys_whole_number_is_a_seed() -> None:
    evaluate(ConvNet(), images(), labels(), ("clean",), seed=np.int64(3))  # type: ignore[arg-type]


def test_images_that_carry_gradients_are_evaluated_like_others() -> None:
    record, same = (evaluate(ConvNet(), x, labels(), ("clean",)) for x in (images().requires_grad_(), images()))
    assert record["data"] == same["data"]


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(Refusal, match=r"\[1, 3, 6, 6\].*allowed: \[n, classes\]"):
        evaluate(nn.Identity(), images(), labels())


# --- the surface -----------------------------------------------------------------------------------------------------


def test_the_surface_is_there_once_the_room_is_imported() -> None:
    assert anchor_robust.evaluate is evaluate
    assert anchor_robust.evaluate is evaluation.evaluate
    with pytest.raises(AttributeError, match="nothing_such"):
        anchor_robust.nothing_such  # noqa: B018


def test_the_surface_is_there_before_any_room_is_imported() -> None:
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] == "anchor_robust"]:
            del sys.modules[name]
        fresh: Any = importlib.import_module("anchor_robust")
        assert fresh is not anchor_robust
        early = fresh.evaluate, fresh.load
        rooms = [importlib.import_module(f"anchor_robust.{room}") for room in ("evaluation", "checkpoint")]
        assert early == (fresh.evaluate, fresh.load) == (rooms[0].evaluate, rooms[1].load)


@pytest.mark.parametrize("outside", range(4))
def test_one_batch_outside_is_told_wherever_it_comes(outside: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = linear_model("linf", 0.031, [0.5, 2.0])
    calls = count()
    monkeypatch.setattr(Ball, "contains", lambda self, x_adv, x: torch.full((len(x),), next(calls) != outside))
    found = evaluate(model, x, y, ("pgd20", "pgd20-2-255"), batch_size=1, checks=False)["checks"]
    assert [check["verdict"] for check in found] == ["warn"]


@pytest.mark.parametrize("label", (0, 1))
@pytest.mark.parametrize("attack", (Noise, APGD, PGD), ids=lambda kind: kind.__name__)
def test_no_answer_is_nobodys_label(attack: type[Attack], label: int) -> None:
    """Half of the ball makes the logits NaN, of which argmax says 0."""
    x, y, ball = torch.full((8, 1, 2, 2), 0.5), torch.full((8,), label), Ball("linf", 0.031)

    def model(x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        right = torch.where(mean > 0.505, torch.nan, 1 - mean)
        return torch.cat([right, 0 * mean] if label == 0 else [0 * mean, right], 1)

    more = {Noise: {"draws": 100}, APGD: {"steps": 10}, PGD: {"restarts": 10}}[attack]
    found = measure(model, Given(x, y), (attack(ball, **more),), ball=ball, checks=False)
    assert not any(outcomes.any() for name, outcomes in found.outcomes.items() if name.startswith("held_"))
