"""mixup and CutMix: pixels come from the pair, and labels say how much from which."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from anchor_robust.data.mix import box, mix

CLASSES = 4
kinds = pytest.mark.parametrize("kind", ("mixup", "cutmix"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, h: int = 8, w: int = 10) -> tuple[Tensor, Tensor]:
    # One constant of its own per image, so that every pixel says where it comes from.
    return (torch.arange(1, n + 1) / 10).view(-1, 1, 1, 1).expand(n, 3, h, w).clone(), torch.arange(n) % CLASSES


@given(st.sampled_from(("mixup", "cutmix")), st.integers(0, 10_000), st.sampled_from((0.2, 1.0, 3.0)))
def test_labels_are_shares_that_sum_to_one(kind: str, seed: int, alpha: float) -> None:
    x, y = images()
    mixed = mix(x, y, CLASSES, kind, alpha, seeded(seed))
    assert (mixed.targets >= 0).all()
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(len(x)))
    assert torch.equal(mixed.targets.gather(1, mixed.labels[:, None])[:, 0], mixed.targets.amax(1))


@given(st.integers(0, 10_000))
def test_cutmix_labels_are_the_share_of_the_pixels(seed: int) -> None:
    x, y = images(CLASSES)
    mixed = mix(x, y, CLASSES, "cutmix", 1.0, seeded(seed))
    for image, target in zip(mixed.images, mixed.targets, strict=True):
        for label, constant in enumerate((x[:, 0, 0, 0]).tolist()):
            assert target[label].item() == pytest.approx((image == constant).double().mean().item(), abs=1e-6)


@given(st.integers(0, 10_000))
def test_mixup_is_linear_in_pixels_and_labels(seed: int) -> None:
    x, y = images(CLASSES)
    mixed = mix(x, y, CLASSES, "mixup", 1.0, seeded(seed))
    by_labels = (mixed.targets @ x[:, 0, 0, 0]).view(-1, 1, 1, 1).expand_as(x)
    torch.testing.assert_close(mixed.images, by_labels)


@kinds
def test_the_generator_alone_decides_and_the_batch_stays(kind: str) -> None:
    x, y = images()
    before, state = x.clone(), torch.get_rng_state()
    first, again = (mix(x, y, CLASSES, kind, 1.0, seeded(3)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.images, mix(x, y, CLASSES, kind, 1.0, seeded(4)).images)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_alpha_1_draws_shares_evenly_and_a_small_one_the_ends() -> None:
    x, y = images(2)
    y = torch.tensor([0, 1])

    def shares(alpha: float) -> Tensor:
        generator = seeded()
        return torch.stack([mix(x, y, 2, "mixup", alpha, generator).targets.amax(1)[0] for _ in range(400)])

    # Half of the draws pair an image with itself: share 1. Of the others max(share, 1 - share) is uniform on [.5, 1].
    assert shares(1.0).mean().item() == pytest.approx(0.5 * 1 + 0.5 * 0.75, abs=0.03)
    assert shares(0.05).mean() > 0.95


@pytest.mark.parametrize("area", (0.0, 0.25, 1.0))
def test_a_box_in_the_middle_has_its_area(area: float) -> None:
    top, bottom, left, right = box(16, 32, area, [0.5, 0.5])
    assert (bottom - top) * (right - left) == pytest.approx(area * 16 * 32)


def test_a_box_at_the_corner_is_cut() -> None:
    assert box(16, 16, 0.25, [0.0, 1.0]) == (0, 4, 12, 16)


def test_targets_are_those_of_the_labels_when_a_batch_is_one_image() -> None:
    x, y = images(1)
    assert torch.equal(mix(x, y, CLASSES, "cutmix", 1.0, seeded()).targets, F.one_hot(y, CLASSES).float())
