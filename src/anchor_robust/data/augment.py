"""Random augmentation of whole batches, with an explicit generator and no loop over images.

Every function takes float images [n c h w] in [0, 1] and gives as many of the same shape, again in [0, 1]. A
generator on the CPU serves images on any device; the same generator state gives the same augmentation.
"""

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..draws import drawn

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601 red, green, blue, rounded as torchvision rounds them


def light(x: Tensor, padding: int, flip: bool, generator: Generator) -> Tensor:
    """The usual augmentation of small images: a random shift by up to `padding` pixels, and a mirror."""
    x = crop(x, padding, generator)
    return mirror(x, generator) if flip else x


def strong(x: Tensor, flip: bool, generator: Generator, *, cut: bool = True) -> Tensor:
    """SupCon's augmentation (Khosla et al., arXiv 2004.11362), in its order; without `cut` all of an image stays."""
    if cut:
        x = random_resized_crop(x, (0.2, 1.0), (3 / 4, 4 / 3), generator)
    if flip:
        x = mirror(x, generator)
    x = color_jitter(x, 0.4, 0.4, 0.4, 0.1, 0.8, generator)
    return grayscale(x, 0.2, generator)


def crop(x: Tensor, padding: int, generator: Generator) -> Tensor:
    """Cut h x w windows at random from images with `padding` black pixels around them."""
    n, _, h, w = x.shape
    shifts = drawn(lambda shape, **on: torch.randint(2 * padding + 1, shape[::-1], **on).T, (n, 2), generator)
    down, right = shifts.to(x.device).unbind(1)
    windows = F.pad(x, (padding,) * 4).unfold(2, h, 1).unfold(3, w, 1)  # a view [n c 2p+1 2p+1 h w]
    return windows[torch.arange(n, device=x.device), :, down, right]


def mirror(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    return torch.where(uniform(x, generator) < 0.5, x.flip(3), x)


def random_resized_crop(
    x: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> Tensor:
    """Cut a random box from each image and stretch it, bilinearly, to the image's size.

    As in torchvision, a box covers a fraction of the image's area uniform in `scale`, and its width / height is
    log-uniform in `ratio`. Unlike there, a side longer than the image is cut to it, not drawn again, and boxes
    need not start at whole pixels.
    """
    h, w = x.shape[2:]
    area = uniform(x, generator, *scale) * h * w
    aspect = uniform(x, generator, *map(math.log, ratio)).exp()
    # Sides as fractions of the image's, and the box's centre in the coordinates of affine_grid, -1..1.
    width, height = ((area * aspect).sqrt() / w).clamp(max=1), ((area / aspect).sqrt() / h).clamp(max=1)
    right, down = uniform(x, generator, -1, 1) * (1 - width), uniform(x, generator, -1, 1) * (1 - height)
    none = torch.zeros_like(width)
    theta = torch.cat([width, none, right, none, height, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False).clamp_(0, 1)


def color_jitter(
    x: Tensor,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    probability: float,
    generator: Generator,
) -> Tensor:
    """Jitter the colours of each image with `probability`, by torchvision's formulas.

    Of strength s, brightness, contrast and saturation take a factor uniform in [max(0, 1 - s), 1 + s]; hue turns
    the HSV hue by a fraction of the circle uniform in [-s, s]. The order of the four is drawn once for the batch,
    the amounts for each image. Images that have not three channels keep their saturation and hue.
    """

    def factor(strength: float) -> Tensor:
        return uniform(x, generator, max(0.0, 1 - strength), 1 + strength)

    jittered = x
    for step in torch.randperm(4, generator=on_host(generator)).tolist():
        if step == 0 and brightness:
            jittered = (jittered * factor(brightness)).clamp_(max=1)
        elif step == 1 and contrast:
            jittered = blend(luminance(jittered).mean((2, 3), keepdim=True), jittered, factor(contrast))
        elif step == 2 and saturation and x.shape[1] == 3:
            jittered = blend(luminance(jittered), jittered, factor(saturation))
        elif step == 3 and hue and x.shape[1] == 3:
            jittered = turn_hue(jittered, uniform(x, generator, -hue, hue))
    return torch.where(uniform(x, generator) < probability, jittered, x)


def grayscale(x: Tensor, probability: float, generator: Generator) -> Tensor:
    """Replace each image by its luminance, in every channel, with `probability`."""
    return torch.where(uniform(x, generator) < probability, luminance(x), x)


def uniform(x: Tensor, generator: Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A number in [low, high) for each image, [n 1 1 1]."""

    def between(shape: tuple[int, ...], generator: Generator, **on: Any) -> Tensor:
        return torch.empty(shape, **on).uniform_(low, high, generator=generator)

    return drawn(between, (len(x), 1, 1, 1), generator).to(x)


def on_host(generator: Generator) -> Generator:
    """A generator on the CPU for what decides the next operation: its numbers must not be waited for.

    That of an accelerator is left as it is, and its state, which the host knows, becomes the seed of another.
    """
    if generator.device.type == "cpu":
        return generator
    digest = hashlib.sha256(generator.get_state().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def luminance(x: Tensor) -> Tensor:
    """How bright each pixel looks, [n 1 h w]: red, green and blue weighted, or the mean of other channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def blend(start: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """From `start` (factor 0) through `x` (1) and beyond, kept in [0, 1]."""
    return torch.lerp(start, x, factor).clamp_(0, 1)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of [n 3 h w] by `turn` circles [n 1 1 1]; value and saturation stay."""
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = high - low
    red, green, blue = x.split(1, dim=1)
    reach = chroma.clamp(min=torch.finfo(x.dtype).tiny)  # a grey pixel has no hue; any will do
    hue = torch.where(green == high, 2 + (blue - red) / reach, 4 + (red - green) / reach)
    hue = torch.where(red == high, (green - blue) / reach, hue)  # in sixths of the circle
    # A channel is at `high` within one sixth of its own hue, at `low` beyond two sixths, and linear between.
    away = (hue + 6 * turn - torch.arange(0, 6, 2, device=x.device).view(3, 1, 1) + 3).remainder(6).sub_(3).abs_()
    return high - chroma * away.sub_(1).clamp_(0, 1)
