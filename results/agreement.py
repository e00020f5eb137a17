"""Our AutoAttack beside its authors' package, from what benchmarks/autoattack.py left in autoattack-agreement/."""

from pathlib import Path
from typing import Any

from anchor_robust import runs
from grid import grid

FOLDER = Path(__file__).resolve().parent / "autoattack-agreement"
AGAIN = "again"  # in the place of ours: theirs with another seed


def table() -> str:
    """A row for each file: one model, one ball, the same images."""
    headings = ("model", "ball", "classes", "images", "theirs holds", "second", "second holds", "agree", "faster")
    records = [runs.read_json(path) | {"file": path.stem} for path in sorted(FOLDER.glob("*.json"))]
    return grid(headings, [row(record) for record in records], words=2)


def row(record: dict[str, Any]) -> list[str]:
    about, data, images = record["model"], record["data"], record["data"]["images"]
    second = next(name for name in record["accuracy"] if name != "theirs")
    return [
        f"{Path(about['source']).name}, {about['name']}",
        f"{record['norm']} {record['eps']:g}",
        str(data["classes"]),
        str(images),
        str(round(record["accuracy"]["theirs"] * images)),
        told(record, second),
        str(round(record["accuracy"][second] * images)),
        f"{100 * record['agreement']:.1f} %",
        "" if second == AGAIN else f"{record['ratio']:.2f}",
    ]


def told(record: dict[str, Any], second: str) -> str:
    """What the second column of verdicts is of."""
    words = ["theirs, another seed" if second == AGAIN else "ours"]
    words += ["searched in bf16"] if record.get("search") == "bf16" else []
    words += ["theirs on the margin as well"] if "margin" in record["theirs"] else []
    words += ["their Square everywhere"] if record.get("everywhere") else []
    words += ["nothing else running"] if record["file"].endswith("-alone") else []
    return ", ".join(words)
