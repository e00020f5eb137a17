"""Robustness in numbers that survive a review: protocols, outcomes per image, intervals, curves, resuming."""

from .course import Bar, silent_bar
from .curves import known_curves
from .measuring import Measurement, evaluate, measure
from .protocols import PAPER_EPS, PROTOCOLS, Engine, Protocol, known_attacks
from .resuming import Ledger
from .searching import Precision
from .verdicts import evaluating, withstand

__all__ = [
    "PAPER_EPS",
    "PROTOCOLS",
    "Bar",
    "Engine",
    "Ledger",
    "Measurement",
    "Precision",
    "Protocol",
    "evaluate",
    "evaluating",
    "known_attacks",
    "known_curves",
    "measure",
    "silent_bar",
    "withstand",
]
