"""One recipe over many settings: a grid or a search, each combination over seeds, ranked on the validation split."""

from .engine import RECORD, TABLE, sweep

__all__ = ["RECORD", "TABLE", "sweep"]
