"""Every check warns on a model that was built to have its fault, and none on honest ones."""

import copy
import functools
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

import anchor_robust
from anchor_robust import checks, data
from anchor_robust.attacks import PGD, fgsm
from anchor_robust.checks import adversarials, examination, gradients, inputs, outputs, strength
from anchor_robust.checks.finding import beyond, skipped
from anchor_robust.data import corrupt
from anchor_robust.threat import Ball

BALL = Ball("linf", 0.15)
MEAN, DEVIATION = 0.3, 0.37


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Honest(nn.Module):
    """A small convolutional network for digits, normalisation included."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
            self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised((x - MEAN) / DEVIATION)

    def normalised(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.body(x)).flatten(1))


def train(net: Honest, steps: int = 60) -> Honest:
    digits, generator = data.load("digits", "train"), seeded()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(steps):
        chosen = torch.randint(len(digits), (128,), generator=generator)
        loss = F.cross_entropy(net(digits.pixels(chosen)), digits.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def honest() -> Honest:
    return train(Honest())


@pytest.fixture(scope="module")
def sibling() -> Honest:
    return train(Honest(seed=1))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = data.load("digits", "test")
    return test.pixels(slice(None)), test.labels


def verdicts(model, digits, **settings) -> dict[str, str]:
    findings = checks.run(model, *digits, settings.pop("ball", BALL), images=60, **settings)
    assert all(entry.keys() == {"name", "verdict", "detail"} for entry in findings)
    assert all("\n" not in entry["detail"] and entry["detail"] for entry in findings)
    assert len({entry["name"] for entry in findings}) == len(findings) == 14
    return {entry["name"]: entry["verdict"] for entry in findings}


@pytest.mark.parametrize(("ball", "seed"), [(BALL, 0), (Ball("linf", 8 / 255), 1), (Ball("l2", 0.5), 2)])
def test_an_honest_network_passes_every_check(ball, seed, honest, sibling, digits) -> None:
    found = verdicts(honest, digits, ball=ball, sibling=sibling, generator=seeded(seed))
    assert set(found.values()) == {"pass"}


class Faulty(nn.Module):
    def __init__(self, net: Honest) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)


class Quantised(Faulty):
    def forward(self, x):
        return self.net((x * 8).round() / 8)


class Jpeg(Faulty):
    def forward(self, x):
        return self.net(corrupt("jpeg", 1, x.detach().clamp(0, 1), seeded()))


class RandomlyResized(Faulty):
    def forward(self, x):
        size = int(torch.randint(5, 8, ()))
        small = F.interpolate(x, (size, size), mode="bilinear")
        return self.net(F.interpolate(small, (8, 8), mode="bilinear"))


class Saturated(Faulty):
    scale = 1e3

    def forward(self, x):
        return self.net(x) * self.scale


class MoreSaturated(Saturated):
    scale = 1e4


class MostSaturated(Saturated):
    scale = 1e5


class BatchStatistics(Faulty):
    def forward(self, x):
        return self.net(F.batch_norm(x, None, None, training=True) * DEVIATION + MEAN)


class RoutedByArgmax(Faulty):
    """The answer goes through a choice, and what flows around it is not the answer's gradient."""

    def forward(self, x):
        return F.one_hot(self.net(x).argmax(1), 10) + 0 * x.sum((1, 2, 3))[:, None]


class Softmax(Faulty):
    def forward(self, x):
        return self.net(x).softmax(1)


class NormalisedTwice(Faulty):
    def forward(self, x):
        return self.net((x - MEAN) / DEVIATION)


class NeverNormalised(Faulty):
    def forward(self, x):
        return self.net.normalised(x)


class ExpectsBytes(Faulty):
    def forward(self, x):
        return self.net(x / 255)


class Counting(Faulty):
    def __init__(self, net):
        super().__init__(net)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.net(x)


