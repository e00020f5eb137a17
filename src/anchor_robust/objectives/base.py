"""What a training method is given, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks import Attack

View = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Learner:
    """The network under training, and everything around it that a training method may use.

    Two handles on one set of parameters: `net` is the raw network for attacks (x [n c h w] -> logits [n k]), `forward`
    the one training pass of a step (x -> (logits [n k], unit embedding [n p])). Call `forward` once a step: BatchNorm
    sees all the views as one batch, and distributed training allows only one pass through its wrapper.
    """

    net: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    attack: Attack
    light: View
    strong: View
    label_smoothing: float = 0.0

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy in at least float32, with the recipe's label smoothing."""
        at_least_float32 = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(at_least_float32, y, label_smoothing=self.label_smoothing)

    def attacked(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The adversarial view of x [n c h w]: inside the ball around x and inside [0, 1]."""
        return self.attack(self.net, x, y, generator=generator)


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

    @abstractmethod
    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        """One step's loss for images x [n c h w], not yet augmented, with labels y [n]."""
