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
COMPILED_FROM = 250_000  # forward passes of an image; below, compiling (half a minute) takes longer than it saves

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
    """A twin compiled with its weights frozen in, for attacks that ask for logits by the thousand; lazily, at the first
    question, and only if the two then agree. Gradients go through the twin as it is: compiling gains them little."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin
        # Of any batch size: images leave the batch as they fall.
        self.answers = torch.compile(twin, dynamic=True, options={"freezing": True})
        self.trusted: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return self.twin(x)
        if self.trusted is None:
            self.trusted = self.trial(x)
        with torch.no_grad():
            return self.answers(x) if self.trusted else self.twin(x)

    def trial(self, x: Tensor) -> bool:
        try:
            return agree(self.twin, self.answers, x, TOLERANCE)
        except Exception as error:  # what a compiler stumbles over is not ours to foresee
            log.debug("not compiled: %s", error)
            return False


def searched(model: Model, precision: Precision, x: Tensor) -> Model:
    """A faster form of `model` in evaluation mode; `x` [n c h w] are images on which the two have to agree."""
    twin = folded(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    fast = InBf16(twin or model) if precision == "bf16" else twin or model
    if twin and not agree(model, fast, x, 0.1 if precision == "bf16" else TOLERANCE):
        # A forward that tracing did not see whole: attacks on another function would find too little.
        return InBf16(model) if precision == "bf16" else model
    return fast


def queried(search: Model, device: torch.device) -> Model:
    """What attacks search on that put COMPILED_FROM questions or more: `search` compiled, where that is possible."""
    on_processor = device.type == "cpu" and environment.has_compiler(device)
    return Compiled(search) if isinstance(search, Folded) and on_processor else search


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