class Tiring(Faulty):
    """Where no buffer shows it: after 50 calls another answer."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (1 if self.calls < 50 else 1.5)


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Misleading(Faulty):
    """Gradients that are there, and lead away from every mistake."""

    def forward(self, x):
        return self.net(Backwards.apply(x))


class MisleadingBesidesTheGrid(Faulty):
    """Right gradients on 8-bit images, wrong ones between them: a single step is better than many."""

    def forward(self, x):
        levels = x * 255
        off = (levels - levels.round()).abs().flatten(1).amax(1).view(-1, 1, 1, 1) > 1e-3
        return self.net(torch.where(off, Backwards.apply(x), x))


class BelowGreyLevels(Faulty):
    """Sees, of a change, what lies above the last grey level, and nothing else."""

    def forward(self, x):
        levels = x * 255 + 1e-3
        above = (levels - levels.floor().detach()).sum((1, 2, 3))[:, None]
        clean = self.net(levels.floor() / 255).detach()
        return clean - above * 10 * F.one_hot(clean.argmax(1), 10)


class NotANumber(Faulty):
    def forward(self, x):
        logits = self.net(x)
        return logits / (logits.amax(1, keepdim=True) > logits.amax(1).median())


FAULTS = {
    Quantised: {gradients.REACH, strength.WIDE},
    Jpeg: {gradients.REACH},
    RandomlyResized: {outputs.REPEATABLE},
    Saturated: {gradients.SATURATED, strength.WIDE},
    MoreSaturated: {gradients.SATURATED, strength.WIDE},
    MostSaturated: {gradients.SATURATED, strength.WIDE},
    BatchStatistics: {outputs.ALONE},
    RoutedByArgmax: {gradients.REACH, strength.WIDE},
    Softmax: {outputs.LOGITS},
    NormalisedTwice: {inputs.NORMALISED},
    NeverNormalised: {inputs.NORMALISED},
    ExpectsBytes: {inputs.NORMALISED},
    Counting: {outputs.UNCHANGED},
    Tiring: {outputs.REPEATABLE},
    Misleading: {strength.WIDE, strength.NOISE, strength.BLACK_BOX, strength.TRANSFER},
    MisleadingBesidesTheGrid: {strength.STEPS},
    BelowGreyLevels: {adversarials.EIGHT_BITS},
    NotANumber: {outputs.LOGITS},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found(fault, honest, sibling, digits) -> None:
    ball = Ball("linf", 0.02 if fault is BelowGreyLevels else 0.25)
    found = verdicts(fault(honest).eval(), digits, ball=ball, sibling=sibling)
    assert FAULTS[fault] <= {name for name, verdict in found.items() if verdict == "warn"}


def test_the_model_comes_back_as_it_was(honest, digits) -> None:
    net = copy.deepcopy(honest).train()
    net.head.eval().requires_grad_(False)

    def flags() -> list[object]:
        modes = [(module.training, len(module._forward_pre_hooks)) for module in net.modules()]
        return [modes, [p.requires_grad for p in net.parameters()], torch.get_rng_state().tolist()]

    before, weights = flags(), copy.deepcopy(net.state_dict())
    with torch.inference_mode():
        first = checks.run(net, *digits, BALL, images=20, generator=seeded(3))
    assert flags() == before
    assert all(tensor.equal(weights[name]) for name, tensor in net.state_dict().items())
    assert checks.run(net, *digits, BALL, images=20, generator=seeded(3)) == first


def test_what_the_evaluation_broke_counts(honest, digits) -> None:
    """Its Square is taken for ours, its gradient attacks stand beside ours, and its AutoAttack excuses neither."""
    all_held, none_held = torch.ones(360, dtype=torch.bool).numpy(), torch.zeros(360, dtype=torch.bool).numpy()
    small = Ball("linf", 0.001)
    broken = verdicts(
        honest, digits, ball=small, held={"square": none_held, "autoattack": none_held, "pgd20": all_held}
    )
    assert broken[strength.BLACK_BOX] == "warn"
    beaten = verdicts(honest, digits, ball=small, held={"square": none_held, "apgd-ce": none_held})
    assert beaten[strength.BLACK_BOX] == "pass"


def test_without_enough_right_answers_attacks_are_not_compared(honest, digits) -> None:
    x, y = digits
    found = verdicts(honest, (x[:60], (y[:60] + 1) % 10))
    compared = (strength.WIDE, strength.NOISE, gradients.REACH, adversarials.AGAIN)
    assert all(found[name] == "skip" for name in compared)
    assert found[outputs.REPEATABLE] == "pass"


def test_what_cannot_be_looked_at_is_skipped_with_the_reason(honest, digits) -> None:
    def refusing(x: Tensor) -> Tensor:
        assert x.min() >= 0, "pixels below 0"
        return honest(x)

    honest.requires_grad_(False)
    findings = {entry["name"]: entry for entry in checks.run(refusing, *digits, Ball("linf", 0.002), images=30)}
    for name, reason in [
        (outputs.UNCHANGED, "not an nn.Module"),
        (inputs.NORMALISED, "pixels below 0"),
        (strength.TRANSFER, "no second model"),
        (adversarials.EIGHT_BITS, "grey level|no adversarial"),
    ]:
        assert findings[name]["verdict"] == "skip"
        assert re.search(reason, findings[name]["detail"])
    assert outputs.independent_of_batch(honest, digits[0][:1], honest(digits[0][:1]))["verdict"] == "skip"


def test_no_answer_is_no_right_one(honest, digits) -> None:
    """NaN is nobody's class, not class 0: such images are worked on by no attack, and no scale is right for them."""
    x, y = digits[0].clone(), torch.zeros(360, dtype=torch.long)
    x[:200, 0, 0, 0], x[200:, 0, 0, 0] = 1, 0

    def model(x: Tensor) -> Tensor:
        return torch.where(x[:, :1, 0, 0] > 0.5, torch.nan, 0 * honest(x) + torch.eye(10)[0])

    found = {entry["name"]: entry["detail"] for entry in checks.run(model, x, y, BALL, images=200, batch_size=100)}
    assert found[gradients.REACH].startswith("the gradient of the margin is 0 or NaN for 160 of 160 images")
    right = torch.arange(360) >= 200
    assert inputs.normalised_once(lambda x: torch.full((len(x), 10), torch.nan), x, y, ~right, 100)["verdict"] == "pass"


