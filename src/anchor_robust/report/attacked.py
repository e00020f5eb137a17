"""Attacked pictures on standard output."""

from collections import Counter
from collections.abc import Iterator

from .conventions import Record, conventions

VERDICTS = {
    "fooled": "fooled: read back from its file, it is answered {after}",
    "held": "held: {attack} found no picture in the ball that fools the model",
    "rounded": "held: {attack} fools the model in floating point, but no picture of 8 bits that does was found",
    "wrong": "not attacked: it is answered {before} as it is, not {label}",
}


def show(record: Record) -> None:
    for line in lines(record):
        print(line)


def lines(record: Record) -> Iterator[str]:
    """What was attacked with, a paragraph for each picture, and how many were fooled."""
    attack, label = record["attack"], record["label"]
    told = conventions({**attack, "dtype": "saved with 8 bits"})
    yield f"{record['model']}: {attack['label']}, {told}"
    yield f"label: {label}" if label else "label: what the model answers before the attack; --label names another class"
    yield from filter(None, [record["note"]])
    for picture in record["pictures"]:
        yield ""
        yield picture["picture"] + (f" ({picture['note']})" if picture["note"] else "")
        yield f"  before   {spelled(picture['before'])}"
        if "after" in picture:
            yield f"  after    {spelled(picture['after'])}"
            yield f"  moved    by {moved(picture, attack['norm'])}"
        yield f"  {verdict(picture, attack['label'])}"
        if "after" in picture:
            yield f"  written  {picture['adversarial']}, {picture['comparison']}"
    if len(record["pictures"]) > 1:
        yield ""
        yield summary(record["pictures"])


def verdict(picture: Record, attack: str) -> str:
    before, after = (picture[when][0][0] if when in picture else "" for when in ("before", "after"))
    return VERDICTS[picture["verdict"]].format(before=before, after=after, label=picture["label"], attack=attack)


def moved(picture: Record, norm: str) -> str:
    levels = f"at most {picture['levels']} of 255 grey levels"
    return levels if norm == "linf" else f"{picture['distance']:.4g} in {norm}, {levels}"


def spelled(answer: list[tuple[str, float]]) -> str:
    """`cat 87.2 %, dog 5.1 %`."""
    return ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in answer)


def summary(pictures: list[Record]) -> str:
    counts = Counter(picture["verdict"] for picture in pictures)
    parts = [
        f"{counts['fooled']} fooled",
        f"{counts['held'] + counts['rounded']} held",
        f"{counts['wrong']} wrong before",
    ]
    return f"{len(pictures)} pictures: {', '.join(parts)}"
