"""Stages, engines, searches and curves: what is run on which images, and what the record says of it."""

import sys
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anchor_robust import checks, evaluation
from anchor_robust.attacks import PGD, Attack, EmbeddingAttack, Square, Stage, Transfer
from anchor_robust.attacks.base import Model
from anchor_robust.data import Given
from anchor_robust.errors import Refusal
from anchor_robust.evaluation import PROTOCOLS, Protocol, course, evaluate, measure, measuring, searching
from anchor_robust.evaluation.protocols import Planned, known_attacks, plan
from anchor_robust.evaluation.reference import Reference
from anchor_robust.models import Classifier, LogitsOnly, backbone
from anchor_robust.threat import Ball

EPS = 0.05
BALL = Ball("linf", EPS)


class Topples(Attack):
    """Changes what `topple` of the images it is given [m ...] selects to black, which the model below gets wrong."""

    def __init__(self, ball: Ball, *multiples: int) -> None:
        self.ball, self.multiples, self.sizes = ball, multiples, list[int]()

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        self.sizes.append(len(x))
        number = (x[:, 0, 0, 0] * 100).round().long()
        falls = torch.stack([number % multiple == 0 for multiple in self.multiples]).any(0)
        return torch.where(falls.view(-1, 1, 1, 1), torch.zeros_like(x), x)


def dark_is_wrong(x: Tensor) -> Tensor:
    """Class 1 where an image is not black."""
    bright = x.flatten(1).amax(1)
    return torch.stack([0.001 - bright, bright], dim=1)


def numbered(n: int) -> Tensor:
    """Images 1 .. n; the first pixel says the number, in hundredths."""
    return (torch.arange(1, n + 1).float() / 100).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()


def test_every_stage_works_on_what_stands_in_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ball = Ball("linf", 1.0)
    even, third, fifth = Topples(ball, 2), Topples(ball, 3), Topples(ball, 5)
    sieve = [Stage("even", (even,)), Stage("odd", (third, fifth))]
    protocol = Protocol(lambda ball: "Sieve", lambda ball, classes: sieve)
    monkeypatch.setitem(PROTOCOLS, "sieve", protocol)
    measurement = measure(
        dark_is_wrong, Given(numbered(30), torch.ones(30).long()), ("sieve",), ball=ball, batch_size=4
    )
    primes_and_one = [n for n in range(1, 31) if n % 2 and n % 3 and n % 5]
    assert (measurement.outcomes["held_sieve"].nonzero()[0] + 1).tolist() == primes_and_one
    assert even.sizes == [4] * 7 + [2]
    assert third.sizes == [4, 4, 4, 3], "15 odd numbers"
    assert fifth.sizes == [4, 4, 2], "10 of them are no multiples of 3"
    (result,) = measurement.record["results"]
    stages = [(stage["stage"], stage["images"], stage["fell"]) for stage in result["stages"]]
    assert stages == [("even", 30, 15), ("odd", 15, 7)]
    assert result["label"] == "Sieve"
    assert result["accuracy"] == 8 / 30
    assert result["seconds"] == pytest.approx(sum(stage["seconds"] for stage in result["stages"]), abs=1e-3)


def test_attacks_of_your_own_go_where_names_go() -> None:
    ball = Ball("linf", 1.0)
    mine = (Topples(ball, 2), "fgsm", Topples(ball, 3), PGD(BALL, steps=3, step_size=0.01))
    record = evaluate(dark_is_wrong, numbered(12), torch.ones(12).long(), mine, ball=BALL)
    assert [result["attack"] for result in record["results"]] == ["topples", "fgsm", "topples-2", "pgd"]
    assert [result["label"] for result in record["results"]] == ["Topples", "FGSM", "Topples (2)", "PGD"]
    assert [result["eps"] for result in record["results"]] == [1.0, EPS, 1.0, EPS]
    assert record["results"][0]["accuracy"] == 0.5
    assert record["results"][2]["accuracy"] == 8 / 12
    assert record["results"][3]["steps"] == 3
    assert record["threat"] == {"norm": "linf", "eps": EPS}


