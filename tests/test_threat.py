"""Ball: never outside, even after float32 rounding, and exactly the geometry of the formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from anchor_robust.errors import Refusal
from anchor_robust.threat import Ball, Norm

BALLS = [Ball("linf", 8 / 255), Ball("l2", 0.5)]
balls = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_distance(ball: Ball, x_adv: Tensor, x: Tensor) -> Tensor:
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if ball.norm == "linf" else delta.pow(2).sum(1).sqrt()


def inside(ball: Ball, x_adv: Tensor, x: Tensor, tolerance: float = 1e-6) -> bool:
    in_box = bool((x_adv >= 0).all() and (x_adv <= 1).all())
    return in_box and bool((exact_distance(ball, x_adv, x) <= ball.eps + tolerance).all())


pixels = npst.arrays("float32", (2, 1, 3, 3), elements=st.floats(0, 1, width=32))
anywhere = npst.arrays("float32", (2, 1, 3, 3), elements=st.floats(-1000, 1000, width=32))


@settings(max_examples=150, deadline=None)
@given(x=pixels, x_adv=anywhere, norm=st.sampled_from(["linf", "l2"]), eps=st.floats(1e-4, 1))
def test_a_projected_point_is_inside(x, x_adv, norm, eps) -> None:
    ball, x, x_adv = Ball(norm, eps), torch.from_numpy(x), torch.from_numpy(x_adv)
    projected = ball.project(x_adv, x)
    assert inside(ball, projected, x)
    assert ball.contains(projected, x).all()
    torch.testing.assert_close(ball.project(projected, x), projected, rtol=0, atol=2e-6)


@balls
def test_rounding_of_a_flat_image_does_not_leave_the_ball(ball) -> None:
    """All pixels round the same way, so the errors add up instead of cancelling."""
    for value in torch.linspace(0.25, 0.75, 41).tolist():
        x = torch.full((1, 3, 64, 64), value)
        assert inside(ball, ball.project(x + 0.2, x), x, tolerance=1e-7)
    large = Ball("l2", 30.0)
    x = torch.rand(2, 3, 224, 224, generator=seeded())
    assert inside(large, large.project(torch.rand(x.shape, generator=seeded(1)) * 9 - 4, x), x)


@balls
def test_project_is_the_nearest_point(ball) -> None:
    x = torch.rand(8, 3, 5, 5, dtype=torch.float64, generator=seeded()) * 0.2 + 0.4
    delta = torch.randn(x.shape, dtype=torch.float64, generator=seeded(1)) * 0.2
    if ball.norm == "linf":
        nearest = x + delta.clamp(-ball.eps, ball.eps)
    else:
        nearest = x + delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * ball.eps
        nearest = nearest.clamp(0, 1)
    torch.testing.assert_close(ball.project(x + delta, x), nearest)


@balls
def test_project_leaves_its_arguments_and_inner_points_alone(ball) -> None:
    x = torch.full((1, 1, 4, 4), 0.5)
    x_adv = x + 0.01
    torch.testing.assert_close(ball.project(x_adv, x), x_adv, rtol=0, atol=1e-7)
    assert x.eq(0.5).all()
    assert x_adv.eq(0.51).all()


@balls
def test_random_points_fill_the_ball_uniformly(ball) -> None:
    x = torch.full((20_000, 2), 0.5)
    ball = Ball(ball.norm, 0.25)
    points = ball.random_point(x, seeded())
    assert inside(ball, points, x)
    # A ball of half the radius holds a quarter of the area, in both norms.
    assert abs((exact_distance(ball, points, x) < 0.125).double().mean().item() - 0.25) < 0.02
    assert (points - x).mean(0).abs().max() < 0.005


@balls
def test_random_points_stay_in_the_box_and_follow_the_generator(ball) -> None:
    x = torch.rand(16, 3, 4, 4, generator=seeded()).round()
    before = torch.get_rng_state()
    first, again, other = (ball.random_point(x, seeded(seed)) for seed in (1, 1, 2))
    assert inside(ball, first, x)
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("norm", ("linf", "l2"))
def test_a_gradient_that_is_no_number_moves_nothing(norm: Norm) -> None:
    gradient = torch.tensor([[torch.nan, torch.nan], [torch.nan, 3.0], [torch.inf, 1.0]])
    step = Ball(norm, 0.5).steepest_step(gradient, 0.1)
    assert step[0].tolist() == [0, 0]
    assert step[1].tolist() == pytest.approx([0, 0.1])
    assert step.isfinite().all()


def test_steepest_step_is_sign_or_unit_gradient() -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0], [3e-30, -4e-30]])
    linf, l2 = (ball.steepest_step(gradient, 0.5) for ball in BALLS)
    torch.testing.assert_close(linf, torch.tensor([[0.5, -0.5], [0, 0], [0.5, -0.5]]))
    torch.testing.assert_close(l2, torch.tensor([[0.3, -0.4], [0, 0], [0.3, -0.4]]))
    assert gradient[0].tolist() == [3.0, -4.0]


@balls
@pytest.mark.parametrize("step_size", [0.01, 10.0])
def test_a_step_of_a_climb_is_the_steepest_step_projected(ball, step_size) -> None:
    x = torch.rand(16, 3, 5, 5, generator=seeded()).mul_(1.2).sub_(0.1).clamp_(0, 1)
    x_adv, gradient = ball.random_point(x, seeded(1)), torch.randn(x.shape, generator=seeded(2))
    gradient[0] = 0
    before = x_adv.clone(), gradient.clone()
    stepped = ball.ascent(x, step_size)(x_adv, gradient)
    torch.testing.assert_close(
        stepped, ball.project(x_adv + ball.steepest_step(gradient, step_size), x), rtol=0, atol=1e-6
    )
    assert inside(ball, stepped, x)
    assert x_adv.equal(before[0])
    assert gradient.equal(before[1])


@balls
def test_contains_and_distance_are_per_image(ball) -> None:
    x = torch.full((4, 1, 2, 2), 0.999)
    x_adv = x.clone()
    x_adv[1] -= 0.999
    x_adv[2] += 0.01
    x_adv[3] = math.nan
    assert ball.contains(x_adv, x).tolist() == [True, False, False, False]
    expected = {"linf": [0, 0.999, 0.01], "l2": [0, 1.998, 0.02]}[ball.norm]
    torch.testing.assert_close(ball.distance(x_adv, x)[:3], torch.tensor(expected), rtol=1e-4, atol=1e-6)
    edge = x.clone()
    edge[:, 0, 0, 0] -= ball.eps * 1.01
    assert not ball.contains(edge, x).any()


def test_eps_zero_is_the_image_itself() -> None:
    x = torch.rand(2, 1, 2, 2, generator=seeded())
    assert Ball("linf", 0.0).project(x + 1, x).equal(x)
    assert Ball("l2", 1e-9).project(x, x).equal(x)  # below what float32 resolves


@pytest.mark.parametrize(
    ("norm", "eps", "hint"),
    [
        ("l1", 0.1, "linf, l2"),
        ("linf", -0.1, "from 0"),
        ("linf", math.nan, "a number"),
        ("linf", "8/255", "in quotes"),
        ("linf", 8, "8/255"),
        ("l2", math.inf, "to 1,000,000"),
        ("l2", 1e300, "to 1,000,000"),
        ("l2", 0, "above 0"),
    ],
)
def test_wrong_balls_are_refused_in_one_line(norm, eps, hint) -> None:
    with pytest.raises(Refusal, match=hint) as refusal:
        Ball(norm, eps)
    assert "\n" not in str(refusal.value)
