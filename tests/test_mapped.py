"""Images on the disk are the images that they would be in memory."""

import mmap
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from anchor_robust import data, runs, train
from anchor_robust.data import ImageSet, hold_out, mapped
from anchor_robust.display import Display
from anchor_robust.errors import Refusal
from anchor_robust.recipe import settle


def written(folder: Path, images: ImageSet, split: str = "train") -> Path:
    (folder / split).mkdir(parents=True)
    np.save(folder / split / "x.npy", images.images.permute(0, 2, 3, 1).numpy())
    np.save(folder / split / "y.npy", images.labels.numpy().astype(np.int16))
    return folder


def coloured(count: int = 37) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 5, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (count,), generator=generator)
    labels[0] = 2
    return ImageSet(images, labels, ("0", "1", "2"), "colours", "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("mapped") / "colours", coloured())


def alike(ours: ImageSet, theirs: ImageSet) -> None:
    assert len(ours) == len(theirs)
    assert (ours.classes, ours.split, ours.sha256) == (theirs.classes, theirs.split, theirs.sha256)
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.pixels(slice(None)), theirs.pixels(slice(None)))
    assert ours.channel_statistics() == theirs.channel_statistics()


@pytest.mark.parametrize("chunk", (5, 37, 4096))
def test_a_folder_holds_what_was_saved(chunk: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "CHUNK", chunk)
    ours, theirs = data.load(str(folder), "train"), coloured()
    assert isinstance(ours, mapped.MappedSet)
    alike(ours, theirs)
    for one, other in zip(hold_out(ours, 9), hold_out(theirs, 9), strict=True):
        alike(one, other)
    alike(ours.first(4), theirs.first(4))
    alike(ours.to("cpu").subset(torch.arange(37) % 2 == 0), theirs.subset(torch.arange(37) % 2 == 0))


@given(st.data())
def test_batches_are_those_in_memory(folder: Path, data_: st.DataObject) -> None:
    kept = data_.draw(st.lists(st.integers(0, 36), min_size=1, max_size=20))
    asked = data_.draw(st.lists(st.integers(0, len(kept) - 1), max_size=10))
    ours, theirs = (images.subset(torch.tensor(kept)) for images in (data.load(str(folder), "train"), coloured()))
    batch = ours.pixels(torch.tensor(asked, dtype=torch.long))
    assert torch.equal(batch, theirs.pixels(torch.tensor(asked, dtype=torch.long)))
    assert batch.dtype == torch.float32


def test_what_is_asked_for_next_is_read_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = []
    read = mapped.MappedSet.read

    def noted(images: mapped.MappedSet, indices: torch.Tensor | slice) -> torch.Tensor:
        readers.append(threading.current_thread().name)
        return read(images, indices)

    monkeypatch.setattr(mapped.MappedSet, "read", noted)
    images, memory = data.load(str(folder), "train"), coloured()
    batches = torch.randperm(37, generator=torch.Generator().manual_seed(1)).split(8)
    for place, batch in enumerate(batches):
        for following in batches[place + 1 : place + 2]:
            images.ahead(following)
        assert torch.equal(images.pixels(batch), memory.pixels(batch))
    assert len(readers) == len(batches), "every batch is read once"
    assert sum(name.startswith("reader") for name in readers) == len(batches) - 1
    assert len(images.expected) <= 2


def test_a_batch_is_asked_of_the_disk_before_it_is_touched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Noting(mmap.mmap):
        def madvise(self, *advice: int) -> None:
            asked.append(advice)
            super().madvise(*advice)

    monkeypatch.setattr(mmap, "mmap", Noting)
    images, rows = data.load(str(folder), "train"), torch.tensor([30, 3, 36])
    asked.clear()
    images.subset(rows).pixels(torch.tensor([1, 2]))
    stored = (folder / "train" / "x.npy").read_bytes()
    for (advice, start, length), row in zip(asked, (3, 36), strict=True):
        image = coloured().images[row].permute(1, 2, 0).numpy().tobytes()
        assert advice == mmap.MADV_WILLNEED
        assert stored[start : start + length].endswith(image)
        assert length < len(image) + mmap.PAGESIZE


