"""Images of the user's own in more bytes than memory has: NumPy arrays that stay on the disk until they are read."""

import mmap
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import Refusal, one_line
from .images import ImageSet, numbered

CHUNK = 4096  # images that are looked at together where all have to be
LAYOUT = (
    "FOLDER/train and FOLDER/test, each with x.npy, uint8 [n h w c], and y.npy, integers [n]; classes.txt is optional"
)


@dataclass(frozen=True, eq=False)
class MappedSet(ImageSet):
    """Labelled images in a memory-mapped file: `rows` of `images`, in that order. Batches are those of an ImageSet.

    `ahead` lets a thread read and copy to the device what `pixels` is asked for next.
    """

    rows: Tensor = field(kw_only=True)
    announce: Callable[[Tensor], None] = field(kw_only=True)  # is told which rows of `images` are read next
    reader: ThreadPoolExecutor = field(init=False, default_factory=lambda: ThreadPoolExecutor(1, "reader"))
    # The batch that is asked for now, and the next one.
    expected: deque[tuple[Tensor, Future[Tensor]]] = field(init=False, default_factory=lambda: deque(maxlen=2))

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Tensor | slice, split: str | None = None) -> "MappedSet":
        return replace(self, rows=self.rows[indices], labels=self.labels[indices], split=split or self.split)

    def to(self, device: torch.device | str) -> "MappedSet":
        """The same set, whose labels lie on `device`, and its batches once they are read."""
        return replace(self, labels=self.labels.to(device))

    def ahead(self, indices: Tensor) -> None:
        self.expected.append((indices, self.reader.submit(self.read, indices)))

    def pixels(self, indices: Tensor | slice) -> Tensor:
        for awaited, batch in self.expected:
            if isinstance(indices, Tensor) and torch.equal(awaited, indices):
                return batch.result().float().div_(255)
        return self.read(indices).float().div_(255)

    def read(self, indices: Tensor | slice) -> Tensor:
        """The images at `indices`, which may lie on any device, uint8 [b c h w] on the labels' device."""
        rows = self.rows[indices.cpu() if isinstance(indices, Tensor) else indices]
        self.announce(rows)
        batch = self.images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
        if self.labels.is_cuda:
            return batch.pin_memory().to(self.labels.device, non_blocking=True)
        return batch

    def chunks(self) -> Iterator[Tensor]:
        for start in range(0, len(self), CHUNK):
            yield self.read(slice(start, start + CHUNK))


def folder(path: str | Path, split: str) -> MappedSet:
    """The `split` of a folder: `split`/x.npy, uint8 [n h w c] with c 1 or 3, `split`/y.npy, and optional classes.txt.

    classes.txt names a class a line; without it there are as many as labels in the training images, 0 to max(y).
    Raises Refusal when something is missing, broken or of another form.
    """
    x, y = (mapped(Path(path) / split / name) for name in ("x.npy", "y.npy"))
    if x.dtype != np.uint8 or x.ndim != 4 or not x.size or x.shape[3] not in (1, 3):
        raise Refusal(f"{path}/{split}/x.npy holds {x.dtype} {list(x.shape)}; allowed: uint8 [n h w c], c 1 or 3")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise Refusal(f"{path}/{split}/y.npy holds {y.dtype} {list(y.shape)}; allowed: an integer for each of {len(x)}")
    return MappedSet(
        images=read_only(x).permute(0, 3, 1, 2),
        labels=torch.from_numpy(y.astype(np.int64)),
        classes=class_names(Path(path)),
        name=str(path),
        split=split,
        rows=torch.arange(len(x)),
        announce=announcer(x),
    )


def announcer(x: np.ndarray) -> Callable[[Tensor], None]:
    """Asks the system to fetch given rows of a mapped array from the disk, all of them at once and no others.

    Where they are only touched they come one after the other, each with much of what lies around it.
    """
    file = x.base
    if not (isinstance(x, np.memmap) and isinstance(file, mmap.mmap) and hasattr(file, "madvise")):
        return lambda rows: None
    first, size = x.offset % mmap.ALLOCATIONGRANULARITY, x[0].nbytes  # NumPy maps from a whole page on

    def announce(rows: Tensor) -> None:
        for row in rows.tolist():
            start = first + row * size
            page = start - start % mmap.PAGESIZE
            with suppress(OSError):  # a system that will not be advised fetches what is touched
                file.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    return announce


def read_only(array: np.ndarray) -> Tensor:
    """The array as a tensor that nobody may write to; torch, which has none such, would warn of that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def class_names(path: Path) -> tuple[str, ...]:
    named = path / "classes.txt"
    if named.is_file():
        try:
            names = tuple(named.read_text(encoding="utf-8-sig").rstrip().splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise Refusal(f"{named} cannot be read ({one_line(error)}); save it as UTF-8, a name a line") from error
        if not names:
            raise Refusal(f"{named} names no class; give a name a line, or delete it")
        return names
    there = [path / split / "y.npy" for split in ("train", "test")]
    labels = next((file for file in there if file.is_file()), there[0])
    return numbered(mapped(labels), labels)


def mapped(path: Path) -> np.ndarray:
    """The array in a file, which is read where it is looked at and cannot be changed."""
    try:
        # Mapped for writing it would have to fit into memory, were it only in private.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of several arrays")
        return array
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; a data set of your own is {LAYOUT}") from None
    except Exception as error:  # a broken file can fail anywhere in the reader
        raise Refusal(f"{path} cannot be read ({one_line(error)}); give a file that np.save has written") from error
