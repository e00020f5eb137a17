"""The losses of TRADES and MART: how far predictions move under attack, and how clear a margin is."""

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(p_clean || p_adv) of each image, [n], in nats: sum_k p_clean_k (log p_clean_k - log p_adv_k).

    The regulariser of TRADES (Zhang et al., arXiv 1901.08573). Logits are [n k]; gradients flow to both. At least
    float32; never below 0 but for rounding.
    """
    clean, adversarial = log_probabilities(clean_logits), log_probabilities(adversarial_logits)
    return F.kl_div(adversarial, clean, reduction="none", log_target=True).sum(1)


def doubted_divergence(clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(p_clean || p_adv) (1 - p_clean_y) for every class y an image may have, [n k].

    MART's second term (Wang et al., ICLR 2020, equation 11): what is unsure of its class already is held stillest.
    """
    doubt = 1 - log_probabilities(clean_logits).exp()
    return kl_divergence(clean_logits, adversarial_logits)[:, None] * doubt


def boosted_cross_entropy(logits: Tensor) -> Tensor:
    """MART's boosted cross-entropy (Wang et al., ICLR 2020, equation 10) for every class an image may have, [n k]:

        BCE_y = -log p_y - log(1 - max_{j != y} p_j)

    The second term, `margin_penalty`, asks for a margin over the strongest wrong class. In at least float32.
    """
    return margin_penalty(logits) - log_probabilities(logits)


def margin_penalty(logits: Tensor) -> Tensor:
    """-log(1 - max_{j != y} p_j) for every class y an image may have, [n k].

    In at least float32, and finite: 1 - p is summed from the other probabilities.
    """
    log_p = log_probabilities(logits)
    leader, runner_up = log_p.topk(2, dim=1).indices.T
    leads = torch.arange(log_p.shape[1], device=logits.device) == leader[:, None]
    return -torch.where(leads, log_of_rest(log_p, runner_up)[:, None], log_of_rest(log_p, leader)[:, None])


def log_of_rest(log_p: Tensor, classes: Tensor) -> Tensor:
    """log(1 - p_j) of each image's class j, [n], as the log of the sum of the others: exact where p_j is near 1."""
    return log_p.scatter(1, classes[:, None], -torch.inf).logsumexp(1)


def log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
