"""The second stage: a fresh linear head on the frozen encoder of a trained run; Khosla et al., arXiv 2004.11362.

    minimise over W and b the mean of cross_entropy(W f(x') + b, y)

x' is the lightly augmented image; for an adversarial head it is the run's own attack on that image, through the
composed model W f(.) + b as it then is. f is in evaluation mode, so neither its weights nor its BatchNorm statistics
move, and the projection head is dropped. Data, threat, attack, batches, validation split, momentum, weight decay and
label smoothing are those of the run.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
import yaml
from torch import Tensor

from . import checkpoint, data, models, objectives, runs
from .checkpoint import State
from .data import ImageSet
from .display import Display, told
from .draws import global_state_kept
from .errors import Refusal
from .evaluation import evaluating
from .interrupt import interruptible
from .intervals import wilson
from .optimise import Average, learning_rate, sgd
from .recipe import Recipe, as_mapping, settle
from .report.dotted import flat
from .settings import from_yaml
from .subject import unchanged
from .train import Training, build, circumstances, log_point, shuffled, validate

Accuracies = dict[str, float]
HEAD_PRECISION = "32-true"  # whatever the encoder was trained in; an adversarial head's attack alone searches in that


def start(
    source: Path,
    out: Path | None,
    data_dir: str | None,
    display: Display,
    *,
    adversarial: bool = False,
    epochs: int = 10,
    lr: float = 0.1,
    model: str | None = None,
    objective: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train a head for the run `source` into the new directory `out`; returns it and the table of before and after.

    The head kept is that of the epoch with the best validation accuracy: robust for an adversarial head, else clean;
    the other accuracy settles a tie.
    `epochs` and `lr` (the peak) take the place of the run's; its clip, average, weight perturbation, mixing of images
    and ramp of eps are off, as the recipe that is written says. An interrupt leaves no directory behind. `model` and
    `objective` are what the run names of these where it is none of ours.
    """
    runs.check_is_run(source)
    check_named(source / runs.RECIPE, {"model": model, "objective": objective})
    own = recipe = settle(str(source / runs.RECIPE))
    try:
        asked = replace(recipe.optimise, epochs=epochs, lr=lr)
    except Refusal as refusal:
        raise Refusal(str(refusal).replace("optimise.", "--")) from None  # by the options' names
    settings = replace(asked, clip=0.0, ema=0.0, ema_from=0.0, awp=0.0, awp_from=0.0)
    recipe = replace(
        recipe,
        name=f"{recipe.name}-{'adversarial' if adversarial else 'clean'}-head",
        data=replace(recipe.data, mix="none"),
        attack=replace(recipe.attack, ramp=0.0),
        optimise=settings,
    )
    run = out or Path("runs") / recipe.name
    runs.check_free(run)
    with unchanged(str(source / runs.WEIGHTS)) as weights:
        training = encoder(source, recipe, data.load(recipe.data.name, "train", data_dir), run)
    before = validate(training)
    done = {
        "adversarial": adversarial,
        "epochs": epochs,
        "lr": lr,
        "encoder": str(source),
        **weights,
        "encoder_settings": replaced(own, recipe) | inherited(source),
    }
    passes = recipe.attack.steps + 1 if adversarial else 1
    with runs.beginning(run):
        runs.write_text(run / runs.RECIPE, recipe.text())
        told = {"precision": HEAD_PRECISION, "passes": passes, "second_stage": done}
        runs.write_json(run / runs.ENVIRONMENT, circumstances(training) | told)
        after = fit(training, adversarial, display)
        header = training.header | {"projection_width": 0, "second_stage": done, "validation": after}
        checkpoint.save_weights(run / runs.WEIGHTS, training.network, header)
    display.line(f"finished: {run / runs.WEIGHTS}; next: anchor evaluate {quote(str(run))}")
    return run, {str(source): as_record(training, before), str(run): as_record(training, after)}


def check_named(path: Path, trusted: Mapping[str, str | None]) -> None:
    """Refuse a recipe that names code, of its model or its objective, which the user has not named: it would be run."""
    try:
        recipe = from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return  # what reads it next says what is wrong
    for section, ours in (("model", models.BUILT_IN), ("objective", objectives.discover())):
        told = recipe.get(section) if isinstance(recipe, dict) else None
        name = str(told["name"]) if isinstance(told, dict) and "name" in told else ""
        if name and name not in ours and name != trusted[section]:
            raise Refusal(f"{path} has the {section} {name!r}; if you trust its code, name it: --{section} {name}")


