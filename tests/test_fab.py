"""FAB: the projection is the optimum that scipy finds, and the walk ends at the nearest boundary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

from anchor_robust.attacks import FAB
from anchor_robust.attacks.hyperplane import move_to_hyperplane
from anchor_robust.errors import Refusal
from anchor_robust.threat import Ball

BALLS = [Ball("linf", 0.1), Ball("l2", 0.5)]
balls = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(seed: int, n: int = 8, d: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Points of which some lie on the box, gradients with zeros, values of either sign; some out of reach."""
    generator = seeded(seed)
    x = torch.rand(n, d, dtype=torch.float64, generator=generator).mul(1.6).sub(0.3).clamp(0, 1)
    w = torch.randn(n, d, dtype=torch.float64, generator=generator)
    w[torch.rand(n, d, generator=generator) < 0.2] = 0
    return x, w, torch.randn(n, dtype=torch.float64, generator=generator)


def best_by_scipy(norm: str, x: Tensor, w: Tensor, value: float) -> tuple[float, bool]:
    """The least length of a move onto the hyperplane inside the box, and whether there is one."""
    room = list(zip((-x).tolist(), (1 - x).tolist(), strict=True))
    if norm == "linf":
        # Variables d and the bound r: minimise r with -r <= d_j <= r.
        d, bound = torch.eye(len(x)), -torch.ones(len(x), 1)
        rows = torch.cat([torch.cat([d, bound], 1), torch.cat([-d, bound], 1)]).numpy()
        costs, plane = [0] * len(x) + [1], [[*w.tolist(), 0]]
        found = linprog(costs, rows, [0] * len(rows), plane, [-value], bounds=[*room, (0, None)])
        return found.fun, found.status == 0
    reachable = linprog([0] * len(x), A_eq=[w.tolist()], b_eq=[-value], bounds=room).status == 0
    found = minimize(
        lambda d: d @ d,
        [0] * len(x),
        jac=lambda d: 2 * d,
        bounds=room,
        constraints={"type": "eq", "fun": lambda d: value + w.numpy() @ d, "jac": lambda d: w.numpy()},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.fun**0.5, reachable


@balls
@pytest.mark.parametrize("seed", range(6))
def test_projection_is_the_optimum_of_the_programme(ball, seed) -> None:
    x, w, value = problem(seed)
    move = move_to_hyperplane(ball.norm, x, w, value)
    length = move.abs().amax(1) if ball.norm == "linf" else move.norm(dim=1)
    for i in range(len(x)):
        best, reachable = best_by_scipy(ball.norm, x[i], w[i], value[i].item())
        if reachable:
            assert length[i].item() == pytest.approx(best, abs=1e-6)
            assert (value[i] + w[i] @ move[i]).item() == pytest.approx(0, abs=1e-12)
        else:  # as far as the box lets it
            corner = torch.where(w[i] * value[i] > 0, -x[i], 1 - x[i]).where(w[i] != 0, 0)
            torch.testing.assert_close(move[i], corner)


@settings(max_examples=80)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-25, 1e-3, 1.0, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_projection_stays_in_the_box_and_meets_the_plane(norm, seed, scale, dtype) -> None:
    x, w, value = (tensor.to(dtype) for tensor in problem(seed, n=5, d=40))
    move = move_to_hyperplane(norm, x.view(5, 1, 5, 8), (scale * w).view(5, 1, 5, 8), scale * value).view(5, 40)
    precision = 20 * torch.finfo(dtype).eps
    assert (x + move).min() >= -precision
    assert (x + move).max() <= 1 + precision
    left = (value + (w * move).sum(1)) * value.sign()
    torch.testing.assert_close(left.clamp_max(0), torch.zeros_like(left), rtol=0, atol=20 * precision)
    pixels_spent = torch.where(w * value.unsqueeze(1) > 0, move <= -x + precision, move >= 1 - x - precision) | (w == 0)
    assert ((left < 20 * precision) | pixels_spent.all(1)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_without_a_gradient_moves_nothing(norm) -> None:
    x, w, value = problem(0)
    assert move_to_hyperplane(norm, x, 0 * w, value).equal(torch.zeros_like(x))
    assert move_to_hyperplane(norm, x, w, 0 * value).equal(torch.zeros_like(x))


@balls
@pytest.mark.parametrize("share, falls", [(0.98, True), (1.02, False)])
@pytest.mark.parametrize("classes", [2, 3])
def test_finds_the_nearest_mistake_of_a_linear_model(ball, share, falls, classes) -> None:
    """The label's lead is a little less, or a little more, than the ball's radius can take away; see Hoelder."""
    w = torch.randn(12, dtype=torch.float64, generator=seeded())
    x = torch.full((3, 12), 0.5, dtype=torch.float64)
    dual = w.abs().sum() if ball.norm == "linf" else w.norm()
    lead = (x @ w)[0] + share * ball.eps * dual

    def model(x: Tensor) -> Tensor:
        return torch.stack([lead.expand(len(x)), x @ w, *(classes - 2) * [lead.expand(len(x)) - 50]], 1)

    x_adv = FAB(ball)(model, x, torch.zeros(3, dtype=torch.long))
    assert (model(x_adv).argmax(1) == 1).tolist() == [falls] * 3
    assert falls or x_adv.equal(x)


@balls
@pytest.mark.parametrize("curvature", [1, -1])
def test_walks_as_the_formula_says(ball, curvature) -> None:
    """Six steps against a boundary that lies nearer, or farther, than its tangents say; everything spelled out."""
    w, bend = torch.randn(2, 12, dtype=torch.float64, generator=seeded()).unbind()
    x = torch.rand(4, 12, dtype=torch.float64, generator=seeded(1)).mul(0.2).add(0.4)
    lead = (x @ w + curvature * (x @ bend) ** 2).max().item() + 2
    seen: list[Tensor] = []

    def difference(point: Tensor) -> Tensor:
        return point @ w + curvature * (point @ bend) ** 2 - lead

    def length(move: Tensor) -> Tensor:
        return move.abs().amax(1) if ball.norm == "linf" else move.norm(dim=1)

    def model(point: Tensor) -> Tensor:
        seen.append(point.detach())
        return torch.stack([0 * point[:, 0], difference(point)], 1)

    FAB(Ball(ball.norm, 1e-6), steps=6)(model, x, torch.zeros(4, dtype=torch.long))
    here, steps_back, limited = x, 0, False
    for step in range(6):
        at = here.clone().requires_grad_()
        value = difference(at)
        gradient = torch.autograd.grad(value.sum(), at)[0]
        value = value.detach()
        move = move_to_hyperplane(ball.norm, here, gradient, value)
        back = move_to_hyperplane(ball.norm, x, gradient, value + ((x - here) * gradient).sum(1))
        share = length(move) / (length(move) + length(back))
        limited |= step > 0 and bool((share > 0.1).any())
        alpha = share.clamp(max=0.1).unsqueeze(1)
        here = ((1 - alpha) * (here + 1.05 * move) + alpha * (x + 1.05 * back)).clamp(0, 1)
        torch.testing.assert_close(seen[2 * step + 2], here)
        fooled = difference(here) > 0
        steps_back += int(fooled.sum())
        here = torch.where(fooled.unsqueeze(1), x + 0.9 * (here - x), here)
    assert steps_back if curvature > 0 else limited


@balls
def test_logits_in_float64_are_walked_like_others(ball) -> None:
    x, w = torch.rand(20, 6, generator=seeded()), torch.randn(6, 3, generator=seeded(1))
    y = (x @ w).argmax(1)
    found = FAB(ball, steps=5)(lambda x: x @ w, x, y)
    precise = FAB(ball, steps=5)(lambda x: (x @ w).double(), x, y)
    assert precise.dtype == x.dtype
    torch.testing.assert_close(precise, found)
    assert not found.equal(x)


def test_what_is_wrong_already_comes_back_as_it_was() -> None:
    """Class 0 wins wherever the walk towards class 2 leads."""
    x, y = torch.full((3, 4), 0.5), torch.ones(3, dtype=torch.long)
    model = lambda x: torch.stack([0 * x[:, 0] + 1, 0 * x[:, 0], x.mean(1) - 0.55], 1)  # noqa: E731
    assert FAB(Ball("linf", 0.1), steps=2, target=2)(model, x, y).equal(x)


def test_describe_names_every_setting() -> None:
    expected = {
        "norm": "l2",
        "eps": 0.5,
        "steps": 7,
        "step_size": None,
        "restarts": 1,
        "start": "none",
        "loss": "distance to the boundary",
        "target": 3,
        "alpha_max": 0.1,
        "eta": 1.05,
        "beta": 0.9,
    }
    assert FAB(BALLS[1], 7, target=3).describe() == expected


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"target": 0}, {"alpha_max": 2}, {"eta": 0.5}, {"beta": "0.9"}])
def test_wrong_settings_are_refused_by_name(wrong) -> None:
    (name,) = wrong
    with pytest.raises(Refusal, match=f"^{name} "):
        FAB(BALLS[0], **wrong)
