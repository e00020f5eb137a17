"""Accuracy under common corruptions: no attack, but what cameras and files do."""

from collections.abc import Sequence
from typing import Any

import torch

from ..attacks.base import Model
from ..data import Labelled
from ..data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from .course import Bar
from .summaries import accuracy, per_class
from .verdicts import evaluating, predict


def corrupted(
    model: Model, images: Labelled, classes: Sequence[str] | None, batch_size: int, seed: int, bar: Bar
) -> list[dict[str, Any]]:
    """Entries of `corruptions` in evaluation.json: every corruption in its five severities, on all images."""
    found, y = [], images.labels
    with evaluating(model, y.device), bar("corruptions", len(y) * len(CORRUPTIONS) * len(SEVERITIES)) as advance:
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                generator = torch.Generator(y.device).manual_seed(seed)
                answers = []
                for part in torch.arange(len(y), device=y.device).split(batch_size):
                    corrupted = corrupt(name, severity, images.pixels(part), generator)
                    answers.append(predict(model, corrupted, y[part], batch_size, advance))
                held = torch.cat(answers) == y.cpu()
                told = {"corruption": name, "severity": severity}
                found.append(told | accuracy(held) | {"per_class": per_class(held, y.cpu(), classes)})
    return found
