"""Two models on the same images."""

from collections.abc import Sequence
from fractions import Fraction
from math import sqrt
from statistics import mean, stdev


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test, two-sided: how probable a split at least as uneven is if neither model is the better.

    `only_first` and `only_second` count the images that just the one model holds; of the n that either holds alone,
    each falls to either side with probability 1/2: p = min(1, 2 sum_{i <= min} C(n, i) / 2^n).
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = term = 1  # C(n, 0), from which each C(n, i) follows
    for i in range(1, fewer + 1):
        term = term * (n - i + 1) // i
        ways += term
    return float(min(Fraction(1), Fraction(2 * ways, 2**n)))


def stated(p: float) -> str:
    """`p = 0.024`, or that it is smaller than can be told from 0."""
    return f"p = {p:.2g}" if p > 1e-16 else "p < 1e-16"


def paired_t(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean difference over k >= 2 seeds, each seed's two models paired (Student 1908).

    mean -+ t sqrt(s^2 / k), s the sample deviation, t the quantile (1 + level) / 2 of Student's t with k - 1 degrees of
    freedom. Unlike McNemar's test it asks about new seeds, not about new images.
    """
    from scipy.special import stdtrit  # slow to import, and only a comparison over seeds needs it

    k, centre = len(differences), mean(differences)
    half = float(stdtrit(k - 1, (1 + level) / 2)) * stdev(differences) / sqrt(k)
    return centre - half, centre + half
