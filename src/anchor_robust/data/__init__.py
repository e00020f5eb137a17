"""Data sets, a reader per file: labelled uint8 images in one tensor, fixed splits, batched augmentation."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..errors import Refusal
from .cifar import cifar10
from .digits import digits
from .images import ImageSet, check_pixels, hold_out

READERS: dict[str, Callable[[str, str | Path | None], ImageSet]] = {"cifar10": cifar10, "digits": digits}
NAMES = tuple(READERS)
SPLITS = ("train", "test")

__all__ = ["NAMES", "READERS", "ImageSet", "check_pixels", "hold_out", "load"]


def load(name: str, split: Literal["train", "test"], data_dir: str | Path | None = None) -> ImageSet:
    """The `split` of data set `name`.

    Args:
        name: One of `NAMES`.
        split: "train" or "test"; a validation split is cut from the training data with `hold_out`.
        data_dir: Folder that holds the data set; None means what ANCHOR_DATA names, or else to fetch it.

    Raises:
        Refusal: an unknown name or split, or data that is missing, truncated or corrupt.
    """
    return READERS[known("data set", name, NAMES)](known("split", split, SPLITS), data_dir)


def known(what: str, given: str, allowed: tuple[str, ...]) -> str:
    """`given` if it is allowed, else a refusal that offers the nearest."""
    if given in allowed:
        return given
    nearest = difflib.get_close_matches(given, allowed, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise Refusal(f"{what} {given!r} is unknown; allowed: {', '.join(allowed)}{hint}")
