"""What an attack climbs: one number per image, higher the closer the model is to a mistake.

Logits z are [n k], labels y and targets t are [n]. All is computed in float32 at least, as in half precision the
losses of neighbouring logits would be equal. The margin and DLR losses are those of Croce & Hein, arXiv 2003.01690.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refusal

TINY = 1e-12


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the answer is another than y, bool [n]; NaN is no answer, though argmax takes it for one."""
    return (logits.argmax(1) != y) | logits.isnan().any(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """log sum_j exp(z_j) - z_y, [n]."""
    return F.cross_entropy(_precise(logits), y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y, [n]: above 0 where the model is fooled."""
    logits = _precise(logits)
    label = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(label, -torch.inf).amax(1) - _of(logits, y)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y, [n]."""
    logits = _precise(logits)
    return _of(logits, target) - _of(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, [n]: the margin over (z_(1) - z_(3)), z_(i) the i-th largest logit.

    Shifting or scaling the logits does not change it. With two classes there is no third logit: the plain margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = _precise(logits).topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + TINY)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), [n]; below four classes the plain z_t - z_y."""
    if logits.shape[1] < 4:
        return targeted_margin(logits, y, target)
    top = _precise(logits).topk(4, dim=1).values
    return targeted_margin(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def ranked_target(logits: Tensor, y: Tensor, rank: int) -> Tensor:
    """The class of the `rank`-th largest logit among those other than y, [n]; rank 1 is the nearest competitor.

    Raises Refusal for a rank that the logits do not have.
    """
    if rank >= logits.shape[1]:
        raise Refusal(
            f"target {rank} given; allowed: 1 to {logits.shape[1] - 1}, one for each wrong class of the model"
        )
    label = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(label, -torch.inf).topk(rank, dim=1).indices[:, -1]


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
