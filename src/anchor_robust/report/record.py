"""An evaluation read back from its files, and what can be asked of it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from .. import runs
from ..errors import Refusal, one_line
from .conventions import Record, measured, percent


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record at `path` and the outcome of every image from the file beside it.

    Raises Refusal where one is missing or broken, and where they are of two evaluations.
    """
    record = runs.read_json(path)
    return record, arrays(path, outcomes_named(path, record))


def outcomes_named(path: Path, record: Mapping[str, Any]) -> Mapping[str, str]:
    """How the record at `path` names its outcomes; those from before the digest lie under the usual name."""
    usual = runs.OUTCOMES if path.name == runs.EVALUATION else f"{path.stem}.npz"
    return record.get("outcomes", {"file": usual})


def arrays(path: Path, named: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays in the file that the record at `path` has `named` by `file` and `sha256`; Refusal as of `read`."""
    file = path.with_name(Path(named["file"]).name)
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != named.get("sha256", digest):
            raise Refusal(f"{file} does not belong to {path}, a write was interrupted; evaluate again")
        with np.load(file) as found:
            return dict(found)
    except FileNotFoundError as error:
        raise Refusal(f"{file} is missing; evaluate again") from error
    except (OSError, ValueError, BadZipFile) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"{file} cannot be read ({one_line(error)}); evaluate again") from error


def refuted(record: Record, claim: float, attack: str | None = None) -> str | None:
    """Why the claim that accuracy under `attack` (the last one measured if None) is at least `claim` cannot stand.

    It falls if the whole 95 % interval lies below it; None if it does not.
    """
    result = next((each for each in record["results"] if each["attack"] == attack), record["results"][-1])
    if result["interval"][1] >= claim:
        return None
    found = f"{measured(result)} on {result['images']:,} images"
    return f"the claim of {percent(claim)} under {result['label']} does not hold: measured {found}"
