"""What a machine can do at most, and the least time that a function's operations and bytes take on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from timing import timed

REPEATS = 7


def copy_bandwidth(device: torch.device, megabytes: int) -> float:
    """Bytes a second, those read and those written, of one array copied into another."""
    source = torch.rand(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(REPEATS + 1)][1:]
    return 2 * source.nbytes / median(seconds)


@contextmanager
def products_as_convolutions() -> Iterator[None]:
    """On CUDA convolutions, most of what a network multiplies, round float32 to TF32 unasked, and products do not."""
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        products.allow_tf32 = before


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second, two for each multiply-and-add, of a product of two random matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with torch.no_grad(), products_as_convolutions():
        seconds = [timed(lambda: a @ b, device) for _ in range(REPEATS + 1)][1:]
    return 2 * side**3 / median(seconds)


@dataclass(frozen=True)
class Limits:
    """Bytes a second, and operations a second in each precision."""

    bandwidth: float
    float32: float
    bf16: float

    def rate(self, dtype: torch.dtype) -> float:
        return self.bf16 if dtype == torch.bfloat16 else self.float32


def limits(device: torch.device, toy: bool = False) -> Limits:
    """Measured now, on arrays well beyond the caches; `toy` only tries that it runs."""
    large = device.type == "cuda"
    side, megabytes = (64, 1) if toy else (8192, 4096) if large else (2048, 512)
    rates = [matmul_rate(device, dtype, side) for dtype in (torch.float32, torch.bfloat16)]
    return Limits(copy_bandwidth(device, megabytes), *rates)


@dataclass(frozen=True)
class Operation:
    """`bytes` of its arguments and results; `flops` of convolutions and matrix products, two a multiply-and-add."""

    name: str
    dtype: torch.dtype
    bytes: int
    flops: int
    written: int


class Counting(TorchDispatchMode):
    """Collects the operations that run inside, forward and backward; those that only look at memory anew are none."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = any(out.alias_info and not out.alias_info.is_write for out in func._schema.returns)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not views and made and "empty" not in str(func):
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
            written = sum(each.nbytes for each in made)
            total = written + sum(each.nbytes for each in given)
            self.operations.append(Operation(str(func), made[0].dtype, total, int(flops), written))
        return result


def counted(function: Callable[[], object]) -> list[Operation]:
    with Counting() as counting:
        function()
    return counting.operations


def flops(operations: list[Operation]) -> int:
    return sum(each.flops for each in operations)


def seconds_at_least(operations: list[Operation], limits: Limits, fused: bool = False) -> float:
    """A roofline: each operation takes the longer of its arithmetic and its memory traffic, one after the other.

    `fused`: what lies between two products is one kernel, which reads and writes the result of the first once.
    """
    products = [each for each in operations if each.flops]
    multiplied = sum(max(each.flops / limits.rate(each.dtype), each.bytes / limits.bandwidth) for each in products)
    between = (
        sum(2 * each.written for each in products)
        if fused
        else sum(each.bytes for each in operations if not each.flops)
    )
    return multiplied + between / limits.bandwidth
