"""Which of the faster ways training can take on a device, and the trial that a compiled one has to pass."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import environment
from ..attacks.gradient import forward_and_back
from ..attacks.margins import cross_entropy
from ..errors import one_line
from ..models import Classifier, Folded
from ..optimise import Optimise

COMPILED_FROM = 200_000  # images in all; below, compiling (half a minute) takes longer than it saves
JUDGED = 32  # images whose gradients are also taken in float64
WORSE, SLACK = (
    1.5,
    1e-3,
)  # how far a compiled gradient may lie from the exact one: times the plain one's distance, and more
OF_LOSS = 0.05  # how far the compiled training pass may move the loss


@dataclass(frozen=True)
class FastPath:
    """Whether it is `taken` here and `why`, and what is done `otherwise`."""

    name: str
    taken: bool
    why: str
    otherwise: str


def bf16(settings: Optimise, device: torch.device) -> FastPath:
    available = environment.has_bf16(device)
    taken = settings.precision == "bf16" or (settings.precision == "auto" and available)
    units = "the device has units for it" if available else "the device has no units for it"
    why = units if settings.precision == "auto" else f"optimise.precision is {settings.precision}"
    return FastPath("bf16 mixed precision", taken, why, "float32")


def compiling(settings: Optimise, device: torch.device, images: int) -> FastPath:
    """`images` is how many are trained on in all, counted once an epoch."""
    obstacles = {
        "optimise.compile is never": settings.compile == "never",
        f"{images:,} images in all do not repay it; {COMPILED_FROM:,} would": images < COMPILED_FROM,
        f"{environment.COMPILERS[device.type]} not found": not environment.has_compiler(device),
    }
    met = [obstacle for obstacle, stands in obstacles.items() if stands]
    why = met[0] if met else f"{images:,} images in all repay it, and a compiler is found"
    return FastPath("compiled search and training pass", not met, why, "operation by operation")


def compiled(fast: Folded, plain: Folded, network: Classifier, x: Tensor, y: Tensor) -> str:
    """Compile `fast`, a twin of `network` like `plain`; what is wrong with it then, or nothing if it is as good.

    Both round in places of their own, in bf16 by a good part of the gradient, so that their distance from each
    other says little: each is held against the gradient in float64, which the compiled one may miss by half as much
    again as the plain one. On CUDA its kernels are recorded and replayed as graphs, forward and backward, for a launch
    each.
    """
    try:
        fast.twin.compile(dynamic=False, **({"mode": "reduce-overhead"} if x.is_cuda else {}))
        exact = gradient(Folded(network, torch.float64).double(), x[:JUDGED].double(), y[:JUDGED])
        expected = gradient(plain, x, y)
        for _ in range(3):  # a graph is recorded in the second pass and replayed from the third on
            given = gradient(fast, x, y)
        theirs, ours = (((each[:JUDGED] - exact).norm() / exact.norm()).item() for each in (expected, given))
    except Exception as error:  # what a compiler stumbles over is not ours to foresee
        return told(error)
    if ours <= WORSE * theirs + SLACK:
        return ""
    return f"its gradients are {ours:.1%} away from exact ones, the plain ones {theirs:.1%}"


def gradient(model: Folded, x: Tensor, y: Tensor) -> Tensor:
    return forward_and_back(model, x, lambda logits: cross_entropy(logits, y))[2]


def same_loss(plain: Callable[[], Tensor], compiled: Callable[[], Tensor]) -> str:
    """What is wrong with a compiled training pass, or nothing if a loss through it is the plain one."""
    try:
        expected, given = plain().item(), compiled().item()
    except Exception as error:  # as above
        return told(error)
    # Written so that a NaN of the compiled pass alone is a fault, and one of both is not the compiler's.
    alike = abs(given - expected) <= OF_LOSS * abs(expected) or not math.isfinite(expected)
    return "" if alike else f"its loss is {given:.4g}, the plain one {expected:.4g}"


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:200]}"
