"""One HTML page about one run or several, from their files alone: it opens from disk and fetches nothing."""

import base64
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import runs
from ...errors import Refusal
from ...finite import finite
from ..conventions import interval
from . import accuracy, origin, pictures, training, weaknesses
from .dossier import Dossier, read
from .figures import Chart
from .parts import Section
from .pictures import Album, Gallery, Map
from .together import Entry, Together, together
from .verdict import points, radius, some_of, verdict

TEMPLATES = Path(__file__).parent
PAGE = "page.html"


def write(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page about the runs or records in `paths` to `out`; returns where it is.

    Without `out` it is report.html in the only run, beside the only record, or in the current directory. Raises
    Refusal for what is no run and no record.
    """
    dossiers = [read(path) for path in dict.fromkeys(paths)]
    target = out or usual(dossiers)
    if target.is_dir():
        raise Refusal(f"--out {target} is a directory; name a file, such as {target / runs.REPORT}")
    if target.suffix.lower() not in (".html", ".htm"):
        raise Refusal(f"--out {target} given; allowed: a name that ends in .html")
    command = shlex.join(["anchor", "report", *map(str, paths), *(["--out", str(out)] if out else [])])
    runs.check_writable(target)
    runs.write_text(target, html(together(dossiers), command))
    return target


def usual(dossiers: Sequence[Dossier]) -> Path:
    if len(dossiers) > 1:
        return Path(runs.REPORT)
    (dossier,) = dossiers
    return dossier.path / runs.REPORT if dossier.path.is_dir() else dossier.path.with_suffix(".html")


def html(page: Together, command: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    album = Album()
    found = sections(page, album, command)
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["kind"] = lambda part: type(part).__name__
    scripts = [get_plotlyjs(), (TEMPLATES / "page.js").read_text(encoding="utf-8")]
    title = ", ".join(entry.label for entry in page.entries)
    return templates.get_template(PAGE).render(
        title=title,
        verdicts=[(entry, verdict(entry.records), tiles(entry)) for entry in page.entries],
        sections=found,
        classes=list(dict.fromkeys(name for entry in page.entries for name in entry.dossier.classes)),
        views=list(dict.fromkeys(view["name"] for part in maps(found) for view in part.data["views"])),
        data=finite({"parts": scripted(found), "pictures": album.pictures}),
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        digests=[digest(script) for script in scripts],
    )


def sections(page: Together, album: Album, command: str) -> list[Section]:
    return [
        accuracy.results(page),
        accuracy.checks(page),
        pictures.gallery(page, album),
        weaknesses.curves(page),
        weaknesses.classes(page),
        weaknesses.confusions(page),
        pictures.maps(page, album),
        training.training(page),
        training.cost(page),
        origin.recipe(page),
        origin.environment(page),
        origin.reproduce(page, command),
    ]


def scripted(found: Sequence[Section]) -> dict[str, Any]:
    """What the page's script draws, by the id that the template gives to each part of each block of each section."""
    return {
        f"{section.id}-{place}-{number}": part.figure if isinstance(part, Chart) else part.data
        for section in found
        for place, block in enumerate(section.blocks)
        for number, part in enumerate(block.parts)
        if isinstance(part, Chart | Gallery | Map)
    }


def maps(found: Sequence[Section]) -> list[Map]:
    return [part for section in found for block in section.blocks for part in block.parts if isinstance(part, Map)]


def tiles(entry: Entry) -> list[dict[str, Any]]:
    """Each accuracy of an entry as a number to be seen at once, an attack once: as the run's own evaluation has it."""
    shown: dict[str, dict[str, Any]] = {}
    for record in entry.records.values():
        for result in record["results"]:
            shown.setdefault(result["label"], result)
    return [
        {
            "label": result["label"],
            "number": points(result["accuracy"]),
            "at": 100 * result["accuracy"],
            "low": 100 * result["interval"][0],
            "high": 100 * result["interval"][1],
            "note": f"{interval(result)} of {result['images']:,}"
            + (f", at {radius(result)}" if result.get("eps") is not None else "")
            + (f", {told}" if (told := some_of(result)) else ""),
        }
        for result in shown.values()
    ]


def digest(script: str) -> str:
    """What a Content-Security-Policy knows a script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
