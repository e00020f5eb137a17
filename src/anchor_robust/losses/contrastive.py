"""Supervised contrastive learning with positives weighted, and chosen, by hardness.

ANCHOR, arXiv 2510.27599, on top of SupCon's L_out, Khosla et al., arXiv 2004.11362.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refusal
from .blockwise import BlockwiseLoss
from .mining import shares, without

AT_ONCE = 1024  # embeddings, up to which the matrix of similarities is held whole

Selection = Literal["all", "hard", "soft", "leaked"]


def hard_supcon(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    hardness: float = 1.0,
    hard_fraction: float = 1.0,
) -> Tensor:
    """Pull each embedding to those of its label, hardest first, and away from all others; a scalar.

    With s_ia = z_i . z_a, A(i) all others, P(i) those of A(i) with i's label, temperature t and hardness h:

        l_ip = -log( exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) )
        w_ip = |P(i)| * exp(h * (1 - s_ip)) / sum_{q in P(i)} exp(h * (1 - s_iq))      no gradient through w
        L_i  = (1 / |P(i)|) * sum_{p in P(i)} w_ip * l_ip
        L    = mean of L_i over the anchors that have a positive; 0 (with gradient) if none has

    hardness 0 is SupCon. `hard_fraction` r keeps the ceil(r |P(i)|) positives of lowest similarity, the first
    of equals, as P(i) in w and L_i; those left out stay in the denominator. No base-temperature factor.

    Args:
        embeddings: [m d], of unit length: they are NOT normalised here. All views, in any order.
        labels: [m], integer.
        temperature: t, above 0.
        hardness: h, 0 or more.
        hard_fraction: r, above 0 and at most 1.

    Returns a scalar in nats, computed and returned in float32 whatever the surrounding autocast or the
    embeddings' half precision; float64 stays float64. Of more than 1,024 embeddings it is computed block by block
    (`BlockwiseLoss`): memory grows with m, and it can be differentiated only once. Raises Refusal for arguments
    other than the above.
    """
    _check(embeddings, labels, temperature, hardness, hard_fraction)
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        compute = at_once if len(labels) <= AT_ONCE else BlockwiseLoss.apply
        return compute(embeddings, labels, temperature, hardness, hard_fraction)


def at_once(embeddings: Tensor, labels: Tensor, temperature: float, hardness: float, hard_fraction: float) -> Tensor:
    """With the whole matrix of similarities [m m]."""
    itself = torch.eye(len(labels), dtype=torch.bool, device=embeddings.device)
    positive = (labels[:, None] == labels) & ~itself
    similarity = embeddings @ embeddings.T
    log_probability = F.log_softmax(without(similarity / temperature, itself), dim=1)
    share = shares(similarity.detach(), positive, hardness, hard_fraction)
    return -(share * log_probability).sum() / positive.any(1).sum().clamp(min=1)


def selective_supcon(
    embeddings: Tensor, labels: Tensor, predictions: Tensor, selection: Selection = "leaked", temperature: float = 0.1
) -> Tensor:
    """SupCon in which predictions choose whom an anchor is compared with; a scalar.

    Bui et al., arXiv 2101.10027, section 3.3. With labels y and predictions p, P(i) and N(i) are the positives and the
    negatives of anchor i, itself never among them:

        all      P: y_j = y_i                  N: y_j != y_i
        hard     P: y_j = y_i                  N: y_j != y_i and p_j = y_i
        soft     P: y_j = y_i                  N: y_j != y_i and p_j = p_i
        leaked   P: y_j = y_i and p_j = p_i    N: y_j != y_i and p_j = p_i

        L_i = -(1 / |P(i)|) sum_{j in P(i)} log( exp(s_ij / t) / sum_{a in P(i) + N(i)} exp(s_ia / t) )
        L   = mean of L_i over the anchors that have a positive; 0 (with gradient) if none has

    embeddings [m d] of unit length, labels and predictions [m]; the rest is as in `hard_supcon`, with which `all`
    agrees at hardness 0.
    """
    _check(embeddings, labels, temperature, 0.0, 1.0)
    check_tensor("predictions", predictions)
    if predictions.shape != labels.shape:
        raise Refusal(f"predictions {list(predictions.shape)} given for {len(labels)} labels; allowed: one for each")
    if selection not in get_args(Selection):
        raise Refusal(f"selection {selection!r} given; allowed: {', '.join(get_args(Selection))}")
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        itself = torch.eye(len(labels), dtype=torch.bool, device=embeddings.device)
        same_label, same_prediction = labels[:, None] == labels, predictions[:, None] == predictions
        confused = {
            "all": torch.ones_like(itself),
            "hard": labels[:, None] == predictions,
            "soft": same_prediction,
            "leaked": same_prediction,
        }[selection]
        positive = same_label & ~itself & (same_prediction | (selection != "leaked"))
        negative = ~same_label & confused

        similarity = embeddings @ embeddings.T / temperature
        log_probability = F.log_softmax(without(similarity, ~(positive | negative)), dim=1)
        share = positive.to(similarity.dtype) / positive.sum(1, keepdim=True).clamp(min=1)
        return -(share * log_probability).sum() / positive.any(1).sum().clamp(min=1)


def _check(embeddings: Tensor, labels: Tensor, temperature: float, hardness: float, hard_fraction: float) -> None:
    check_tensor("embeddings", embeddings)
    check_tensor("labels", labels)
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise Refusal(f"embeddings {list(embeddings.shape)} {embeddings.dtype} given; allowed: floating [m d]")
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise Refusal(
            f"labels {list(labels.shape)} {labels.dtype} given for {len(embeddings)} embeddings; "
            "allowed: one integer for each; repeat the labels once per view"
        )
    if not 0 < temperature < math.inf:
        raise Refusal(f"temperature {temperature} given; allowed: above 0, usually 0.05 to 0.5")
    if not 0 <= hardness < math.inf:
        raise Refusal(f"hardness {hardness} given; allowed: 0 (plain SupCon) or more, usually up to 8")
    if not 0 < hard_fraction <= 1:
        raise Refusal(f"hard_fraction {hard_fraction} given; allowed: above 0 and at most 1")


def check_tensor(what: str, value: object) -> None:
    """Refuse arrays and lists, whatever they hold."""
    if not isinstance(value, Tensor):
        raise Refusal(f"{what} given as {type(value).__name__}; allowed: a tensor; torch.as_tensor makes one")
