"""ANCHOR: train image classifiers that hold under attack, and measure how well they do.

`load` and `evaluate` are the surface for notebooks; the rooms beside this file hold the rest. Nothing heavy is imported
until it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load
    from .evaluation import evaluate

__all__ = ["__version__", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from .checkpoint import load

        return load
    if name == "evaluate":
        from .evaluation import evaluate

        return evaluate
    if name == "__version__":
        from importlib.metadata import version

        return version("anchor-robust")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
