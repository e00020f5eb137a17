"""One page about one model, for people: what was measured, how, and how far to trust it. From the record alone."""

from collections.abc import Iterable, Sequence

from .. import runs
from .table import OF_ITS_OWN, Record, conventions, corruption_rows, interval, percent, settings, severities

TITLE = "# Robustness of "


def card(record: Record) -> str:
    """The record of an evaluation (evaluation.json) as Markdown."""
    return "\n\n".join(part for part in parts(record) if part) + "\n"


def parts(record: Record) -> Iterable[str]:
    yield f"{TITLE}{record['model']['source']}"
    yield opening(record)
    yield table(
        ("attack", "accuracy", "95 % interval", "seconds", "conventions"),
        [
            (each["label"], percent(each["accuracy"]), interval(each), f"{each['seconds']:.1f}", conventions(each))
            for each in record["results"]
        ],
    )
    yield (
        "Worst case per image over all stages and restarts. An image counts as held if it is answered rightly both "
        "clean and attacked. Intervals are Wilson's."
    )
    for result in record["results"]:
        if result.get("stages"):
            yield stages(result)
    for name, points in record.get("curves", {}).items():
        yield curve(name, points)
    if record.get("corruptions"):
        entries = record["corruptions"]
        headings = ("corruption", *(f"severity {severity}" for severity in severities(entries)), "mean")
        yield "## Common corruptions\n\n" + table(headings, corruption_rows(entries))
    yield per_class(record["results"])
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


def stages(result: Record) -> str:
    rows = [
        (each["stage"], f"{each['images']:,}", f"{each['fell']:,}", f"{each['seconds']:.1f}", ", ".join(settings(each)))
        for each in result["stages"]
    ]
    heading = f"## {result['label']}, stage by stage"
    return heading + "\n\n" + table(("stage", "images attacked", "fell", "seconds", "settings"), rows)


def curve(name: str, points: Sequence[Record]) -> str:
    rows = [(f"{point[name]:.4g}", percent(point["accuracy"]), interval(point), conventions(point)) for point in points]
    points_table = table((name, "accuracy", "95 % interval", "conventions"), rows)
    return f"## Accuracy against {name}\n\n{points_table}\n\n{OF_ITS_OWN}"


def per_class(results: Sequence[Record]) -> str:
    if not results:
        return ""
    rows = [
        (rows[0]["class"], f"{rows[0]['images']:,}", *(f"{percent(row['accuracy'])} {interval(row)}" for row in rows))
        for rows in zip(*(result["per_class"] for result in results), strict=True)
    ]
    return "## Per class\n\n" + table(("class", "images", *(result["label"] for result in results)), rows)


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


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
