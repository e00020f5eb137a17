"""Optimizer, learning-rate schedule, averaged and perturbed weights: functions of the settings and the step."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from .errors import Refusal

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Optimise:
    """How the weights move.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Peak learning rate of SGD with Nesterov momentum.
        momentum: Momentum.
        weight_decay: L2 decay of the weights; never of biases and norms.
        schedule: one-cycle (linear up, linear down to 0) or cosine (linear up, cosine down to 0).
        warmup: Share of the steps in which the learning rate rises.
        clip: Largest norm of the gradient; 0 does not clip.
        ema: Decay of the averaged weights. These are validated, and the best of them kept; with 0 those of the network
            itself are. Averages over about 1 / (1 - ema) steps.
        ema_from: Share of the training after which averaging begins; before it the average is the network itself.
        awp: Adversarial weight perturbation (arXiv 2004.05884): how far each weight tensor is moved against the loss
            before the step, as a share of its norm; 0 is off, usually 0.005 to 0.01. One more training pass a step.
        awp_from: Share of the training after which weights are perturbed.
        label_smoothing: Probability mass that the target gives to all classes evenly.
        micro_batch: Images that are attacked, and pass through the network, at a time, to save memory; 0 is the whole
            batch. Has to divide the batch, and each process's share where that is larger. The loss stays that of the
            whole batch, contrast included; BatchNorm sees the micro-batch. One more forward pass of each image.
        compile: torch.compile where a run is long enough to repay it and a compiler is found (auto), or never.
        precision: bf16 mixed precision where the device is faster in it (auto), always (bf16), or float32 (the whole
            step, but that cuDNN's convolutions may round to TF32).
    """

    epochs: int = 10
    batch_size: int = 256
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    warmup: float = 0.25
    clip: float = 0.0
    ema: float = 0.0
    ema_from: float = 0.0
    awp: float = 0.0
    awp_from: float = 0.0
    label_smoothing: float = 0.0
    micro_batch: int = 0
    compile: Literal["auto", "never"] = "auto"
    precision: Literal["auto", "bf16", "float32"] = "auto"

    def __post_init__(self) -> None:
        allowed = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 2, "2 or more"),
            "lr": (0 < self.lr < math.inf, "above 0"),
            "momentum": (0 <= self.momentum < 1, "0 or more and below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "warmup": (0 <= self.warmup <= 1, "0 to 1"),
            "clip": (0 <= self.clip < math.inf, "0 (off) or more"),
            "ema": (0 <= self.ema < 1, "0 (off) or more and below 1"),
            "ema_from": (0 <= self.ema_from < 1, "0 or more and below 1"),
            "awp": (0 <= self.awp < 1, "0 (off) or more and below 1"),
            "awp_from": (0 <= self.awp_from < 1, "0 or more and below 1"),
            "micro_batch": (
                self.micro_batch >= 0 and self.batch_size % (self.micro_batch or 1) == 0,
                f"0 (off), or what divides the batch of {self.batch_size}",
            ),
            "label_smoothing": (0 <= self.label_smoothing < 1, "0 or more and below 1"),
        }
        for setting, (holds, range_) in allowed.items():
            if not holds:
                raise Refusal(f"optimise.{setting} {getattr(self, setting)} given; allowed: {range_}")


def sgd(network: nn.Module, settings: Optimise) -> torch.optim.SGD:
    """SGD; weight decay on tensors of more than one dimension only, which leaves out biases and norms."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )


def learning_rate(settings: Optimise, step: int, steps: int) -> float:
    """The learning rate of step 0 .. steps - 1: it rises over the first `warmup` share and falls to 0 at the end."""
    rise = settings.warmup * steps
    if step < rise:
        return settings.lr * (step + 1) / (rise + 1)
    progress = (step - rise) / max(steps - rise, 1)
    fall = 1 - progress if settings.schedule == "one-cycle" else (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * fall


class Average(Generic[Network]):
    """Exponential moving average of a network, BatchNorm statistics included: a <- a + (1 - decay) (w - a).

    The decay of the s-th update is min(decay, (1 + s) / (10 + s)), so that the random start is soon forgotten. With
    decay 0 it is the network itself, at no cost.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False) if decay else network

    @torch.no_grad()
    def update(self, network: Network, count: int) -> None:
        """Take in the network's weights for the time number `count`; below 0, replace the average by them."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + count) / (10 + count)) if count >= 0 else 0.0
        pairs = list(zip(held(self.network), held(network), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        averaged, current = map(list, zip(*floating, strict=True))
        torch._foreach_lerp_(averaged, current, 1 - decay)  # all tensors in a launch or two
        for count_averaged, count_current in (pair for pair in pairs if not pair[0].is_floating_point()):
            count_averaged.copy_(count_current)


def held(network: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, each once: one that goes by two names would be averaged twice."""
    return (tensor.detach() for tensor in chain(network.parameters(), network.buffers()))


@contextmanager
def perturbed(network: nn.Module, gradients: Mapping[str, Tensor], size: float) -> Iterator[None]:
    """Adversarial weight perturbation, Wu et al., arXiv 2004.05884, equation 10: meanwhile the weights are

        w + size * |w| * g / |g|        g the gradient of the loss by w, norms over the whole tensor

    for tensors of more than one dimension; biases and norms stay. Afterwards every weight is bit-equal to what it was,
    also after an exception.
    """
    before = {name: p.detach().clone() for name, p in network.named_parameters() if name in gradients and p.ndim > 1}
    try:
        with torch.no_grad():
            for name, weight in before.items():
                length = gradients[name].norm().clamp_min(torch.finfo(weight.dtype).tiny)
                network.get_parameter(name).add_(gradients[name] * (size * weight.norm() / length))
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                network.get_parameter(name).copy_(weight)


@contextmanager
def unmoved_statistics(network: nn.Module) -> Iterator[None]:
    """Let a pass in training mode leave no trace in BatchNorm's running statistics."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
