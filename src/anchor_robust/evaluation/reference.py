"""AutoAttack by its authors' own code (Croce & Hein, arXiv 2003.01690), from the package pyautoattack, if installed.

Only their searches are used: batches, standing sets and verdicts stay ours, as for every other attack.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attacks import Attack, Stage
from ..attacks.base import Model
from ..draws import global_state_kept
from ..errors import Refusal
from ..threat import Ball

NAME = "pyautoattack"
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2"}


@dataclass(frozen=True)
class Reference(Attack):
    """One stage of AutoAttack standard as the authors run it.

    Attributes:
        ball: Where the attacker may go.
        stage: apgd-ce, apgd-t, fab-t or square.
        classes: The model's; the targeted stages try the `min(9, classes - 1)` strongest other classes.
    """

    ball: Ball
    stage: str
    classes: int

    def describe(self) -> dict[str, Any]:
        steps = 5000 if self.stage == "square" else 100
        loss = {"apgd-ce": "ce", "apgd-t": "targeted dlr", "square": "margin"}.get(self.stage)
        return {**super().describe(), "steps": steps, "restarts": 1, "loss": loss}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        # Their searches seed the global generators.
        with global_state_kept(x.device), torch.no_grad():
            return self.authors(model, x, generator.initial_seed()).perturb(x.contiguous(), y)

    def authors(self, model: Model, x: Tensor, seed: int) -> Any:
        standard = authors_code().AutoAttack(
            model, norm=NORMS[self.ball.norm], eps=self.ball.eps, seed=seed, device=x.device, version="standard"
        )
        standard.fab.targeted = True  # as their own loop does before this stage
        standard.fab.n_target_classes = standard.apgd_targeted.n_target_classes = min(9, self.classes - 1)
        stages = (standard.apgd, standard.apgd_targeted, standard.fab, standard.square)
        return dict(zip(STAGES, stages, strict=True))[self.stage]


def standard(ball: Ball, classes: int) -> list[Stage]:
    """The four stages of AutoAttack standard."""
    authors_code()
    if classes < 4:
        raise Refusal(f"--engine reference given for {classes} classes; allowed: 4 or more; use our own engine")
    return [Stage(stage, (Reference(ball, stage, classes),)) for stage in STAGES]


def preview(ball: Ball, classes: int) -> list[Stage]:
    """The first two, which decide nearly all."""
    return standard(ball, classes)[:2]


def authors_code() -> Any:
    try:
        import pyautoattack
    except ImportError:
        raise Refusal(
            "--engine reference needs the package pyautoattack; install it: pip install pyautoattack"
        ) from None
    return pyautoattack
