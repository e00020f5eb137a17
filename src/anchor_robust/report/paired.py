"""Two models on the same images."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev

from ..errors import Refusal


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test, two-sided: how probable a split at least as uneven is if neither model is the better.

    `only_first` and `only_second` count the images that just the one model holds; of the n that either holds alone,
    each falls to either side with probability 1/2: p = min(1, 2 sum_{i <= min} C(n, i) / 2^n).
    Raises Refusal for a count below 0.
    """
    if min(only_first, only_second) < 0:
        raise Refusal(f"counts {only_first} and {only_second} given; allowed: 0 or more images of each")

    from scipy.special import bdtr  # slow to import, and only a comparison needs it

    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def stated(p: float) -> str:
    """`p = 0.024`, or that it is smaller than can be told from 0."""
    return f"p = {p:.2g}" if p > 1e-16 else "p < 1e-16"


def paired_t(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean difference over k >= 2 seeds, each seed's two models paired (Student 1908).

    mean -+ t sqrt(s^2 / k), s the sample deviation, t the quantile 0.975 of Student's t with k - 1 degrees of
    freedom. Unlike McNemar's test it asks about new seeds, not about new images.
    """
    from scipy.special import stdtrit  # as above

    k, centre = len(differences), mean(differences)
    half = float(stdtrit(k - 1, 0.975)) * stdev(differences) / sqrt(k)
    return centre - half, centre + half
