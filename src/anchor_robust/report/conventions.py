"""How a result is written: its accuracy, its interval, and everything that they depend on."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

# What results and stages state beside an attack's own settings.
STATED = {
    *("attack", "label", "norm", "eps", "steps", "step_size", "restarts", "start", "loss", "dtype", "engine", "search"),
    *("images", "accuracy", "interval", "seconds", "per_class", "stages", "stage", "fell", "target"),
}
LEAST_LIKELY = -1  # a target that is no rank from above, as attacks.pgd has it; a report is built without torch


def conventions(result: Record) -> str:
    """Everything that an accuracy depends on, in one line."""
    if result["norm"] is None:
        return result["dtype"]
    stages = result.get("stages")
    told = [" + ".join(stage["stage"] for stage in stages)] if stages else settings(result)
    told += [f"by {result['engine']}"] if result.get("engine", "anchor") != "anchor" else []
    told += [f"searched in {result['search']}"] if result.get("search", "float32") != "float32" else []
    return ", ".join([f"{result['norm']} eps {result['eps']:.4g}", *told, result["dtype"]])


def settings(attack: Record) -> list[str]:
    """How an attack searches: what every attack states, then what is its own."""
    steps, step_size, restarts = attack.get("steps"), attack.get("step_size"), attack.get("restarts")
    told = []
    if steps is not None:
        told.append(f"{steps} steps" if step_size is None else f"{steps} x {step_size:.4g}")
    told += [f"{attack['start']} start"] if attack.get("start", "none") not in (None, "none") else []
    told += [f"{restarts} restart" + "s" * (restarts != 1)] if restarts else []
    told += [attack["loss"]] if attack.get("loss") else []
    target = attack.get("target")
    told += [] if target is None else [f"target {'least likely' if target == LEAST_LIKELY else target}"]
    return told + [f"{key} {value}" for key, value in attack.items() if key not in STATED and value is not None]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def bounds(low_high: Sequence[float]) -> str:
    """An interval of fractions in %."""
    low, high = low_high
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def interval(result: Record) -> str:
    return bounds(result["interval"])


def measured(result: Record) -> str:
    """An accuracy with its interval."""
    return f"{percent(result['accuracy'])} {interval(result)}"
