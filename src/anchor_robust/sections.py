"""The sections of a recipe that are no room's own: data, model, the attack while training, validation."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .attacks import PGD
from .data.mix import Mix
from .errors import Refusal
from .threat import Ball


@dataclass(frozen=True)
class Data:
    """What is trained on, and its light augmentation.

    Attributes:
        name: Data set: cifar10, digits, or a folder of your own, whose train and test hold x.npy, uint8 [n h w c], and
            y.npy each; it may be larger than memory.
        crop: Pixels of zero padding from which a random crop is cut; 0 does not crop.
        flip: Mirror half of the images; off where left and right mean something, as in digits.
        mix: Blend pairs of images, labels included, after crop and flip: none, mixup (arXiv 1710.09412) or cutmix
            (arXiv 1905.04899), with which no strong view is cut. The attack then works against the label of the larger
            share.
        mix_alpha: The share of the first image is drawn from Beta(mix_alpha, mix_alpha); 1 is uniform.
    """

    name: str = "cifar10"
    crop: int = 4
    flip: bool = True
    mix: Mix = "none"
    mix_alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise Refusal(f"data.crop {self.crop} given; allowed: 0 (off) or more pixels")
        if not 0 < self.mix_alpha < float("inf"):
            raise Refusal(f"data.mix_alpha {self.mix_alpha} given; allowed: above 0, usually 0.2 to 1.4")


@dataclass(frozen=True)
class Model:
    """The backbone.

    Attributes:
        name: Built-in name, or your own class as package.module.Class.
        settings: The backbone's own arguments, such as width.
    """

    name: str = "resnet18"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """PGD from a uniform start.

    Attributes:
        steps: Gradient steps.
        step_size: Length of a step, in the unit of eps.
    """

    steps: int = 10
    step_size: float = 0.007

    def pgd(self, ball: Ball) -> PGD:
        return PGD(ball, steps=self.steps, step_size=self.step_size)


@dataclass(frozen=True)
class Attack(Search):
    """PGD from a uniform start, while training.

    Attributes:
        ramp: Share of the training over which eps, and the step size with it, rises from 0 to its value.
    """

    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ramp <= 1:
            raise Refusal(f"attack.ramp {self.ramp} given; allowed: 0 (off) to 1, a share of the training")

    def at(self, ball: Ball, progress: float) -> PGD:
        """The attack when the share `progress`, above 0, of the training is done."""
        share = min(1.0, progress / self.ramp) if self.ramp else 1.0
        return PGD(Ball(ball.norm, share * ball.eps), steps=self.steps, step_size=share * self.step_size)


@dataclass(frozen=True)
class Validation(Search):
    """The split cut from the training images on which the kept weights are chosen, by accuracy under this PGD.

    Of epochs that are equal under it the later one is kept.

    Attributes:
        images: Images held out, never trained on.
        every: Epochs from one validation to the next; the last epoch always has one.
        steps: PGD steps.
        step_size: Length of a step, in the unit of eps.
    """

    images: int = 1000
    every: int = 1

    def __post_init__(self) -> None:
        for setting in ("images", "every"):
            if getattr(self, setting) < 1:
                raise Refusal(f"validation.{setting} {getattr(self, setting)} given; allowed: 1 or more")
