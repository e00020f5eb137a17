"""Square Attack: the sizes, bumps and moves of the paper, and a search that asks for logits alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anchor_robust.attacks import Square
from anchor_robust.attacks.squares import bump, bumps, moved_bump, pasted, recoloured, square_of, stripes, window
from anchor_robust.errors import Refusal
from anchor_robust.threat import Ball

BALLS = [Ball("linf", 0.1), Ball("l2", 0.5)]
balls = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signs_of(generator: torch.Generator):
    return lambda *shape: torch.randint(2, shape, generator=generator).double() * 2 - 1


def images(n: int = 5, side: int = 9) -> Tensor:
    return torch.rand(n, 2, side, side, generator=seeded(), dtype=torch.float64)


def grey(n: int = 5, side: int = 9) -> Tensor:
    return torch.full((n, 2, side, side), 0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    "query, halvings",
    [(1, 0), (11, 0), (12, 1), (51, 1), (52, 2), (202, 3), (502, 4), (1002, 5), (2002, 6), (4002, 7), (4999, 7)],
)
def test_squares_shrink_as_in_the_paper(query, halvings) -> None:
    assert Square(BALLS[0]).share(query) == 0.8 / 2**halvings


def test_the_schedule_can_shrink_with_the_queries() -> None:
    attack = Square(BALLS[0], queries=1000, rescale_schedule=True)
    assert [attack.share(query) for query in (1, 2, 3, 802)] == [0.8, 0.8, 0.4, 0.8 / 512]


def slow_half(h: int, w: int) -> list[list[float]]:
    """Rectangles around the middle, each ring higher than the one outside it; arXiv 1912.00049, section 3.3."""
    height = [[0.0] * w for _ in range(h)]
    for k in range(max(h // 2, w // 2) + 1):
        for r in range(h):
            for s in range(w):
                if abs(r - h // 2) <= k and abs(s - w // 2) <= k:
                    height[r][s] += 1 / (k + 1) ** 2
    norm = math.sqrt(sum(value**2 for row in height for value in row)) or 1
    return [[value / norm for value in row] for row in height]


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 29])
def test_bump_agrees_with_loops(side) -> None:
    halves = slow_half(side // 2, side) + [[-value for value in row] for row in slow_half(side - side // 2, side)]
    expected = torch.tensor(halves, dtype=torch.float64)
    torch.testing.assert_close(bump(side, torch.float64, torch.device("cpu")), expected / expected.norm())


def test_stripes_are_columns_at_the_edge_of_the_ball() -> None:
    delta = stripes(grey(), 0.1, signs_of(seeded())) - 0.5
    assert delta.abs().allclose(torch.tensor(0.1, dtype=torch.float64))
    assert delta.equal(delta[:, :, :1].expand_as(delta))
    assert not delta[0].equal(delta[1])


@pytest.mark.parametrize("share, side", [(0.8, 8), (0.1, 3), (0.0001, 1), (1.0, 9)])
def test_one_square_changes_colour(share, side) -> None:
    x, signs = grey(), signs_of(seeded())
    x_best = stripes(x, 0.1, signs)
    square = square_of(9, 9, share, [0.99, 0.5])
    rows, columns = slice(9 - side, 9), slice(int(0.5 * (10 - side)), int(0.5 * (10 - side)) + side)
    assert square == (rows, columns)
    x_new = pasted(x_best, square, recoloured(x, square, 0.1, signs))
    moved = x_new[..., rows, columns] - 0.5
    assert moved.abs().allclose(torch.tensor(0.1, dtype=torch.float64))
    assert moved.equal(moved[..., :1, :1].expand_as(moved))
    x_new[..., rows, columns] = x_best[..., rows, columns]
    assert x_new.equal(x_best)


def test_bumps_start_at_the_edge_of_the_ball() -> None:
    delta = bumps(grey(side=12), 0.5, signs_of(seeded())) - 0.5
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((5,), 0.5, dtype=torch.float64))
    one = bump(2, torch.float64, torch.device("cpu"))
    tiles = delta.unfold(2, 2, 2).unfold(3, 2, 2).reshape(-1, 2, 2)
    tiles = tiles / tiles[0].norm()
    forms = torch.stack([one, -one, one.T, -one.T])
    matches = (tiles.unsqueeze(1) - forms).abs().amax((2, 3)) < 1e-9
    assert matches.any(1).all()
    assert matches.any(0).all()


@pytest.mark.parametrize("share, side", [(0.1, 3), (0.2, 5), (0.001, 3)])
def test_energy_moves_from_one_window_to_another(share, side) -> None:
    """Algorithm 3 for each image and channel, in float64, when the box does not bind."""
    x, signs, place = grey(), signs_of(seeded()), [0.1, 0.2, 0.8, 0.9, 0.3]
    x_best = x + 0.4 * (bumps(x, 0.5, signs) - x)  # some of the radius is left
    colours = signs_of(seeded(7))
    x_new = moved_bump(x, x_best, 0.5, share, place, colours)
    into, out_of = window(9, 9, side, place[:2]), window(9, 9, side, place[2:4])
    sign = signs_of(seeded(7))(5, 2, 1, 1)
    for i in range(5):
        delta = x_best[i] - x[i]
        unused = 0.25 - delta.square().sum()
        for channel, own_sign in zip(delta, sign[i], strict=True):
            either = torch.zeros(9, 9, dtype=torch.bool)
            either[into], either[out_of] = True, True
            energy = channel[either].square().sum() + unused / 2
            old = channel[into] / channel[into].norm() if channel[into].norm() else channel[into]
            new = old + own_sign * bump(side, torch.float64, torch.device("cpu"))
            channel[out_of] = 0
            channel[into] = new / new.norm() * energy.sqrt()
        torch.testing.assert_close(x_new[i], x[i] + 0.5 * delta / delta.norm())


@given(share=st.floats(1e-4, 1), place=st.lists(st.floats(0, 0.999), min_size=5, max_size=5), norm=st.booleans())
def test_moves_stay_in_ball_and_box(share, place, norm) -> None:
    ball, signs, x = BALLS[norm], signs_of(seeded()), images()
    if norm:
        moved = moved_bump(x, bumps(x, ball.eps, signs), ball.eps, share, place, signs)
    else:
        square = square_of(9, 9, share, place)
        moved = pasted(stripes(x, ball.eps, signs), square, recoloured(x, square, ball.eps, signs))
    assert ball.contains(moved, x).all()


@balls
def test_needs_no_gradient_and_keeps_the_lowest_margin(ball) -> None:
    """A staircase of brightness has no slope, and cannot be climbed to the mistake at 1: the best point comes back."""
    margins: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        brightness = (x.detach().mean((1, 2, 3)) * 1000).round() / 1000
        margins.append(1 - brightness)
        return torch.stack([torch.ones_like(brightness), brightness], 1)

    x = images()
    x_adv = Square(ball, queries=60)(model, x, torch.zeros(5, dtype=torch.long))
    asked = torch.stack(margins)
    assert len(asked) == 60
    model(x_adv)
    assert margins[-1].equal(asked.amin(0))
    assert (margins[-1] < asked[0]).all()


@balls
def test_an_image_that_fell_costs_nothing_more(ball) -> None:
    asked: list[int] = []

    def model(x: Tensor) -> Tensor:
        asked.append(len(x))
        return torch.stack([torch.full_like(x[:, 0, 0, 0], 0.5), x.mean((1, 2, 3))], 1)

    x = torch.cat([grey(1) * 0 + 0.9, grey(1) * 0, grey(1)])
    y = torch.zeros(3, dtype=torch.long)
    x_adv = Square(ball, queries=200)(model, x, y)
    assert asked[0] == 3
    assert asked[1] <= 2
    assert asked[-1] == 1
    assert (model(x_adv).argmax(1) != y).tolist() == [True, False, True]


def test_images_need_a_height_and_a_width() -> None:
    with pytest.raises(Refusal, match=r"images \[2, 5\] given; allowed: \[n c h w\]"):
        Square(BALLS[0])(lambda x: x, torch.rand(2, 5), torch.tensor([0, 1]))


def test_describe_names_every_setting() -> None:
    shared = {"steps": None, "step_size": None, "restarts": 1, "loss": "margin", "queries": 50, "p_init": 0.3}
    linf, l2 = (Square(ball, 50, p_init=0.3).describe() for ball in BALLS)
    assert linf == {**shared, "norm": "linf", "eps": 0.1, "start": "stripes", "rescale_schedule": False}
    assert l2 == {**shared, "norm": "l2", "eps": 0.5, "start": "grid", "rescale_schedule": False}


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"queries": 1.5}, {"p_init": 0}, {"p_init": 1.1}, {"p_init": "1"}])
def test_wrong_settings_are_refused_by_name(wrong) -> None:
    (name,) = wrong
    with pytest.raises(Refusal, match=f"^{name} "):
        Square(BALLS[0], **wrong)
