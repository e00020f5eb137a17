"""What the model returns: logits, the same ones each time, whatever else is in the batch, and without a trace."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..attacks.base import Model, module_behind
from .finding import Finding, finding, skipped

REPEATABLE = "repeatable forward pass"
UNCHANGED = "model unchanged by evaluation"
LOGITS = "outputs are logits"
ALONE = "independent of the batch"

# Sums taken in another order move float32 logits by about 1e-6 of the largest, and TF32 by 1e-3 / 2. Random layers and
# statistics of the batch move them by more than 1e-2.
ROUNDING = 1e-3
SINGLES = 16  # images that are also looked at alone


def repeatable(passes: Sequence[Tensor]) -> Finding:
    """From the logits [n k] of the same images in several passes, the last of them after all attacks."""
    largest = max(distance(passes[0], again) for again in passes[1:])
    changed = max(int((again.argmax(1) != passes[0].argmax(1)).sum()) for again in passes[1:])
    seen = (
        f"the logits of the same {len(passes[0])} images differ by up to {largest:.1e} of the largest between "
        f"{len(passes)} passes, which changes {changed} predictions"
    )
    advice = (
        "the model is random or remembers earlier calls, and a single pass misleads attack and verdict; "
        "fix what is random, or attack the average over many passes (EOT, arXiv 1802.00420)"
    )
    return finding(REPEATABLE, largest > ROUNDING, seen, advice)


def state(model: Model) -> dict[str, Tensor] | None:
    """A copy of every parameter and buffer; None for what is not a module."""
    module = module_behind(model)
    if module is None:
        return None
    return {name: tensor.clone() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def unchanged(before: Mapping[str, Tensor] | None, after: Mapping[str, Tensor] | None) -> Finding:
    if before is None or after is None:
        return skipped(UNCHANGED, "the model is a function, not an nn.Module: its state cannot be seen")
    changed = [name for name, tensor in before.items() if not same(tensor, after[name])]
    if not changed:
        return finding(UNCHANGED, False, "every parameter and buffer is what it was before the attacks", "")
    seen = f"{len(changed)} parameters or buffers have changed in evaluation mode, among them {changed[0]}"
    advice = "the number depends on what was evaluated before; let the forward pass write to nothing in evaluation mode"
    return finding(UNCHANGED, True, seen, advice)


def same(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, sparse ones and NaN included."""
    tensor, other = tensor.to_dense(), other.to_dense()
    if tensor.equal(other) or tensor.shape != other.shape or not tensor.is_floating_point():
        return tensor.equal(other)
    return bool(((tensor == other) | (tensor.isnan() & other.isnan())).all())


def logits_not_probabilities(logits: Tensor) -> Finding:
    broken = int((~logits.isfinite().all(1)).sum())
    if broken:
        advice = "an image with NaN logits counts as not held; keep the forward pass within float32's range"
        return finding(LOGITS, True, f"{broken} of {len(logits)} images have NaN or infinite logits", advice)
    # Logits in [0, 1] that sum to 1 to three digits, for every image, come from a softmax and from nothing else.
    sums = (logits.double().sum(1) - 1).abs().amax().item()
    if logits.min() >= 0 and sums < ROUNDING:
        seen = "every row of outputs lies in [0, 1] and sums to 1: these are probabilities"
        advice = "cross-entropy takes their softmax once more, which flattens its gradient; return the logits"
        return finding(LOGITS, True, seen, advice)
    return finding(LOGITS, False, f"finite, from {logits.min():.3g} to {logits.max():.3g}, and no probabilities", "")


@torch.no_grad()
def independent_of_batch(model: Model, x: Tensor, together: Tensor) -> Finding:
    """Against the logits `together` [n k] of one batch x [n ...]: backwards, and the first few each on its own."""
    if len(x) < 2:
        return skipped(ALONE, "no image was looked at beside another; give two or more, and a batch size above 1")
    backwards = model(x.flip(0)).flip(0)
    alone = torch.cat([model(image) for image in x[:SINGLES].split(1)])
    largest = max(distance(together, backwards), distance(together[:SINGLES], alone))
    seen = f"logits differ by up to {largest:.1e} of the largest when the batch is turned round or split into singles"
    advice = (
        "an image's answer depends on its neighbours, as with BatchNorm on batch statistics, and so does its "
        "robustness; use running statistics in evaluation mode"
    )
    return finding(ALONE, largest > ROUNDING, seen, advice)


def distance(logits: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest finite logit.

    NaN and infinity are as far as can be from all but their like: a model that always says NaN says the same.
    """
    alike = (logits == other) | (logits.isnan() & other.isnan())
    apart = (logits - other).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill(alike, 0)
    scale = logits.abs().masked_fill(~logits.isfinite(), 0).amax().clamp_min(torch.finfo(logits.dtype).tiny)
    return (apart.amax() / scale).item()
