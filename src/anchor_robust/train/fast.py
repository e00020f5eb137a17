"""Which of the faster ways training can take on a device, and the trial that a compiled one has to pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import environment
from ..attacks.gradient import forward_and_back
from ..attacks.margins import cross_entropy
from ..errors import one_line
from ..models import Folded
from ..optimise import Optimise

COMPILED_FROM = 200_000  # images in all; below, compiling (half a minute) takes longer than it saves
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the gradients' norm; bf16 rounds in other places


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


def compiled(fast: Folded, plain: Folded, x: Tensor, y: Tensor) -> str:
    """Compile `fast`, a twin like `plain`; what is wrong with it then, or nothing if both give the same gradients.

    On CUDA its kernels are recorded and replayed as graphs, forward and backward: a launch each.
    """
    try:
        fast.twin.compile(dynamic=False, **({"mode": "reduce-overhead"} if x.is_cuda else {}))
        *_, expected = forward_and_back(plain, x, lambda logits: cross_entropy(logits, y))
        for _ in range(3):  # a graph is recorded in the second pass and replayed from the third on
            *_, given = forward_and_back(fast, x, lambda logits: cross_entropy(logits, y))
        away = ((given - expected).norm() / expected.norm()).item()
    except Exception as error:  # what a compiler stumbles over is not ours to foresee
        return f"{type(error).__name__}: {one_line(error)[:200]}"
    return "" if away <= TOLERANCE[fast.dtype] else f"its gradients are {away:.1%} away from the plain ones"
