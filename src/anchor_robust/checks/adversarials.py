"""Whether adversarial images stay adversarial when they are looked at again, and when they are saved."""

import torch
from torch import Tensor

from ..attacks.base import Model
from ..attacks.margins import fooled
from ..threat import Ball
from .finding import Finding, beyond, finding, skipped

AGAIN = "adversarials hold in float32"
EIGHT_BITS = "adversarials hold in 8 bits"

# Another order of the batch moves logits by rounding alone, which turns hardly an image.
TURNED = 0.01
# Rounding to grey levels is noise of at most 1/510, against which few adversarials at the edge are lost.
LOST = 0.10


@torch.no_grad()
def hold_in_float32(model: Model, ball: Ball, x: Tensor, y: Tensor, x_adv: Tensor) -> Finding:
    """Are x_adv [n ...], found to be misclassified, inside the ball of x, and wrong in another order of the batch?"""
    if not len(x):
        return skipped(AGAIN, "the attack found no adversarial image")
    outside = int((~ball.contains(x_adv.float(), x.float())).sum())
    turned = int((~fooled(model(x_adv.float().flip(0)).flip(0), y)).sum())
    seen = f"of {len(x)} adversarials {outside} lie outside the ball or [0, 1], and {turned} are right in a second pass"
    advice = "they should not have been counted; evaluate in float32, with a model that answers the same each time"
    return finding(AGAIN, outside > 0 or beyond(turned, len(x), TURNED), seen, advice)


@torch.no_grad()
def hold_in_8_bits(model: Model, ball: Ball, y: Tensor, x_adv: Tensor) -> Finding:
    """Are x_adv [n ...] still misclassified when every pixel is rounded to the nearest of 256 levels?"""
    if not len(y):
        return skipped(EIGHT_BITS, "the attack found no adversarial image")
    if ball.norm == "linf" and ball.eps < 1 / 255:
        return skipped(EIGHT_BITS, f"eps {ball.eps:.2g} is less than one grey level: 8 bits hold no such image")
    lost = int((~fooled(model((x_adv * 255).round() / 255), y)).sum())
    seen = f"{lost} of {len(y)} adversarials are classified rightly once rounded to 8 bits"
    advice = (
        "saved as pictures they are harmless; the model reacts to less than a grey level, so look at its first layers"
    )
    return finding(EIGHT_BITS, beyond(lost, len(y), LOST), seen, advice)
