"""Which of the faster ways training can take on a device, and the trial that a compiled one has to pass."""

import math
from collections.abc import Callable, Sequence
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
# How far a compiled gradient may lie from the exact one: times the plain one's distance, and more. Those of the weights
# are held against float32, which rounds by more than float64.
WORSE, SLACK, SLACK_OF_WEIGHTS = 1.5, 1e-3, 1e-2
OF_LOSS = 0.05  # how far the compiled training pass may move the loss


Pass = tuple[float, list[Tensor]]  # the loss of a batch, and its gradient of every weight


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
    units = "the device has fast units for it" if available else "the device has no units that make it faster"
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
        ours, theirs = apart([given[:JUDGED]], [exact]), apart([expected[:JUDGED]], [exact])
    except Exception as error:  # what a compiler stumbles over is not ours to foresee
        return told(error)
    return further(ours, theirs, SLACK)


def gradient(model: Folded, x: Tensor, y: Tensor) -> Tensor:
    return forward_and_back(model, x, lambda logits: cross_entropy(logits, y))[2]


def as_good(exact: Callable[[], Pass], plain: Callable[[], Pass], compiled: Callable[[], Pass]) -> str:
    """What is wrong with a compiled training pass, or nothing if it is as good as the plain one.

    That is, if its loss is the plain one's, and its gradients of all weights lie no further from those in float32 than
    the plain pass's by half as much again, as in `compiled`.
    """
    try:
        (_, sought), (expected, usual), (given, own) = exact(), plain(), compiled()
    except Exception as error:  # as above
        return told(error)
    if not math.isfinite(expected):  # of which the compiler is innocent
        return ""
    if not abs(given - expected) <= OF_LOSS * abs(expected):  # so written that a NaN is a fault
        return f"its loss is {given:.4g}, the plain one {expected:.4g}"
    return further(apart(own, sought), apart(usual, sought), SLACK_OF_WEIGHTS)


def apart(gradients: Sequence[Tensor], sought: Sequence[Tensor]) -> float:
    """How far gradients lie from the sought ones, as a share of these: |a - b| / |b| over all weights at once."""
    off = [(one - other).norm() for one, other in zip(gradients, sought, strict=True)]
    return (torch.stack(off).norm() / torch.stack([each.norm() for each in sought]).norm()).item()


def further(ours: float, theirs: float, slack: float) -> str:
    """What to say of compiled gradients that lie clearly further from exact ones than the plain ones do."""
    if ours <= WORSE * theirs + slack:
        return ""
    return f"its gradients are {ours:.1%} away from exact ones, the plain ones {theirs:.1%}"


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:200]}"