# --- AutoAttack, ours and the authors' -------------------------------------------------------------------------------


def linear(classes: int, dimensions: int = 48) -> tuple[nn.Module, Tensor, Tensor, Tensor, Ball]:
    """A linear model, images, labels, each image's L-inf distance to the nearest wrong class, and a ball of half reach.

    The distance is min_j (z_y - z_j) / |w_y - w_j|_1; half of the images are nearer than the ball's eps, half farther.
    """
    generator = torch.Generator().manual_seed(classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(dimensions, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, dimensions, generator=generator))
        model[1].bias.zero_()
        x = 0.5 + 0.3 * (torch.rand(24, 3, 4, 4, generator=generator) - 0.5)
        logits = model(x)
        y = logits.argmax(1)
        weight = model[1].weight
        gaps = logits.gather(1, y[:, None]) - logits
        reach = (weight[y][:, None] - weight[None]).abs().sum(2)
        distance = (gaps / reach).masked_fill(nn.functional.one_hot(y, classes).bool(), torch.inf).amin(1)
    eps = float(distance.median())
    assert x.min() > eps, "no image touches the box"
    assert x.max() < 1 - eps
    clear = (distance / eps - 1).abs() > 0.03
    return model, x[clear], y[clear], distance[clear], Ball("linf", eps)


@pytest.mark.parametrize("engine", ("anchor", "reference"))
@pytest.mark.parametrize("name, classes", (("autoattack", 4), ("autoattack-preview", 4), ("autoattack-preview", 12)))
def test_autoattack_finds_what_can_be_found(name: str, classes: int, engine: Any) -> None:
    if engine == "reference":
        pytest.importorskip("pyautoattack")
    model, x, y, distance, ball = linear(classes)
    assert 8 <= int((distance > ball.eps).sum()) <= len(x) - 8
    measurement = measure(model, Given(x, y), (name,), ball=ball, engine=engine, batch_size=10)
    assert measurement.outcomes[f"held_{name}"].tolist() == (distance > ball.eps).tolist()
    (result,) = measurement.record["results"]
    assert result["engine"] == {"anchor": "anchor", "reference": "pyautoattack"}[engine]
    assert result["label"] == {"autoattack": "AutoAttack", "autoattack-preview": "AutoAttack (preview)"}[name]
    expected = ["apgd-ce", "apgd-t", "fab-t", "square"][: 4 if name == "autoattack" else 2]
    assert [stage["stage"] for stage in result["stages"]] == expected
    assert result["stages"][0]["images"] == len(x)
    assert sum(stage["fell"] for stage in result["stages"]) == int((distance <= ball.eps).sum())
    if engine == "anchor" and classes == 12:
        assert result["stages"][1]["targets"] == 9


def test_the_authors_code_leaves_no_traces() -> None:
    pytest.importorskip("pyautoattack")
    model, x, y, _, ball = linear(4)
    torch.manual_seed(7)
    before, trace = torch.get_rng_state(), lambda frame, event, argument: None
    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        first = measure(model, Given(x, y), ("autoattack-preview",), ball=ball, engine="reference")
        assert sys.gettrace() is trace
    finally:
        sys.settrace(previous)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = measure(model, Given(x, y), ("autoattack-preview",), ball=ball, engine="reference")
    assert (first.outcomes["held_autoattack-preview"] == again.outcomes["held_autoattack-preview"]).all()


def test_the_reference_engine_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y, *_ = linear(4)
    with pytest.raises(Refusal, match="runs autoattack and autoattack-preview alone; add one"):
        measure(model, Given(x, y), ("clean", "pgd20"), engine="reference")
    with pytest.raises(Refusal, match=r"engine 'foolbox'.*anchor, reference"):
        known_attacks(("autoattack",), "foolbox")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(Refusal, match="pip install pyautoattack"):
        measure(model, Given(x, y), ("autoattack",), engine="reference")


