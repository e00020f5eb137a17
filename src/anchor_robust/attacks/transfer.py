"""Transfer: adversarial images made on one model and tried on another (Papernot et al., arXiv 1605.07277)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Attack, Model


class Transfer(Attack):
    """Let `attack` search on `source`, whatever the attacked model says; the verdict is the caller's.

    A direct attack that loses to a transferred one has not found what is there (arXiv 1802.00420). `source` is any
    model of the same classes, and comes back as it was, as from every attack.
    """

    searches_the_model: ClassVar[bool] = False

    def __init__(self, source: Model, attack: Attack) -> None:
        self.source, self.attack, self.ball = source, attack, attack.ball

    def describe(self) -> dict[str, Any]:
        return self.attack.describe()

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return self.attack(self.source, x, y, generator=generator)
