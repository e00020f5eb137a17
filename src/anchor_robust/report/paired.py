"""Two models on the same images."""

from fractions import Fraction
from math import comb


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test, two-sided: how probable a split at least as uneven is if neither model is the better.

    `only_first` and `only_second` count the images that just the one model holds; of the n that either holds alone,
    each falls to either side with probability 1/2: p = min(1, 2 sum_{i <= min} C(n, i) / 2^n).
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    return float(min(Fraction(1), Fraction(2 * sum(comb(n, i) for i in range(fewer + 1)), 2**n)))
