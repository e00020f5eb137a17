"""Attacks on the embedding, for models that were trained to shape it: a loss of theirs that no logit shows."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refusal
from ..losses import hard_supcon
from .base import Attack, Model, frozen
from .margins import margin
from .pgd import PGD
from .worst import damage

EmbeddingLoss = Literal["centroid", "contrast"]


class EmbeddingAttack(Attack):
    """Climb, as `pgd` would, a loss on the unit embedding e(x) in place of the logits:

        centroid    -e(x) . c_y, c_y the unit mean of the references with label y
        contrast    hard_supcon([e(x); e(references)], [y; labels]), ANCHOR's own loss (arXiv 2510.27599)

    The contrast is that of the whole batch, as in training, so an image's adversarial depends on its neighbours.
    Restarts keep what harms the model's logits most.

    Args:
        pgd: Ball, steps, step size, restarts and start; its own loss and target are not used.
        embed: Images [n ...] to embeddings [n d] of unit length, such as `lambda x: model.classifier(x)[1]`. A
            module, or a method of one, is frozen and in evaluation mode meanwhile; a lambda shares the attacked
            model's state, if it calls that.
        references: Clean images [m ...] of every class, best from the training set.
        labels: Their classes, [m].
        loss: `centroid` or `contrast`.

    Raises Refusal for another loss, for labels that do not fit, and on a call for a label without a reference.
    """

    searches_the_model: ClassVar[bool] = False

    def __init__(
        self,
        pgd: PGD,
        embed: Callable[[Tensor], Tensor],
        references: Tensor,
        labels: Tensor,
        *,
        loss: EmbeddingLoss = "centroid",
    ) -> None:
        if loss not in get_args(EmbeddingLoss):
            raise Refusal(f"loss {loss!r} given; allowed: {', '.join(get_args(EmbeddingLoss))}")
        if labels.shape != references.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
            given = f"{list(labels.shape)} {labels.dtype}"
            raise Refusal(f"labels {given} given for {len(references)} references; allowed: an integer for each")
        self.pgd, self.embed, self.loss, self.ball = pgd, embed, loss, pgd.ball
        self.references, self.labels = references, labels.long()

    def describe(self) -> dict[str, Any]:
        return {**self.pgd.describe(), "loss": self.loss}

    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        missing = set(y.tolist()) - set(self.labels.tolist())
        if missing:
            raise Refusal(f"label {min(missing)} has no reference image; give at least one of each class")
        with frozen(self.embed):
            with torch.no_grad():
                known, labels = self.embed(self.references.to(x)), self.labels.to(y.device)
            loss = {"centroid": away_from_centroid, "contrast": up_the_contrast}[self.loss](known, labels, y)

            def harm(x_adv: Tensor) -> Tensor:
                return damage(model, x_adv, y, lambda logits: margin(logits, y))

            return self.pgd.climb(self.embed, loss, harm, x, generator)


def away_from_centroid(known: Tensor, labels: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    members = F.one_hot(labels, int(labels.max()) + 1).to(known)
    # The unit mean is the unit sum: no count is needed, and none can be 0.
    centroids = F.normalize(members.T @ known, dim=1)[y]
    return lambda embeddings: -(embeddings * centroids).sum(1)


def up_the_contrast(known: Tensor, labels: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    together = torch.cat([y, labels])
    return lambda embeddings: hard_supcon(torch.cat([embeddings, known]), together)
