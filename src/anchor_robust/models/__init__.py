"""Networks: a backbone per file, and the `Classifier` that gives each one its normalisation and its embedding."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import Refusal, one_line
from ..lookup import named_or_imported
from .classifier import Classifier, LogitsOnly, WithHead
from .folded import Folded
from .preact_resnet import preact_resnet18
from .resnet import resnet8, resnet18
from .synced import synced

BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet18": resnet18,
    "preact-resnet18": preact_resnet18,
}

__all__ = ["BUILT_IN", "Classifier", "Folded", "LogitsOnly", "WithHead", "backbone", "factory", "made", "synced"]


def factory(name: str) -> Callable[..., nn.Module]:
    """What builds the backbone `name`: a built-in, or the user's own as `package.module.Class`."""
    make = named_or_imported("model", name, BUILT_IN)
    if not callable(make):
        raise Refusal(f"model {name!r} is a {type(make).__name__}; it must be a class or function that builds a module")
    return make


def made(name: str, classes: int, channels: int, settings: Mapping[str, Any]) -> Any:
    """What `name` builds with `settings`, and with `classes` and `channels` where its signature names them."""
    make = factory(name)
    offered = {"classes": classes, "channels": channels}
    try:
        parameters = inspect.signature(make).parameters
        asked = {key: value for key, value in offered.items() if key in parameters} | dict(settings)
        return make(**asked)
    except Refusal:
        raise
    except (Exception, SystemExit) as error:  # what a user's class refuses is the user's to mend
        told = f"({type(error).__name__}: {one_line(error)})"
        raise Refusal(f"model {name!r} cannot be built with {dict(settings)} {told}; change its settings") from error


def backbone(
    name: str, classes: int, image_shape: tuple[int, int, int], settings: Mapping[str, Any] | None = None
) -> nn.Module:
    """A fresh backbone with `.features(x) -> [n d]` and `.linear: d -> classes` for images [c h w].

    A class of the user's gets `classes` and `channels` where its signature names them, and may simply map images to
    features [n d]: the linear head is then added here.
    """
    network = made(name, classes, image_shape[0], settings or {})
    if not isinstance(network, nn.Module):
        raise Refusal(f"model {name!r} built a {type(network).__name__}; it must build a torch.nn.Module")
    if name in BUILT_IN:
        return network
    linear = getattr(network, "linear", None)
    if not isinstance(linear, nn.Linear) or not hasattr(network, "features"):
        return WithHead(network, feature_width(network, None, name, image_shape), classes)
    width = feature_width(network, "features", name, image_shape)
    if (linear.in_features, linear.out_features) != (width, classes):
        raise Refusal(
            f"model {name!r} has a .linear of {linear.in_features} features and {linear.out_features} logits, but "
            f"there are {width} features and {classes} classes"
        )
    return network


def feature_width(network: nn.Module, part: str | None, name: str, image_shape: tuple[int, int, int]) -> int:
    """d of a network that maps [n c h w] to [n d], or whose `part` does, found with two empty pictures."""
    try:
        # On a copy, so that every module keeps its mode and its statistics.
        trial = copy.deepcopy(network).eval()
        features = getattr(trial, part) if part else trial
        with torch.no_grad():
            output = features(torch.zeros(2, *image_shape))
    except Exception as error:  # whatever the user's code meets
        told = f"({type(error).__name__}: {one_line(error)})"
        raise Refusal(f"model {name!r} fails on two images {list(image_shape)} {told}; it must take them") from error
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        raise Refusal(f"model {name!r} has lazy layers, which get their size from a first image; state their sizes")
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 2:
        given = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise Refusal(f"model {name!r} maps two images to {given}; a backbone must give features [n d]")
    return output.shape[1]
