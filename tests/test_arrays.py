"""Images of the user's own: what is read is what was saved, and nothing is taken for what it is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchor_robust import data
from anchor_robust.data.arrays import arrays, as_bytes
from anchor_robust.errors import Refusal

BYTES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def saved(path: Path, **held: Any) -> str:
    np.savez(path / "mine.npz", **held)
    return str(path / "mine.npz")


def test_bytes_and_floats_give_the_same_images(tmp_path: Path) -> None:
    images = data.load(saved(tmp_path, x=BYTES, y=LABELS), "test")
    assert (images.name, images.split, images.classes) == ("mine", "test", ("0", "1", "2"))
    assert torch.equal(images.images, torch.from_numpy(BYTES).permute(0, 3, 1, 2))
    assert images.labels.tolist() == LABELS.tolist()
    for kind in (np.float16, np.float32, np.float64):
        x = (BYTES.transpose(0, 3, 1, 2) / 255).astype(kind)
        assert arrays(saved(tmp_path, x=x, y=LABELS.astype(np.uint8))).sha256 == images.sha256


@given(level=st.integers(0, 255), kind=st.sampled_from([np.float16, np.float32, np.float64]))
def test_every_grey_level_survives(level: int, kind: Any) -> None:
    x = np.full((1, 1, 1, 1), level / 255, kind)
    assert as_bytes(x, "file").item() == level


def test_names_may_be_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=BYTES, y=np.arange(6) % 2, classes=np.char.encode(["cat", "dög"], "utf-8"))
    assert arrays(tmp_path / "x.npz").classes == ("cat", "dög")


def test_named_classes_count_though_no_image_shows_them(tmp_path: Path) -> None:
    images = arrays(saved(tmp_path, x=BYTES, y=LABELS, classes=["cat", "dog", "owl", "yak"]))
    assert images.classes == ("cat", "dog", "owl", "yak")


FLOATS = (BYTES / 255).astype(np.float32)


@pytest.mark.parametrize(
    "held, said",
    [
        ({"x": BYTES}, "holds x; allowed: images x, labels y"),
        ({"x": BYTES, "y": LABELS.astype(float)}, "holds y: float64"),
        ({"x": BYTES, "y": LABELS[:, None]}, "holds y"),
        ({"x": BYTES, "y": LABELS[:5]}, r"labels are torch.int64 \[5\]"),
        ({"x": BYTES, "y": LABELS, "classes": ["a", "b"]}, "label 2 at index 2"),
        ({"x": BYTES, "y": LABELS - 1}, "label -1"),
        ({"x": BYTES.transpose(0, 3, 1, 2), "y": LABELS}, "uint8 .*allowed: x: uint8"),
        ({"x": FLOATS, "y": LABELS}, "float32 .*or floats"),
        ({"x": BYTES[0], "y": LABELS}, "holds x"),
        ({"x": BYTES[:0], "y": LABELS}, "holds x"),
        ({"x": BYTES.astype(np.int64).transpose(0, 3, 1, 2), "y": LABELS}, "int64"),
        ({"x": BYTES.transpose(0, 3, 1, 2).astype(np.float32), "y": LABELS}, r"in \[0, 1\]"),
        ({"x": FLOATS.transpose(0, 3, 1, 2) - 0.5, "y": LABELS}, r"in \[0, 1\]"),
        ({"x": FLOATS.transpose(0, 3, 1, 2) * np.float32(0.77), "y": LABELS}, "grey levels"),
        ({"x": FLOATS.transpose(0, 3, 1, 2) * np.float32("nan"), "y": LABELS}, "holds x"),
        ({"x": np.array([{}, 1]), "y": LABELS}, "cannot be read"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, held: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said) as told:
        arrays(saved(tmp_path, **held))
    assert "\n" not in str(told.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    path = Path(saved(tmp_path, x=BYTES, y=LABELS))
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:200])
    np.save(tmp_path / "one.npy", BYTES)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("text.npz", "cut.npz", "absent.npz", "one.npz"):
        with pytest.raises(Refusal, match=f"{name} cannot be read"):
            arrays(tmp_path / name)
    with pytest.raises(Refusal, match="serves for tests alone"):
        data.load(str(path), "train")
