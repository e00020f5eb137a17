"""What attacks search on: a faster form of the model under test, whose finds the model itself then judges."""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from .. import environment
from ..attacks.base import Local, Model
from ..attacks.gradient import forward_and_back
from ..models import Classifier, Folded, LogitsOnly

Precision = Literal["float32", "bf16"]
TOLERANCE = 1e-4  # of the largest logit
GRADIENT_TOLERANCE = 1e-3  # of their norm, where a ReLU may be on the other side of 0
COMPILED_FROM = 250_000  # passes of an image; below, compiling (half a minute) takes longer than it saves

log = logging.getLogger(__name__)


class InBf16(nn.Module):
    """A model whose matrix products and convolutions run in bfloat16; logits in float32."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        # A function is held as it is; a module becomes a child, so that attacks freeze it.
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.model(x).float()


def laid_out(model: Model, x: Tensor) -> Tensor:
    """Images in the memory layout in which convolutions are fastest, where the model is known to take it.

    Networks of ours were trained in it; in someone else's, a `view` may not survive it.
    """
    return x.contiguous(memory_format=torch.channels_last) if isinstance(model, LogitsOnly) else x


class Compiled(nn.Module):
    """A twin compiled for attacks that pass through it by the hundred thousand: once for logits alone, its weights
    frozen in, and once for gradients; each lazily, at the first pass of its kind, and only if it and the twin agree."""

    def __init__(self, twin: Folded) -> None:
        super().__init__()
        self.twin = twin
        # Of any batch size: images leave the batch as they fall.
        self.answers = torch.compile(twin, dynamic=True, options={"freezing": True})
        self.differentiable = torch.compile(twin, dynamic=True)
        self.trusted: dict[bool, bool] = {}

    def forward(self, x: Tensor) -> Tensor:
        with_gradient = x.requires_grad
        if with_gradient not in self.trusted:
            self.trusted[with_gradient] = self.trial(x.detach(), with_gradient)
        if with_gradient:
            return self.differentiable(x) if self.trusted[True] else self.twin(x)
        with torch.no_grad():
            return self.answers(x) if self.trusted[False] else self.twin(x)

    def locally(self, x: Tensor) -> Local | None:
        return self.twin.locally(x)

    def trial(self, x: Tensor, with_gradient: bool) -> bool:
        try:
            if with_gradient:
                (expected, given) = (gradient(net, x) for net in (self.twin, self.differentiable))
                return bool((given - expected).norm() <= GRADIENT_TOLERANCE * expected.norm())
            return agree(self.twin, self.answers, x, TOLERANCE)
        except Exception as error:  # what a compiler stumbles over is not ours to foresee
            log.debug("not compiled: %s", error)
            return False


def gradient(net: Model, x: Tensor) -> Tensor:
    return forward_and_back(net, x, lambda logits: logits.logsumexp(1))[-1]


def searched(model: Model, precision: Precision, x: Tensor) -> Model:
    """A faster form of `model` in evaluation mode; `x` [n c h w] are images on which the two have to agree."""
    twin = folded(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    fast = InBf16(twin or model) if precision == "bf16" else twin or model
    if twin and not agree(model, fast, x, 0.1 if precision == "bf16" else TOLERANCE):
        # A forward that tracing did not see whole: attacks on another function would find too little.
        return InBf16(model) if precision == "bf16" else model
    return fast


def compiled(search: Model, device: torch.device) -> Model:
    """What stages of COMPILED_FROM passes or more search on: `search` compiled, where that is possible."""
    on_processor = device.type == "cpu" and environment.has_compiler(device)
    return Compiled(search) if isinstance(search, Folded) and on_processor else search


def folded(model: Model, dtype: torch.dtype) -> nn.Module | None:
    if not (isinstance(model, LogitsOnly) and isinstance(model.classifier, Classifier)):
        return None
    twin = Folded(model.classifier, dtype)
    # torch's annotations know no memory_format without a device and a dtype.
    return twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # as said above


@torch.no_grad()
def agree(model: Model, twin: Model, x: Tensor, tolerance: float) -> bool:
    """Whether the logits differ by at most `tolerance` of the largest."""
    expected, given = model(x), twin(x)
    return bool((given - expected).abs().max() <= tolerance * expected.abs().max())
