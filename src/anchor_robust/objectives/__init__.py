"""Training methods, one a file; a file that is here is found by its `Objective` class, nothing else lists it."""

import dataclasses
import importlib
import inspect
import pkgutil

from ..errors import Refusal
from ..lookup import named_or_imported
from .base import Learner, Objective, Step, outcome_of, warning_of

__all__ = ["Learner", "Objective", "Step", "discover", "find", "outcome_of", "warning_of"]


def discover() -> dict[str, type[Objective]]:
    """Every objective of this folder by its name."""
    found: dict[str, type[Objective]] = {}
    for module in pkgutil.iter_modules(__path__):
        for _, member in inspect.getmembers(importlib.import_module(f"{__name__}.{module.name}"), inspect.isclass):
            if issubclass(member, Objective) and not inspect.isabstract(member):
                found[member.name] = member
    return dict(sorted(found.items()))


def find(name: str) -> type[Objective]:
    """The objective `name`, or the user's own as `package.module.Class`."""
    method = named_or_imported("objective", name, discover())
    if not (inspect.isclass(method) and issubclass(method, Objective)):
        raise Refusal(f"objective {name!r} is no class derived from anchor_robust.objectives.Objective; derive it")
    if inspect.isabstract(method):
        raise Refusal(f"objective {name!r} lacks {', '.join(sorted(method.__abstractmethods__))}; define it")
    if not dataclasses.is_dataclass(method) or method.selects_on not in ("robust", "clean"):
        raise Refusal(f"objective {name!r} must be a frozen dataclass whose selects_on is robust or clean")
    return method


def __getattr__(name: str) -> type[Objective]:
    for member in discover().values():
        if member.__name__ == name:
            return member
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
