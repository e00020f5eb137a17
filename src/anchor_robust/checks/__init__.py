"""Checks that say when a robust accuracy may lie: small, cheap, and on by default."""

from .examination import run
from .finding import Finding

__all__ = ["Finding", "run"]
