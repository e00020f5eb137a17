"""Whether the gradient attack is as strong as it has to be (Carlini et al., arXiv 1902.06705, section 4)."""

import math

import torch
from torch import Tensor

from ..threat import Ball
from .finding import Finding, beyond, finding

STEPS = "more steps are stronger"
WIDE = "a large ball breaks everything"
NOISE = "stronger than noise"
BLACK_BOX = "stronger than a black-box attack"
TRANSFER = "stronger than a transferred attack"

# On sound networks a climb of many steps ends below a single step for hardly an image.
LOWER = 0.10
# What a climb in a ball that holds the grey image may leave: it has few steps, and nobody searches there otherwise.
LEFT = 0.05
# An image at the edge may fall to the luck of another start; more than one in a hundred is no luck.
MISSED = 0.01
# Below this share of images that noise breaks there is nothing to compare an attack with.
NOISY = 0.02

WEAK = (
    "the gradients mislead (obfuscated gradients, arXiv 1802.00420), and the robust accuracy is an overestimate; run "
    "AutoAttack, look for the layer that hides the gradient, and attack around it"
)


def more_steps(after_one: Tensor, after_many: Tensor, steps: int) -> Finding:
    """From the cross-entropy [n] after one step of eps and after `steps` of a share of it, both from the image."""
    lower = int((after_many < after_one - 1e-6 * after_one.abs().clamp_min(1)).sum())
    seen = f"the loss after {steps} steps is below that after a single one for {lower} of {len(after_one)} images"
    return finding(STEPS, beyond(lower, len(after_one), LOWER), seen, WEAK)


def wide(ball: Ball, x: Tensor) -> Ball:
    """The least ball that holds the grey image, whatever the image: there no answer but one can be right."""
    reach = 0.5 if ball.norm == "linf" else 0.5 * math.sqrt(x[0].numel())
    return Ball(ball.norm, max(reach, ball.eps))


def breaks_everything(held: Tensor, ball: Ball) -> Finding:
    left = int(held.sum())
    seen = f"{left} of {len(held)} images are still classified rightly under PGD at {ball.norm} eps {ball.eps:.3g}"
    advice = f"every image of that ball can be made plain grey, so the attack has failed: {WEAK}"
    return finding(WIDE, beyond(left, len(held), LEFT), seen, advice)


def stronger_than(name: str, other: str, held: Tensor, held_other: Tensor) -> Finding:
    """`held` [n]: what gradient attacks leave standing; `held_other`: what the attack that should be weaker leaves."""
    missed = int((held & ~held_other).sum())
    seen = (
        f"gradients leave {int(held.sum())} of {len(held)} images standing and {other} {int(held_other.sum())}; "
        f"{missed} fall to {other} alone"
    )
    return finding(name, beyond(missed, len(held), MISSED), seen, WEAK)


def stronger_than_noise(held: Tensor, held_noise: Tensor) -> Finding:
    """As `stronger_than`; and of what noise leaves, gradients have to break as large a share as noise did of all."""
    compared = stronger_than(NOISE, "random noise", held, held_noise)
    n, fallen = len(held), int((~held_noise).sum())
    also_held = int((held_noise & held).sum())
    if compared["verdict"] == "pass" and beyond(fallen, n, NOISY) and beyond(also_held, n - fallen, 1 - fallen / n):
        seen = f"{compared['detail']}, and only {n - fallen - also_held} to gradients alone"
        return finding(NOISE, True, seen, WEAK)
    return compared


def precise_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy [n] in float64, where it does not end in a tie of zeros."""
    return torch.nn.functional.cross_entropy(logits.double(), y, reduction="none")
