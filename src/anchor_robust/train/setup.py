"""From a recipe to everything that training works with. The only file that knows Lightning Fabric."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from .. import data, environment
from ..data import ImageSet, augment
from ..errors import Refusal
from ..models import Classifier, Folded, backbone
from ..objectives import Learner
from ..optimise import Average, sgd
from ..recipe import Recipe

# What Fabric announces at the start (the precision) stands in environment.json.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

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


def build(recipe: Recipe, images: ImageSet, run: Path) -> Training:
    """Everything that the recipe names, on the device, weights drawn from the recipe's seed."""
    settings = recipe.optimise
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    environment.keep_freed_memory()
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and environment.has_bf16(device))
    fabric = Fabric(accelerator=device.type, devices=1, precision="bf16-mixed" if bf16 else "32-true")
    shape = (images.images.shape[1], images.images.shape[2], images.images.shape[3])
    train_images, validation = data.hold_out(images, recipe.validation.images)
    if recipe.data.crop >= min(images.images.shape[2:]):
        raise Refusal(
            f"data.crop {recipe.data.crop} given; allowed: below the {images.images.shape[2]} pixels of an image"
        )
    if len(train_images) < settings.batch_size:
        raise Refusal(f"optimise.batch_size {settings.batch_size} given; there are {len(train_images)} training images")
    mean, std = train_images.channel_statistics()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network = backbone(recipe.model.name, len(images.classes), shape, recipe.model.settings)
        network = Classifier(network, mean, std, recipe.objective.projection_width)
    # torch's annotations know no memory_format without a device and a dtype.
    network.to(fabric.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped, optimizer = fabric.setup(network, sgd(network, settings))
    search = searched(network, fabric)
    forward = wrapped
    if settings.compile == "auto" and repays_compiling(fabric.device, len(train_images) * settings.epochs):
        search.twin.compile(dynamic=False)
        forward = torch.compile(wrapped, dynamic=False)
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
        generator=torch.Generator(fabric.device).manual_seed(recipe.seed),
        header={
            "model": {"name": recipe.model.name, **recipe.model.settings},
            "classes": list(images.classes),
            "shape": list(shape),
            "projection_width": recipe.objective.projection_width,
            "data": images.name,
            "recipe": recipe.text(),
        },
    )


def repays_compiling(device: torch.device, images: int) -> bool:
    """Whether a run over so many images is long enough on a processor that has a compiler at hand."""
    return images >= COMPILED_FROM and environment.has_compiler(device)


def circumstances(training: Training) -> dict[str, Any]:
    """What the numbers of a run depend on beside its recipe."""
    splits = {
        split.split: {"images": len(split), "sha256": split.sha256} for split in (training.train, training.validation)
    }
    return {
        **environment.describe(training.fabric.device),
        "precision": training.fabric.strategy.precision.precision,
        "passes": training.recipe.passes(),
        "parameters": sum(parameter.numel() for parameter in training.network.parameters()),
        "data": {"name": training.train.name, **splits},
    }


def searched(network: Classifier, fabric: Fabric) -> Folded:
    """The network's folded twin in the training's precision: what attacks search on."""
    return Folded(network, torch.bfloat16 if fabric.strategy.precision.precision == "bf16-mixed" else torch.float32)
