"""Does a model of somebody else's do what every attack relies on? Tried on a few images before hours of work."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refusal, one_line

FACTORY = "wrap it in a factory of yours: --model your.module:factory"


def check_logits(model: nn.Module, x: Tensor, classes: int, told: str) -> None:
    """Refuse a model that does not map images x [n c h w] to finite, differentiable logits [n classes]."""
    with torch.enable_grad():
        pixels = x.detach().clone().requires_grad_()
        logits = answers(model, pixels, told)
        if logits.shape[1] != classes:
            raise Refusal(
                f"{told} gives {logits.shape[1]} logits, but the images have {classes} classes; give images of its "
                "classes, and name all of them where some have no image: in classes.txt, or `classes` in an .npz"
            )
        if not logits.isfinite().all():
            raise Refusal(f"{told} gives logits that are not finite; is its normalisation right, is it complete?")
        reached = logits.requires_grad and torch.autograd.grad(logits.sum(), pixels, allow_unused=True)[0] is not None
    if not reached:
        raise Refusal(
            f"{told} gives logits without a gradient to the pixels, which attacks follow; leave out no_grad and detach"
        )


@torch.no_grad()
def check_steady(model: nn.Module, x: Tensor, told: str) -> None:
    """Refuse a program that was saved while training: its Dropout or BatchNorm cannot be put into evaluation mode."""
    logits = answers(model, x, told)
    part = (len(x) + 1) // 2
    pairs = ((answers(model, x, told), logits), (answers(model, x[:part], told), logits[:part]))
    tolerance = 1e-3 * logits.abs().max().item()
    if not all(torch.allclose(first, second, rtol=0, atol=tolerance) for first, second in pairs):
        raise Refusal(
            f"{told} gives an image other logits each time, or in another batch, as models do while training; "
            f"save it after model.eval(), or if it is meant so, {FACTORY}"
        )


def answers(model: nn.Module, x: Tensor, told: str) -> Tensor:
    try:
        logits: Any = model(x)
    except Exception as error:  # a model of the user's can fail in any way
        raise Refusal(f"{told} fails on {len(x)} images {list(x.shape[1:])} ({reason(error)}); {FACTORY}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        given = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise Refusal(f"{told} returned {given} for {len(x)} images; allowed: logits [n classes]; {FACTORY}")
    return logits


def reason(error: Exception) -> str:
    """What went wrong; TorchScript says it last, after its own traceback."""
    text = one_line(error)
    return text.rpartition("RuntimeError: ")[2] if "TorchScript" in text else text
