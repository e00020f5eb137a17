"""How many times larger than it is a perturbation is shown, so that it can be seen at all."""

MOST, ROOM = 10, 127  # times; grey levels on either side of the middle one


def amplification(largest: int) -> int:
    """MOST, or as much less as keeps a change of `largest` grey levels within those that there are."""
    return max(1, min(MOST, ROOM // max(1, largest)))
