"""Common corruptions of whole batches, in five severities (Hendrycks and Dietterich, arXiv 1903.12261).

The parameters are those of CIFAR-10-C, whose files are moreover cut to 8 bits. A corruption is no attack: it knows no
model, and no ball holds it.
"""

import io
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import Refusal
from ..lookup import named
from .images import check_pixels
from .pictures import pillow

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(name: str, severity: int, x: Tensor, generator: Generator) -> Tensor:
    """Images x [n c h w] in [0, 1] under the corruption `name`, one of `CORRUPTIONS`; same shape, type and range.

    Only noise draws from the generator; one on the CPU serves images on any device. Raises Refusal for an unknown
    name or severity, for pixels outside [0, 1], and for JPEG on images of 2 or more than 3 channels.
    """
    distort, strengths = named("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise Refusal(f"severity {severity!r} given; allowed: 1 (mild) to 5 (severe)")
    check_pixels(x)
    return distort(x, strengths[severity - 1], generator).clamp(0, 1)


def gaussian_noise(x: Tensor, deviation: float, generator: Generator) -> Tensor:
    """x + N(0, deviation^2), each pixel and channel for itself."""
    noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return x + deviation * noise.to(x.device)


def gaussian_blur(x: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Convolution with a Gaussian of `deviation` pixels, cut at four deviations; the border is continued outwards."""
    reach = int(4 * deviation + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-offsets.square() / (2 * deviation**2))
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    flat = F.pad(x.reshape(-1, 1, *x.shape[2:]), (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, weights), weights.mT).view_as(x)


def brightness(x: Tensor, lift: float, generator: Generator) -> Tensor:
    """HSV's value, the largest channel, raised by `lift` up to 1; hue and saturation stay.

    At fixed hue and saturation all channels are proportional to the value; black, which has no hue, turns grey.
    """
    value = x.amax(1, keepdim=True)
    raised = (value + lift).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.clamp_min(torch.finfo(x.dtype).tiny)), raised)


def contrast(x: Tensor, share: float, generator: Generator) -> Tensor:
    """Each channel of each image pulled to its mean, so that `share` of the deviation is left."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + share * (x - mean)


def jpeg(x: Tensor, quality: float, generator: Generator) -> Tensor:
    """Compressed as a JPEG file of that quality and read again, by pillow; rounded to 8 bits on the way."""
    image_of = pillow()
    if x.shape[1] not in (1, 3):
        raise Refusal(f"jpeg of images with {x.shape[1]} channels asked for; allowed: 1 (grey) or 3 (red, green, blue)")
    pictures = []
    for picture in x.mul(255).round().byte().permute(0, 2, 3, 1).cpu():
        file = io.BytesIO()
        image_of.fromarray(picture.squeeze(2).numpy()).save(file, "JPEG", quality=int(quality))
        with image_of.open(file) as read:
            height, width = read.height, read.width
            pictures.append(torch.frombuffer(bytearray(read.tobytes()), dtype=torch.uint8).view(height, width, -1))
    return torch.stack(pictures).permute(0, 3, 1, 2).to(x).div(255)


Distortion = Callable[[Tensor, float, Generator], Tensor]
CORRUPTIONS: dict[str, tuple[Distortion, tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": (contrast, (0.75, 0.50, 0.40, 0.30, 0.15)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40)),
}
