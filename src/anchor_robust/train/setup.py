"""From a recipe to everything that training works with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .. import data, environment, processes
from ..data import ImageSet, augment
from ..draws import PartGenerator
from ..errors import Refusal
from ..models import Classifier, Folded, backbone, synced
from ..objectives import Learner
from ..optimise import Average, sgd
from ..recipe import Recipe
from . import launch

COMPILED_FROM = 200_000  # images in all; below, compiling (half a minute) takes longer than it saves


@dataclass
class Training:
    """What `fit` works with; `train` and `validation` lie on the device."""

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


def build(recipe: Recipe, images: ImageSet, run: Path, fabric: Fabric | None = None) -> Training:
    """Everything that the recipe names, on the device, weights drawn from the recipe's seed."""
    settings = recipe.optimise
    environment.keep_freed_memory()
    fabric = fabric or launch.fabric(precision(recipe))
    shape = (images.images.shape[1], images.images.shape[2], images.images.shape[3])
    train_images, validation = data.hold_out(images, recipe.validation.images)
    if recipe.data.crop >= min(images.images.shape[2:]):
        raise Refusal(
            f"data.crop {recipe.data.crop} given; allowed: below the {images.images.shape[2]} pixels of an image"
        )
    if len(train_images) < settings.batch_size:
        raise Refusal(f"optimise.batch_size {settings.batch_size} given; there are {len(train_images)} training images")
    own = processes.part(settings.batch_size)
    check_divisible(settings.batch_size, processes.count(), settings.micro_batch)
    mean, std = train_images.channel_statistics()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network = backbone(recipe.model.name, len(images.classes), shape, recipe.model.settings)
        network = Classifier(network, mean, std, recipe.objective.projection_width)
    # torch's annotations know no memory_format without a device and a dtype.
    network.to(fabric.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    alone = processes.count() == 1
    wrapped, optimizer = fabric.setup(network if alone else synced(network), sgd(network, settings))
    search = searched(network, fabric)
    forward = wrapped if alone else connected(wrapped)
    if settings.compile == "auto" and repays_compiling(fabric.device, len(train_images) * settings.epochs):
        search.twin.compile(dynamic=False)
        # Between processes, what they tell each other would cut the graph into many.
        forward = torch.compile(wrapped, dynamic=False) if alone else forward
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
            forward=forward,
            attack=recipe.attack.at(recipe.threat, 1.0),
            light=lambda x, g: augment.light(x, recipe.data.crop, recipe.data.flip, g),
            strong=lambda x, g: augment.strong(x, recipe.data.flip, g),
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
    )


def connected(wrapped: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The training pass for several processes, which wait for a gradient of every weight.

    A loss that leaves the embedding out, or the logits, gives the weights behind them a gradient of 0.
    """

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, embedding = wrapped(x)
        return logits + 0 * embedding.sum(), embedding + 0 * logits.sum()

    return forward


def precision(recipe: Recipe) -> str:
    """Fabric's name of the precision that the recipe asks for on this machine."""
    asked, device = recipe.optimise.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = asked == "bf16" or (asked == "auto" and environment.has_bf16(device))
    return "bf16-mixed" if bf16 else "32-true"


def check_divisible(batch_size: int, processes: int, micro_batch: int) -> None:
    """Refuse a batch that cannot be shared evenly: between processes, and there in micro-batches."""
    if batch_size % processes:
        raise Refusal(f"optimise.batch_size {batch_size} given; allowed: a multiple of the {processes} processes")
    each = batch_size // processes
    if 0 < micro_batch < each and each % micro_batch:
        raise Refusal(f"optimise.micro_batch {micro_batch} given; allowed: what divides a process's {each} images")


def repays_compiling(device: torch.device, images: int) -> bool:
    """Whether a run over so many images is long enough on a processor that has a compiler at hand."""
    return images >= COMPILED_FROM and environment.has_compiler(device)


def circumstances(training: Training) -> dict[str, Any]:
    """What the numbers of a run depend on beside its recipe."""
    batch_size, micro_batch = training.recipe.optimise.batch_size, training.recipe.optimise.micro_batch
    each = batch_size // processes.count()
    splits = {
        split.split: {"images": len(split), "sha256": split.sha256} for split in (training.train, training.validation)
    }
    return {
        **environment.describe(training.fabric.device),
        "precision": training.fabric.strategy.precision.precision,
        "processes": processes.count(),
        "batch": {"global": batch_size, "process": each, "at_a_time": min(micro_batch or each, each)},
        "passes": training.recipe.passes(),
        "parameters": sum(parameter.numel() for parameter in training.network.parameters()),
        "data": {"name": training.train.name, **splits},
    }


def searched(network: Classifier, fabric: Fabric) -> Folded:
    """The network's folded twin in the training's precision: what attacks search on."""
    return Folded(network, torch.bfloat16 if fabric.strategy.precision.precision == "bf16-mixed" else torch.float32)
