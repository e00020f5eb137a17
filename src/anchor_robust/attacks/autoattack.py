"""AutoAttack (Croce & Hein, arXiv 2003.01690): attacks without a setting, each on what is left standing."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import Refusal
from ..threat import Ball
from .apgd import APGD, APGDT
from .base import Attack, Model, check_ball
from .fab import FAB
from .margins import fooled
from .square import Square
from .standing import Standing

Version = Literal["standard", "preview"]
MOST_TARGETS = 9
TARGETED = ("apgd-t", "fab-t")


@dataclass(frozen=True)
class Stage:
    """Attacks that follow each other, each on the images still standing: a part of AutoAttack, or a whole attack.

    Attributes:
        name: What records and tables call it, such as `apgd-ce`.
        attacks: One, or one for each target.
    """

    name: str
    attacks: tuple[Attack, ...]

    def describe(self) -> dict[str, Any]:
        """The settings that the stage's attacks share; of AutoAttack's targeted ones `targets`, how many there are."""
        settings = self.attacks[0].describe()
        if self.name in TARGETED and settings.pop("target", None) is not None:  # the authors' have all in one
            settings["targets"] = len(self.attacks)
        return settings


def stages(ball: Ball, version: Version = "standard", classes: int = 10) -> tuple[Stage, ...]:
    """The sequence of AutoAttack against a model of so many classes, 2 or more.

        standard: APGD on the cross-entropy, APGD-T, FAB-T, Square          preview: the first two

    100 steps each, 5,000 queries, one restart. Targets are the nine most likely wrong classes; with fewer than ten
    classes, all wrong ones. Raises Refusal for another version, and for fewer than two classes.
    """
    if version not in get_args(Version):
        raise Refusal(f"version {version!r} given; allowed: {', '.join(get_args(Version))}")
    if classes < 2:
        raise Refusal(f"a model of {classes} classes given; allowed: 2 or more, as one class cannot be mistaken")
    targets = range(1, min(classes - 1, MOST_TARGETS) + 1)
    preview = (
        Stage("apgd-ce", (APGD(ball),)),
        Stage("apgd-t", tuple(APGDT(ball, target=target) for target in targets)),
    )
    if version == "preview":
        return preview
    return (
        *preview,
        Stage("fab-t", tuple(FAB(ball, target=target) for target in targets)),
        Stage("square", (Square(ball),)),
    )


@dataclass(frozen=True)
class AutoAttack(Attack):
    """All stages one after another, each on the images that still stand.

    Attributes:
        ball: Where the attacker may go.
        version: `standard`, or `preview`, which leaves out FAB-T and Square: most of the time goes into those two,
            and they seldom change the accuracy by more than a few hundredths of a point.

    An image keeps its first adversarial; one that never falls, or is wrong already, comes back as it was. Raises
    Refusal for another version, and for a model with one class.
    """

    ball: Ball
    version: Version = "standard"

    def __post_init__(self) -> None:
        check_ball(self.ball)
        stages(self.ball, self.version)

    def describe(self) -> dict[str, Any]:
        """Of a model that is not known here: of its wrong classes all are targets, or the most likely nine."""
        targets = {"targets": f"at most {MOST_TARGETS}"}
        parts = [
            {"stage": stage.name, **stage.describe(), **(targets if stage.name in TARGETED else {})}
            for stage in stages(self.ball, self.version)
        ]
        shared: dict[str, Any] = {"steps": 100, "restarts": 1, "start": "uniform", **targets}
        losses = ", then ".join(stage.name for stage in stages(self.ball, self.version))
        return {**super().describe(), **shared, "loss": losses, "version": self.version, "stages": parts}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        standing = Standing(x)
        logits = self._judge(model, x, y, standing)
        for stage in stages(self.ball, self.version, logits.shape[1]):
            for attack in stage.attacks:
                if not len(standing):
                    return standing.x_adv
                left = standing.index
                x_adv = attack(model, x[left], y[left], generator=generator)
                self._judge(model, x_adv, y[left], standing)
        return standing.x_adv

    @torch.no_grad()
    def _judge(self, model: Model, x_adv: Tensor, y: Tensor, standing: Standing) -> Tensor:
        logits = model(x_adv)
        standing.drop(fooled(logits, y), x_adv)
        return logits
