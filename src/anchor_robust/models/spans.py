"""Where a change of some pixels arrives behind a convolution, and what it needs to be computed there."""

from collections.abc import Iterable

Span = tuple[int, int]  # from, to: places along one axis, the second no longer among them
Region = tuple[Span, Span]  # rows and columns
Size = tuple[int, int]  # height and width


def slices(region: Region) -> tuple[slice, slice]:
    return slice(*region[0]), slice(*region[1])


def reached(span: Span, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Span:
    """Which of the `out` outputs of a convolution see an input in `span`."""
    first = -(-(span[0] + padding - dilation * (kernel - 1)) // stride)
    return max(first, 0), min((span[1] - 1 + padding) // stride + 1, out)


def seen(span: Span, kernel: int, stride: int, padding: int, dilation: int) -> Span:
    """Which inputs the outputs in `span` see, those of the padding among them."""
    return span[0] * stride - padding, (span[1] - 1) * stride - padding + dilation * (kernel - 1) + 1


def around(regions: Iterable[Region]) -> Region:
    """The smallest region that holds them all."""
    rows, columns = zip(*regions, strict=True)
    return hull(rows), hull(columns)


def hull(spans: Iterable[Span]) -> Span:
    first, last = zip(*spans, strict=True)
    return min(first), max(last)


def overlap(one: Region, other: Region) -> Region | None:
    rows, columns = ((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(one, other, strict=True))
    return (rows, columns) if rows[0] < rows[1] and columns[0] < columns[1] else None


def relative(region: Region, origin: Region) -> Region:
    rows, columns = ((a[0] - b[0], a[1] - b[0]) for a, b in zip(region, origin, strict=True))
    return rows, columns


def clipped(region: Region, size: Size) -> tuple[Region, tuple[int, int, int, int]]:
    """What of a region lies on the map, and how far it reaches beyond: left, right, above, below."""
    rows, columns = ((max(span[0], 0), min(span[1], end)) for span, end in zip(region, size, strict=True))
    (above, below), (left, right) = (
        (inside[0] - span[0], span[1] - inside[1]) for inside, span in zip((rows, columns), region, strict=True)
    )
    return (rows, columns), (left, right, above, below)
