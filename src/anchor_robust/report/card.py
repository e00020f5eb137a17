"""One page about one model, for people: what was measured, how, and how far to trust it. From the record alone."""

from collections.abc import Iterable

from .. import runs
from .conventions import Record
from .measured import sheets
from .sheet import Sheet

TITLE = "# Robustness of "


def card(record: Record) -> str:
    """The record of an evaluation (evaluation.json) as Markdown."""
    return "\n\n".join(part for part in parts(record) if part) + "\n"


def parts(record: Record) -> Iterable[str]:
    yield f"{TITLE}{record['model']['source']}"
    yield opening(record)
    accuracies, *others = sheets(record)
    yield "\n".join([*accuracies.grid(), *accuracies.below()])
    yield (
        "Worst case per image over all stages and restarts. An image counts as held if it is answered rightly both "
        "clean and attacked. Intervals are Wilson's."
    )
    yield from map(section, others)
    if record["checks"]:
        yield "## Checks"
        yield "\n".join(f"* {check['verdict']}: {check['name']}: {check['detail']}" for check in record["checks"])
    yield "## Where the numbers come from"
    yield provenance(record)


def opening(record: Record) -> str:
    data, threat = record["data"], record.get("threat")
    on = f"Measured on {data['images']:,} images of {data['name']} ({data['split']})."
    if threat is None:
        return on
    return (
        f"{on} Threat model: the attacker knows the model and may move each image by at most {threat['eps']:.6g} in "
        f"{threat['norm']}, with pixels in [0, 1]."
    )


def section(sheet: Sheet) -> str:
    return "\n".join([f"## {sheet.title}", "", *sheet.grid(), *sheet.below()])


def provenance(record: Record) -> str:
    around = record.get("environment", {})
    versions = ", ".join(f"{name} {version}" for name, version in around.get("versions", {}).items())
    model = ", ".join(f"{key} {value}" for key, value in record["model"].items() if key not in ("source", "sha256"))
    timed = [*record["results"], *(point for points in record.get("curves", {}).values() for point in points)]
    facts = {
        "command": f"`{around['command']}`" if around else None,
        "model": model,
        "weights sha256": record["model"].get("sha256"),
        "data sha256": record["data"]["sha256"],
        "outcomes per image": "{file}, sha256 {sha256}".format(**record["outcomes"]) if "outcomes" in record else None,
        "seed": record["seed"],
        "batch size": record.get("batch_size"),
        "hardware": runs.machine(around) if around else None,
        "time": f"{sum(each['seconds'] for each in timed):.1f} s",
        "versions": versions,
    }
    return "\n".join(f"* {name}: {value}" for name, value in facts.items() if value not in (None, ""))
