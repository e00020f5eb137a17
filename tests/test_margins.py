"""The losses of attacks agree with slow float64 loops, and ask for no more classes than there are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchor_robust.attacks.margins import cross_entropy, dlr, margin, ranked_target, targeted_dlr, targeted_margin
from anchor_robust.errors import Refusal


def some(classes: int, images: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (images,), generator=generator)
    target = (y + torch.randint(1, classes, (images,), generator=generator)) % classes
    return logits, y, target


def best_other(z: list[float], y: int) -> float:
    return max(value for j, value in enumerate(z) if j != y)


def slow_dlr(z: list[float], y: int) -> float:
    ordered = sorted(z, reverse=True)
    scale = ordered[0] - ordered[2] if len(z) >= 3 else 1
    return -(z[y] - best_other(z, y)) / scale


def slow_targeted_dlr(z: list[float], y: int, t: int) -> float:
    ordered = sorted(z, reverse=True)
    scale = ordered[0] - (ordered[2] + ordered[3]) / 2 if len(z) >= 4 else 1
    return -(z[y] - z[t]) / scale


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_losses_agree_with_loops(classes) -> None:
    logits, y, target = some(classes)
    for losses, slow in [
        (cross_entropy(logits, y), lambda z, y, t: math.log(sum(map(math.exp, z))) - z[y]),
        (margin(logits, y), lambda z, y, t: best_other(z, y) - z[y]),
        (targeted_margin(logits, y, target), lambda z, y, t: z[t] - z[y]),
        (dlr(logits, y), lambda z, y, t: slow_dlr(z, y)),
        (targeted_dlr(logits, y, target), slow_targeted_dlr),
    ]:
        rows = zip(logits.tolist(), y.tolist(), target.tolist(), strict=True)
        torch.testing.assert_close(losses, torch.tensor([slow(*row) for row in rows], dtype=torch.float64))


@given(scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_dlr_feels_neither_scale_nor_shift(scale, shift) -> None:
    logits, y, target = some(10)
    torch.testing.assert_close(dlr(scale * logits + shift, y), dlr(logits, y))
    torch.testing.assert_close(targeted_dlr(scale * logits + shift, y, target), targeted_dlr(logits, y, target))


def test_half_precision_is_widened_first() -> None:
    logits, y, target = (values for values in some(10))
    half = logits.bfloat16()
    for losses in (cross_entropy(half, y), margin(half, y), dlr(half, y), targeted_dlr(half, y, target)):
        assert losses.dtype == torch.float32
    torch.testing.assert_close(dlr(half, y), dlr(half.float(), y), rtol=0, atol=0)


def test_targets_are_ranked_among_the_wrong_classes() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 2.0, 0.0]])
    y = torch.tensor([0, 1])
    assert [ranked_target(logits, y, rank).tolist() for rank in (1, 2, 3)] == [[2, 0], [1, 2], [3, 3]]
    with pytest.raises(Refusal, match=r"^target 4 given; allowed: 1 to 3,"):
        ranked_target(logits, y, 4)
