"""Images of the user's own to test on: NumPy arrays in one .npz file."""

from pathlib import Path

import numpy as np
import torch

from ..errors import Refusal, one_line
from .images import ImageSet, numbered

ALLOWED = "x: uint8 [n h w c], or floats [n c h w] in [0, 1] that are whole grey levels / 255, with c 1 or 3"


def arrays(path: str | Path) -> ImageSet:
    """The test images of an .npz file: `x`, labels `y` [n] and, optional, the names of the `classes` [k].

    x is uint8 [n h w c] or float [n c h w] in [0, 1]. Without names there are as many classes as labels, 0 to max(y).
    Raises Refusal when the file is missing, broken or holds something else.
    """
    try:
        with Path(path).open("rb") as handle, np.lib.npyio.NpzFile(handle, allow_pickle=False) as file:
            held = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # a broken file can fail anywhere in the reader
        raise Refusal(f"{path} cannot be read ({one_line(error)}); give a file that np.savez has written") from error
    if not {"x", "y"} <= held.keys():
        raise Refusal(f"{path} holds {', '.join(held) or 'nothing'}; allowed: images x, labels y, names classes")
    y = held["y"]
    if y.ndim != 1 or y.dtype.kind not in "iu" or not len(y):
        raise Refusal(f"{path} holds y: {y.dtype} {list(y.shape)}; allowed: an integer for each image")
    names = held["classes"] if "classes" in held else np.array(numbered(y, path))
    try:
        names = np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} holds classes that are no UTF-8 ({one_line(error)}); save them as text") from error
    return ImageSet(
        images=torch.from_numpy(as_bytes(held["x"], path)),
        labels=torch.from_numpy(y.astype(np.int64)),
        classes=tuple(str(name) for name in names.ravel()),
        name=Path(path).stem,
        split="test",
    )


def as_bytes(x: np.ndarray, path: str | Path) -> np.ndarray:
    """uint8 [n c h w] of either form of x."""
    refusal = Refusal(f"{path} holds x: {x.dtype} {list(x.shape)}; allowed: {ALLOWED}")
    if x.ndim != 4 or not x.size or x.shape[3 if x.dtype == np.uint8 else 1] not in (1, 3):
        raise refusal
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    levels = x.astype(np.float64) * 255
    # float16 resolves a grey level to an eighth; pixels that were normalised or interpolated are further off.
    if x.dtype.kind != "f" or not (
        levels.min() >= 0 and levels.max() <= 255 and np.abs(levels - levels.round()).max() < 0.13
    ):
        raise refusal
    return levels.round().astype(np.uint8)
