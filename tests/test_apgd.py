"""Auto-PGD follows the paper's algorithm, written out for one image at a time."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anchor_robust.attacks import APGD, APGDT
from anchor_robust.attacks.apgd import Climb, checkpoints
from anchor_robust.attacks.margins import ranked_target, targeted_dlr
from anchor_robust.errors import Refusal
from anchor_robust.threat import Ball

BALLS = [Ball("linf", 0.1), Ball("l2", 0.5)]
balls = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rugged(classes: int, bias: float):
    """A smooth model full of local maxima; a large bias for class 0 keeps images of that class standing."""
    first = 3 * torch.randn(12, 16, generator=seeded(1), dtype=torch.float64)
    second = torch.randn(16, classes, generator=seeded(2), dtype=torch.float64)
    shift = torch.zeros(classes, dtype=torch.float64)
    shift[0] = bias
    return lambda x: (x.flatten(1) @ first.to(x)).sin() @ second.to(x) + shift.to(x)


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 2, 2, generator=seeded(), dtype=torch.float64)


@given(steps=st.integers(0, 300))
def test_checkpoints_are_those_of_the_paper(steps) -> None:
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    assert checkpoints(steps) == {math.ceil(share * steps) for share in p[1:] if share <= 1}


def test_checkpoints_of_a_hundred_steps() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def project(point: Tensor, x: Tensor, ball: Ball) -> Tensor:
    delta = point - x
    delta = delta.clamp(-ball.eps, ball.eps) if ball.norm == "linf" else delta * min(1, ball.eps / delta.norm())
    return (x + delta).clamp(0, 1)


def slow_climb(model, loss_of, x: Tensor, start: Tensor, steps: int, ball: Ball) -> tuple[Tensor, list[float]]:
    """Algorithm 1 of arXiv 2003.01690 for one image x; the highest point and the step sizes at the checkpoints."""

    def look(at: Tensor) -> tuple[float, Tensor]:
        at = at.clone().requires_grad_()
        loss = loss_of(model(at.unsqueeze(0)))
        return loss.item(), torch.autograd.grad(loss, at)[0]

    def ascend(at: Tensor, gradient: Tensor) -> Tensor:
        return project(at + eta * (gradient.sign() if ball.norm == "linf" else gradient / gradient.norm()), x, ball)

    eta, before, here = 2 * ball.eps, start, start
    losses, (loss, gradient) = [], look(start)
    losses.append(loss)
    best = (loss, start, gradient)
    marks, sizes, last, best_at_last, halved = sorted(checkpoints(steps)), [], 0, loss, True
    for k in range(1, steps + 1):
        z = ascend(here, gradient)
        alpha = 1 if k == 1 else 0.75
        before, here = here, project(here + alpha * (z - here) + (1 - alpha) * (here - before), x, ball)
        loss, gradient = look(here)
        losses.append(loss)
        if loss > best[0]:
            best = (loss, here, gradient)
        if k in marks:
            rises = sum(losses[i + 1] > losses[i] for i in range(last, k))
            halved = rises <= 0.75 * (k - last) or (not halved and best[0] == best_at_last)
            if halved:
                eta, here, gradient = eta / 2, best[1], best[2]
            sizes.append(eta)
            last, best_at_last = k, best[0]
    return best[1], sizes


@balls
@pytest.mark.parametrize("steps", [1, 13, 60])
def test_one_image_at_a_time_gives_the_same(ball, steps) -> None:
    model, x, y = rugged(5, bias=50), images(), torch.zeros(6, dtype=torch.long)
    start = ball.random_point(x, seeded(3))
    found = APGD(ball, steps)(model, x, y, generator=seeded(3))
    for i in range(len(x)):
        expected, sizes = slow_climb(model, lambda z: F.cross_entropy(z, y[:1]), x[i], start[i], steps, ball)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-6)
    assert steps < 60 or sizes[-1] < 2 * ball.eps  # the comparison has seen step sizes fall


@balls
def test_towards_a_target_one_image_at_a_time_gives_the_same(ball) -> None:
    model, x, y = rugged(5, bias=50), images(), torch.zeros(6, dtype=torch.long)
    start = ball.random_point(x, seeded(3))
    found = APGDT(ball, 40, target=2)(model, x, y, generator=seeded(3))
    for i in range(len(x)):
        target = ranked_target(model(x[i : i + 1]), y[:1], 2)
        loss_of = lambda z, target=target: targeted_dlr(z, y[:1], target).sum()  # noqa: E731 - shorter than a def
        torch.testing.assert_close(found[i], slow_climb(model, loss_of, x[i], start[i], 40, ball)[0], rtol=0, atol=1e-6)


def test_when_step_sizes_are_halved() -> None:
    """Of 16 steps 12 are at most three quarters; stuck is who rose and was not halved, but found nothing higher."""
    rises, halved_before, best, best_before, expected = zip(
        (12, False, 2.0, 1.0, True),
        (13, False, 2.0, 1.0, False),
        (13, False, 1.0, 1.0, True),
        (13, True, 1.0, 1.0, False),
        strict=True,
    )
    one, zeros = torch.ones(4), torch.zeros(4, 2)
    climb = Climb(
        *(zeros, torch.zeros(4).long(), torch.zeros(4).long(), zeros, zeros, zeros, one),
        x_best=zeros + 0.5,
        gradient_best=zeros + 3,
        loss_best=torch.tensor(best),
        loss_best_at_check=torch.tensor(best_before),
        step_size=one,
        rises=torch.tensor(rises),
        halved=torch.tensor(halved_before),
    )
    APGD(BALLS[0])._adapt(climb, 16)
    fell = torch.tensor(expected)
    assert climb.halved.equal(fell)
    assert climb.step_size.equal(torch.where(fell, 0.5, 1.0))
    assert climb.x_adv.equal(0.5 * fell.float().unsqueeze(1).expand(4, 2))
    assert climb.gradient.equal(3 * fell.float().unsqueeze(1).expand(4, 2))
    assert climb.loss_best_at_check.tolist() == list(best)
    assert climb.rises.tolist() == [0, 0, 0, 0]


class Counting:
    """A linear model that remembers how many images it was asked about."""

    def __init__(self, classes: int = 2) -> None:
        self.asked: list[int] = []
        self.classes = classes

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return torch.cat(
            [x.new_full((len(x), 1), 0.0), x.flatten(1).mean(1, keepdim=True).repeat(1, self.classes - 1)], 1
        )


def test_an_image_that_fell_costs_nothing_more() -> None:
    """Class 1 wins above a mean of 0: the first image is wrong from the start, the second cannot be helped."""
    model, x = Counting(), torch.tensor([[0.5], [0.0]])
    x_adv = APGD(Ball("linf", 0.0), steps=10)(model, x, torch.tensor([0, 0]))
    assert model.asked == [2] + 10 * [1]
    assert x_adv.equal(x)


def test_the_first_adversarial_is_kept() -> None:
    """One pixel, wrong from 0.7; the start is uniform in 0.2 to 0.8, so some images fall there, others at 0.8."""
    x, y = torch.full((60, 1), 0.5), torch.zeros(60, dtype=torch.long)
    model = lambda x: torch.cat([0 * x, x - 0.7], 1)  # noqa: E731 - shorter than a def
    start = Ball("linf", 0.3).random_point(x, seeded())
    x_adv = APGD(Ball("linf", 0.3), steps=20)(model, x, y, generator=seeded())
    assert (x_adv > 0.7).all()
    assert x_adv[start > 0.7].equal(start[start > 0.7])


def test_restarts_go_on_with_what_stands_and_keep_the_highest_loss() -> None:
    """Loss rises to either side of 0.5, higher to the right; nobody ever falls."""

    def model(x: Tensor) -> Tensor:
        offset = x - 0.5
        return torch.cat([2 + 0 * x, torch.where(offset > 0, 2.0, 1.0) * offset.abs()], 1)

    x, y = torch.full((50, 1), 0.5), torch.zeros(50, dtype=torch.long)
    once = APGD(Ball("linf", 0.4), steps=1)(model, x, y)
    assert len({round(end, 2) for end in once.flatten().tolist()}) > 1
    often = APGD(Ball("linf", 0.4), steps=30, restarts=12)(model, x, y)
    assert often.allclose(torch.tensor(0.9))
    counting = Counting()
    APGD(Ball("linf", 0.0), steps=2, restarts=3)(counting, torch.tensor([[0.5], [0.0]]), torch.tensor([0, 0]))
    assert counting.asked == [2, 1, 1] + 6 * [1]


@pytest.mark.parametrize(
    "attack",
    [lambda ball: APGD(ball, 20), lambda ball: APGD(ball, 20, loss="dlr"), lambda ball: APGDT(ball, 20)],
    ids=["ce", "dlr", "targeted"],
)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("share, label", [(0.999, 1), (1.001, 0)])
def test_reaches_the_optimum_with_few_classes(attack, classes, share, label) -> None:
    """A linear margin falls by eps |w|_1; the label leads by a little less, or by a little more."""
    w = torch.randn(12, dtype=torch.float64, generator=seeded())
    x = torch.full((2, 12), 0.5, dtype=torch.float64)
    lead = (x @ w)[0] + share * 0.2 * w.abs().sum()

    def model(x: Tensor) -> Tensor:
        return torch.stack([lead.expand(len(x)), x @ w, *(classes - 2) * [lead.expand(len(x)) - 50]], 1)

    x_adv = attack(Ball("linf", 0.2))(model, x, torch.zeros(2, dtype=torch.long))
    assert model(x_adv).argmax(1).tolist() == [label, label]


def test_describe_names_every_setting() -> None:
    shared = {"norm": "l2", "eps": 0.5, "steps": 7, "step_size": None, "restarts": 2, "start": "uniform", "rho": 0.5}
    ball = BALLS[1]
    assert APGD(ball, 7, 2, rho=0.5).describe() == {**shared, "loss": "cross-entropy"}
    assert APGD(ball, 7, 2, rho=0.5, loss="dlr").describe() == {**shared, "loss": "DLR (margin below 3 classes)"}
    targeted = {**shared, "loss": "targeted DLR (margin below 4 classes)", "target": 4}
    assert APGDT(ball, 7, 2, rho=0.5, target=4).describe() == targeted


@pytest.mark.parametrize(
    "attack, wrong",
    [
        (APGD, {"steps": -1}),
        (APGD, {"restarts": 0}),
        (APGD, {"loss": "kl"}),
        (APGD, {"rho": 2}),
        (APGDT, {"target": 0}),
        (APGDT, {"steps": 1.5}),
    ],
)
def test_wrong_settings_are_refused_by_name(attack, wrong) -> None:
    (name,) = wrong
    with pytest.raises(Refusal, match=f"^{name} ") as refusal:
        attack(BALLS[0], **wrong)
    assert "\n" not in str(refusal.value)
