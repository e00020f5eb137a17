"""Image classifiers of Hugging Face transformers, from a folder that save_pretrained has written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Refusal, one_line

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# Settings that `understood` follows, and those that change no pixel of images which are RGB already.
KNOWN = {
    *("do_rescale", "rescale_factor", "do_resize", "size", "resample", "crop_pct", "do_center_crop", "crop_size"),
    *("do_normalize", "image_mean", "image_std"),
}
NO_PIXEL = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "_processor_class"),
    *("do_convert_rgb", "data_format", "input_data_format", "return_tensors", "device", "default_to_square"),
}
LEVIT = "Levit"  # its processor resizes to 256 / 224 of what it says
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Preparation:
    """What an image processor does to pixels in [0, 1]: resize, crop the middle, normalise; None leaves a part out."""

    resize: tuple[int, int] | None
    resample: str | None
    crop: tuple[int, int] | None
    mean: Sequence[float]
    std: Sequence[float]


class Prepared(nn.Module):
    """A transformers classifier behind its image processor's steps, which gradients pass through.

    The processor also rounds resized pixels to bytes, which is left out here: it moves a pixel by about a grey level.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preparation: Preparation | None) -> None:
        super().__init__()
        self.network, self.preparation = network, preparation
        for name in ("mean", "std") if preparation else ():
            self.register_buffer(name, torch.tensor(getattr(preparation, name)).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if steps := self.preparation:
            if steps.resize and steps.resample:
                # As PIL does it: rows, then columns, each clamped, as bicubic interpolation leaves [0, 1].
                for size in ((x.shape[2], steps.resize[1]), steps.resize):
                    x = F.interpolate(x, size, mode=steps.resample, antialias=True).clamp(0, 1)
            if steps.crop:
                top, left = ((size - kept) // 2 for size, kept in zip(x.shape[2:], steps.crop, strict=True))
                x = x[:, :, top : top + steps.crop[0], left : left + steps.crop[1]]
            x = (x - self.mean) / self.std
        return self.network(pixel_values=x).logits


def is_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


def load(folder: Path, classes: Sequence[str], shape: tuple[int, int, int]) -> tuple[nn.Module, dict[str, Any]]:
    """The classifier in `folder` for images [c h w] of `classes`, and what is to be said of it.

    With a preprocessor_config.json that includes its normalisation, mean and std. Nothing is downloaded and no code of
    the folder's is run. Raises Refusal when the folder lacks a part, when transformers cannot load it, or when its
    processor does what is not known here.
    """
    config = read(folder, CONFIG)
    check_classes(folder, config.get("id2label") or {}, classes)
    preparation = understood(read(folder, PREPROCESSOR), shape) if (folder / PREPROCESSOR).is_file() else None
    about = {"name": (config.get("architectures") or [config.get("model_type")])[0]}
    return Prepared(classifier(folder), preparation), about | (asdict(preparation) if preparation else {})


def classifier(folder: Path) -> nn.Module:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        told = (
            "a Hugging Face model needs transformers, which is not installed; pip install 'anchor-robust[huggingface]'"
        )
        raise Refusal(told) from error
    safe = {"local_files_only": True, "trust_remote_code": False, "weights_only": True}
    try:
        network, loading = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, **safe)
    except Exception as error:  # another library's reader can fail in any way
        raise Refusal(f"transformers cannot load {folder} ({one_line(error)}); is it an image classifier?") from error
    if missing := sorted(loading["missing_keys"]):
        # transformers would fill them with random numbers, and go on.
        raise Refusal(f"{folder} lacks {len(missing)} of its weights ({missing[0]}, ...); save the whole classifier")
    return network.float().eval()


def read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Refusal(f"{folder / name} cannot be read ({one_line(error)}); is the folder complete?") from error


def check_classes(folder: Path, labels: Mapping[str, str], classes: Sequence[str]) -> None:
    """Refuse a model that has a class of that name at another place: its logits would be taken for others."""
    if not isinstance(labels, Mapping) or not all(str(key).isdecimal() for key in labels):
        given = ", ".join(map(str, labels)) if isinstance(labels, Mapping) else type(labels).__name__
        raise Refusal(
            f"{folder / CONFIG} has id2label of {given:.60}; allowed: names by the numbers 0, 1, ... of their logits; "
            "correct it, or leave it out"
        )
    named = [str(labels[key]).lower() for key in sorted(labels, key=int)]
    asked = [name.lower() for name in classes]
    if any(name in named and named[place : place + 1] != [name] for place, name in enumerate(asked)):
        raise Refusal(
            f"{folder} orders its classes {', '.join(named[:3])}, ..., the data set {', '.join(classes[:3])}, ...; "
            "give images whose labels follow the model's order"
        )


def understood(config: Mapping[str, Any], shape: tuple[int, int, int]) -> Preparation:
    """The steps of an image processor's settings for images [c h w]; what is not known here is refused."""
    if not config.get("do_rescale", True) or abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise refused("do_rescale, rescale_factor", "pixels divided by 255")
    for name, value in config.items():
        if value and name not in KNOWN | NO_PIXEL:
            raise refused(name, "nothing, as it may change the pixels")
        if name in NO_PIXEL and LEVIT in str(value):
            raise refused(name, "a processor that resizes to the size that it states")
    resize, crop = None, None
    if config.get("do_resize", True):
        resize, crop = sizes(config.get("size"), config.get("crop_pct"), shape)
    if config.get("do_center_crop"):
        crop = edges(config.get("crop_size"), "crop_size")
    if resize == shape[1:]:
        resize = None
    resample = RESAMPLE.get(config.get("resample", -1))
    if resize and resample is None:
        raise refused("resample", "2 (bilinear) or 3 (bicubic)")
    if crop and any(kept > size for kept, size in zip(crop, resize or shape[1:], strict=True)):
        raise refused("crop_size", "no more than the size")
    channels = shape[0]
    normalises = config.get("do_normalize", True)
    mean = config.get("image_mean") if normalises else [0.0] * channels
    std = config.get("image_std") if normalises else [1.0] * channels
    if not isinstance(mean, list) or not isinstance(std, list) or {len(mean), len(std)} != {channels} or min(std) <= 0:
        raise refused("image_mean, image_std", f"{channels} numbers each, one per channel of the images")
    return Preparation(resize, resample if resize else None, crop, mean, std)


def sizes(
    size: Any, crop_pct: float | None, shape: tuple[int, int, int]
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """To what images are resized, and what is then cropped (as ConvNeXt's processor does below 384 pixels)."""
    if not isinstance(size, dict) or "shortest_edge" not in size:
        return edges(size, "size"), None
    if shape[1] != shape[2]:
        raise refused("size.shortest_edge", "height and width, as the images are not square")
    edge = int(size["shortest_edge"])
    if crop_pct and edge < 384:
        return (int(edge / crop_pct),) * 2, (edge, edge)
    return (edge, edge), None


def edges(size: Any, name: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise refused(name, "a number, or height and width")


def refused(name: str, allowed: str) -> Refusal:
    return Refusal(
        f"{PREPROCESSOR} sets {name} to what is not known here; allowed: {allowed}; "
        "or build the model in a factory of yours: --model your.module:factory"
    )
