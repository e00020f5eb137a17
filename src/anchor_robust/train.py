"""Training: settle the settings, build what they name, fit. The only file that knows Lightning Fabric."""

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from . import checkpoint, data, environment, runs
from .checkpoint import State
from .data import ImageSet, augment
from .display import Display, told
from .errors import Refusal
from .evaluation import evaluating, predict, withstand
from .interrupt import interruptible
from .models import Classifier, Folded, LogitsOnly, backbone
from .objectives import Learner
from .optimise import Average, learning_rate, sgd
from .recipe import Recipe, settle

# What Fabric announces at the start (the precision) stands in environment.json.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

STRIDE = 1_000_003  # keeps the seeds of one run's epochs and steps from those of the next seed's run


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop between two steps; its state is saved."""


class Searched(nn.Module):
    """A folded twin that computes in the training's precision: what attacks search on."""

    def __init__(self, folded: Folded, fabric: Fabric) -> None:
        super().__init__()
        self.folded = folded
        self.fabric = fabric

    def forward(self, x: Tensor) -> Tensor:
        with self.fabric.autocast():
            return self.folded(x)


@dataclass
class Training:
    """What `fit` works with; `train` and `validation` lie on the device."""

    fabric: Fabric
    recipe: Recipe
    run: Path
    train: ImageSet
    validation: ImageSet
    network: Classifier
    wrapped: nn.Module
    search: Searched
    learner: Learner
    optimizer: torch.optim.Optimizer
    average: Average[Classifier]
    generator: torch.Generator
    header: dict[str, Any]


def start(recipe: Recipe, run: Path, data_dir: str | None, display: Display) -> Path:
    """Train `recipe` into the new directory `run`."""
    runs.check_free(run)
    training = build(recipe, data.load(recipe.data.name, "train", data_dir), run)
    with runs.beginning(run):
        runs.write_text(run / runs.RECIPE, recipe.text())
        runs.write_json(run / runs.ENVIRONMENT, circumstances(training))
        save_state(training, State())
    fit(training, State(), display)
    return run


def resume(run: Path, data_dir: str | None, display: Display) -> Path:
    """Go on with a run that was stopped, to the very weights that it would have reached without the stop."""
    saved = checkpoint.read_state(run / runs.LAST)
    recipe = settle(str(run / runs.RECIPE))
    training = build(recipe, data.load(recipe.data.name, "train", data_dir), run)
    before = runs.read_json(run / runs.ENVIRONMENT)["data"]
    if before != circumstances(training)["data"]:
        raise Refusal(f"{run} was trained on other images than {recipe.data.name} now holds; give the data it had")
    state = restore(training, saved)
    runs.clear_partial(run)
    runs.keep_metrics(run, state.step)
    fit(training, state, display)
    return run


def restore(training: Training, saved: dict[str, Any]) -> State:
    """Put everything back as `save_state` found it."""
    source = training.run / runs.LAST
    try:
        checkpoint.fill(training.network, saved["network"], source)
        checkpoint.fill(training.average.network, saved["average"], source)
        training.optimizer.load_state_dict(saved["optimizer"])
        training.generator.set_state(saved["generator"])
        return State(**{field.name: saved[field.name] for field in dataclasses.fields(State)})
    except KeyError as error:
        raise Refusal(f"{source} has no {error}; it is no state that anchor train saved") from error


def build(recipe: Recipe, images: ImageSet, run: Path) -> Training:
    """Everything that the recipe names, on the device, weights drawn from the recipe's seed."""
    settings = recipe.optimise
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
            forward=wrapped,
            attack=recipe.attack.pgd(recipe.threat),
            light=lambda x, g: augment.light(x, recipe.data.crop, recipe.data.flip, g),
            strong=lambda x, g: augment.strong(x, recipe.data.flip, g),
            label_smoothing=settings.label_smoothing,
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


def circumstances(training: Training) -> dict[str, Any]:
    """What the numbers of a run depend on beside its recipe."""
    splits = {
        split.split: {"images": len(split), "sha256": split.sha256} for split in (training.train, training.validation)
    }
    return {
        **environment.describe(training.fabric.device),
        "precision": training.fabric.strategy.precision.precision,
        "parameters": sum(parameter.numel() for parameter in training.network.parameters()),
        "data": {"name": training.train.name, **splits},
    }


