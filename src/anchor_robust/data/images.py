"""A data set as one tensor: what it holds, how it is split, and what pixels look like outside a model."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import Refusal

MOST_CLASSES = 100_000  # without names; a larger label is an id or a date


class Labelled(Protocol):
    """Images with `labels` [n] that are asked for a batch at a time: `pixels` are float32 [b c h w] in [0, 1]."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def sha256(self) -> str: ...

    def __len__(self) -> int: ...

    def pixels(self, indices: Tensor | slice) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Given:
    """Images x [n c h w] that somebody has as floats, with their labels [n]."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def pixels(self, indices: Tensor | slice) -> Tensor:
        return self.x[indices].detach().float()

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the images as float32 and the labels as int64."""
        digest = hashlib.sha256(f"{list(self.x.shape)}\n".encode())
        for values in (self.x.detach().float().cpu(), self.labels.cpu().long()):
            digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)  # tensors have no single truth value: two sets are compared by their sha256
class ImageSet:
    """Labelled images of one split.

    Args:
        images: uint8 [n c h w], 0..255.
        labels: int64 [n], positions in `classes`.
        classes: Names of the classes.
        name: Data set, for example "cifar10".
        split: "train", "validation" or "test".

    Raises:
        Refusal: a wrong type or shape, no images, or a label that names no class.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        images, labels, what = self.images, self.labels, f"{self.name} ({self.split})"
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise Refusal(f"{what}: images are {describe(images)}; allowed: torch.uint8 [n c h w]")
        if labels.dtype != torch.int64 or labels.shape != (len(self),):
            allowed = f"torch.int64 [{len(self)}], one per image"
            raise Refusal(f"{what}: labels are {describe(labels)}; allowed: {allowed}")
        if not len(self):
            raise Refusal(f"{what}: no images given; allowed: at least one")
        wrong = ((labels < 0) | (labels >= len(self.classes))).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise Refusal(
                f"{what}: label {int(labels[first])} at index {first} ({len(wrong)} such labels); "
                f"allowed: 0 to {len(self.classes) - 1}; correct it or name its class"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[c h w] of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, indices: Tensor | slice, split: str | None = None) -> "ImageSet":
        """The images at `indices` (int64 [k], or bool [n]), in that order; `split` names them anew."""
        images, labels = self.images[indices], self.labels[indices]
        return replace(self, images=images, labels=labels, split=split or self.split)

    def first(self, count: int) -> "ImageSet":
        """The first `count` images, or all if there are fewer."""
        if count < 1:
            raise Refusal(f"first {count} images of {self.name} asked for; allowed: 1 or more")
        return self.subset(slice(count))

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def pixels(self, indices: Tensor | slice) -> Tensor:
        """The images at `indices` as float32 [b c h w] in [0, 1]."""
        return self.images[indices].float().div_(255)

    def ahead(self, indices: Tensor) -> None:
        """Say which images `pixels` is asked for next; a set that has to read them begins to."""

    def chunks(self) -> Iterator[Tensor]:
        """All images in order, uint8 [b c h w], as many at a time as is good."""
        yield self.images

    @cached_property
    def sha256(self) -> str:
        """Hex digest of shape, pixels and labels: the same data gives the same digest on every machine."""
        digest = hashlib.sha256(f"{[len(self), *self.images.shape[1:]]}\n".encode())
        for chunk in self.chunks():
            digest.update(chunk.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().numpy().astype("<i8").data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation (of the population) of each channel, for pixels in [0, 1]."""
        # 256 counts say everything about a channel: exact, and no float copy of the images is made.
        counts = torch.stack([histograms(chunk) for chunk in self.chunks()]).sum(0).double()
        values = torch.arange(256, device=counts.device) / counts.new_tensor(255)
        shares = counts / counts.sum(1, keepdim=True)
        mean = (shares * values).sum(1, keepdim=True)
        deviation = (shares * (values - mean).square()).sum(1).sqrt()
        return tuple(mean.flatten().tolist()), tuple(deviation.tolist())


def histograms(images: Tensor) -> Tensor:
    """How often each grey level is in each channel of uint8 [n c h w]: int64 [c 256]."""
    return torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)])


def numbered(labels: np.ndarray, source: object) -> tuple[str, ...]:
    """Names of classes that have none: 0 to the largest label. Refuses labels that are ids, not numbers of classes."""
    largest = max(int(labels.max(initial=0)), 0)
    if largest >= MOST_CLASSES:
        raise Refusal(f"{source} holds the label {largest}; allowed: classes numbered 0, 1, 2, ...; number them so")
    return tuple(map(str, range(largest + 1)))


def hold_out(train: ImageSet, images: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Cut a fixed validation split of `images` images from `train`: (rest, validation).

    Every class keeps its share, to within one image. The same set, count and seed give the same cut.
    """
    check_held_out(train, images)
    held = stratified(train.labels, images, seed)
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[held] = False
    return train.subset(rest.nonzero().flatten().to(train.images.device)), train.subset(held, "validation")


def check_held_out(train: ImageSet, images: int) -> None:
    """Refuse a validation split that leaves nothing to train on."""
    if not 1 <= images < len(train):
        raise Refusal(
            f"validation.images {images} given; allowed: 1 to {len(train) - 1}, "
            f"as {train.name} has {len(train)} to train on"
        )


def sample(whole: ImageSet, images: int) -> ImageSet:
    """About `images` images, or all if there are fewer: classes keep their shares, and each that has one is there."""
    chosen = stratified(whole.labels, min(images, len(whole)), 0)
    absent = [label for label in whole.labels.unique() if not (whole.labels[chosen] == label).any()]
    first = [int((whole.labels == label).nonzero()[0]) for label in absent]
    return whole.subset(torch.cat([chosen, chosen.new_tensor(first)]).sort().values)


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices, ascending, of a random choice in which classes keep their shares; on the labels' device."""
    of = labels.cpu()
    shuffled = torch.randperm(len(of), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[of[shuffled].argsort(stable=True)]
    size = of.bincount()
    place = torch.arange(len(of)) - (size.cumsum(0) - size)[of[by_class]]
    # Taking every class up to the same fraction of its images keeps the shares, whatever the sizes.
    fraction = (place + 0.5).double() / size[of[by_class]]
    return by_class[fraction.argsort(stable=True)[:count]].sort().values.to(labels.device)


def check_pixels(x: Tensor) -> None:
    """Refuse anything but finite floats [n c h w] inside [0, 1]."""
    if not x.is_floating_point() or x.ndim != 4 or not x.numel():
        hint = "" if x.is_floating_point() else "; divide bytes by 255"
        raise Refusal(f"images are {describe(x)}; allowed: one or more as floats [n c h w] in [0, 1]{hint}")
    low, high = (bound.item() for bound in x.detach().aminmax())
    if not (low >= 0 and high <= 1):  # also catches NaN, which compares false
        raise Refusal(
            f"pixels run from {low:.4g} to {high:.4g}; allowed: finite, inside [0, 1]; "
            "normalisation belongs in the model, not in the images"
        )


def describe(x: Tensor) -> str:
    """Type and shape of `x` as an error shows them."""
    return f"{x.dtype} {list(x.shape)}"
