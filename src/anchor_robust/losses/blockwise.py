"""The hard-mined contrastive loss of any number of embeddings, a block of anchors at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .mining import lowest, shares

ENTRIES = 2**23  # of a block's similarity matrix: 32 MB, whatever the number of embeddings


class BlockwiseLoss(torch.autograd.Function):
    """`hard_supcon` in memory that grows with m, not m^2; it can be differentiated once.

    Loss and gradient come from one walk over blocks of anchors. With p_ia the softmax of s_ia / t over A(i), u_ip the
    positives' shares w_ip / |P(i)|, and C anchors that have a positive,

        dL / ds_ia = G_ia = (p_ia - u_ia) / (C t)   and 0 without a positive,        dL / dz = (G + G^T) z
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, labels: Tensor, temperature: float, hardness: float, hard_fraction: float
    ) -> Tensor:
        # In the order of their classes, the positives of a block lie in one window of the columns.
        order = labels.argsort(stable=True)
        z, classes = embeddings[order], labels[order]
        has_positive = (torch.searchsorted(classes, classes, right=True) - torch.searchsorted(classes, classes)) > 1
        anchors = has_positive.sum().clamp(min=1)
        loss = torch.zeros((), dtype=torch.float64, device=z.device)
        gradient = torch.zeros_like(z) if ctx.needs_input_grad[0] else None
        for block, window in windows(classes):
            similarity = z[block] @ z.T
            own = torch.arange(block.start, block.stop, device=z.device)
            row = own - block.start
            positive = classes[block, None] == classes[window]
            positive[row, own - window.start] = False
            share = shares(similarity[:, window], positive, hardness, hard_fraction)
            score = similarity.div_(temperature)
            score[row, own] = lowest(score.dtype)
            log_probability = score.sub_(score.logsumexp(1, keepdim=True))
            loss -= (share * log_probability[:, window]).sum().double()
            if gradient is not None:
                pull = log_probability.exp_().mul_(has_positive[block, None])
                pull[:, window] -= share
                gradient[block].addmm_(pull, z)
                gradient.addmm_(pull.T, z[block])
        if gradient is not None:
            ctx.save_for_backward(torch.empty_like(z).index_copy_(0, order, gradient.div_(anchors).div_(temperature)))
        return (loss / anchors).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None


def windows(classes: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of anchors, and the columns from the first of their first class to the last of their last one."""
    rows = max(1, ENTRIES // len(classes))
    starts = torch.arange(0, len(classes), rows, device=classes.device)
    ends = (starts + rows).clamp(max=len(classes))
    first = torch.searchsorted(classes, classes[starts])
    last = torch.searchsorted(classes, classes[ends - 1], right=True)
    for start, end, left, right in torch.stack([starts, ends, first, last], dim=1).tolist():
        yield slice(start, end), slice(left, right)
