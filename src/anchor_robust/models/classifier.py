"""From pixels in [0, 1] to logits and a unit embedding, normalisation included."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """normalise -> backbone -> (logits, embedding).

        features  = backbone.features((x - mean) / std)      [n d]
        logits    = backbone.linear(features)                [n k]
        embedding = g(features) / |g(features)|              [n p], g the projection head, or the identity without one

    x is [n c h w] with pixels in [0, 1]; mean and std are per channel, in the same unit. The projection head is the
    two-layer MLP of SupCon (arXiv 2004.11362, section 3); it serves the contrastive loss and never the logits.
    `backbone` is a module with `.features(x) -> [n d]` and `.linear`, as `models.backbone` gives it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any, mean: Sequence[float], std: Sequence[float], projection_width: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.projection = projection_head(backbone.linear.in_features, projection_width) if projection_width else None

    def features(self, x: Tensor) -> Tensor:
        """[n d]: what the linear head sees of pixels x [n c h w] in [0, 1]."""
        return self.backbone.features((x - self.mean) / self.std)

    def spaces(self, x: Tensor) -> dict[str, Tensor]:
        """Unit embeddings of pixels x [n c h w]: `features` [n d] and, with a projection head, `projection` [n p]."""
        found = {"features": self.features(x)}
        if self.projection is not None:
            found["projection"] = self.projection(found["features"])
        return {name: F.normalize(z.float(), dim=1) for name, z in found.items()}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        projected = features if self.projection is None else self.projection(features)
        return self.backbone.linear(features), F.normalize(projected.float(), dim=1)


class LogitsOnly(nn.Module):
    """A classifier as attacks, evaluations and users see it: pixels in [0, 1] in, logits [n k] out."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x)[0]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def embed(self, x: Tensor) -> Tensor:
        """The unit embedding [n p]."""
        return self.classifier(x)[1]


class WithHead(nn.Module):
    """A linear head on a user's network `features` that maps images to features [n width]."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


def projection_head(width_in: int, width_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width_in, width_in), nn.ReLU(inplace=True), nn.Linear(width_in, width_out))
