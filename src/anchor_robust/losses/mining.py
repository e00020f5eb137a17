"""Which positives count in a contrastive loss, and how much."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def shares(similarity: Tensor, positive: Tensor, hardness: float, hard_fraction: float) -> Tensor:
    """w_ip / |P(i)|, [b k]: softmax of -h s_ip over the positives kept (exp(h) cancels), 0 without any.

    similarity [b k] of b anchors with k embeddings, among them all of their positives; `positive` [b k] says which.
    """
    kept = positive if hard_fraction == 1 else hardest(similarity, positive, hard_fraction)
    return F.softmax(without(-hardness * similarity, ~kept), dim=1) * kept


def hardest(similarity: Tensor, positive: Tensor, fraction: float) -> Tensor:
    """The ceil(fraction |P(i)|) positives of lowest similarity in each row, the first of equals: bool [b k]."""
    order = similarity.masked_fill(~positive, math.inf).argsort(dim=1, stable=True)
    # In float64 and less a hair, as 0.28 * 25 is 7.000000000000001 and would become 8. At least one stays.
    quota = (fraction * positive.sum(1, keepdim=True).double() - 1e-9).ceil().clamp(min=1)
    within_quota = torch.arange(positive.shape[1], device=positive.device) < quota
    return torch.zeros_like(positive).scatter(1, order, within_quota) & positive


def without(scores: Tensor, excluded: Tensor) -> Tensor:
    # So low that a softmax gives exactly 0, yet finite: -inf makes NaN of 0 * log(0) and of excluded rows.
    return scores.masked_fill(excluded, lowest(scores.dtype))


def lowest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).min / 2
