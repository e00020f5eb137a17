"""Numbers as people read them."""

from shlex import quote
from typing import Any

from .plan import Plan

# What a log point holds beside the loss and its parts.
AROUND = {"step", "epoch", "lr", "batch_accuracy", "images_per_s", "memory_mb", "seconds"}


def told(label: str, line: dict[str, Any]) -> str:
    """A log point as one line."""
    parts = [f"loss {line['loss']:.3f}", f"batches {line['batch_accuracy']:.1%} right"]
    if "validation_clean" in line:
        parts.append(f"validation {accuracies(line)}")
    return "  ".join([label, *parts, f"{line['images_per_s']:,.0f} images/s", f"{line['seconds']:.0f} s"])


def headline(plan: Plan) -> str:
    return f"{plan.name}: {plan.epochs} epochs of {plan.steps_per_epoch} steps, run {plan.run}"


def ending(plan: Plan, weights: object, best: float) -> str:
    selected = f"{plan.selects_on} accuracy {best:.1%} on the validation split"
    return f"finished: {weights} has {selected}; next: anchor evaluate {quote(str(plan.run))}"


def accuracies(line: dict[str, Any]) -> str:
    return f"clean {line['validation_clean']:.1%} robust {line['validation_robust']:.1%}"


def loss_parts(line: dict[str, Any]) -> dict[str, float]:
    """The parts that the objective reports of its loss."""
    return {
        name: value
        for name, value in line.items()
        if name not in AROUND and name != "loss" and not name.startswith("validation_")
    }


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
