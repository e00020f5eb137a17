"""What attacks search on: a faster form of the model under test, whose finds the model itself then judges."""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from .. import environment
from ..models import Classifier, Folded, LogitsOnly
from .verdicts import Model

Precision = Literal["float32", "bf16"]
TOLERANCE = 1e-4  # of the largest logit
COMPILED_FROM = 500_000  # image passes; below, compiling (half a minute) takes longer than it saves

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
    """A twin compiled twice: with its weights frozen in for forward passes, which Square takes by the thousand, and for
    gradients."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin
        # Of any batch size: images leave the batch as they fall.
        self.answers = torch.compile(twin, dynamic=True, options={"freezing": True})
        self.climbs = torch.compile(twin, dynamic=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return self.climbs(x)
        with torch.no_grad():
            return self.answers(x)


def compiled(twin: Model, model: Model, x: Tensor) -> Model:
    """`twin` compiled, if it compiles and answers as `model` does on images x [n c h w]; else as it is."""
    if not isinstance(twin, nn.Module):
        return twin
    try:
        fast = Compiled(twin)
        return fast if agree(model, fast, x, TOLERANCE) else twin
    except Exception as error:  # what a compiler stumbles over is not ours to foresee
        log.debug("not compiled: %s", error)
        return twin


def searched(model: Model, precision: Precision, x: Tensor, passes: int = 0) -> Model:
    """A faster form of `model` in evaluation mode; `x` [n c h w] are images on which the two have to agree.

    `passes` is how many images will go through it in all: from COMPILED_FROM on, a float32 twin is compiled on a
    processor with a compiler at hand.
    """
    twin = folded(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    fast = InBf16(twin or model) if precision == "bf16" else twin or model
    if twin and not agree(model, fast, x, 0.1 if precision == "bf16" else TOLERANCE):
        # A forward that tracing did not see whole: attacks on another function would find too little.
        return InBf16(model) if precision == "bf16" else model
    repays = precision == "float32" and passes >= COMPILED_FROM and not x.is_cuda
    if twin and repays and environment.has_compiler(x.device):
        return compiled(fast, model, x)
    return fast


def folded(model: Model, dtype: torch.dtype) -> nn.Module | None:
    if not (isinstance(model, LogitsOnly) and isinstance(model.classifier, Classifier)):
        return None
    twin = Folded(model.classifier, dtype)
    # torch's annotations know no memory_format without a device and a dtype.
    return twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def agree(model: Model, twin: Model, x: Tensor, tolerance: float) -> bool:
    """Whether the logits differ by at most `tolerance` of the largest."""
    expected, given = model(x), twin(x)
    return bool((given - expected).abs().max() <= tolerance * expected.abs().max())