def fit(training: Training, state: State, display: Display) -> None:
    """Walk through the epochs: step, validate, keep the best weights, save."""
    recipe, settings = training.recipe, training.recipe.optimise
    per_epoch = len(training.train) // settings.batch_size
    steps = per_epoch * settings.epochs
    for warning in recipe.warnings():
        display.line(f"warning: {warning}")
    display.line(f"{recipe.name}: {settings.epochs} epochs of {per_epoch} steps, run {training.run}")
    images = display.bar(recipe.name, steps * settings.batch_size, state.step * settings.batch_size)
    own_generator = torch.random.fork_rng([training.fabric.device] if training.fabric.device.type == "cuda" else [])
    with interruptible() as stop_asked, own_generator, images as advance:
        while state.step < steps:
            epoch = state.step // per_epoch
            order = shuffled(len(training.train), recipe.seed, epoch).to(training.fabric.device)
            started, first = time.perf_counter(), state.step
            while state.step < (epoch + 1) * per_epoch:
                if stop_asked():
                    state.seconds += time.perf_counter() - started
                    save_state(training, state)
                    raise Interrupted(f"stopped at step {state.step}; anchor train --resume {training.run} goes on")
                position = (state.step % per_epoch) * settings.batch_size
                state.add(step(training, state.step, steps, order[position : position + settings.batch_size]))
                advance(settings.batch_size)
            elapsed = time.perf_counter() - started
            state.seconds += elapsed
            line = {"step": state.step, "epoch": epoch + 1, "lr": learning_rate(settings, state.step - 1, steps)}
            line |= state.means() | {"images_per_s": round((state.step - first) * settings.batch_size / elapsed, 1)}
            check_finite(training, state)
            if (epoch + 1) % recipe.validation.every == 0 or state.step == steps:
                line |= validate(training)
                keep_best(training, state, line)
            line["seconds"] = round(state.seconds, 1)
            runs.append_metrics(training.run, line)
            save_state(training, state)
            display.line(told(f"epoch {epoch + 1}/{settings.epochs}", line))
        if stop_asked():
            raise Interrupted(f"stopped at the end: {training.run} is finished")
    selected = f"{recipe.objective.selects_on} accuracy {state.best:.1%} on the validation split"
    display.line(f"finished: {training.run / runs.WEIGHTS} has {selected}; next: anchor evaluate {training.run}")


def step(training: Training, number: int, steps: int, indices: Tensor) -> dict[str, Tensor]:
    """One update; returns the parts of the loss and the share of the batch that is classified rightly."""
    settings, network = training.recipe.optimise, training.wrapped
    network.train()
    # What draws from the global generator, such as a dropout layer, is a function of seed and step too.
    torch.manual_seed(training.recipe.seed * STRIDE + number)
    x = training.train.pixels(indices).contiguous(memory_format=torch.channels_last)
    y = training.train.labels[indices]
    training.search.folded.refresh()
    outcome = training.recipe.objective(training.learner, x, y, training.generator)
    if not torch.isfinite(outcome.loss):
        parts = ", ".join(f"{name} {value.item():.4g}" for name, value in outcome.parts.items())
        raise Refusal(diverged(training, f"the loss is {outcome.loss.item()} at step {number} ({parts})"))
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(settings, number, steps)
    training.optimizer.zero_grad()
    training.fabric.backward(outcome.loss)
    if settings.clip:
        training.fabric.clip_gradients(network, training.optimizer, max_norm=settings.clip, error_if_nonfinite=False)
    training.optimizer.step()
    training.average.update(training.network, number)
    rightly = (outcome.logits.argmax(1) == y).float().mean()
    return {"loss": outcome.loss, **outcome.parts, "batch_accuracy": rightly}


def diverged(training: Training, what: str) -> str:
    good = training.run / runs.LAST
    return f"{what}; the last good checkpoint is {good}; lower optimise.lr or set optimise.clip, and start anew"


def searched(network: Classifier, fabric: Fabric) -> Searched:
    dtype = torch.bfloat16 if fabric.strategy.precision.precision == "bf16-mixed" else torch.float32
    return Searched(Folded(network, dtype), fabric)


def validate(training: Training) -> dict[str, float]:
    """Clean and robust accuracy of the averaged weights on the validation split; the verdicts in float32."""
    recipe, averaged = training.recipe, training.average.network
    model, search = LogitsOnly(averaged), searched(averaged, training.fabric)
    x, y = training.validation.pixels(slice(None)), training.validation.labels
    generator = torch.Generator(x.device).manual_seed(recipe.seed)
    attack, size = recipe.validation.pgd(recipe.threat), recipe.optimise.batch_size
    with evaluating(model, x.device):
        correct = predict(model, x, y, size, lambda done: None) == y.cpu()
        held, _ = withstand(model, attack, x, y, correct, generator, size, lambda done: None, search)
    return {"validation_clean": correct.double().mean().item(), "validation_robust": held.double().mean().item()}


def keep_best(training: Training, state: State, line: dict[str, Any]) -> None:
    """Write the weights if they are the best so far on the validation split."""
    accuracy = line[f"validation_{training.recipe.objective.selects_on}"]
    if accuracy > state.best:
        state.best = accuracy
        header = training.header | {
            "validation": {key: line[key] for key in ("epoch", "validation_clean", "validation_robust")}
        }
        checkpoint.save_weights(training.run / runs.WEIGHTS, training.average.network, header)


def check_finite(training: Training, state: State) -> None:
    if not all(torch.isfinite(parameter).all() for parameter in training.network.parameters()):
        raise Refusal(diverged(training, f"the weights are no longer finite after step {state.step - 1}"))


def save_state(training: Training, state: State) -> None:
    check_finite(training, state)
    checkpoint.save_state(
        training.run / runs.LAST,
        {
            **vars(state),
            "network": training.network.state_dict(),
            "average": training.average.network.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "generator": training.generator.get_state(),
        },
    )


def shuffled(images: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's images: a function of seed and epoch, so that a resumed run finds it again."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed * STRIDE + epoch))
