"""Of several tries at an image, the one that does most harm."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..threat import per_image
from .base import Model
from .margins import fooled


def worst(tries: Iterable[Tensor], damage: Callable[[Tensor], Tensor]) -> Tensor:
    """Per image, the first of the tries [n ...] with the highest damage [n]; a single try is not measured at all."""
    remaining = iter(tries)
    kept, most = next(remaining), None
    for x_adv in remaining:
        most = damage(kept) if most is None else most
        harm = damage(x_adv)
        kept = torch.where(per_image(harm > most, kept), x_adv, kept)
        most = most.maximum(harm)
    return kept


@torch.no_grad()
def damage(model: Model, x_adv: Tensor, y: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Per image, [n]: the loss of the logits, and infinity once the model is fooled, which no later try can beat."""
    logits = model(x_adv)
    return loss(logits).masked_fill(fooled(logits, y), math.inf)
