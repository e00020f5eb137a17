"""Plain SVG: the same bytes on every machine, legible on light and on dark pages, readable aloud."""

import base64
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

Scale = Callable[[float], float]

LEGEND = 50  # its base line, below the title

# Every picture paints its own ground, so that it stays legible where page and system disagree about light and dark.
STYLE = """
:root { --ground: #ffffff; --ink: #1f2328; --muted: #59636e; --grid: #d1d9e0; --blue: #2a78d6; --orange: #c4620a;
  --black: #1f2328; --green: #1a7f37; --purple: #8250df }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --ink: #f0f6fc; --muted: #9198a1; --grid: #3d444d;
  --blue: #58a6ff; --orange: #f0883e; --black: #f0f6fc; --green: #3fb950; --purple: #a371f7 } }
.ground { fill: var(--ground) }
text { fill: var(--ink); font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
.muted { fill: var(--muted); font-size: 12px } .bold { font-weight: 600 } .title { font-size: 15px; font-weight: 600 }
.middle { text-anchor: middle } .end { text-anchor: end }
.grid { stroke: var(--grid) } .axis { stroke: var(--muted) }
.blue { --series: var(--blue) } .orange { --series: var(--orange) } .black { --series: var(--black) }
.green { --series: var(--green) } .purple { --series: var(--purple) }
.bar, .dot { fill: var(--series) } .line { fill: none; stroke: var(--series); stroke-width: 2; stroke-linejoin: round }
.range { stroke: var(--ink); stroke-width: 1.5 } .casing { stroke: var(--ground); stroke-width: 4 }
.seed { fill: var(--ground); stroke: var(--ink) }
.band { fill: var(--series); opacity: 0.16 } .hollow { fill: none; stroke: var(--series); stroke-width: 1.5 }
.point { fill: var(--series); stroke: var(--ground) } .pull { stroke: var(--series); opacity: 0.6 }
.lost { fill: none; stroke: var(--ink); stroke-width: 2.5 } .frame { fill: none; stroke: var(--grid) }
.faint { stroke-width: 1; opacity: 0.45 } image { image-rendering: pixelated }
""".strip()


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def tag(name: str, *content: str, kind: str = "", **attributes: float | str) -> str:
    """One element; `kind` is its class, and in other names `_` stands for `-`. `content` is SVG already."""
    given = {"class": kind} | {key.replace("_", "-"): value for key, value in attributes.items()}
    told = "".join(
        f' {key}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in given.items()
        if value != ""
    )
    return f"<{name}{told}>{''.join(content)}</{name}>" if content else f"<{name}{told}/>"


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return tag("text", escape(words, quote=False), kind=kind, x=x, y=y)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return tag("line", kind=kind, x1=x1, y1=y1, x2=x2, y2=y2)


def polyline(points: Sequence[tuple[float, float]], kind: str) -> str:
    return tag("polyline", kind=kind, points=joined(points))


def polygon(points: Sequence[tuple[float, float]], kind: str) -> str:
    return tag("polygon", kind=kind, points=joined(points))


def joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{number(x)},{number(y)}" for x, y in points)


def linear(domain: tuple[float, float], span: tuple[float, float]) -> Scale:
    """Values of `domain` to places of `span`."""
    (low, high), (start, end) = domain, span
    return lambda value: start + (value - low) / (high - low) * (end - start)


def picture(pixels: np.ndarray, x: float, y: float, size: float) -> str:
    """Pixels uint8 [h w 3] in a square of `size`, each a sharp square of its own."""
    told = base64.b64encode(png(pixels)).decode()
    frame = tag("rect", kind="frame", x=x, y=y, width=size, height=size)
    return tag("image", x=x, y=y, width=size, height=size, href=f"data:image/png;base64,{told}") + frame


def region(inside: np.ndarray, x: float, y: float, size: float, kind: str) -> str:
    """The cells of a bool table [side side] that are true, as one shape in a square of `size`."""
    cell = size / len(inside)
    runs = []
    for row, cells in enumerate(inside):
        edges = np.flatnonzero(np.diff(cells.astype(int), prepend=0, append=0)).reshape(-1, 2)
        runs += [(x + cell * first, y + cell * row, cell * (last - first)) for first, last in edges]
    steps = [f"M{number(a)} {number(b)}h{number(c)}v{number(cell)}h{number(-c)}z" for a, b, c in runs]
    return tag("path", kind=kind, d="".join(steps))


def png(pixels: np.ndarray) -> bytes:
    """A PNG of pixels uint8 [h w 3], not compressed: compressors differ from one machine to the next."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    stored = b"\1" + struct.pack("<HH", len(rows), 0xFFFF - len(rows)) + rows  # one block, of 65,535 bytes at most
    body = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def shares(y: Scale, left: float, right: float, marks: Sequence[float] = (0, 0.25, 0.5, 0.75, 1)) -> list[str]:
    """Lines across at these shares, with their percentages on the left."""
    return rows(y, left, right, {mark: f"{100 * mark:.0f}" for mark in marks})


def rows(y: Scale, left: float, right: float, marks: Mapping[float, str]) -> list[str]:
    """Lines across at the marks, with what they are called on the left."""
    lines = [line(left, y(mark), right, y(mark), "grid") for mark in marks]
    return lines + [text(left - 6, y(mark) + 4, called, "muted end") for mark, called in marks.items()]


def legend(x: float, entries: Sequence[tuple[str, str]], step: float = 110) -> list[str]:
    """A swatch and a word for each (kind, word), side by side."""
    places = [(x + step * place, *entry) for place, entry in enumerate(entries)]
    return [
        part
        for left, kind, word in places
        for part in (
            tag("rect", kind=f"{kind} bar", x=left, y=LEGEND - 10, width=12, height=12, rx=2),
            text(left + 18, LEGEND, word),
        )
    ]


def page(width: int, height: int, title: str, description: str, *content: str) -> str:
    """The whole file; `title` is drawn on top, `description` is what a screen reader says."""
    return (
        tag(
            "svg",
            f"\n<title>{escape(title, quote=False)}</title>\n<desc>{escape(description, quote=False)}</desc>",
            f"\n<style>\n{STYLE}\n</style>\n",
            "\n".join(
                (tag("rect", kind="ground", width=width, height=height, rx=6), text(16, 26, title, "title"), *content)
            ),
            "\n",
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            role="img",
        )
        + "\n"
    )
