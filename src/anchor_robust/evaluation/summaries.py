"""From the outcome of every image to accuracies with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..intervals import wilson

# What every result states; None where it has no meaning.
CONVENTIONS = ("norm", "eps", "steps", "step_size", "restarts", "start", "loss")


def accuracy(held: Tensor) -> dict[str, Any]:
    """`images`, `accuracy` and `interval` of outcomes bool [n]."""
    count, successes = len(held), int(held.sum())
    return {"images": count, "accuracy": successes / count, "interval": list(wilson(successes, count))}


def summary(
    attack: str,
    conventions: Mapping[str, Any],
    held: Tensor,
    y: Tensor,
    classes: Sequence[str] | None,
    seconds: float,
) -> dict[str, Any]:
    """One entry of `results`: the accuracy with every convention that it depends on."""
    return {
        "attack": attack,
        "label": attack,
        **dict.fromkeys(CONVENTIONS),
        **conventions,
        "dtype": "float32",
        **accuracy(held),
        "seconds": round(seconds, 3),
        "per_class": per_class(held, y.cpu(), classes),
    }


def per_class(held: Tensor, y: Tensor, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    """The same for the images of each class that has any."""
    names = classes or [str(label) for label in range(int(y.max()) + 1)]
    present = [(name, held[y == label]) for label, name in enumerate(names)]
    return [{"class": name, **accuracy(of_class)} for name, of_class in present if len(of_class)]
