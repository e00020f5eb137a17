"""How far an accuracy can be trusted."""

import math

from .errors import Refusal


def wilson(successes: float, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default (Wilson 1927, JASA 22).

    (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n), p = successes / count, n = count. For a mean over
    seeds that share their images, `successes` is that mean times n: the same images seen again are no new images.
    Raises Refusal for no images at all, and for successes that are not 0 to their count.
    """
    if not 0 <= successes <= count or count == 0:
        raise Refusal(f"{successes} of {count} given; allowed: 0 to all of 1 image or more")
    p, scale = successes / count, 1 + z * z / count
    centre = (p + z * z / (2 * count)) / scale
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
