"""Settings by their dotted names."""

from collections.abc import Mapping, Sequence
from typing import Any


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"objective": {"hardness": 2}}` as `{"objective.hardness": 2}`."""
    pairs: dict[str, Any] = {}
    for key, value in mapping.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return pairs


def short(keys: Sequence[str]) -> list[str]:
    """Dotted names by their last word, where that names only one of them and says what it is of."""
    last = [key.split(".")[-1] for key in keys]
    return [word if last.count(word) == 1 and word != "name" else key for word, key in zip(last, keys, strict=True)]


def shortened(settings: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(short(list(settings)), settings.values(), strict=True))


def spelled(settings: Mapping[str, Any]) -> str:
    """`hardness=2 views=clean,adversarial`."""
    return " ".join(f"{key}={written(value)}" for key, value in settings.items())


def written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(written, value))
    # Six digits where they say it all: two settings that differ in the seventh must not look alike.
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)
