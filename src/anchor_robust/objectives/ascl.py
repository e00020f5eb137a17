"""ASCL, Bui et al., arXiv 2101.10027: adversarial training with supervised contrast over selected images.

    cross_entropy(x_adv) + clean * cross_entropy(x) + smoothness * KL(p(x) || p(x_adv)) + contrast * L

L is `losses.selective_supcon` over the embeddings of the clean and the attacked images. Which images an anchor is
compared with is chosen by what the network predicts for them.

The formula is the paper's, the weights are of a variant: the authors' script for CIFAR-10 has no clean cross-entropy,
two augmentations of each image, a fifth of this divergence, -|z_i - z_j|_inf at temperature 0.2 for the similarity, and
counts anchors without a positive as 0 in the mean.
"""

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ..errors import Refusal
from ..losses import kl_divergence, selective_supcon
from ..losses.contrastive import Selection
from .base import Learner, Objective, Step


@dataclass(frozen=True)
class AdversarialSupervisedContrast(Objective):
    """Contrast with those images only that the network confuses with the anchor.

    Attributes:
        contrast: Weight of the contrastive loss.
        clean: Weight of the cross-entropy on clean images.
        smoothness: Weight of the divergence between clean and attacked predictions.
        selection: What an anchor is compared with: all; hard, negatives that are taken for its class; soft, negatives
            that share its prediction; leaked, negatives and positives that share its prediction.
        temperature: Temperature of the contrastive loss.
        projection_width: Width of the projection head's output.
    """

    name: ClassVar[str] = "ascl"

    contrast: float = 1.0
    clean: float = 1.0
    smoothness: float = 1.0
    selection: Selection = "leaked"
    temperature: float = 0.1
    projection_width: int = 128

    def __post_init__(self) -> None:
        for setting in ("contrast", "clean", "smoothness"):
            if not 0 <= getattr(self, setting) < float("inf"):
                raise Refusal(f"{setting} {getattr(self, setting)} given; allowed: 0 or more")
        if self.selection not in get_args(Selection):
            raise Refusal(f"selection {self.selection!r} given; allowed: {', '.join(get_args(Selection))}")
        if not 0 < self.temperature < float("inf"):
            raise Refusal(f"temperature {self.temperature} given; allowed: above 0, usually 0.05 to 0.5")
        if self.projection_width < 0:
            raise Refusal(f"projection_width {self.projection_width} given; allowed: 0 (no head) or more")

    def passes(self, attack_steps: int) -> int:
        return attack_steps + 2

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        clean = learner.light(x, generator)
        adversarial = learner.attacked(clean, y, generator)
        logits, embeddings = learner.forward(torch.cat([clean, adversarial]))
        clean_logits, adversarial_logits = logits.chunk(2)
        z, labels, predictions = map(learner.gathered, (embeddings, y.repeat(2), logits.argmax(1)))
        parts = {
            "cross_entropy": learner.cross_entropy(adversarial_logits, y),
            "clean_cross_entropy": learner.cross_entropy(clean_logits, y),
            "divergence": kl_divergence(clean_logits, adversarial_logits).mean(),
            "contrast": selective_supcon(z, labels, predictions, self.selection, self.temperature),
        }
        loss = (
            parts["cross_entropy"]
            + self.clean * parts["clean_cross_entropy"]
            + self.smoothness * parts["divergence"]
            + self.contrast * parts["contrast"]
        )
        return Step(loss, adversarial_logits, parts)
