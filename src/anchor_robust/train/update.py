"""One update of the weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import processes, runs
from ..attacks import Attack
from ..data.mix import mix
from ..draws import part_of
from ..errors import Refusal
from ..objectives import Learner, outcome_of
from ..optimise import learning_rate, perturbed, unmoved_statistics
from .in_parts import InParts
from .setup import Training

STRIDE = 1_000_003  # keeps the seeds of one run's epochs and steps from those of the next seed's run


def step(training: Training, number: int, steps: int, indices: Tensor) -> dict[str, Tensor]:
    """Update `number` of `steps`; returns the parts of the loss and the batch's accuracy."""
    recipe, settings = training.recipe, training.recipe.optimise
    training.wrapped.train()
    # What draws from the global generator, such as a dropout layer, is a function of seed and step too.
    torch.manual_seed(global_seed(recipe.seed, number, processes.index()))
    training.search.refresh()
    learner, x, y = batch(training, indices, number, steps)
    weights: AbstractContextManager[None] = nullcontext()
    if settings.awp and number >= settings.awp_from * steps:
        learner = Replaying.of(learner)
        with unmoved_statistics(training.network):
            descend(training, learner, x, y, number)
        learner.rewind()
        gradients = {name: p.grad.clone() for name, p in training.network.named_parameters() if p.grad is not None}
        weights = perturbed(training.network, gradients, settings.awp)
    with weights:
        reported = descend(training, learner, x, y, number)
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(settings, number, steps)
    if settings.clip:
        training.fabric.clip_gradients(
            training.wrapped, training.optimizer, max_norm=settings.clip, error_if_nonfinite=False
        )
    training.optimizer.step()
    training.average.update(training.network, number - round(settings.ema_from * steps))
    return reported


def to_read(training: Training, indices: Tensor) -> Tensor:
    """The images of a step that this process reads: its part, or all where images are mixed, as partners are any."""
    return indices if training.recipe.data.mix != "none" else indices[processes.part(len(indices))]


def batch(training: Training, indices: Tensor, number: int, steps: int) -> tuple[Learner, Tensor, Tensor]:
    """This process's images and labels of a step, and the learner at this point.

    If the recipe mixes images, they are mixed as their light augmentation has left them: a crop of a mixed image would
    change the shares of its label.
    """
    recipe, learner, progress = training.recipe, training.learner, (number + 1) / steps
    own, read = processes.part(len(indices)), to_read(training, indices)
    x = training.train.pixels(read).contiguous(memory_format=torch.channels_last)
    y, targets = training.train.labels[read], None
    if recipe.data.mix != "none":
        classes = len(training.train.classes)
        with part_of(training.generator, 0, len(x)) as generator:
            x = learner.light(x, generator)
        learner = replace(learner, light=lambda x, generator: x)
        mixed = mix(x, y, classes, recipe.data.mix, recipe.data.mix_alpha, training.generator)
        x, y, targets = mixed.images[own], mixed.labels[own], mixed.targets[own]
    attack = recipe.attack.at(recipe.threat, progress)
    trusted = number % training.patience > 0
    return replace(learner, attack=attack, progress=progress, targets=targets, trusted=trusted), x, y


def descend(training: Training, learner: Learner, x: Tensor, y: Tensor, number: int) -> dict[str, Tensor]:
    """The gradient of the objective's loss in the parameters; returns what is reported of the whole batch."""
    in_parts = None
    if 0 < learner.micro_batch < len(x):
        parts = len(x) // learner.micro_batch
        seeds = [global_seed(training.recipe.seed, number, processes.index() * parts + part) for part in range(parts)]
        in_parts = InParts(training, learner, len(x), seeds)
        learner = replace(learner, forward=in_parts.forward)
    outcome = outcome_of(training.recipe.objective, learner, x, y, training.generator)
    rightly = (outcome.logits.argmax(1) == y).float().mean()
    reported = processes.averaged({"loss": outcome.loss, **outcome.parts, "batch_accuracy": rightly})
    losses = {name: reported[name].detach() for name in ("loss", *outcome.parts)}
    training.unread.append((number, losses))
    if len(training.unread) >= training.patience:
        check_losses(training)
    training.optimizer.zero_grad()
    training.fabric.backward(outcome.loss)
    if in_parts:
        in_parts.backward()
    return reported


def global_seed(seed: int, number: int, part: int = 0) -> int:
    """What the global generator is seeded with for a part of the batch of step `number`."""
    return (seed + part * STRIDE) * STRIDE + number


@dataclass(frozen=True)
class Replaying(Learner):
    """A learner that makes its views once: after `rewind` it gives the same ones again, in the same order.

    The perturbation of the weights needs the loss of one batch twice, and an attack costs more than all the rest.
    """

    made: list[Tensor] = field(default_factory=list)
    position: list[int] = field(default_factory=lambda: [0])

    @classmethod
    def of(cls, learner: Learner) -> "Replaying":
        replaying = cls(**vars(learner))
        return replace(replaying, light=replaying.once(learner.light), strong=replaying.once(learner.strong))

    def once(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def view(*given: object) -> Tensor:
            if self.position[0] == len(self.made):
                self.made.append(make(*given))
            self.position[0] += 1
            return self.made[self.position[0] - 1]

        return view

    def attacked(self, x: Tensor, y: Tensor, generator: torch.Generator, attack: Attack | None = None) -> Tensor:
        return self.once(super().attacked)(x, y, generator, attack)

    def rewind(self) -> None:
        self.position[0] = 0


def diverged(training: Training, what: str) -> str:
    good = f"the last good checkpoint is {training.run / runs.LAST}; " if runs.has_begun(training.run) else ""
    return f"{what}; {good}lower optimise.lr or set optimise.clip, and start anew"


def check_losses(training: Training) -> None:
    """Look at the losses of the steps since the last look, all in one wait for the device."""
    unread, training.unread = training.unread, []
    if not unread or torch.isfinite(torch.stack([losses["loss"] for _, losses in unread])).all():
        return
    number, losses = next(each for each in unread if not torch.isfinite(each[1]["loss"]))
    parts = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items() if name != "loss")
    raise Refusal(diverged(training, f"the loss is {losses['loss'].item()} at step {number} ({parts})"))


def check_finite(training: Training, state_step: int) -> None:
    """Refuse to go on from losses or weights that are not finite: before anything is measured or written."""
    check_losses(training)
    if not all(torch.isfinite(parameter).all() for parameter in training.network.parameters()):
        raise Refusal(diverged(training, f"the weights are no longer finite after step {state_step - 1}"))
