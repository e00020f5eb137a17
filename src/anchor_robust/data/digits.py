"""Scikit-learn's digits: 1797 real 8x8 scans that ship with the package, so nothing needs to be downloaded.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Repository, 1998.
"""

from pathlib import Path

import numpy as np
import torch

from .images import ImageSet, stratified

TEST_IMAGES = 360  # one in five; the set has no official split


def digits(split: str, data_dir: str | Path | None = None) -> ImageSet:
    """The digits 0 to 9, uint8 [n 1 8 8]: 1437 to train on, or a fixed, class-balanced 360 to test on.

    `data_dir` is what every reader is given; these need none.
    """
    from sklearn.datasets import load_digits  # a second of imports that nobody else should wait for

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # the scans count 0..16 dark pixels per cell
    whole = ImageSet(
        images=torch.from_numpy(images).unsqueeze(1),
        labels=torch.from_numpy(bunch.target).long(),
        classes=tuple("0123456789"),
        name="digits",
        split=split,
    )
    in_test = torch.zeros(len(whole), dtype=torch.bool)
    in_test[stratified(whole.labels, TEST_IMAGES, seed=0)] = True
    return whole.subset({"train": ~in_test, "test": in_test}[split])
