import colorsys
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchor_robust.data import augment
from anchor_robust.data.augment import color_jitter, crop, grayscale, light, mirror, random_resized_crop, strong


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, c: int = 3, h: int = 6, w: int = 5, seed: int = 0) -> torch.Tensor:
    """Random pictures with some black, white, grey and nearly grey, where rounding and hue are at their worst."""
    x = torch.rand(n, c, h, w, generator=seeded(seed))
    x[:, :, 1, 1] = 0.5 + x[:, :, 1, 1] / 2000
    x[:, :, 0, 0], x[:, :, 0, 1], x[:, :, 1, 0] = 0, 1, 0.5
    return x


EVERY = {
    "crop": lambda x, g: crop(x, 2, g),
    "mirror": mirror,
    "random_resized_crop": lambda x, g: random_resized_crop(x, (0.2, 1.0), (3 / 4, 4 / 3), g),
    "color_jitter": lambda x, g: color_jitter(x, 0.4, 0.4, 0.4, 0.1, 0.8, g),
    "fierce color_jitter": lambda x, g: color_jitter(x, 5.0, 5.0, 5.0, 0.5, 1.0, g),
    "grayscale": lambda x, g: grayscale(x, 0.5, g),
    "light": lambda x, g: light(x, 1, True, g),
    "strong": lambda x, g: strong(x, True, g),
}


@pytest.mark.parametrize("name", EVERY)
@given(
    n=st.integers(1, 6),
    c=st.sampled_from([1, 2, 3]),
    h=st.integers(2, 7),
    w=st.integers(2, 7),
    seed=st.integers(0, 999),
)
def test_shape_range_type_and_determinism(name, n, c, h, w, seed):
    x = pictures(n, c, h, w, seed)
    before, state = x.clone(), torch.random.get_rng_state()
    once = EVERY[name](x, seeded(seed))
    assert once.shape == x.shape
    assert once.dtype == x.dtype
    assert 0 <= once.min() <= once.max() <= 1
    assert torch.equal(once, EVERY[name](x, seeded(seed)))
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", EVERY)
def test_memory_layout_and_precision_do_not_matter(name):
    x = pictures(16, 3, 8, 8)
    plain = EVERY[name](x, seeded())
    torch.testing.assert_close(EVERY[name](x.to(memory_format=torch.channels_last), seeded()), plain)
    torch.testing.assert_close(EVERY[name](x.double(), seeded()).float(), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_images_of_a_batch_are_augmented_differently(name):
    x = pictures(1, 3, 8, 8).expand(64, -1, -1, -1)
    assert len(EVERY[name](x, seeded()).flatten(1).unique(dim=0)) > 1


# --- crop and flip ----------------------------------------------------------------------------------------------


def test_crop_without_padding_and_light_without_both_change_nothing():
    x = pictures(4)
    assert torch.equal(crop(x, 0, seeded()), x)
    assert torch.equal(light(x, 0, False, seeded()), x)


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """`image` [c h w] as seen through a window moved `down` and `right`, black outside; the slow way."""
    out = torch.zeros_like(image)
    _, h, w = image.shape
    for i, j in itertools.product(range(h), range(w)):
        if 0 <= i + down < h and 0 <= j + right < w:
            out[:, i, j] = image[:, i + down, j + right]
    return out


@given(padding=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_crop_is_a_shift_and_every_shift_comes_up(padding, seed):
    image = pictures(1, 2, 4, 5, seed)[0]
    steps = range(-padding, padding + 1)
    shifts = {tuple(shifted(image, *by).flatten().tolist()) for by in itertools.product(steps, steps)}
    crops = crop(image.expand(600, -1, -1, -1), padding, seeded(seed))
    assert {tuple(one.flatten().tolist()) for one in crops} == shifts


def test_flip_is_an_exact_mirror_of_half_the_images():
    x = pictures(1000)
    flipped = mirror(x, seeded())
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(flipped, x, strict=True)])
    same = (flipped == x).flatten(1).all(1)
    assert torch.equal(mirrored, ~same)
    assert 440 < mirrored.sum() < 560


# --- random resized crop ----------------------------------------------------------------------------------------


def test_the_whole_image_is_a_box_too():
    x = pictures(4)
    torch.testing.assert_close(random_resized_crop(x, (1, 1), (5 / 6, 5 / 6), seeded()), x)  # w / h of the pictures


def test_a_white_image_stays_white_to_its_edges():
    out = EVERY["random_resized_crop"](torch.ones(3000, 2, 7, 5), seeded())
    torch.testing.assert_close(out, torch.ones_like(out))
    assert out.max() <= 1  # interpolation weights may sum to a little more


