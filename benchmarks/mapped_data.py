"""Batches in random order from images on the disk of which memory holds nothing: as np.load maps them, and ours.

    python benchmarks/mapped_data.py --images 16384 --side 224 --batch 128 --rounds 8 --json FILE

How many images a second the reader can give an accelerator whose images do not fit into memory: it has as long for a
batch as a step takes. The plain way is indexing the mapped array, which reads where it touches. The system forgets
the file before each batch, as it has to where the file is much larger than memory.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anchor_robust.data.mapped import folder
from timing import compared, count, device_of, parser, record, run, summary, timed, write

SPLIT = "train"
Reader = Callable[[torch.Tensor], torch.Tensor]  # rows to images, uint8 [b c h w] on the device


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--images", type=count, default=16_384, help="random images on the disk (default: 16,384)")
    asked.add_argument("--side", type=count, default=224, help="of an image, in pixels (default: 224)")
    asked.add_argument("--batch", type=count, default=128, help="images (default: 128)")
    asked.add_argument("--rounds", type=count, default=8, help="timed batches of each way (default: 8)")
    asked.add_argument("--where", help="folder on the disk in question (default: the temporary one)")
    given = asked.parse_args(words)
    if given.images < (needed := 2 * given.batch * (given.rounds + 1)):
        asked.error(f"--images {given.images} are too few; {given.rounds + 1} batches of each way need {needed}")
    device = device_of(given)
    with tempfile.TemporaryDirectory(dir=given.where) as there:
        result = measured(Path(there), given, device)
    write(record("mapped_data", given, device, result), given.json)


def measured(there: Path, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    pixels = stored(there, given.images, given.side)
    ways = {"plain": indexing, "anchor": reading}
    samples: dict[str, list[float]] = {way: [] for way in ways}
    order = torch.randperm(given.images, generator=torch.Generator().manual_seed(0))
    batches = iter(order.split(given.batch))  # no image twice: what a disk is asked for again it may still remember
    for _ in range(given.rounds + 1):
        for way, opened in ways.items():
            samples[way].append(cold(pixels, partial(opened, there, device), next(batches), device))
    timings = {way: summary(later) | {"warm_up_s": first} for way, (first, *later) in samples.items()}
    return compared(timings, given.batch) | {"read_ahead_kb": read_ahead(there)}


def cold(pixels: Path, opened: Callable[[], Reader], batch: torch.Tensor, device: torch.device) -> float:
    """Seconds of a batch from a file that was forgotten. It is mapped here alone: what is mapped is not forgotten."""
    forget(pixels)
    read = opened()
    return timed(partial(read, batch), device)


def indexing(there: Path, device: torch.device) -> Reader:
    pixels = np.load(there / SPLIT / "x.npy", mmap_mode="r")
    return lambda rows: torch.from_numpy(pixels[rows.numpy()]).permute(0, 3, 1, 2).to(device)


def reading(there: Path, device: torch.device) -> Reader:
    return folder(there, SPLIT).to(device).read


def stored(at: Path, images: int, side: int) -> Path:
    """A data set of random images, as `folder` expects it; returns the file of their pixels."""
    (at / SPLIT).mkdir(parents=True)
    file, random = at / SPLIT / "x.npy", np.random.default_rng(0)
    pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(images, side, side, 3))
    for image in pixels:
        image[:] = random.integers(256, size=image.shape, dtype=np.uint8)
    pixels.flush()
    np.save(at / SPLIT / "y.npy", np.arange(images) % 2)
    return file


def forget(file: Path) -> None:
    """Have the system drop what it keeps of a file in memory."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_ahead(there: Path) -> int | None:
    """KiB that the system fetches around what is touched on this disk; None where it does not tell."""
    disk = there.stat().st_dev
    told = Path(f"/sys/class/bdi/{os.major(disk)}:{os.minor(disk)}/read_ahead_kb")
    return int(told.read_text()) if told.exists() else None


if __name__ == "__main__":
    run(main)
