"""From a recipe to everything that training works with."""

import hashlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .. import data, environment, processes
from ..data import ImageSet, augment
from ..display import Display
from ..draws import PartGenerator, global_state_kept
from ..errors import Refusal
from ..models import Classifier, Folded, backbone, factory, synced
from ..objectives import Learner, outcome_of
from ..optimise import Average, Optimise, sgd, unmoved_statistics
from ..recipe import Recipe
from . import fast, launch
from .followers import Follower

PATIENCE = 100  # steps on an accelerator from one look at pixels and losses to the next: looking is waiting


@dataclass
class Training:
    """What `fit` works with; `train` and `validation` lie on the device.

    The losses of up to `patience` steps, with the steps' numbers, wait in `unread` to be looked at.
    """

    fabric: Fabric
    recipe: Recipe
    run: Path
    train: ImageSet
    validation: ImageSet
    network: Classifier
    wrapped: Any  # Fabric's own kind of module, which torch.compile and no_backward_sync tell apart
    search: Folded
    learner: Learner
    optimizer: torch.optim.Optimizer
    average: Average[Classifier]
    generator: torch.Generator
    header: dict[str, Any]
    patience: int = 1
    unread: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)
    loggers: list[Follower] = field(default_factory=list)


def build(recipe: Recipe, images: ImageSet, run: Path, fabric: Fabric | None = None) -> Training:
    """Everything that the recipe names, on the device, weights drawn from the recipe's seed."""
    settings = recipe.optimise
    environment.keep_freed_memory()
    fabric = fabric or launch.fabric(precision(recipe))
    shape = images.shape
    check_fits(recipe, images)
    train_images, validation = data.hold_out(images, recipe.validation.images)
    own = processes.part(settings.batch_size)
    check_divisible(settings.batch_size, processes.count(), settings.micro_batch)
    mean, std = train_images.channel_statistics()
    std = tuple(each or 1.0 for each in std)  # a channel that is the same everywhere becomes 0
    with global_state_kept(fabric.device):
        torch.manual_seed(recipe.seed)
        network = backbone(recipe.model.name, len(images.classes), shape, recipe.model.settings)
        network = Classifier(network, mean, std, recipe.objective.projection_width)
    # torch's annotations know no memory_format without a device and a dtype.
    network.to(fabric.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # as said above
    alone = processes.count() == 1
    wrapped, optimizer = fabric.setup(network if alone else synced(network), sgd(network, settings))
    search = searched(network, fabric)
    return Training(
        fabric=fabric,
        recipe=recipe,
        run=run,
        train=train_images.to(fabric.device),
        validation=validation.to(fabric.device),
        network=network,
        wrapped=wrapped,
        search=search,
        learner=Learner(
            net=search,
            forward=wrapped if alone else connected(wrapped),
            attack=recipe.attack.at(recipe.threat, 1.0),
            light=lambda x, g: augment.light(x, recipe.data.crop, recipe.data.flip, g),
            # Of what CutMix has put together all stays in view, or its label would no longer be true.
            strong=lambda x, g: augment.strong(x, recipe.data.flip, g, cut=recipe.data.mix != "cutmix"),
            label_smoothing=settings.label_smoothing,
            micro_batch=settings.micro_batch,
        ),
        optimizer=optimizer,
        average=Average(network, settings.ema),
        generator=(
            torch.Generator(fabric.device) if alone else PartGenerator.of(own.start, settings.batch_size, fabric.device)
        ).manual_seed(recipe.seed),
        header={
            "model": {"name": recipe.model.name, **recipe.model.settings},
            "classes": list(images.classes),
            "shape": list(shape),
            "projection_width": recipe.objective.projection_width,
            "data": images.name,
            "recipe": recipe.text(),
        },
        patience=PATIENCE if fabric.device.type == "cuda" else 1,
    )


def connected(wrapped: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The training pass for several processes, which wait for a gradient of every weight.

    A loss that leaves the embedding out, or the logits, gives the weights behind them a gradient of 0.
    """

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, embedding = wrapped(x)
        return logits + 0 * embedding.sum(), embedding + 0 * logits.sum()

    return forward


def precision(recipe: Recipe) -> launch.Precision:
    """Fabric's name of the precision that the recipe asks for on this machine."""
    device = environment.accelerator()
    return "bf16-mixed" if fast.bf16(recipe.optimise, device).taken else "32-true"


def check_fits(recipe: Recipe, images: ImageSet) -> None:
    """Refuse settings that these images cannot be trained on with."""
    batch_size, crop, smallest = recipe.optimise.batch_size, recipe.data.crop, min(images.shape[1:])
    data.check_held_out(images, recipe.validation.images)
    left = len(images) - recipe.validation.images
    if len(images.classes) < 2:
        raise Refusal(f"{images.name} has one class, {images.classes[0]}; allowed: two or more")
    if crop >= smallest:
        raise Refusal(f"data.crop {crop} given; allowed: below the {smallest} pixels of an image")
    if left < batch_size:
        raise Refusal(
            f"optimise.batch_size {batch_size} given; allowed: up to {left}, the training images without those for "
            "validation"
        )


def check_divisible(batch_size: int, count: int, micro_batch: int) -> None:
    """Refuse a batch that cannot be shared evenly: between processes, and there in micro-batches."""
    if batch_size % count:
        raise Refusal(f"optimise.batch_size {batch_size} given; allowed: a multiple of the {count} processes")
    each = batch_size // count
    if 0 < micro_batch < each and each % micro_batch:
        raise Refusal(f"optimise.micro_batch {micro_batch} given; allowed: what divides a process's {each} images")


def at_a_time(settings: Optimise) -> int:
    """Images that a process attacks and passes through the network at once."""
    each = settings.batch_size // processes.count()
    return min(settings.micro_batch or each, each)


def compiling(training: Training) -> fast.FastPath:
    settings = training.recipe.optimise
    return fast.compiling(settings, training.fabric.device, len(training.train) * settings.epochs)


def accelerate(training: Training, display: Display) -> str:
    """Compile what a long run goes through, each part if a trial of it gives what the plain one gives.

    Returns why a part stays as it was, or nothing.
    """
    if not (path := compiling(training)).taken:
        return path.why
    display.line("compiling, which takes a minute or two; --optimise.compile never does without")
    learner, batch = training.learner, slice(at_a_time(training.recipe.optimise))
    x = training.train.pixels(batch).contiguous(memory_format=torch.channels_last)
    x = learner.light(x, torch.Generator(x.device).manual_seed(0))
    training.search.refresh()
    search = searched(training.network, training.fabric)
    y = training.train.labels[batch]
    if fault := fast.compiled(search, training.search, training.network, x, y):
        return untouched(f"not compiled: {fault}", display)
    training.search = search
    training.learner = replace(learner, net=search)
    # Between processes, what they tell each other would cut the graph of the training pass into many.
    if processes.count() > 1:
        return "training pass not compiled: between processes its graph would be cut into many"
    forward = torch.compile(training.wrapped, dynamic=False)
    # The network alone computes in float32; it draws otherwise, as the compiled pass does, where dropout draws.
    ways = ((training.network, 1), (learner.forward, 0), (forward, 0))
    if fault := fast.as_good(*(partial(tried, training, way, x, y, seed) for way, seed in ways)):
        return untouched(f"training pass not compiled: {fault}", display)
    training.learner = replace(training.learner, forward=forward)
    return ""


def untouched(fault: str, display: Display) -> str:
    display.line(f"{fault}; that costs time and changes nothing else")
    return fault


def tried(
    training: Training, forward: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, y: Tensor, seed: int
) -> fast.Pass:
    """The loss of a batch through `forward` and the gradients of all weights; nothing of them stays."""
    learner = replace(training.learner, forward=forward)
    training.wrapped.train()
    torch.manual_seed(seed)
    with unmoved_statistics(training.network):
        generator = torch.Generator(x.device).manual_seed(0)
        loss = outcome_of(training.recipe.objective, learner, x, y, generator).loss
        training.fabric.backward(loss)
    gradients = [parameter.grad for parameter in training.network.parameters() if parameter.grad is not None]
    training.optimizer.zero_grad()
    return loss.item(), gradients


def circumstances(training: Training) -> dict[str, Any]:
    """What the numbers of a run depend on beside its recipe."""
    settings = training.recipe.optimise
    splits = {
        split.split: {"images": len(split), "sha256": split.sha256} for split in (training.train, training.validation)
    }
    return {
        **environment.describe(training.fabric.device),
        "precision": training.fabric.strategy.precision.precision,
        "processes": processes.count(),
        "batch": {
            "global": settings.batch_size,
            "process": settings.batch_size // processes.count(),
            "at_a_time": at_a_time(settings),
        },
        "passes": training.recipe.passes(),
        "parameters": sum(parameter.numel() for parameter in training.network.parameters()),
        "data": {"name": training.train.name, **splits},
        "code": own_code(training.recipe),
    }


def own_code(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the files that hold the user's own objective and model, by the section that names them."""
    found = {}
    for section, thing in (("objective", type(recipe.objective)), ("model", factory(recipe.model.name))):
        if getattr(thing, "__module__", "").partition(".")[0] != __name__.partition(".")[0]:
            with suppress(OSError, TypeError):  # no file, or nothing that is written in one
                found[section] = hashlib.sha256(Path(inspect.getfile(thing)).read_bytes()).hexdigest()
    return found


def searched(network: Classifier, fabric: Fabric) -> Folded:
    """The network's folded twin in the training's precision: what attacks search on."""
    return Folded(network, torch.bfloat16 if fabric.strategy.precision.precision == "bf16-mixed" else torch.float32)
