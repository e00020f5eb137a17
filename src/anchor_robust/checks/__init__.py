"""Checks that say when a robust accuracy may lie: small, cheap, and on by default."""

from .examination import IMAGES, drawn, examine, run
from .finding import Finding

__all__ = ["IMAGES", "Finding", "drawn", "examine", "run"]