def boxes(n: int, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[torch.Tensor, ...]:
    """Left, right, top, bottom edges [n] of drawn boxes as fractions, read off pictures of the coordinates."""
    side = 16
    ramp = (torch.arange(side) + 0.5) / side
    x = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)]).expand(n, -1, -1, -1)
    out = random_resized_crop(x, scale, ratio, seeded()).double()
    inside = slice(4, -4)  # bilinear sampling is exact on a ramp, but for the image's own border
    across, down = out[:, 0, side // 2, inside], out[:, 1, inside, side // 2]
    edges = []
    for line in (across, down):
        step = (line[:, -1] - line[:, 0]) / (line.shape[1] - 1)
        start = line[:, 0] - 4.5 * step
        edges += [start, start + side * step]
    return tuple(edges)


def test_boxes_follow_torchvisions_distribution():
    left, right, top, bottom = boxes(4000, (0.2, 0.5), (3 / 4, 4 / 3))
    width, height = right - left, bottom - top
    area, aspect = width * height, (width / height).log() / math.log(4 / 3)
    assert area.min() > 0.2 - 1e-4
    assert area.max() < 0.5 + 1e-4
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert area.std() == pytest.approx(0.3 / 12**0.5, abs=0.01)
    assert aspect.abs().max() < 1 + 1e-4
    assert aspect.mean() == pytest.approx(0, abs=0.03)
    assert aspect.std() == pytest.approx(2 / 12**0.5, abs=0.02)
    for low, room in ((left, 1 - width), (top, 1 - height)):
        place = low / room
        assert place.min() > -1e-3
        assert place.max() < 1 + 1e-3
        assert place.mean() == pytest.approx(0.5, abs=0.02)
        assert place.std() == pytest.approx(1 / 12**0.5, abs=0.01)
    assert abs(torch.corrcoef(torch.stack([left / (1 - width), top / (1 - height)]))[0, 1]) < 0.06


def test_a_box_longer_than_the_image_is_cut_to_it():
    left, right, top, bottom = boxes(50, (0.5, 0.5), (4, 4))  # 1.41 by 0.35 before it is cut
    torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-4, rtol=0)
    torch.testing.assert_close(right, torch.ones_like(right), atol=1e-4, rtol=0)
    torch.testing.assert_close(bottom - top, torch.full_like(top, 0.5**1.5 / 2**0.5 * 2**0.5), atol=1e-4, rtol=0)


# --- colours ----------------------------------------------------------------------------------------------------


def luma(r: float, g: float, b: float) -> float:
    return 0.2989 * r + 0.587 * g + 0.114 * b


def clip(v: float) -> float:
    return min(max(v, 0.0), 1.0)


def slow_jitter(image: torch.Tensor, kind: str, amount: float) -> torch.Tensor:
    """torchvision's adjust_<kind> of one image [3 h w], pixel by pixel."""
    out = torch.empty_like(image)
    _, h, w = image.shape
    every = list(itertools.product(range(h), range(w)))
    mean = sum(luma(*image[:, i, j].tolist()) for i, j in every) / len(every)
    for i, j in every:
        rgb = image[:, i, j].tolist()
        if kind == "hue":
            hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
            new = colorsys.hsv_to_rgb((hue + amount) % 1, saturation, value)
        else:
            other = {"brightness": 0.0, "contrast": mean, "saturation": luma(*rgb)}[kind]
            new = [clip(amount * v + (1 - amount) * other) for v in rgb]
        out[:, i, j] = torch.tensor(new)
    return out


KINDS = ("brightness", "contrast", "saturation", "hue")