def test_logits_that_are_no_numbers_are_their_own_like() -> None:
    logits = torch.tensor([[torch.nan, 1.0], [torch.inf, 2.0], [-torch.inf, -4.0]])
    assert outputs.distance(logits, logits.clone()) == 0
    assert outputs.distance(logits, logits + torch.tensor([0.0, 1.0])) == 0.25
    assert outputs.distance(logits, -logits) == math.inf
    assert outputs.distance(logits, logits.nan_to_num(nan=0.0)) == math.inf
    assert outputs.distance(torch.full((2, 2), torch.nan), torch.full((2, 2), torch.nan)) == 0
    assert outputs.distance(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


@pytest.mark.parametrize("made", (lambda: torch.tensor([torch.nan, 1]), lambda: torch.eye(2).to_sparse()))
def test_what_holds_the_same_is_unchanged(made) -> None:
    others = (made(), 2 * made(), torch.zeros(3))
    verdicts = [outputs.unchanged({"kept": made()}, {"kept": after})["verdict"] for after in others]
    assert verdicts == ["pass", "warn", "warn"]


def test_the_reason_of_a_skip_is_the_true_one(honest, digits) -> None:
    found = checks.run(honest, digits[0][:4], digits[1][:4], BALL, batch_size=1)
    (alone,) = [entry["detail"] for entry in found if entry["name"] == outputs.ALONE]
    assert alone == "no image was looked at beside another; give two or more, and a batch size above 1"


def test_a_wrong_scale_is_seen_by_accuracy_where_no_batchnorm_is(honest, digits) -> None:
    x, y = digits
    honest.requires_grad_(False)
    for model, verdict in [(lambda x: honest(x), "pass"), (lambda x: honest.normalised(x), "warn")]:
        right = model(x).argmax(1) == y
        found = inputs.normalised_once(model, x, y, right, 100)
        assert found["verdict"] == verdict
        assert "nan" not in found["detail"]
        assert "misfit" not in found["detail"]


def test_the_misfit_is_told_where_there_is_one() -> None:
    assert inputs.fits(0.5, 0.01) == ", and the misfit to the first BatchNorm's statistics from 0.5 to 0.01"
    assert inputs.fits(math.nan, math.nan) == ""


def test_the_order_of_the_batch_is_seen_beyond_the_singles() -> None:
    x = torch.rand(30, 3, generator=seeded()) + 1
    for first, verdict in [(20, "warn"), (40, "pass")]:
        late = functools.partial(lambda x, first: x + (torch.arange(len(x)) >= first)[:, None], first=first)
        assert outputs.independent_of_batch(late, x, late(x))["verdict"] == verdict


def test_saturation_shows_in_the_gradient_or_in_the_outcome() -> None:
    held, steep = torch.ones(100) > 0, torch.ones(100)
    underflow = torch.where(torch.arange(100) < 6, 1e-31, 1.0)
    for ce, held_margin, verdict in [
        (steep, torch.arange(100) >= 20, "pass"),
        (steep, torch.arange(100) >= 21, "warn"),
        (underflow, held, "warn"),
    ]:
        assert gradients.not_saturated({"ce": ce, "margin": steep}, held, held_margin)["verdict"] == verdict
    both_flat = {"ce": underflow * 0, "margin": steep * 0}
    assert gradients.not_saturated(both_flat, held, held)["verdict"] == "pass"


def test_adversarials_have_to_stay_wrong_and_inside(digits) -> None:
    x, y = digits[0][:20], torch.zeros(20, dtype=torch.long)

    def model(x: Tensor) -> Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    def right(x: Tensor) -> Tensor:
        return -model(x)

    ball = Ball("linf", 0.1)
    near, far = (x + 0.1).clamp(max=1), (x + 0.11).clamp(max=1)
    assert adversarials.hold_in_float32(model, ball, x, y, near)["verdict"] == "pass"
    assert adversarials.hold_in_float32(model, ball, x, y, far)["verdict"] == "warn"
    assert adversarials.hold_in_float32(right, ball, x, y, near)["verdict"] == "warn"


@given(st.integers(1, 200), st.data(), st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.5]))
def test_beyond_is_the_exact_binomial_test(n, drawn, tolerated) -> None:
    count = drawn.draw(st.integers(0, n))
    p = binomtest(count, n, tolerated, alternative="greater").pvalue
    assume(not math.isclose(p, 0.001))  # 3 of 3 at 0.1: rounding decides
    assert beyond(count, n, tolerated) == (p < 0.001)


