"""Accuracy under common corruptions: no attack, but what cameras and files do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from .course import Bar
from .summaries import accuracy, per_class
from .verdicts import Model, evaluating, predict


def corrupted(
    model: Model, x: Tensor, y: Tensor, classes: Sequence[str] | None, batch_size: int, seed: int, bar: Bar
) -> list[dict[str, Any]]:
    """Entries of `corruptions` in evaluation.json: every corruption in its five severities, on all images."""
    found = []
    with evaluating(model, x.device), bar("corruptions", len(x) * len(CORRUPTIONS) * len(SEVERITIES)) as advance:
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                generator = torch.Generator(x.device).manual_seed(seed)
                images = torch.cat([corrupt(name, severity, part, generator) for part in x.split(batch_size)])
                held = predict(model, images, y, batch_size, advance) == y.cpu()
                told = {"corruption": name, "severity": severity}
                found.append(told | accuracy(held) | {"per_class": per_class(held, y.cpu(), classes)})
    return found
