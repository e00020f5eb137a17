"""One pass through the model and back: what a step of a white-box attack needs to know."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import Refusal
from .base import Model


def forward_and_back(model: Model, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n k], `loss` of the logits [n], and each image's gradient of its own loss [n ...], all detached.

    The gradient is by the images alone: going on into the parameters would waste a third of the work. Raises Refusal
    for a model that cuts the graph.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    losses = loss(logits)
    # Summed: the mean divides every image's gradient by n, and small ones would underflow to a step of 0. What requires
    # a gradient may be parameters that a function has closed over, and not the images.
    gradient = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
    if gradient is None:
        raise Refusal("the model's logits carry no gradient to its input; remove no_grad, detach or argmax inside it")
    return logits.detach(), losses.detach(), gradient
