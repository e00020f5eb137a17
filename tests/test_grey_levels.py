"""Ending an attack on the grey levels of a picture file: inside the ball, still harmful, against slow derivations."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anchor_robust.attacks import PGD, GreyLevels
from anchor_robust.attacks.grey_levels import filled, on_levels
from anchor_robust.errors import Refusal
from anchor_robust.threat import Ball

balls = st.one_of(
    st.builds(Ball, st.just("linf"), st.floats(1 / 255, 1.0)),
    st.builds(Ball, st.just("l2"), st.floats(1 / 255, 4.0)),
)


def pictures(seed: int, images: int = 3) -> Tensor:
    """Whole grey levels, black and white among them."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(-40, 296, (images, 3, 4, 5), generator=generator).clamp(0, 255)
    return levels.float() / 255


def levels_of(x: Tensor) -> Tensor:
    """As a file holds them; the images have to be of grey levels up to float32's rounding."""
    levels = (x * 255).round()
    assert (x * 255 - levels).abs().max() < 1e-4
    return levels.to(torch.uint8)


def inside(ball: Ball, saved: Tensor, clean: Tensor) -> bool:
    """In whole numbers: no rounding can hide a pixel outside."""
    moved = saved.to(torch.int64) - clean.to(torch.int64)
    if ball.norm == "linf":
        return bool(moved.abs().max() <= math.floor(255 * ball.eps + 1e-6))
    return all(math.sqrt(int(image.square().sum())) <= 255 * ball.eps + 1e-6 for image in moved)


@given(balls, st.integers(0, 1000), st.floats(0, 2))
def test_whatever_was_found_ends_on_grey_levels_inside_the_ball(ball: Ball, seed: int, size: float) -> None:
    x = pictures(seed)
    found = x + size * ball.eps * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    assert inside(ball, levels_of(on_levels(ball, found, x)), levels_of(x))


@pytest.mark.parametrize("levels", range(1, 17))
def test_eps_of_whole_levels_allows_as_many(levels: int) -> None:
    x = torch.full((1, 1, 2, 2), 128 / 255)
    saved = levels_of(on_levels(Ball("linf", levels / 255), x + levels / 255, x))
    assert saved.eq(128 + levels).all()


def test_linf_goes_to_the_nearest_level() -> None:
    x = torch.full((1, 1, 1, 5), 100 / 255)
    found = x + torch.tensor([0.4, 0.6, -1.4, -1.6, 9.0]) / 255
    assert levels_of(on_levels(Ball("linf", 3.5 / 255), found, x)).flatten().tolist() == [100, 101, 99, 98, 103]


def slow_filled(change: Tensor, radius: float) -> list[float]:
    """The same, by trying every scale at which a pixel turns to its next level."""
    turns = {(level + 0.5) / abs(value) for value in change.tolist() if value for level in range(int(radius) + 2)}
    kept = [0.0] * len(change)
    for scale in sorted(turns):
        # A scale just above the turn; Python rounds halves to even, as torch does.
        moved = [round(scale * (1 + 1e-9) * value) for value in change.tolist()]
        if math.sqrt(sum(value**2 for value in moved)) <= radius:
            kept = [float(value) for value in moved]
    return kept


@given(st.integers(0, 10_000), st.floats(0.5, 12))
def test_l2_is_filled_as_far_as_it_goes(seed: int, radius: float) -> None:
    change = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert filled(change[None], radius)[0].tolist() == slow_filled(change, radius)


def test_a_perturbation_below_half_a_level_keeps_its_largest_pixels() -> None:
    x = torch.full((1, 1, 10, 10), 0.5)
    x = (x * 255).round() / 255
    change = torch.linspace(0.001, 0.3, 100).view_as(x) / 255  # rounded as it is, nothing would be left of it
    moved = (on_levels(Ball("l2", 3 / 255), x + change, x) - x) * 255
    assert moved.round().flatten().nonzero().flatten().tolist() == list(range(91, 100))


class Thresholded(nn.Module):
    """Two classes: the logits are linear in the pixels."""

    def __init__(self, weights: Tensor, bias: float) -> None:
        super().__init__()
        self.weights, self.bias = nn.Parameter(weights), bias

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weights).flatten(1).sum(1) + self.bias
        return torch.stack([score, -score], dim=1)


def test_the_search_goes_on_where_rounding_undoes_what_was_found() -> None:
    """Of 27 pictures of three pixels within a level exactly one fools the model, and rounding does not lead to it."""
    x = torch.tensor([100.0, 100.0, 100.0]).view(1, 1, 1, 3) / 255
    weights = torch.tensor([-1.0, -1.0, 1.0]).view(1, 1, 3)
    model = Thresholded(weights, bias=(100 + 2.5) / 255)
    fooling = [
        moves
        for moves in itertools.product((-1, 0, 1), repeat=3)
        if model(x + torch.tensor(moves).view_as(x) / 255).argmax() == 1
    ]
    assert fooling == [(1, 1, -1)]
    ball, y = Ball("linf", 1 / 255), torch.tensor([0])
    found = x + torch.tensor([1.0, 0.4, -1.0]).view_as(x) / 255
    assert levels_of(on_levels(ball, found, x)).flatten().tolist() == [101, 100, 99]
    x_adv = GreyLevels(ball, found)(model, x, y)
    assert levels_of(x_adv).flatten().tolist() == [101, 101, 99]
    stopped = GreyLevels(ball, found, steps=0)(model, x, y)
    assert levels_of(stopped).flatten().tolist() == [101, 100, 99]


@pytest.mark.parametrize("ball", (Ball("linf", 0.031), Ball("l2", 0.25)))
def test_it_is_no_weaker_than_rounding(ball: Ball) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
    x = pictures(1, images=40)
    y = model(x).argmax(1)
    found = PGD(ball, steps=5, step_size=ball.eps / 4)(model, x, y)
    rounded, searched = on_levels(ball, found, x), GreyLevels(ball, found)(model, x, y)
    others = torch.nn.functional.one_hot(y, 4).bool()

    def margins(images: Tensor) -> Tensor:
        logits = model(images)
        return logits.masked_fill(others, -torch.inf).amax(1) - logits[others]

    assert inside(ball, levels_of(searched), levels_of(x))
    assert (margins(searched) >= margins(rounded) - 1e-5).all()
    assert (margins(searched) > margins(rounded) + 1e-5).any(), "the steps have found nothing"


def test_it_states_how_it_searches() -> None:
    stated = GreyLevels(Ball("linf", 0.031), torch.zeros(1, 1, 2, 2), steps=7).describe()
    assert (stated["norm"], stated["eps"], stated["steps"], stated["levels"]) == ("linf", 0.031, 7, 256)
    with pytest.raises(Refusal, match="steps -1"):
        GreyLevels(Ball("linf", 0.031), torch.zeros(1, 1, 2, 2), steps=-1)