def test_the_reference_engine_needs_four_classes() -> None:
    pytest.importorskip("pyautoattack")
    model, x, y, _, ball = linear(3)
    with pytest.raises(Refusal, match="3 classes; allowed: 4 or more"):
        measure(model, Given(x, y), ("autoattack",), ball=ball, engine="reference")


def test_the_reference_engine_runs_other_attacks_as_ever() -> None:
    pytest.importorskip("pyautoattack")
    theirs, ours = plan(("autoattack", "pgd20"), BALL, 10, "reference")
    assert (theirs.engine, ours.engine) == ("pyautoattack", "anchor")
    assert ours == plan(("pgd20",), BALL, 10)[0]


# --- what attacks search on ------------------------------------------------------------------------------------------


def own_model(classes: int = 4) -> LogitsOnly:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = backbone("resnet8", classes, (3, 8, 8), {"width": 4})
    return LogitsOnly(Classifier(network, [0.5] * 3, [0.25] * 3)).eval()


def test_our_own_models_are_searched_in_a_faster_form_of_the_same_function() -> None:
    model, x = own_model(), torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    twin: Any = searching.searched(model, "float32", x)
    assert twin is not model
    with torch.no_grad():
        assert torch.allclose(twin(x), model(x), atol=1e-5)
    assert searching.laid_out(model, x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(searching.laid_out(model, x), x)
    assert searching.laid_out(dark_is_wrong, x) is x, "somebody else's network may call view()"


def faked_compiler(monkeypatch: pytest.MonkeyPatch, compile_: Any) -> None:
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(searching.environment, "has_compiler", lambda device: True)


def test_a_twin_is_compiled_for_answers_and_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []

    def compile_(module: nn.Module, dynamic: bool, options: dict[str, bool] | None = None) -> Any:
        assert dynamic
        assert options in (None, {"freezing": True})
        return lambda x: asked.append((options is not None, x.requires_grad)) or module(x)

    faked_compiler(monkeypatch, compile_)
    model, x = own_model(), torch.rand(4, 3, 8, 8)
    twin: Any = searching.searched(model, "float32", x)
    fast = searching.compiled(twin, x.device)
    assert isinstance(fast, searching.Compiled)
    assert not asked, "nothing is compiled before the first pass"
    torch.testing.assert_close(fast(x), model(x).detach())
    assert asked == [(True, False)] * 2, "a trial, then the answer"
    assert not fast(x).requires_grad, "weights are frozen in: no graph"
    asked.clear()
    gradients = [torch.autograd.grad(net(z).sum(), z)[0] for net in (fast, model) for z in [x.clone().requires_grad_()]]
    torch.testing.assert_close(*gradients)
    assert asked == [(False, True)] * 2
    for other in (searching.searched(model, "bf16", x), dark_is_wrong):
        assert searching.compiled(other, x.device) is other


@pytest.mark.parametrize("broken", ("does not compile", "answers otherwise"))
def test_what_a_compiler_breaks_is_searched_as_it_is(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(module: nn.Module, x: Tensor) -> Tensor:
        if broken == "does not compile":
            raise RuntimeError(broken)
        return module(x) ** 2 + 1

    faked_compiler(monkeypatch, lambda module, **how: partial(answer, module))
    model, x = own_model(), torch.rand(4, 3, 8, 8)
    fast = searching.compiled(searching.searched(model, "float32", x), x.device)
    torch.testing.assert_close(fast(x), model(x).detach())
    gradients = [torch.autograd.grad(net(z).sum(), z)[0] for net in (fast, model) for z in [x.clone().requires_grad_()]]
    torch.testing.assert_close(*gradients)


def test_only_protocols_of_many_passes_repay_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    searched_on: list[str] = []

    def probe(search: Any, x: Tensor) -> Tensor:
        searched_on.append("compiled" if search(x).abs().max() < 1e-6 else "search")
        return x

    class Asking(Square):
        def search(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            return probe(model, x)

    class Climbing(PGD):
        def search(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            return probe(model, x)

    monkeypatch.setattr(evaluation.measuring, "compiled", lambda search, device: lambda x: 0 * search(x))
    model, x, y, _, ball = linear(4)
    enough = -(-searching.COMPILED_FROM // len(x))
    for attack in (
        Asking(ball, queries=enough - 1),
        Asking(ball, queries=enough),
        Climbing(ball, steps=enough - 1),
        Climbing(ball, steps=-(-enough // 10), restarts=10),
    ):
        measure(model, Given(x, y), (attack,), ball=ball, batch_size=len(x) - 1)
    assert searched_on == ["search"] * 2 + ["compiled"] * 2 + ["search"] * 2 + ["compiled"] * 2
    # The first stage is judged by itself, a later one with all that comes after it.
    searched_on.clear()
    few, many = Climbing(ball, steps=2), Asking(ball, queries=enough)
    stages = tuple(Stage(str(number), (attack,)) for number, attack in enumerate((few, few, many)))
    measure(model, Given(x, y), (Planned("staged", "staged", stages),), ball=ball, batch_size=len(x))
    assert searched_on == ["search", "compiled", "compiled"]


def test_a_twin_that_is_another_function_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dark_is_wrong(x).repeat(1, 2)

    monkeypatch.setattr(searching, "Folded", lambda classifier, dtype: Wrong())
    model, x = own_model(), torch.rand(4, 3, 8, 8)
    assert searching.searched(model, "float32", x) is model
    in_bf16: Any = searching.searched(model, "bf16", x)
    assert in_bf16.model is model


def test_the_verdict_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that sees another function cannot make the model look worse, nor better."""
    model, x, y, distance, ball = linear(4)
    monkeypatch.setattr(evaluation.measuring, "searched", lambda model, *given: lambda x: -model(x))
    held = measure(model, Given(x, y), ("pgd20",), ball=ball).outcomes["held_pgd20"]
    assert held.all()
    assert not (distance > ball.eps).all()


class BlindInBf16(nn.Module):
    """Under autocast nothing is left of the gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach() + 0 * x) if torch.is_autocast_enabled("cpu") else self.model(x)


def test_a_bf16_search_is_told_and_tried_again_in_float32() -> None:
    model, x, y, distance, ball = linear(2)
    nearest_first = distance.argsort()
    x, y, distance = x[nearest_first], y[nearest_first], distance[nearest_first]
    attack = PGD(ball, steps=40, step_size=ball.eps / 10, start="none")
    exact = measure(model, Given(x, y), (attack,), search="float32").outcomes["held_pgd"]
    assert exact.tolist() == (distance > ball.eps).tolist()
    for size, verdict in ((100, "warn"), (3, "pass")):
        measurement = measure(BlindInBf16(model), Given(x, y), (attack,), search="bf16", batch_size=size)
        held, (_, check) = measurement.outcomes["held_pgd"], measurement.record["checks"]
        told = f"of {min(size, len(x))} images that it left standing"
        assert held.all(), "the accuracy is that of the search that is stated"
        assert ((measurement.outcomes["prediction_pgd"] == y.numpy()) == held).all()
        assert check["verdict"] == verdict, "three images may be chance"
        assert check["detail"].startswith(told)
        assert f"{int((~exact[:size]).sum())} fall in float32 alone and 0 in bf16 alone" in check["detail"]
        assert ("upper bound" in check["detail"]) == (verdict == "warn")
        assert measurement.record["results"][0]["search"] == "bf16"
        assert measurement.record["results"][0]["dtype"] == "float32"


class Tosses(Attack):
    """Blackens what a coin says."""

    ball = Ball("linf", 1.0)

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return x * torch.randint(2, (len(x), 1, 1, 1), generator=generator)


def test_the_luck_of_a_start_is_not_blamed_on_bf16() -> None:
    given = Given(numbered(90), torch.ones(90).long())
    in_float32, in_bf16 = (measure(dark_is_wrong, given, (Tosses(),), search=each) for each in ("float32", "bf16"))
    held = in_bf16.outcomes["held_tosses"]
    assert held.tolist() == in_float32.outcomes["held_tosses"].tolist()
    assert 30 < held.sum() < 60
    _, check = in_bf16.record["checks"]
    assert check["verdict"] == "pass"
    assert f"of {held.sum()} images that it left standing" in check["detail"]
    assert "0 fall in float32 alone and 0 in bf16 alone" in check["detail"]


def test_a_bf16_search_that_misses_nothing_passes() -> None:
    model, x, y, distance, ball = linear(2)
    measurement = measure(model, Given(x, y), ("pgd20-2-255",), ball=ball, search="bf16")
    assert measurement.outcomes["held_pgd20-2-255"].tolist() == (distance > ball.eps).tolist()
    assert [check["verdict"] for check in measurement.record["checks"]] == ["pass", "pass"]


def test_what_does_not_search_on_the_model_searches_in_float32() -> None:
    model, x, y, _, ball = linear(2)
    seen: list[bool] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return model(x)

    pgd = PGD(ball, steps=2, step_size=ball.eps / 4, restarts=2)
    embedding = EmbeddingAttack(pgd, lambda x: watched(x).softmax(1).sqrt(), x, y)
    record = measure(watched, Given(x, y), (Transfer(watched, pgd), embedding), search="bf16").record
    assert [result["search"] for result in record["results"]] == ["float32", "float32"]
    assert [check["name"] for check in record["checks"]] == ["adversarials re-checked"]
    assert not any(seen)


# --- curves and checks -----------------------------------------------------------------------------------------------


def test_curves_give_the_closed_form() -> None:
    model, x, y, distance, ball = linear(2)
    curves = measure(model, Given(x, y), ("clean",), ball=ball, curves=("eps", "steps")).record["curves"]
    shares = [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]
    assert [point["eps"] for point in curves["eps"]] == pytest.approx([share * ball.eps for share in shares])
    for point in curves["eps"]:
        sure = ((distance / point["eps"] - 1).abs() > 0.07) if point["eps"] else distance > 0
        expected = (distance > point["eps"]).double().mean().item()
        assert point["accuracy"] == pytest.approx(expected, abs=1e-9 + (~sure).double().mean().item())
        assert {"interval", "per_class", "step_size", "images", "search"} <= point.keys() or point["eps"] == 0
    assert [point["steps"] for point in curves["steps"]] == [1, 2, 5, 10, 20, 50, 100]
    assert len({point["step_size"] for point in curves["steps"]}) == 1
    assert {point["eps"] for point in curves["steps"]} == {ball.eps}
    last = (distance > ball.eps).double().mean().item()
    assert curves["steps"][-1]["accuracy"] == pytest.approx(last)
    assert curves["steps"][0]["accuracy"] > last


def test_no_point_of_a_curve_is_made_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that fails in larger balls shows: accuracy rises with eps."""

    def only_small(self: PGD, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        assert len(x) == 12, "every point attacks every image"
        return torch.zeros_like(x) if self.ball.eps < 0.3 else x

    monkeypatch.setattr(PGD, "search", only_small)
    ball = Ball("linf", 0.2)
    record = measure(
        dark_is_wrong, Given(numbered(12), torch.ones(12).long()), ("clean",), ball=ball, curves=("eps",)
    ).record
    accuracies = [point["accuracy"] for point in record["curves"]["eps"]]
    assert accuracies[0] == 1
    assert min(accuracies) < 1
    assert accuracies[-1] == 1


def test_a_curve_stays_within_what_pixels_allow_and_takes_l2() -> None:
    radii = [point["eps"] for point in sketched(Ball("linf", 0.4))]
    assert max(radii) == pytest.approx(0.8)
    assert [point["eps"] for point in sketched(Ball("l2", 0.5))][-1] == pytest.approx(2.0)


def sketched(ball: Ball) -> list[dict[str, Any]]:
    record = measure(dark_is_wrong, Given(numbered(3), torch.ones(3).long()), (), ball=ball, curves=("eps",)).record
    return list(record["curves"]["eps"])


def test_an_unknown_curve_is_refused() -> None:
    with pytest.raises(Refusal, match="'esp' is unknown; allowed: eps, steps"):
        measure(dark_is_wrong, Given(numbered(3), torch.ones(3).long()), curves=("esp",))


def test_checks_see_the_measurement_and_join_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y, _, ball = linear(4)
    found = {"name": "mine", "verdict": "warn", "detail": "seen"}

    def examine(
        tested: Any, images: Tensor, labels: Tensor, within: Ball, held: Any, sibling: Any, *more: Any
    ) -> list[dict[str, str]]:
        assert (tested, within) == (model, ball)
        assert torch.equal(images, x[order])
        assert torch.equal(labels, y[order])
        assert list(held) == ["pgd20"]
        assert torch.equal(held["pgd20"], torch.from_numpy(alone.outcomes["held_pgd20"])[order])
        assert sibling is model
        return [found]

    alone = measure(model, Given(x, y), ("pgd20",), ball=ball)
    order = checks.drawn(len(x), checks.IMAGES, torch.Generator().manual_seed(0))
    monkeypatch.setattr(measuring, "examine", examine)
    # What breaks in another ball, or by an attack that nobody knows, says nothing of gradient attacks in this one.
    elsewhere = (PGD(Ball("linf", 0.9)), Topples(ball, 2))
    given = {"ball": ball, "sibling": model}
    assert measure(model, Given(x, y), ("pgd20", *elsewhere), checks=True, **given).record["checks"][-1] == found
    assert found not in measure(model, Given(x, y), ("pgd20",), **given).record["checks"]
    assert measure(model, Given(x, y), ("clean",), checks=True, **given).record["checks"] == []


@pytest.mark.parametrize("classes, targets", ((12, 9), (5, 4)))
def test_the_authors_code_tries_every_target(classes: int, targets: int) -> None:
    pytest.importorskip("pyautoattack")
    model, x, *_ = linear(classes)
    previous = sys.gettrace()
    try:
        apgd, fab = (Reference(BALL, stage, classes).authors(model, x, 7) for stage in ("apgd-t", "fab-t"))
    finally:
        sys.settrace(previous)
    assert fab.targeted
    assert apgd.n_target_classes == fab.n_target_classes == targets


def test_the_seed_reaches_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyautoattack")
    seeds: list[int] = []
    idle = SimpleNamespace(perturb=lambda x, y: x)
    monkeypatch.setattr(Reference, "authors", lambda self, model, x, seed: seeds.append(seed) or idle)
    model, x, y, _, ball = linear(4)
    for seed in (0, 0, 1):
        measure(model, Given(x, y), ("autoattack",), ball=ball, engine="reference", seed=seed)
    assert seeds[:4] == seeds[4:8]
    assert len(set(seeds)) == 8


def test_the_float32_search_is_float32_where_stages_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "COMPILED_FROM", 0)
    model, x, y, distance, ball = linear(2)
    attack = PGD(ball, steps=40, step_size=ball.eps / 10, start="none")
    _, check = measure(BlindInBf16(model), Given(x, y), (attack,), search="bf16", batch_size=100).record["checks"]
    assert f"{int((distance <= ball.eps).sum())} fall in float32 alone" in check["detail"]


@pytest.mark.parametrize("outside", (1, 2))
def test_a_search_again_that_leaves_the_ball_is_told(outside: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y, _, ball = linear(2)
    calls = count()
    monkeypatch.setattr(Ball, "contains", lambda self, x_adv, x: torch.full((len(x),), next(calls) != outside))
    found = measure(model, Given(x, y), ("pgd20",), ball=ball, search="bf16").record["checks"]
    assert found[0]["verdict"] == "warn"
