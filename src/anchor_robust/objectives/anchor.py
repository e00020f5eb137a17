"""ANCHOR, arXiv 2510.27599: adversarial training joined with hard-mined supervised contrast.

    loss = cross_entropy(c(f(x_adv)), y) + contrast * L(views) [+ clean * cross_entropy(c(f(x_clean)), y)]

L is `losses.hard_supcon` over the embeddings of all the views.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import Refusal
from ..losses import hard_supcon
from .base import Learner, Objective, Step

VIEWS = ("clean", "augmented", "adversarial")


@dataclass(frozen=True)
class Anchor(Objective):
    """Adversarial training whose embeddings are pulled to their class, hardest positives first.

    Attributes:
        contrast: Weight of the contrastive loss against the cross-entropy.
        clean: Weight of the cross-entropy on the clean view; 0 leaves it out.
        views: What the contrastive loss sees of each image, of clean, augmented, adversarial; adversarial is required.
        temperature: Temperature t of the contrastive loss.
        hardness: h in the weights exp(h (1 - similarity)) of the positives; 0 is plain SupCon.
        hard_fraction: Share of the positives, those least similar, that is kept; in (0, 1]. Small shares at high
            hardness can pull all classes into one point: the contrast then stays at log(m - 1), m embeddings.
        projection_width: Width of the projection head's output, the space in which similarities are taken.
    """

    name: ClassVar[str] = "anchor"

    contrast: float = 0.5
    clean: float = 0.0
    views: tuple[str, ...] = ("augmented", "adversarial")
    temperature: float = 0.1
    hardness: float = 1.0
    hard_fraction: float = 1.0
    projection_width: int = 128

    def __post_init__(self) -> None:
        if "adversarial" not in self.views or len(set(self.views)) < len(self.views) or set(self.views) - set(VIEWS):
            raise Refusal(f"views {self.views} given; allowed: adversarial and any of clean, augmented, each once")
        for setting in ("contrast", "clean", "hardness"):
            if not 0 <= getattr(self, setting) < float("inf"):
                raise Refusal(f"{setting} {getattr(self, setting)} given; allowed: 0 or more")
        if not 0 < self.temperature < float("inf"):
            raise Refusal(f"temperature {self.temperature} given; allowed: above 0, usually 0.05 to 0.5")
        if not 0 < self.hard_fraction <= 1:
            raise Refusal(f"hard_fraction {self.hard_fraction} given; allowed: above 0 and at most 1")
        if self.projection_width < 0:
            raise Refusal(f"projection_width {self.projection_width} given; allowed: 0 (no head) or more")

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        views = {"clean": learner.light(x, generator)}
        views["adversarial"] = learner.attacked(views["clean"], y, generator)
        if "augmented" in self.views:
            views["augmented"] = learner.strong(x, generator)

        forwarded = dict.fromkeys((*self.views, "clean") if self.clean else self.views)
        logits, embeddings = learner.forward(torch.cat([views[name] for name in forwarded]))
        logits_of = dict(zip(forwarded, logits.chunk(len(forwarded)), strict=True))
        embeddings_of = dict(zip(forwarded, embeddings.chunk(len(forwarded)), strict=True))

        contrast = hard_supcon(
            torch.cat([embeddings_of[name] for name in self.views]),
            y.repeat(len(self.views)),
            temperature=self.temperature,
            hardness=self.hardness,
            hard_fraction=self.hard_fraction,
        )
        cross_entropy = learner.cross_entropy(logits_of["adversarial"], y)
        parts = {"cross_entropy": cross_entropy, "contrast": contrast}
        loss = cross_entropy + self.contrast * contrast
        if self.clean:
            parts["clean_cross_entropy"] = learner.cross_entropy(logits_of["clean"], y)
            loss = loss + self.clean * parts["clean_cross_entropy"]
        return Step(loss, logits_of["adversarial"], parts)