def test_images_may_be_more_than_memory(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = 2 * memory // 1024**2
    with open(tmp_path / "train" / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (count, 1024, 1024, 1)}
        )
        file.truncate(file.tell() + count * 1024**2)  # a hole, which takes no place on the disk
    np.save(tmp_path / "train" / "y.npy", np.arange(count) % 2)
    images = data.load(str(tmp_path), "train")
    assert len(images) == count
    assert not images.pixels(torch.tensor([0, count - 1])).any()


def test_changing_a_batch_changes_no_file(folder: Path) -> None:
    images = data.load(str(folder), "train")
    images.pixels(slice(None)).zero_()
    assert torch.equal(data.load(str(folder), "train").pixels(slice(None)), coloured().pixels(slice(None)))


SMALL = (
    "--model.width=4",
    "--attack.steps=1",
    "--validation.images=100",
    "--optimise.epochs=2",
    "--validation.steps=1",
)


@pytest.mark.parametrize("mix", ("none", "mixup"))
def test_training_from_disk_gives_the_weights_of_training_from_memory(
    mix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = data.load("digits", "train").first(400)
    stored = written(tmp_path / "digits", digits)
    recipe = settle("digits-anchor", [*SMALL, f"--data.name={stored}", f"--data.mix={mix}"])
    asked: list[torch.Tensor] = []
    ahead = mapped.MappedSet.ahead
    monkeypatch.setattr(mapped.MappedSet, "ahead", lambda images, rows: (asked.append(rows), ahead(images, rows))[1])
    from_disk = train.start(recipe, tmp_path / "disk", None, Display())
    assert len(asked) == 2 * (300 // 64 - 1)
    monkeypatch.setattr(data, "load", lambda *given: digits)
    from_memory = train.start(recipe, tmp_path / "memory", None, Display())
    one, other = (load_file(run / runs.WEIGHTS) for run in (from_disk, from_memory))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_classes_may_have_names(tmp_path: Path) -> None:
    folder = written(tmp_path / "named", coloured())
    (folder / "classes.txt").write_text("red\ngreen\nblue and more\n")
    assert data.load(str(folder), "train").classes == ("red", "green", "blue and more")


def test_a_folder_of_test_images_alone_counts_its_own_classes(tmp_path: Path) -> None:
    assert data.load(str(written(tmp_path / "alone", coloured(), "test")), "test").classes == ("0", "1", "2")


@pytest.mark.parametrize("text", (b"cat\r\ndog\r\nbird\r\n\r\n", b"\xef\xbb\xbfcat\ndog\nbird"))
def test_names_of_classes_come_from_any_editor(text: bytes, tmp_path: Path) -> None:
    folder = written(tmp_path / "named", coloured())
    (folder / "classes.txt").write_bytes(text)
    assert data.load(str(folder), "train").classes == ("cat", "dog", "bird")


def test_names_of_classes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "named", coloured())
    (folder / "classes.txt").write_text("")
    with pytest.raises(Refusal, match=r"classes.txt names no class; give a name a line, or delete it"):
        data.load(str(folder), "train")
    (folder / "classes.txt").write_bytes(b"B\xe4r\ndog\nbird\n")
    with pytest.raises(Refusal, match=r"classes.txt cannot be read.*save it as UTF-8"):
        data.load(str(folder), "train")


def test_the_test_images_have_the_classes_of_the_training_images(tmp_path: Path) -> None:
    folder = written(tmp_path / "two", coloured())
    written(folder, coloured().subset(coloured().labels == 0), "test")
    assert data.load(str(folder), "test").classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("x", None, "x.npy is missing"),
        ("y", None, "y.npy is missing"),
        ("x", np.zeros((37, 5, 4, 3)), r"float64 \[37, 5, 4, 3\]"),
        ("x", np.zeros((37, 3, 5, 4), np.uint8), "c 1 or 3"),
        ("x", np.zeros((0, 5, 4, 3), np.uint8), "uint8"),
        ("y", np.zeros(36, np.int64), "for each of 37"),
        ("y", np.zeros(37), "float64"),
        ("y", np.full(37, -1), "label -1"),
        ("x", b"no array", "cannot be read"),
        ("y", np.array(["a"] * 37, dtype=object), "cannot be read"),
    ],
)
def test_what_is_no_data_set_is_refused(name: str, content: object, hint: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "broken", coloured())
    file = folder / "train" / f"{name}.npy"
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(Refusal, match=hint) as refusal:
        data.load(str(folder), "train")
    assert "\n" not in str(refusal.value)