def replaced(own: Recipe, recipe: Recipe) -> dict[str, Any]:
    """The encoder's settings where the head's recipe says something else; by them its methods are told apart."""
    before, after = (flat(as_mapping(each)) for each in (own, recipe))
    return {key: value for key, value in before.items() if key != "name" and after.get(key) != value}


def inherited(source: Path) -> dict[str, Any]:
    """Those of the encoder's own encoder, if it is a second stage itself."""
    earlier = runs.read_json(source / runs.ENVIRONMENT).get("second_stage", {}).get("encoder_settings", {})
    return {f"encoder.{key}": value for key, value in earlier.items()}


def encoder(source: Path, recipe: Recipe, images: ImageSet, run: Path) -> Training:
    """The trained network without its projection head, and everything around it that its recipe names."""
    _, tensors = checkpoint.read_weights(checkpoint.weights_file(source))
    training = build(recipe, images, run)
    if runs.read_json(source / runs.ENVIRONMENT)["data"] != circumstances(training)["data"]:
        raise Refusal(f"{source} was trained on other images than {images.name} now holds; give the data it had")
    training.network.projection = None
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("projection.")}
    checkpoint.fill(training.network, kept, source / runs.WEIGHTS)
    training.average = Average(training.network, decay=0)  # what is validated
    return training


def fit(training: Training, adversarial: bool, display: Display) -> Accuracies:
    """Train the head from fresh weights and leave the network with the best; returns its epoch and accuracies."""
    recipe, settings, linear = training.recipe, training.recipe.optimise, training.network.backbone.linear
    with global_state_kept(training.fabric.device):
        torch.manual_seed(recipe.seed)
        linear.reset_parameters()
    optimizer, state = sgd(linear, settings), State()
    per_epoch = len(training.train) // settings.batch_size
    steps = per_epoch * settings.epochs
    best: Accuracies = {}
    selects_on = ["validation_robust", "validation_clean"] if adversarial else ["validation_clean", "validation_robust"]
    images = display.bar(recipe.name, steps * settings.batch_size)
    with interruptible() as stop_asked, images as advance:
        for epoch in range(1, settings.epochs + 1):
            order = shuffled(len(training.train), recipe.seed, epoch).to(training.fabric.device)
            started, first = time.perf_counter(), state.step
            for indices in order[: per_epoch * settings.batch_size].split(settings.batch_size):
                if stop_asked():
                    raise KeyboardInterrupt(f"stopped; {training.run} was not kept")
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, state.step, steps)
                state.add(step(training, optimizer, indices, adversarial))
                advance(settings.batch_size)
            line = log_point(training, state, steps, first, started)
            state.seconds += time.perf_counter() - started
            state.turn()
            if not all(torch.isfinite(parameter).all() for parameter in linear.parameters()):
                raise Refusal(f"the head is no longer finite after step {state.step - 1}; lower --lr {settings.lr:g}")
            line |= validate(training)
            runs.append_metrics(training.run, line)
            display.line(told(f"epoch {epoch}/{settings.epochs}", line))
            if not best or [line[key] for key in selects_on] > [best[key] for key in selects_on]:
                best = {key: line[key] for key in ("epoch", *selects_on)}
                weights = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    linear.load_state_dict(weights)
    return best


def step(training: Training, optimizer: torch.optim.Optimizer, indices: Tensor, adversarial: bool) -> dict[str, Tensor]:
    """One update of the head; returns its loss and the share of the batch that it classifies rightly."""
    network, learner, generator = training.network, training.learner, training.generator
    x, y = learner.light(training.train.pixels(indices), generator), training.train.labels[indices]
    if adversarial:
        training.search.refresh()
        x = learner.attacked(x, y, generator)
    with torch.no_grad(), evaluating(network, x.device):
        features = network.features(x)
    logits = network.backbone.linear(features)
    loss = learner.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss, "batch_accuracy": (logits.argmax(1) == y).float().mean()}


def as_record(training: Training, validated: Accuracies) -> dict[str, Any]:
    """Validation accuracies as tables take them, with their intervals."""
    images = len(training.validation)
    labels = {"clean": "clean", "robust": f"PGD-{training.recipe.validation.steps}"}
    accuracies = {label: validated[f"validation_{name}"] for name, label in labels.items()}
    results = [
        {"label": label, "accuracy": accuracy, "interval": wilson(round(accuracy * images), images)}
        for label, accuracy in accuracies.items()
    ]
    return {"data": {"images": images}, "results": results}
