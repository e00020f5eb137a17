"""Random numbers for a part of a batch: those that its images would get if the whole batch were drawn at once.

So an image's crop or random start does not depend on who computes it: one process or several, at once or in parts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Generator, Tensor


def global_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn inside from torch's global generators, seeded or not, moves nothing outside."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


class PartGenerator(Generator):
    """A generator that has `drawn` for the images from `first` on, of a batch of `whole` images.

    All parts of a batch begin in one state and end in one state. For what is drawn once for a batch, and for drawing
    of your own without `drawn`, it is a generator like any other.
    """

    first: int
    whole: int

    @classmethod
    def of(cls, first: int, whole: int, device: torch.device) -> "PartGenerator":
        made = cls(device)
        made.first, made.whole = first, whole
        return made


def drawn(
    distribution: Callable[..., Tensor], shape: Sequence[int], generator: Generator, dtype: torch.dtype | None = None
) -> Tensor:
    """`distribution`, called like torch.rand, of `shape` [n ...] for n images; on the generator's device.

    Drawn there, a generator on the CPU gives the same numbers for every device.
    """
    images, *each = shape
    first, whole = place(generator, images)
    made = distribution((whole, *each), generator=generator, device=generator.device, dtype=dtype)
    return made[first : first + images]


def place(generator: Generator, images: int) -> tuple[int, int]:
    """Where these `images` begin in their batch, and how many the batch has."""
    return (generator.first, generator.whole) if isinstance(generator, PartGenerator) else (0, images)


@contextmanager
def part_of(generator: Generator, first: int, whole: int) -> Iterator[Generator]:
    """The generator for the images from `first` on, of a batch of `whole`; at the end it has moved past the batch."""
    part = PartGenerator.of(first, whole, generator.device)
    part.set_state(generator.get_state())
    yield part
    generator.set_state(part.get_state())


def parts(images: int, size: int, generator: Generator) -> Iterator[tuple[slice, Generator]]:
    """Consecutive parts of `size` of a batch of `images`, each with its generator; all of it at once if `size` is 0.

    When all have been walked through, `generator` is where it would be if the batch had been drawn at once.
    """
    if not 0 < size < images:
        yield slice(0, images), generator
        return
    start = generator.get_state()
    before, whole = place(generator, images)
    for first in range(0, images, size):
        generator.set_state(start)
        with part_of(generator, before + first, whole) as part:
            yield slice(first, first + size), part
