"""Training methods, one a file; a file that is here is found by its `Objective` class, nothing else lists it."""

import importlib
import inspect
import pkgutil

from ..errors import Refusal
from .base import Learner, Objective, Step

__all__ = ["Learner", "Objective", "Step", "discover", "find"]


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
    found = discover()
    if name in found:
        return found[name]
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise Refusal(
            f"objective {name!r} is unknown; allowed: {', '.join(found)}, or your own as package.module.Class"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Refusal(f"objective class {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from error


def __getattr__(name: str) -> type[Objective]:
    for member in discover().values():
        if member.__name__ == name:
            return member
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
