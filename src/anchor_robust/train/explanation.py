"""What a training would do on this machine to be fast, and what it costs; nothing is trained."""

from dataclasses import dataclass

from torch import nn

from .. import environment, runs
from ..data.mapped import MappedSet
from . import fast
from .fast import FastPath
from .setup import PATIENCE, Training, compiling


@dataclass(frozen=True)
class Explanation:
    title: str
    paths: list[FastPath]
    cost: list[str]


def explained(training: Training) -> Explanation:
    """The fast paths of a training that was built, those that are decided here first, and its cost in passes."""
    recipe, batch, passes = training.recipe, training.recipe.optimise.batch_size, training.recipe.passes()
    told = environment.describe(training.fabric.device)
    return Explanation(
        f"{recipe.name} on {runs.machine(told)}",
        [*decided(training), *everywhere(training)],
        [
            f"A step: {batch} images x {passes:g} forward-and-backward passes = {batch * passes:,.0f}; "
            f"an epoch: {len(training.train) // batch} steps.",
            f"The run: {recipe.cost()}.",
        ],
    )


def decided(training: Training) -> list[FastPath]:
    """What depends on the machine, the recipe or the network."""
    cuda, recipe = training.fabric.device.type == "cuda", training.recipe
    compiled = compiling(training)
    graphs = compiled.why if cuda else "there is no CUDA device"
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in training.network.modules())
    folded = f"{len(training.search.pairs)} of {norms} follow a convolution and nothing else does"
    looked = (
        f"pixels and losses are looked at in one step of {PATIENCE}, and before anything is saved; several devices, "
        "images on the disk, a contrast of over 1,024 embeddings and the guard of fast-at do wait in a step"
    )
    kept = environment.keep_freed_memory()
    box = f"the norm is {recipe.threat.norm}"
    return [
        fast.bf16(recipe.optimise, training.fabric.device),
        compiled,
        FastPath("CUDA graphs", cuda and compiled.taken, graphs, "a launch for every kernel"),
        FastPath("no waiting for the device", cuda, looked if cuda else graphs, "a look at every step"),
        FastPath("BatchNorm folded in the attack", bool(training.search.pairs), folded, "a copy in evaluation mode"),
        FastPath("step and projection as one clamp", recipe.threat.norm == "linf", box, "step, then project"),
        FastPath(
            "freed memory kept", kept, f"the allocator {'is' if kept else 'is not'} glibc's", "back to the system"
        ),
    ]


def everywhere(training: Training) -> list[FastPath]:
    """What is done always; without it stands what other code does."""
    megabytes, resident = training.train.images.nbytes / 1e6, not isinstance(training.train, MappedSet)
    return [
        FastPath("gradients of the images alone", True, "always", "gradients of every parameter as well"),
        FastPath("channels last", True, "always", "channels first"),
        FastPath("data set on the device", resident, f"{megabytes:,.1f} MB as uint8", "each batch, a step ahead"),
        FastPath("augmentation of whole batches", True, "always", "image by image in worker processes"),
        FastPath("fused optimizer, grouped average", True, "always", "tensor by tensor"),
    ]
