"""CIFAR-10 in its python or its binary release; a file's checksum is verified before anything is read from it.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import runs
from ..errors import Refusal, one_line
from .images import ImageSet

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"


class Stamp(NamedTuple):
    """What a genuine file weighs (bytes) and hashes to."""

    size: int
    md5: str


# Release -> split -> file -> stamp.
STAMPS: dict[str, dict[str, dict[str, Stamp]]] = {
    PYTHON: {
        "train": {
            "data_batch_1": Stamp(31035704, "c99cafc152244af753f735de768cd75f"),
            "data_batch_2": Stamp(31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
            "data_batch_3": Stamp(31035999, "54ebc095f3ab1f0389bbae665268c751"),
            "data_batch_4": Stamp(31035696, "634d18415352ddfa80567beed471001a"),
            "data_batch_5": Stamp(31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        },
        "test": {"test_batch": Stamp(31035526, "40351d587109b95175f43aff81a1287e")},
    },
    BINARY: {
        "train": {
            "data_batch_1.bin": Stamp(30730000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
            "data_batch_2.bin": Stamp(30730000, "5ea93a67294ea407fff1d09f752e9692"),
            "data_batch_3.bin": Stamp(30730000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
            "data_batch_4.bin": Stamp(30730000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
            "data_batch_5.bin": Stamp(30730000, "53f37980c15c3d472c316c40844f3f0d"),
        },
        "test": {"test_batch.bin": Stamp(30730000, "803d5f7f4d78ea53de84dbe85f74fb6d")},
    },
}


def cifar10(split: str, data_dir: str | Path | None = None) -> ImageSet:
    """CIFAR-10, uint8 [n 3 32 32]: 50,000 images to train on or 10,000 to test on, in the authors' order.

    Raises:
        Refusal: a file is missing, truncated or corrupt, or the archive cannot be fetched.
    """
    folder = locate(data_dir)
    decode = DECODERS[folder.name]
    batches = [decode(genuine(folder / file, stamp)) for file, stamp in STAMPS[folder.name][split].items()]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return ImageSet(
        images=torch.from_numpy(images.reshape(-1, 3, 32, 32)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=CLASSES,
        name="cifar10",
        split=split,
    )


def blank() -> ImageSet:
    """As many images as there are to train on, in black and white alone: for who only counts, and fetches nothing."""
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32).repeat(25_000, 1, 1, 1)
    return ImageSet(images, torch.arange(50_000) % len(CLASSES), CLASSES, "cifar10", "train")


def locate(data_dir: str | Path | None = None) -> Path:
    """The release's folder: in `data_dir` (or that folder itself), else in ANCHOR_DATA, else fetched once."""
    named = data_dir or os.environ.get("ANCHOR_DATA")
    if not named:
        return fetch()
    folder = Path(named).expanduser().absolute()
    candidates = [folder / release for release in STAMPS] + ([folder] if folder.name in STAMPS else [])
    for candidate in candidates:
        if os.path.isdir(candidate):
            return candidate
    raise Refusal(
        f"{folder} holds no CIFAR-10; expected a folder {PYTHON} or {BINARY} in it; "
        f"unpack {ARCHIVE} there, or leave out --data-dir and ANCHOR_DATA to have it fetched"
    )


def fetch() -> Path:
    """Download and unpack the official archive into the user's cache, unless it is there already.

    One process at a time: two that unpack at once would read what the other is writing.
    """
    # Brings the network libraries along, which whoever has the data does not need.
    import pooch  # type: ignore[import-untyped] # ships no types
    import requests

    cache = Path(pooch.os_cache("anchor-robust"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unpack = pooch.Untar(extract_dir=".")
        with runs.turn(cache):
            pooch.retrieve(ARCHIVE, f"md5:{ARCHIVE_MD5}", Path(ARCHIVE).name, cache, processor=unpack)
    except (OSError, ValueError) as error:  # no network, no space, or a wrong checksum
        told = "no connection" if isinstance(error, requests.ConnectionError) else one_line(error)
        raise Refusal(
            f"CIFAR-10 could not be fetched from {ARCHIVE} into {cache}: {told}; "
            f"unpack it yourself and name its folder with --data-dir or ANCHOR_DATA"
        ) from error
    return cache / PYTHON


def verify(folder: Path) -> None:
    """Refuse a release's folder in which a file of either split is missing, truncated or corrupt."""
    for files in STAMPS[folder.name].values():
        for file, stamp in files.items():
            genuine(folder / file, stamp)


def genuine(path: Path, stamp: Stamp) -> bytes:
    """The content of `path`: hashed and handed on as one, so nothing can come between check and use."""
    advice = f"delete it and unpack CIFAR-10 again (from {ARCHIVE})"
    try:
        size = path.stat().st_size
        if size != stamp.size:
            raise Refusal(f"{path} has {size} bytes, expected {stamp.size}: truncated or another file; {advice}")
        content = path.read_bytes()
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}); {advice}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != stamp.md5:
        raise Refusal(f"{path} has MD5 {found}, expected {stamp.md5}: corrupt; {advice}")
    return content


RECONSTRUCT: Any = np.empty(0).__reduce__()[0]  # wherever this NumPy keeps it
PARTS_OF_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,  # its name since NumPy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and nothing else: MD5 is too weak a proof to run whatever a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return PARTS_OF_ARRAYS[module, name]
        except KeyError:
            asked = f"a pickle of CIFAR-10 asks for {module}.{name}"
            raise Refusal(f"{asked}; allowed: NumPy arrays; do not use this file") from None


def from_pickle(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images [n 3072] and labels [n] of a batch of the python release."""
    batch = ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    return batch[b"data"], np.array(batch[b"labels"])


def from_records(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images [n 3072] and labels [n] of a batch of the binary release: records of a label, then an image."""
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3072)
    return records[:, 1:], records[:, 0]


Decoder = Callable[[bytes], tuple[np.ndarray, np.ndarray]]
DECODERS: dict[str, Decoder] = {PYTHON: from_pickle, BINARY: from_records}
