"""ANCHOR, arXiv 2510.27599: adversarial training joined with hard-mined supervised contrast.

    loss = cross_entropy(c(f(x_adv)), y) + contrast * L(views)
           [+ clean * cross_entropy(c(f(x_clean)), y)] [+ augmented * cross_entropy(c(f(x_augmented)), y)]
           [- margin * log(1 - max_{j != y} p_j(x_adv))] [+ consistency * KL(p(x_clean) || p(x_adv)) (1 - p_y(x_clean))]

L is `losses.hard_supcon` over the embeddings of all the views. The last two terms are MART's: hard positives for the
embeddings, the hardest negative and the hardest images for the classifier. With margin 1 and consistency 5 the contrast
acts on MART in place of PGD-AT, which is what is left at contrast 0 with no view more than they have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks import PGD
from ..attacks.base import Model
from ..attacks.worst import damage
from ..errors import Refusal
from ..geometry import collapsed
from ..losses import doubted_divergence, hard_supcon, margin_penalty
from .base import Learner, Objective, Step

VIEWS = ("clean", "augmented", "adversarial")
FROM_ZERO = ("contrast", "clean", "augmented", "margin", "consistency", "hardness", "attack_contrast")


@dataclass(frozen=True)
class Anchor(Objective):
    """Adversarial training whose embeddings are pulled to their class, hardest positives first.

    Attributes:
        contrast: Weight of the contrastive loss against the cross-entropy.
        clean: Weight of the cross-entropy on the clean view; 0 leaves it out.
        augmented: Weight of the cross-entropy on the augmented view; 0 leaves it out.
        margin: Weight of the margin over the strongest wrong class of the attacked view; 0 leaves it out.
        consistency: Weight of MART's divergence between clean and attacked view; 0 leaves it out.
        views: What the contrastive loss sees of each image, of clean, augmented, adversarial; adversarial is required.
        temperature: Temperature t of the contrastive loss.
        hardness: h in the weights exp(h (1 - similarity)) of the positives; 0 is plain SupCon.
        hard_fraction: Share of the positives, those least similar, that is kept; in (0, 1]. Small shares at high
            hardness can pull all classes into one point: the contrast then stays at log(m - 1), m embeddings.
        projection_width: Width of the projection head's output, the space in which similarities are taken.
        hardness_ramp: Share of the training over which hardness rises from 0; early embeddings are not worth mining.
        attack_contrast: Weight of the contrastive loss in what the attack climbs; 0 attacks the cross-entropy alone.
            The contrast is that of the images which are attacked together: a process's, a micro-batch's.
    """

    name: ClassVar[str] = "anchor"

    contrast: float = 0.5
    clean: float = 0.0
    augmented: float = 0.0
    margin: float = 0.0
    consistency: float = 0.0
    views: tuple[str, ...] = ("augmented", "adversarial")
    temperature: float = 0.1
    hardness: float = 1.0
    hard_fraction: float = 1.0
    projection_width: int = 128
    hardness_ramp: float = 0.0
    attack_contrast: float = 0.0

    def __post_init__(self) -> None:
        if "adversarial" not in self.views or len(set(self.views)) < len(self.views) or set(self.views) - set(VIEWS):
            raise Refusal(f"views {self.views} given; allowed: adversarial and any of clean, augmented, each once")
        for setting in (*FROM_ZERO, "temperature", "hard_fraction", "hardness_ramp", "projection_width"):
            if not isinstance(getattr(self, setting), Real):
                raise Refusal(f"{setting} {getattr(self, setting)!r} given; allowed: a number")
        for setting in FROM_ZERO:
            if not 0 <= getattr(self, setting) < float("inf"):
                raise Refusal(f"{setting} {getattr(self, setting)} given; allowed: 0 or more")
        if not 0 < self.temperature < float("inf"):
            raise Refusal(f"temperature {self.temperature} given; allowed: above 0, usually 0.05 to 0.5")
        if not 0 < self.hard_fraction <= 1:
            raise Refusal(f"hard_fraction {self.hard_fraction} given; allowed: above 0 and at most 1")
        if not 0 <= self.hardness_ramp <= 1:
            raise Refusal(f"hardness_ramp {self.hardness_ramp} given; allowed: 0 (off) to 1, a share of the training")
        if self.projection_width < 0:
            raise Refusal(f"projection_width {self.projection_width} given; allowed: 0 (no head) or more")

    def passes(self, attack_steps: int) -> int:
        return attack_steps + len(self.forwarded())

    def warning(self, parts: Mapping[str, float], batch_size: int) -> str:
        return collapsed(parts["contrast"], len(self.views) * batch_size) if self.contrast else ""

    def forwarded(self) -> tuple[str, ...]:
        """The views that pass through the network: those of the contrast, and those that another term asks for."""
        asked = {"clean": self.clean or self.consistency, "augmented": self.augmented}
        return tuple(dict.fromkeys((*self.views, *(view for view, weight in asked.items() if weight))))

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        forwarded = self.forwarded()
        views = {"clean": learner.light(x, generator)}
        views["adversarial"] = self.attacked(learner, views["clean"], y, generator)
        if "augmented" in forwarded:
            views["augmented"] = learner.strong(x, generator)

        logits, embeddings = learner.forward(torch.cat([views[name] for name in forwarded]))
        logits_of = dict(zip(forwarded, logits.chunk(len(forwarded)), strict=True))
        embeddings_of = dict(zip(forwarded, embeddings.chunk(len(forwarded)), strict=True))

        compared = [learner.gathered(embeddings_of[name]) for name in self.views]
        contrast = self.contrastive(compared, learner.gathered(y), learner.progress)
        cross_entropy = learner.cross_entropy(logits_of["adversarial"], y)
        parts = {"cross_entropy": cross_entropy, "contrast": contrast}
        loss = cross_entropy + self.contrast * contrast
        for name, weight in (("clean", self.clean), ("augmented", self.augmented)):
            if weight:
                parts[f"{name}_cross_entropy"] = learner.cross_entropy(logits_of[name], y)
                loss = loss + weight * parts[f"{name}_cross_entropy"]
        if self.margin:
            parts["margin"] = learner.expected(margin_penalty(logits_of["adversarial"]), y)
            loss = loss + self.margin * parts["margin"]
        if self.consistency:
            divergence = doubted_divergence(logits_of["clean"], logits_of["adversarial"])
            parts["divergence"] = learner.expected(divergence, y)
            loss = loss + self.consistency * parts["divergence"]
        return Step(loss, logits_of["adversarial"], parts)

    def contrastive(self, embeddings: Sequence[Tensor], y: Tensor, progress: float) -> Tensor:
        """L over views of one batch, each [n d]."""
        return hard_supcon(
            torch.cat(list(embeddings)),
            y.repeat(len(embeddings)),
            temperature=self.temperature,
            hardness=self.hardness * min(1.0, progress / self.hardness_ramp) if self.hardness_ramp else self.hardness,
            hard_fraction=self.hard_fraction,
        )

    def attacked(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        if not self.attack_contrast:
            return learner.attacked(x, y, generator)

        def joint(logits: Tensor, clean: Tensor, embedding: Tensor, y: Tensor) -> Tensor:
            contrast = self.contrastive((clean, embedding), y, learner.progress)
            return F.cross_entropy(logits, y, reduction="none") + self.attack_contrast * contrast

        attack = JointPGD(**vars(learner.attack), embed=learner.net.embed, joint=joint)
        return learner.attacked(x, y, generator, attack)


@dataclass(frozen=True)
class JointPGD(PGD):
    """PGD on cross-entropy and contrast together: every image is pushed off its class and off its class's embeddings.

    Attributes:
        embed: Images to logits [n k] and embeddings [n p], in place of the attacked model. It is the learner's twin,
            whose parameters are never trained and whose modules have no training mode: there is nothing to freeze.
        joint: The loss [n] of attacked images: of their logits [n k], clean and attacked embeddings [n p], labels [n].
    """

    embed: Callable[[Tensor], tuple[Tensor, Tensor]] = field(kw_only=True)
    joint: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = field(kw_only=True)

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            clean = self.embed(x)[1]

        def side_by_side(candidates: Tensor) -> Tensor:
            return torch.cat([output.float() for output in self.embed(candidates)], dim=1)

        def loss(output: Tensor) -> Tensor:
            logits, embedding = output.tensor_split((output.shape[1] - clean.shape[1],), dim=1)
            return self.joint(logits, clean, embedding, y)

        def harm(x_adv: Tensor) -> Tensor:
            return damage(model, x_adv, y, lambda logits: F.cross_entropy(logits, y, reduction="none"))

        return self.climb(side_by_side, loss, harm, x, generator)
