"""A classifier's fast twin for attacks: evaluation mode, logits only, BatchNorm merged into the convolutions.

    BN(W * x) = (s W) * x + (beta - s running_mean),   s = gamma / sqrt(running_var + eps) per output channel

The twin computes the same function as the classifier in evaluation mode (to rounding) in about half the time. It has
its own copy of the weights: call `refresh` after each change of the classifier's.
"""

import copy
import logging
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .classifier import Classifier
from .local import Local

LOCAL_TOLERANCE = 1e-4  # of the largest logit

log = logging.getLogger(__name__)


class LogitsPath(nn.Module):
    """What an attack runs through: pixels to logits [n k] and features [n d]."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.backbone: Any = classifier.backbone
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone.features((x - self.mean) / self.std)
        return self.backbone.linear(features), features


def copied(classifier: Classifier) -> LogitsPath:
    # In evaluation mode, so that tracing bakes nothing of the training mode (a functional dropout) in.
    return LogitsPath(copy.deepcopy(classifier)).eval().requires_grad_(False)


class Folded(nn.Module):
    """The twin of `classifier`; convolution weights in `dtype`. Falls back to an unfolded copy if tracing fails.

    Called with x it gives logits [n k]; `embed(x)` gives the unit embedding as well. In bf16 both run under autocast.
    """

    def __init__(self, classifier: Classifier, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        # Held in a tuple, outside the module tree: the twin must not own, train or save the classifier's parameters.
        self.source = (LogitsPath(classifier), classifier.projection)
        self.projection = copy.deepcopy(classifier.projection).requires_grad_(False) if classifier.projection else None
        self.dtype = dtype
        self.twin: nn.Module = copied(classifier)
        self.pairs: dict[str, str] = {}
        try:
            traced = fx.symbolic_trace(copied(classifier))
            if not traced.state_dict().keys() <= self.twin.state_dict().keys():
                raise ValueError("a constant made in forward, which may be random, would be frozen")
            self.pairs, self.twin = merge(traced), traced
        except Exception as error:  # what a user's forward does when traced is not ours to foresee
            log.debug("not folded, the network cannot be traced: %s", error)
        for convolution in self.pairs:
            self.twin.get_submodule(convolution).to(dtype)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the classifier's present weights and running statistics."""
        source, projection = self.source
        present = source.state_dict()
        for name, tensor in self.twin.state_dict().items():
            if name.rpartition(".")[0] not in self.pairs:
                tensor.copy_(present[name])
        for convolution, norm in self.pairs.items():
            weight, bias = merged(source.get_submodule(convolution), source.get_submodule(norm))
            self.twin.get_parameter(f"{convolution}.weight").copy_(weight)
            self.twin.get_parameter(f"{convolution}.bias").copy_(bias)
        if self.projection is not None and projection is not None:
            for tensor, now in zip(self.projection.parameters(), projection.parameters(), strict=True):
                tensor.copy_(now)

    def train(self, mode: bool = True) -> "Folded":
        """The twin has no training mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        with self.autocast(x):
            # A copy, as a graph replayed on CUDA writes its results to the same place each time.
            return self.twin(x)[0].clone()

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n c h w] -> logits [n k] and unit embedding [n p], as the classifier gives them."""
        with self.autocast(x):
            logits, features = (each.clone() for each in self.twin(x))
            projected = features if self.projection is None else self.projection(features)
        return logits, F.normalize(projected.float(), dim=1)

    def locally(self, x: Tensor) -> Local | None:
        """The twin's logits of images that differ from x [n c h w] in one window, for less; None where it cannot."""
        if self.dtype != torch.float32 or not isinstance(self.twin, fx.GraphModule):
            return None
        rows, columns = (slice(size // 3, -(-size // 2)) for size in x.shape[2:])
        with torch.no_grad():
            changed = x.clone()
            changed[..., rows, columns] = new = 1 - changed[..., rows, columns]
            try:
                local = Local(self.twin, x)
                expected, given = self(changed), local.look(new, (rows, columns))
            except Exception as error:  # what a user's forward does is not ours to foresee
                log.debug("not looked at locally: %s", error)
                return None
        return local if (given - expected).abs().max() <= LOCAL_TOLERANCE * expected.abs().max() else None

    def autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def merge(traced: fx.GraphModule) -> dict[str, str]:
    """Take out every BatchNorm that alone follows a convolution; returns convolution -> its BatchNorm."""
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    owners = Counter(id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False))
    pairs: dict[str, str] = {}
    for node in list(traced.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if type(norm) is not nn.BatchNorm2d or not norm.track_running_stats:
            continue
        before = node.all_input_nodes[0]
        convolution = modules.get(before.target) if before.op == "call_module" else None
        if type(convolution) is not nn.Conv2d:
            continue
        # Weights that serve twice cannot carry one particular norm.
        once = calls[before.target] == 1 and owners[id(convolution.weight)] == 1
        if once and len(before.users) == 1:
            pairs[before.target] = node.target
            zeros = torch.zeros(convolution.out_channels, device=convolution.weight.device)
            convolution.bias = nn.Parameter(zeros, requires_grad=False)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return pairs


def merged(convolution: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the Conv2d that equals `convolution` followed by the BatchNorm2d `norm` in evaluation mode."""
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale * norm.weight if norm.affine else scale
    shift = norm.bias if norm.affine else 0.0
    bias = 0.0 if convolution.bias is None else convolution.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), shift + (bias - norm.running_mean) * scale
