"""Whether the model gets pixels on the scale that it was trained on."""

import torch
from torch import Tensor

from ..attacks.base import Model
from ..errors import one_line
from .finding import Finding, beyond, finding, skipped

NORMALISED = "inputs normalised once"
# A model on its own scale loses by every change of scale. A gain of less than five points does not spoil a number.
GAIN = 0.05


def normalised_once(model: Model, x: Tensor, y: Tensor, right: Tensor) -> Finding:
    """Is x [n c h w], of which `right` [n] are classified rightly, better classified on another scale?"""
    best, gain, sure = "", 0.0, False
    for change, rescaled in scales(x).items():
        try:
            with torch.no_grad():
                now = torch.cat([model(images).argmax(1) for images in rescaled.split(100)]) == y
        except Exception as error:  # a model that refuses other pixels than [0, 1] has settled the question
            return skipped(NORMALISED, f"the model takes no pixels outside [0, 1] ({one_line(error)})")
        won, lost = int((now & ~right).sum()), int((right & ~now).sum())
        if (won - lost) / len(x) > gain:
            best, gain, sure = change, (won - lost) / len(x), beyond(won, won + lost, 0.5)
    accuracy = right.double().mean().item()
    if not (sure and gain >= GAIN):
        return finding(
            NORMALISED, False, f"no other scale of the {len(x)} images gives clearly more than {accuracy:.1%}", ""
        )
    seen = f"accuracy rises from {accuracy:.1%} to {accuracy + gain:.1%} when the images are {best}"
    advice = (
        "the model is not on the scale of its training; normalise exactly once, inside the model, by its own numbers"
    )
    return finding(NORMALISED, True, seen, advice)


def scales(x: Tensor) -> dict[str, Tensor]:
    """What the usual mistakes leave out or do twice, undone."""
    over = [dimension for dimension in range(x.ndim) if dimension != 1]
    mean, deviation = x.mean(over, keepdim=True), x.std(over, keepdim=True).clamp_min(1e-6)
    return {
        "normalised by their mean and deviation first": (x - mean) / deviation,
        "un-normalised by their mean and deviation first": x * deviation + mean,
        "moved from [0, 1] to [-1, 1] first": 2 * x - 1,
        "multiplied by 255 first": x * 255,
    }
