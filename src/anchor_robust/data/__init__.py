"""Data sets, a reader per file: labelled uint8 images in one tensor, fixed splits, batched augmentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..errors import Refusal
from ..lookup import named
from .arrays import arrays
from .cifar import cifar10
from .corruptions import CORRUPTIONS, corrupt
from .digits import digits
from .images import Given, ImageSet, Labelled, check_held_out, check_pixels, hold_out, sample
from .mapped import LAYOUT, folder

READERS: dict[str, Callable[[str, str | Path | None], ImageSet]] = {"cifar10": cifar10, "digits": digits}
NAMES = tuple(READERS)
SPLITS = ("train", "test")

__all__ = [
    "CORRUPTIONS",
    "NAMES",
    "READERS",
    "Given",
    "ImageSet",
    "Labelled",
    "check_held_out",
    "check_pixels",
    "corrupt",
    "hold_out",
    "load",
    "sample",
]


def load(name: str, split: Literal["train", "test"], data_dir: str | Path | None = None) -> ImageSet:
    """The `split` of data set `name`.

    Args:
        name: One of `NAMES`, a folder of the user's own (see `mapped.folder`), or for the test split an .npz file
            (see `arrays`).
        split: "train" or "test"; a validation split is cut from the training data with `hold_out`.
        data_dir: Folder that holds the data set; None means what ANCHOR_DATA names, or else to fetch it.

    Raises:
        Refusal: an unknown name or split, or data that is missing, truncated or corrupt.
    """
    named("split", split, dict.fromkeys(SPLITS))
    if split == "test" and name.endswith(".npz"):
        return arrays(name)
    if name not in READERS and Path(name).is_dir():
        return folder(name, split)
    if name.endswith(".npz"):
        raise Refusal(f"data set {name} given; an .npz serves for tests alone; to train, give a FOLDER: {LAYOUT}")
    return named("data set (built in, or a folder of yours, as seen from here)", name, READERS)(split, data_dir)