@pytest.mark.parametrize("kind", KINDS)
@given(strength=st.floats(0.05, 0.5), seed=st.integers(0, 999))
def test_one_kind_of_jitter_equals_the_slow_way(kind, strength, seed):
    x = pictures(3, 3, 3, 4, seed)
    amounts = []
    with pytest.MonkeyPatch.context() as patch:
        draw = augment.uniform
        patch.setattr(augment, "uniform", lambda *a: amounts.append(draw(*a)) or amounts[-1])
        out = color_jitter(x, *(strength * (k == kind) for k in KINDS), 1.0, seeded(seed))
    slow = [slow_jitter(image, kind, amount) for image, amount in zip(x, amounts[0].flatten().tolist(), strict=True)]
    torch.testing.assert_close(out, torch.stack(slow), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "kind, low, high", [("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.6, 1.4), ("hue", -0.4, 0.4)]
)
def test_amounts_are_uniform_in_their_range(kind, low, high, monkeypatch):
    amounts = []
    draw = augment.uniform
    monkeypatch.setattr(augment, "uniform", lambda *a: amounts.append(draw(*a)) or amounts[-1])
    color_jitter(pictures(4000, 3, 2, 2), *(0.4 * (k == kind) for k in KINDS), 1.0, seeded())
    drawn = amounts[0]
    assert low <= drawn.min() < low + 0.01
    assert high - 0.01 < drawn.max() <= high
    assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.02)


def test_a_strength_above_one_does_not_turn_colours_negative(monkeypatch):
    amounts = []
    draw = augment.uniform
    monkeypatch.setattr(augment, "uniform", lambda *a: amounts.append(draw(*a)) or amounts[-1])
    color_jitter(pictures(500), 3.0, 0, 0, 0, 1.0, seeded())
    assert 0 <= amounts[0].min() < 0.1


def test_turning_the_hue_by_a_third_swaps_the_channels_and_a_whole_turn_nothing():
    x = pictures(4)
    torch.testing.assert_close(augment.turn_hue(x, torch.full((4, 1, 1, 1), 1 / 3)), x[:, [2, 0, 1]], atol=2e-6, rtol=0)
    torch.testing.assert_close(augment.turn_hue(x, torch.ones(4, 1, 1, 1)), x, atol=2e-6, rtol=0)


def test_jitter_without_strength_or_probability_changes_nothing():
    x = pictures(8)
    assert torch.equal(color_jitter(x, 0, 0, 0, 0, 1.0, seeded()), x)
    assert torch.equal(color_jitter(x, 0.4, 0.4, 0.4, 0.1, 0.0, seeded()), x)


def test_the_order_of_the_jitter_is_drawn():
    x = pictures(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            augment, "uniform", lambda x, g, low=0.0, high=1.0: torch.full((1, 1, 1, 1), 0.25 * low + 0.75 * high)
        )
        results = torch.cat([color_jitter(x, 0.9, 0.9, 0.9, 0.3, 1.0, seeded(seed)) for seed in range(300)])
    # Hue commutes with brightness, some orders clip alike: many, though not all 24, differ.
    assert len((results * 1000).round().flatten(1).unique(dim=0)) > 8


@pytest.mark.parametrize("channels", [1, 2])
def test_jitter_without_colours_is_brightness_and_contrast_only(channels):
    x = pictures(8, channels)
    assert torch.equal(color_jitter(x, 0, 0, 0.4, 0.4, 1.0, seeded()), x)
    assert not torch.equal(color_jitter(x, 0.4, 0, 0, 0, 1.0, seeded()), x)
    assert not torch.equal(color_jitter(x, 0, 0.4, 0, 0, 1.0, seeded()), x)


def test_grayscale_is_the_luminance_in_every_channel():
    x = pictures(3)
    grey = grayscale(x, 1.0, seeded())
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(grey[:, 0], torch.einsum("nchw,c->nhw", x, torch.tensor([0.2989, 0.587, 0.114])))
    assert torch.equal(grayscale(x, 0.0, seeded()), x)
    torch.testing.assert_close(grayscale(pictures(3, 1), 1.0, seeded()), pictures(3, 1))


@pytest.mark.parametrize("probability", [0.2, 0.8])
@pytest.mark.parametrize(
    "touch", [lambda x, p, g: grayscale(x, p, g), lambda x, p, g: color_jitter(x, 0.4, 0, 0, 0, p, g)]
)
def test_each_image_is_touched_with_the_probability(touch, probability):
    x = pictures(2000, 3, 2, 2)
    touched = (touch(x, probability, seeded()) != x).flatten(1).any(1).double().mean()
    assert touched == pytest.approx(probability, abs=0.04)


# --- the two recipes --------------------------------------------------------------------------------------------


def test_light_is_crop_then_flip():
    x = pictures(16)
    generator = seeded()
    assert torch.equal(light(x, 2, True, seeded()), mirror(crop(x, 2, generator), generator))
    assert torch.equal(light(x, 2, False, seeded()), crop(x, 2, seeded()))


@pytest.mark.parametrize("mirrored", [True, False])
def test_strong_is_supcons_augmentation_in_its_order(mirrored):
    x = pictures(16)
    generator = seeded()
    expected = random_resized_crop(x, (0.2, 1.0), (3 / 4, 4 / 3), generator)
    if mirrored:
        expected = mirror(expected, generator)
    expected = color_jitter(expected, 0.4, 0.4, 0.4, 0.1, 0.8, generator)
    expected = grayscale(expected, 0.2, generator)
    assert torch.equal(strong(x, mirrored, seeded()), expected)


def test_strong_can_leave_the_whole_image_in_view() -> None:
    x = pictures(16)
    generator = seeded()
    expected = grayscale(color_jitter(mirror(x, generator), 0.4, 0.4, 0.4, 0.1, 0.8, generator), 0.2, generator)
    assert torch.equal(strong(x, True, seeded(), cut=False), expected)