def test_beyond_in_closed_form() -> None:
    assert not beyond(0, 0, 0.01)
    assert beyond(10, 10, 0.5)  # 2^-10 < 0.001
    assert not beyond(9, 9, 0.5)
    assert beyond(6, 100, 0.01)
    assert not beyond(5, 100, 0.01)
    assert [beyond(count, 20_000, 0.05) for count in (1095, 1098)] == [False, True]


def test_noise_that_gradients_add_little_to_is_as_strong() -> None:
    """Noise breaks 30 of 100; gradients break the same, and of the other 70 none, 5 or 30."""
    noise = torch.arange(100) >= 30
    for added, verdict in [(0, "warn"), (5, "warn"), (30, "pass")]:
        assert strength.stronger_than_noise(torch.arange(100) >= 30 + added, noise)["verdict"] == verdict
    assert strength.stronger_than_noise(torch.arange(100) >= 2, torch.arange(100) >= 2)["verdict"] == "pass"
    assert strength.stronger_than_noise(torch.zeros(100) > 0, torch.zeros(100) > 0)["verdict"] == "pass"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_wide_ball_is_the_least_that_holds_the_grey_image(norm) -> None:
    x = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    ball = strength.wide(Ball(norm, 0.1), x)
    assert ball.contains(torch.full_like(x, 0.5), x).all()
    assert not Ball(norm, ball.eps * 0.999).contains(torch.full_like(x, 0.5), x).any()
    assert strength.wide(Ball("linf", 0.7), x).eps == 0.7


