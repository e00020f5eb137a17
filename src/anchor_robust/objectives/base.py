"""What a training method is given, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import processes
from ..attacks import PGD, Attack
from ..draws import parts
from ..errors import Refusal, one_line

LOGGED = (  # what the log calls its own
    *("step", "epoch", "lr", "loss", "batch_accuracy", "images_per_s", "memory_mb", "seconds"),
    *("validation_clean", "validation_robust", "event"),
)

View = Callable[[Tensor, torch.Generator], Tensor]


class Embedder(Protocol):
    """The network's frozen twin, for attacks: x [n c h w] -> logits [n k]; `embed` gives the unit embedding [n p] too.

    Gradients go to pixels, never to weights.
    """

    def __call__(self, x: Tensor) -> Tensor: ...

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Learner:
    """The network under training, and everything around it that a training method may use.

    `net` is the network's frozen twin, for attacks: gradients go to pixels, never to weights, and it is refreshed
    before each step. `forward` is the one training pass of a step (x -> (logits [n k], unit embedding [n p])). Call
    `forward` once a step: BatchNorm sees all the views as one batch, and distributed training allows only one pass
    through its wrapper. The public code of TRADES, MART and ASCL passes clean and attacked images one after the other,
    each with statistics of their own. Attacks look at the network in evaluation mode, as there (ASCL's own do not).

    `progress` is the share of the training that is done, for what changes on the way. `targets` [n k] are the classes'
    shares of mixed images (mixup, CutMix), whose labels are then those of the larger share. `trusted` spares the attack
    a look at its pixels, for which it would have to wait. `micro_batch`, if not 0, is how many images are attacked at a
    time.
    """

    net: Embedder
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    attack: PGD
    light: View
    strong: View
    label_smoothing: float = 0.0
    progress: float = 0.0
    targets: Tensor | None = None
    trusted: bool = False
    micro_batch: int = 0

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of the batch's images, in their order, in at least float32, with label smoothing."""
        at_least_float32 = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(
            at_least_float32, y if self.targets is None else self.targets, label_smoothing=self.label_smoothing
        )

    def expected(self, losses: Tensor, y: Tensor) -> Tensor:
        """Mean of losses [n k], one for each class that an image may have, over its targets, smoothed like any."""
        of_target = losses.gather(1, y[:, None]) if self.targets is None else (self.targets * losses).sum(1)
        return (1 - self.label_smoothing) * of_target.mean() + self.label_smoothing * losses.mean()

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows [n ...] of the whole batch where several processes share it, gradients included.

        What a mean over images gives needs no gathering: gradients are averaged over the processes. A loss that
        compares images with each other does.
        """
        return processes.gathered(rows)

    def attacked(self, x: Tensor, y: Tensor, generator: torch.Generator, attack: Attack | None = None) -> Tensor:
        """The adversarial view of x [n c h w]: inside the ball around x and inside [0, 1].

        `attack` in place of the recipe's is usually a variant of it: `dataclasses.replace(learner.attack, loss="kl")`.
        """
        search = attack or self.attack
        attacked = [
            search(self.net, x[part], y[part], generator=own, trusted=self.trusted)
            for part, own in parts(len(x), self.micro_batch, generator)
        ]
        return torch.cat(attacked) if len(attacked) > 1 else attacked[0]


@dataclass(frozen=True)
class Step:
    """`loss` to minimise; `logits` [n k] on the view that the method classifies; `parts` of the loss, for the log."""

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """A training method. A new one is a file in this folder with a frozen dataclass; its fields are the settings.

    Attributes:
        name: The training method, built in or your own as package.module.Class.
        selects_on: The validation accuracy by which weights are kept: `robust`, or `clean` for a method that does not
            defend (its robust accuracy is best before it has learned anything).
        projection_width: Width of the projection head that the method asks the network for; 0 is none.
    """

    name: ClassVar[str]
    selects_on: ClassVar[str] = "robust"
    projection_width: int = 0

    def passes(self, attack_steps: int) -> float:
        """The cost of a step: forward-and-backward passes of an image, on average, those of the attack included."""
        return attack_steps + 1

    def warning(self, parts: Mapping[str, float], batch_size: int) -> str:
        """What an epoch's mean `parts` of the loss say to the user; empty when all is well."""
        return ""

    @abstractmethod
    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        """One step's loss for images x [n c h w], not yet augmented, with labels y [n]."""


def outcome_of(objective: Objective, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
    """What the objective says of a batch; what one of the user's does wrong is told in its name."""
    with failing_as(objective):
        outcome = objective(learner, x, y, generator)
    if not ours(objective) and (wrong := fault(outcome, len(y))):
        raise Refusal(f"objective {type(objective).__name__} gives {wrong}; mend it")
    return outcome


def warning_of(objective: Objective, parts: Mapping[str, float], batch_size: int) -> str:
    """What the objective warns of; what one of the user's does wrong there is told in its name."""
    with failing_as(objective):
        return objective.warning(parts, batch_size)


@contextmanager
def failing_as(objective: Objective) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if ours(objective) or isinstance(error, Refusal | MemoryError | torch.OutOfMemoryError):
            raise
        told = f"{type(error).__name__}: {one_line(error)}"
        raise Refusal(f"objective {type(objective).__name__} failed ({told}); --debug shows where") from error


def ours(objective: Objective) -> bool:
    return type(objective).__module__.partition(".")[0] == __name__.partition(".")[0]


def fault(outcome: object, images: int) -> str | None:
    """What is wrong with what an objective returned, if something is."""
    if not isinstance(outcome, Step):
        return f"a {type(outcome).__name__}; allowed: a Step"
    loss, logits = outcome.loss, outcome.logits
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        return f"the loss {described(loss)}; allowed: one number that depends on the weights"
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != images:
        return f"the logits {described(logits)}; allowed: logits [{images} k], a row for each image"
    for name, part in outcome.parts.items():
        if not isinstance(part, Tensor) or part.shape != ():
            return f"the part {name} {described(part)}; allowed: a tensor of one number"
        if name in LOGGED:
            return f"a part that is called {name}, as another thing in the log; give it another name"
    return None


def described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"as a {type(value).__name__}"
    return f"as {list(value.shape)}{'' if value.requires_grad else ' without a gradient'}"
