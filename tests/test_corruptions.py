"""Corruptions against other libraries' and slow derivations of CIFAR-10-C's formulas."""

import colorsys
import io
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from anchor_robust import data
from anchor_robust.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from anchor_robust.errors import Refusal
from anchor_robust.evaluation import silent_bar
from anchor_robust.evaluation.corrupted import corrupted

severities = pytest.mark.parametrize("severity", SEVERITIES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 10, 12, dtype=torch.float64, generator=seeded())


@severities
def test_noise_has_the_published_deviation(severity) -> None:
    grey = torch.full((20, 3, 32, 32), 0.5)
    noise = corrupt("gaussian_noise", severity, grey, seeded()) - 0.5
    assert noise.std().item() == pytest.approx([0.04, 0.06, 0.08, 0.09, 0.10][severity - 1], rel=0.02)
    assert abs(noise.mean().item()) < 0.002
    assert noise.equal(corrupt("gaussian_noise", severity, grey, seeded()) - 0.5)
    assert not noise.equal(corrupt("gaussian_noise", severity, grey, seeded(1)) - 0.5)


@severities
def test_blur_is_scipys_gaussian_filter(severity, x) -> None:
    sigma = [0.4, 0.6, 0.7, 0.8, 1.0][severity - 1]
    expected = gaussian_filter(x.numpy(), sigma=(0, 0, sigma, sigma), mode="nearest", truncate=4)
    torch.testing.assert_close(corrupt("gaussian_blur", severity, x, seeded()), torch.from_numpy(expected))


@severities
def test_brightness_raises_the_value_in_hsv(severity, x) -> None:
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0, 1, torch.tensor([0.9, 0.0, 0.45])
    lifted = corrupt("brightness", severity, x, seeded())
    for before, after in zip(
        x.permute(0, 2, 3, 1).reshape(-1, 3), lifted.permute(0, 2, 3, 1).reshape(-1, 3), strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        raised = min(value + [0.05, 0.1, 0.15, 0.2, 0.3][severity - 1], 1)
        assert after.tolist() == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, raised))


@severities
def test_contrast_keeps_the_mean_of_each_channel(severity, x) -> None:
    flat = corrupt("contrast", severity, x, seeded())
    share = [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1]
    for image, channel in np.ndindex(2, 3):
        mean = x[image, channel].mean()
        torch.testing.assert_close(flat[image, channel], (x[image, channel] - mean) * share + mean)


@severities
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_writes_and_reads(severity, channels) -> None:
    x = torch.rand(2, channels, 10, 12, generator=seeded())
    compressed = corrupt("jpeg", severity, x, seeded())
    for before, after in zip(x, compressed, strict=True):
        bytes_before = np.rint(before.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(bytes_before if channels == 3 else bytes_before[:, :, 0]).save(
            file, "JPEG", quality=[80, 65, 58, 50, 40][severity - 1]
        )
        expected = np.atleast_3d(np.asarray(Image.open(file))).transpose(2, 0, 1) / np.float32(255)
        torch.testing.assert_close(after, torch.from_numpy(expected))


@given(
    name=st.sampled_from(sorted(CORRUPTIONS)),
    severity=st.sampled_from(SEVERITIES),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_shape_type_and_range_stay(name, severity, channels, dtype, seed) -> None:
    x = torch.rand(2, channels, 5, 7, dtype=dtype, generator=seeded(seed)).mul(1.4).sub(0.2).clamp(0, 1)
    before = x.clone()
    corrupted = corrupt(name, severity, x, seeded())
    assert corrupted.shape == x.shape
    assert corrupted.dtype == dtype
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    assert x.equal(before)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_more_severe_is_further_away(name, x) -> None:
    distances = [(corrupt(name, severity, x, seeded()) - x).square().mean().item() for severity in SEVERITIES]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_what_cannot_be_done_is_refused(x, monkeypatch) -> None:
    for arguments, hint in [
        (("gaussian_noyse", 1, x), "did you mean gaussian_noise"),
        (("contrast", 0, x), "severity 0 given; allowed: 1"),
        (("contrast", 6, x), "severity 6"),
        (("contrast", 1, x * 255), "inside"),
        (("jpeg", 1, x[:, :2]), "2 channels"),
    ]:
        with pytest.raises(Refusal, match=hint):
            corrupt(*arguments, seeded())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(Refusal, match="pip install pillow"):
        corrupt("jpeg", 1, x, seeded())


def test_the_seed_reaches_the_corruptions() -> None:
    images, seen = data.load("digits", "test").first(6), []
    corrupted(lambda x: seen.append(x) or x.flatten(1)[:, :10], images, None, 6, 3, silent_bar)
    expected = corrupt("gaussian_noise", 1, images.pixels(slice(None)), torch.Generator().manual_seed(3))
    assert torch.equal(seen[0], expected)
