"""Several processes that work as one: who is who, what each has to do, and what they tell each other.

Alone, which is how most programs run, all of it is free. `train.launched` is where processes come from.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .errors import Refusal

Thing = TypeVar("Thing")


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return index() == 0


def part(images: int) -> slice:
    """The images of a batch that are this process's: consecutive, as many as any other's to within one."""
    return slice(images * index() // count(), images * (index() + 1) // count())


def gathered(rows: Tensor) -> Tensor:
    """The rows [n ...] of every process, in the order of the processes: [count n ...].

    The gradient of a row is the sum of what all processes send back. As the gradient of the weights is the mean over
    processes, a loss of the gathered rows that all of them compute is then differentiated as in one process.
    """
    return Gathered.apply(rows) if count() > 1 else rows


class Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(count())]
        dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return total(upstream)[part(len(upstream))]


def total(values: Tensor) -> Tensor:
    """The sum of `values` over the processes."""
    if count() == 1:
        return values
    summed = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def averaged(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the processes of each of these scalars."""
    if count() == 1:
        return dict(values)
    means = total(torch.stack([value.detach().double() for value in values.values()])) / count()
    return {name: mean.to(values[name].dtype) for name, mean in zip(values, means, strict=True)}


def any_says(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them get the same answer."""
    if count() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return bool(total(torch.tensor(int(flag), device=device)).item())


def everybodys(thing: Thing) -> list[Thing]:
    """What each process has, in their order."""
    if count() == 1:
        return [thing]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, thing)
    return found


@contextmanager
def refusing_together() -> Iterator[None]:
    """What one process refuses in here, all refuse at the end. Inside, no process may wait for another."""
    refusal = None
    try:
        yield
    except Refusal as error:
        refusal = error
    reasons = everybodys(str(refusal) if refusal else None)
    if refusal:
        raise refusal
    for number, reason in enumerate(reasons):
        if reason:
            raise Refusal(f"process {number} says: {reason}")
