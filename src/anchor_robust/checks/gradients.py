"""Whether the gradients that an attack follows are there."""

from functools import partial

import torch
from torch import Tensor

from ..attacks.base import Model
from ..attacks.gradient import forward_and_back
from ..attacks.margins import cross_entropy, fooled, margin
from ..errors import Refusal
from .finding import Finding, beyond, finding

REACH = "gradients reach the pixels"
SATURATED = "logits are not saturated"

# Sound models have no image without a gradient; one in a hundred may be dark, or otherwise degenerate.
WITHOUT_GRADIENT = 0.01
# Float32 ends at 1e-38, and the way back through a network multiplies by small numbers again.
UNDERFLOW = 1e-30
# Where cross-entropy works, a climb of the margin breaks a few points more (8 at most in published results, MART's).
AHEAD = 0.10


def steepness(model: Model, x: Tensor, y: Tensor, batch_size: int) -> dict[str, Tensor] | None:
    """Per image, [n]: the largest entry of the gradient of each loss; None if the model lets none through."""
    steep: dict[str, list[Tensor]] = {"ce": [], "margin": []}
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        for name, loss in (("ce", cross_entropy), ("margin", margin)):
            try:
                gradient = forward_and_back(model, images, partial(loss, y=labels))[2]
            except Refusal:
                return None
            steep[name].append(gradient.flatten(1).abs().amax(1))
    return {name: torch.cat(batches) for name, batches in steep.items()}


def reach_pixels(steep: dict[str, Tensor] | None) -> Finding:
    advice = (
        "no gradient attack can work here; look for rounding, JPEG, argmax or detach in the forward pass, let the way "
        "back pass around it (BPDA, arXiv 1802.00420), and until then trust black-box attacks alone"
    )
    if steep is None:
        return finding(REACH, True, "the logits carry no gradient to the pixels", advice)
    # NaN as well: a comparison with it is false.
    flat = int((~(steep["margin"] > 0)).sum())
    seen = f"the gradient of the margin is 0 or NaN for {flat} of {len(steep['margin'])} images"
    return finding(REACH, beyond(flat, len(steep["margin"]), WITHOUT_GRADIENT), seen, advice)


def not_saturated(steep: dict[str, Tensor], held_ce: Tensor, held_margin: Tensor) -> Finding:
    """`held_*`, bool [n]: which images withstand a climb of cross-entropy and one of the margin, else alike."""
    n = len(held_ce)
    vanished = int(((steep["ce"] < UNDERFLOW) & (steep["margin"] > 0)).sum())
    ahead = int((held_ce & ~held_margin).sum())
    seen = (
        f"the gradient of cross-entropy underflows for {vanished} of {n} images where that of the margin does not, and "
        f"the margin breaks {ahead} images that cross-entropy leaves"
    )
    advice = (
        "the logits are so large that cross-entropy is flat in float32 (distillation, a low temperature); attack the "
        "margin: PGD with loss margin, or AutoAttack"
    )
    fault = beyond(vanished, n, WITHOUT_GRADIENT) or beyond(ahead, n, AHEAD)
    return finding(SATURATED, fault, seen, advice)


def withstood(model: Model, x_adv: Tensor, y: Tensor) -> Tensor:
    """Which adversarials [n ...] the model still classifies rightly, bool [n]."""
    with torch.no_grad():
        return ~fooled(model(x_adv), y)