def test_divergence_in_closed_form() -> None:
    norm = nn.BatchNorm2d(2, eps=0)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0])
    x = torch.tensor([[-1.0, 1.0], [-3.0, 3.0]]).T.view(2, 2, 1, 1)  # means 0 and variances 1 and 9
    expected = ((1 / 4 + 1 / 4 - 1 + math.log(4)) + (9 - 1 - math.log(9))) / 4
    assert inputs.divergence(x, norm) == pytest.approx(expected)
    assert math.isnan(inputs.divergence(x, nn.BatchNorm2d(2, track_running_stats=False)))


def test_honest_networks_on_cifar10_pass(cifar_dir) -> None:
    test = data.load("cifar10", "test", cifar_dir).first(60)
    robust = anchor_robust.load("cifar10-resnet8-anchor")
    standard = anchor_robust.load(Path(__file__).parents[1] / "results" / "cifar10-resnet8-standard")
    for model, other in [(robust, standard), (standard, robust)]:
        found = checks.run(model, test.pixels(slice(None)), test.labels, Ball("linf", 0.031), sibling=other, images=20)
        assert [entry for entry in found if entry["verdict"] != "pass"] == []


def test_outcomes_stay_with_their_images(
    honest: Honest, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    (x, y), seen = digits, {}
    monkeypatch.setattr(
        examination, "compare_attacks", lambda case, found, sibling: seen.update(x=case.x, **found) or []
    )
    some_wrong = torch.where(torch.arange(len(y)) % 5 == 0, (y + 1) % 10, y)
    bright = x.flatten(1).mean(1) > x.mean()
    checks.run(honest, x, some_wrong, BALL, held={"pgd20": bright.numpy()}, images=60)
    assert torch.equal(seen["pgd20"], seen["x"].flatten(1).mean(1) > x.mean())


def test_both_losses_are_climbed_and_one_step_is_fgsm(
    honest: Honest, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ball, climbed, compared, search = Ball("linf", 0.1), [], [], PGD.search
    monkeypatch.setattr(PGD, "search", lambda self, *more: climbed.append(self) or search(self, *more))
    monkeypatch.setattr(strength, "more_steps", lambda *more: compared.append(more) or skipped(strength.STEPS, "seen"))
    honest.requires_grad_(False)
    right = honest(digits[0]).argmax(1) == digits[1]
    x, y = digits[0][right][:40], digits[1][right][:40]
    examination.compare_attacks(examination.Case(honest, x, y, ball, seeded(), 40), {}, None)
    assert {each.loss for each in climbed if each.steps == 20 and each.ball == ball} == {"ce", "margin"}
    ((once, *_),) = compared
    assert once.tolist() == pytest.approx(strength.precise_loss(honest(fgsm(ball)(honest, x, y)), y).tolist())


def test_each_threshold_is_where_it_is_said_to_be() -> None:
    zeros, ball, x = torch.zeros(100), Ball("linf", 0.1), torch.full((100, 1), 0.5)
    y = zeros.long()

    def logits(right: Tensor) -> Tensor:
        return torch.stack([right.float(), 1 - right.float()], 1)

    for first, check in (
        (21, lambda lower: strength.more_steps(zeros, zeros - lower.float(), 20)),
        (14, lambda held: strength.breaks_everything(held, ball)),
        (6, lambda right: adversarials.hold_in_float32(lambda x: logits(right.flip(0)), ball, x, y, x)),
        (21, lambda right: adversarials.hold_in_8_bits(lambda x: logits(right), ball, y, x)),
    ):
        assert [check(torch.arange(100) < n)["verdict"] for n in (first - 1, first)] == ["pass", "warn"]
    nan = torch.where(torch.arange(100) < 6, torch.nan, 1.0)
    assert gradients.reach_pixels({"ce": nan, "margin": nan})["verdict"] == "warn"
