"""How embeddings lie on the unit sphere, whether they have collapsed there, and what can be read from them.

Everywhere z is [n d], floating, each row of unit length; y is [n], integer. Numbers are computed in float64.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import Refusal

COLLAPSED = 0.005  # how near log(m - 1) a contrastive loss is that of one point
BLOCK = 1000  # rows of an n x n table that are held at once
NEARLY_ONE_POINT = 0.99  # mean cosine; a healthy space stays below 0.9


def alignment(z: Tensor, y: Tensor) -> float:
    """How far apart the images of one class lie: E |z_i - z_j|^2 over all pairs i != j with y_i = y_j; in [0, 4].

    Wang & Isola, arXiv 2005.10242, with the labels naming the positive pairs. A class with n members z_i sums to
    2 n sum |z_i|^2 - 2 |sum z_i|^2 over its ordered pairs. Raises Refusal if no two images share a class.
    """
    z, members = z.double(), y.bincount().double()
    pairs = (members * (members - 1)).sum()
    if not pairs:
        raise Refusal(f"no two of the {len(z)} images share a class; alignment needs a pair, so give more images")
    sums = z.new_zeros(len(members), z.shape[1]).index_add_(0, y, z)
    squares = z.new_zeros(len(members)).index_add_(0, y, z.square().sum(1))
    distances = 2 * members * squares - 2 * sums.square().sum(1)
    return max(distances.sum().item() / pairs.item(), 0.0)


def uniformity(z: Tensor) -> float:
    """How evenly the sphere is covered: log E exp(-2 |z_i - z_j|^2) over all pairs i != j; in [-8, 0], lower is more.

    Wang & Isola, arXiv 2005.10242, equation 5 with t = 2. n is 2 or more.
    """
    several(z)
    potentials = sum(torch.exp(-4 * (1 - cosines)).sum().item() for cosines in cosine_blocks(z))
    # Each image is at distance 0 from itself, which is no pair.
    return math.log((potentials - len(z)) / (len(z) * (len(z) - 1)))


def mean_cosine(z: Tensor) -> float:
    """The cosine of two different images on average: (|sum z_i|^2 - n) / (n (n - 1)); n is 2 or more."""
    several(z)
    return (z.double().sum(0).square().sum().item() - len(z)) / (len(z) * (len(z) - 1))


def min_cosine(z: Tensor) -> float:
    """The cosine of the two images that lie furthest apart."""
    return min(cosines.min().item() for cosines in cosine_blocks(z))


def effective_rank(z: Tensor) -> float:
    """In how many directions the embeddings spread: exp(-sum_k p_k log p_k), p_k = s_k / sum_l s_l; in [1, d].

    s_k are the singular values of z, not centred, so that one point has rank 1. Roy & Vetterli 2007; RankMe, Garrido
    et al., arXiv 2210.02885.
    """
    singular = torch.linalg.svdvals(z.double())
    return torch.special.entr(singular / singular.sum()).sum().exp().item()


def collapsed(contrast: float, embeddings: int) -> str:
    """What to tell of a contrastive loss that stays at log(m - 1), m `embeddings` a batch; empty if it does not.

    Where all embeddings are one point every similarity is the same, so that each of the m - 1 others is as probable
    as the next, whatever the temperature, hardness or labels: the loss is log(m - 1). If no cosine is below 1 - d the
    loss is within d / temperature of it. Give the mean over an epoch: single batches of a healthy run can pass there.
    """
    value = math.log(embeddings - 1)
    if abs(contrast - value) > COLLAPSED:
        return ""
    return (
        f"the contrastive loss {contrast:.4f} is log({embeddings - 1}) = {value:.4f}, the value of {embeddings} equal "
        "embeddings: the projection space has collapsed; lower objective.hardness or raise objective.hard_fraction"
    )


def nearest_neighbours(
    z: Tensor, bank: Tensor, labels: Tensor, neighbours: int = 200, temperature: float = 0.07
) -> Tensor:
    """The classes [n] that the k nearest of `bank` [m d], `labels` [m], vote for: each with exp(cosine / temperature).

    k is `neighbours`, or m if that is less. Wu et al., arXiv 1805.01978, section 3.4.
    """
    bank, classes = bank.float(), int(labels.max()) + 1
    predictions = []
    for block in z.float().split(BLOCK):
        cosines, nearest = (block @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        votes = block.new_zeros(len(block), classes).scatter_add_(1, labels[nearest], (cosines / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def linear_probe(z: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    """The classes [n] that a logistic regression says, fitted to `bank` [m d] with `labels` [m].

    scikit-learn's, with L2 penalty 1, on coordinates brought to mean 0 and deviation 1. Raises Refusal if `labels` are
    all the same.
    """
    from sklearn.linear_model import LogisticRegression  # a second of imports that only this function waits for
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if (labels == labels[0]).all():
        raise Refusal(f"the {len(labels)} images to fit a probe to are all of one class; give more images")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(bank.double().cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(probe.predict(z.double().cpu().numpy())).to(z.device)


def principal_plane(z: Tensor) -> tuple[Tensor, list[float]]:
    """z in its two directions of largest variance, [n 2], and the share of the variance that each of them has.

    Principal component analysis: the centred z is U S V^T, and the plane U S. Shares are 0 where all z are one point.
    """
    z = z.double()
    left, singular, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    variance = singular.square()
    shares = variance / variance.sum().clamp_min(torch.finfo(z.dtype).tiny)
    # Padded for spaces of one dimension.
    return F.pad(left * singular, (0, 2))[:, :2], F.pad(shares, (0, 2))[:2].tolist()


def neighbour_plane(z: Tensor) -> Tensor:
    """z in a plane that keeps neighbours, [n 2]: scikit-learn's t-SNE, started from the principal plane.

    Van der Maaten & Hinton 2008. Distances between groups mean little in it; n is 2 or more.
    """
    from sklearn.manifold import TSNE

    several(z)
    start, _ = principal_plane(z)
    start = 1e-4 * start / start[:, 0].std().clamp_min(torch.finfo(start.dtype).tiny)
    tsne = TSNE(init=start.float().cpu().numpy(), perplexity=perplexity(len(z)), random_state=0)
    return torch.from_numpy(tsne.fit_transform(z.float().cpu().numpy())).to(z.device)


def perplexity(n: int) -> float:
    """About how many neighbours t-SNE keeps of each of n points; 30, or less where there are few."""
    return min(30.0, (n - 1) / 3)


def cosine_blocks(z: Tensor) -> Iterator[Tensor]:
    """The table of all cosines [n n], a few rows at a time."""
    z = z.double()
    for rows in z.split(BLOCK):
        yield rows @ z.T


def several(z: Tensor) -> None:
    if len(z) < 2:
        raise Refusal(f"{len(z)} image given; a pair of images needs 2 or more")
