"""What a report shows beside the numbers: attacked pictures over a grid of eps, and maps of the embeddings.

Computed with an evaluation and kept in pictures.npz, so that a page is built later without torch and without the data:

    gallery_index, gallery_label [g]      which images of the split, and their labels
    gallery_clean [g c h w]               uint8
    gallery_move [e g c h w]              int16: what the attack at each eps added, in grey levels
    gallery_prediction, _confidence       [1 + e g]: class and its probability, clean and then at each eps
    map_index, map_label [m]              as in the gallery, for the maps
    map_clean, map_move [m c h w]         as in the gallery, under PGD-20 at the threat model's eps
    map_prediction [2 m]                  class, clean and then attacked
    map_SPACE_pca, map_SPACE_tsne         [2 m 2]: where they lie, for each space of `Classifier.spaces`
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import geometry
from .attacks import Attack
from .attacks.base import Model
from .data import ImageSet
from .data.images import stratified
from .evaluation import PROTOCOLS, Bar, evaluating, silent_bar
from .evaluation.curves import balls
from .evaluation.protocols import pgd20
from .evaluation.searching import searched
from .evaluation.verdicts import answers
from .models import Classifier, LogitsOnly
from .threat import Ball

GALLERY, MAP = 30, 200  # images
SIDE, THUMBNAIL = 64, 32  # pixels: larger pictures are reduced to this


@dataclass(frozen=True)
class Exhibit:
    """`facts` for evaluation.json, `arrays` for pictures.npz."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Studio:
    """The model under test, the faster form of it on which attacks search, and what they have in common."""

    model: Model
    search: Model
    images: ImageSet
    generator: torch.Generator
    batch_size: int
    advance: Callable[[int], None]

    def drawn(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, pixels and labels of `count` images in which classes keep their shares, the same for every model."""
        indices = stratified(self.images.labels, min(count, len(self.images)), seed=0)
        return indices, self.images.pixels(indices), self.images.labels[indices]

    def attacked(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        found = []
        for images, labels in zip(x.split(self.batch_size), y.split(self.batch_size), strict=True):
            found.append(attack(self.search, images, labels, generator=self.generator))
            self.advance(len(images))
        return torch.cat(found)

    @torch.no_grad()
    def answers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The class [n] that the model says of each image, in float32, and its probability [n]; -1 and 0 for NaN."""
        logits = torch.cat([self.model(images) for images in x.split(self.batch_size)])
        return answers(logits), logits.softmax(1).amax(1).nan_to_num(0)


def exhibit(
    model: Model, images: ImageSet, ball: Ball, *, batch_size: int = 500, seed: int = 0, bar: Bar = silent_bar
) -> Exhibit:
    """Pictures of the `images`, which lie on the model's device, under PGD-20 in `ball` and in smaller and larger ones.

    Attacks start from the generator `seed`. A model without embeddings of ours, or with such as lie on no map, gets a
    gallery alone, and `facts` say why.
    """
    device = images.labels.device
    grid, mapped = balls(ball), min(MAP, len(images)) if classifier_of(model) else 0
    total = min(GALLERY, len(images)) * len(grid) + mapped
    with evaluating(model, device), bar("pictures", total) as advance:
        fast = searched(model, "float32", images.pixels(slice(batch_size)))
        generator = torch.Generator(device).manual_seed(seed)
        studio = Studio(model, fast, images, generator, batch_size, advance)
        hung, plotted = gallery(studio, grid), maps(studio, ball)
    told = {"label": PROTOCOLS["pgd20"].label(ball), "seed": seed, **pgd20(ball).describe()}
    return Exhibit({"attack": told, "gallery": hung.facts, "map": plotted.facts}, {**hung.arrays, **plotted.arrays})


def gallery(studio: Studio, grid: list[Ball]) -> Exhibit:
    indices, x, y = studio.drawn(GALLERY)
    clean, said = small(x, SIDE), [studio.answers(x)]
    moves, inside, other = [], True, 0
    for ball in grid:
        attacked = studio.attacked(pgd20(ball), x, y)
        inside &= bool(ball.contains(attacked, x).all())
        said.append(studio.answers(attacked))
        other += int((studio.answers(attacked.mul(255).round().div(255))[0] != said[-1][0]).sum())
        moves.append(small(attacked, SIDE) - clean)
    predictions, confidences = (np.stack([array(each) for each in kind]) for kind in zip(*said, strict=True))
    return Exhibit(
        {
            "images": len(y),
            "reduced": clean.shape != x.shape,
            "eps": [ball.eps for ball in grid],
            "step_size": [pgd20(ball).step_size for ball in grid],
            "inside": inside,
            "other_in_8_bits": other,
        },
        {
            "gallery_index": array(indices),
            "gallery_label": array(y),
            "gallery_clean": array(clean).astype(np.uint8),
            "gallery_move": np.stack([array(move) for move in moves]),
            "gallery_prediction": predictions,
            "gallery_confidence": confidences.astype(np.float16),
        },
    )


def classifier_of(model: Model) -> Classifier | None:
    """The classifier of ours, with its embeddings, behind the logits, if it is one."""
    classifier = model.classifier if isinstance(model, LogitsOnly) else None
    return classifier if isinstance(classifier, Classifier) else None


def maps(studio: Studio, ball: Ball) -> Exhibit:
    classifier = classifier_of(studio.model)
    if classifier is None:
        return Exhibit({"why_not": "the model gives logits alone, and no embedding that could be mapped"}, {})
    indices, x, y = studio.drawn(MAP)
    attacked = studio.attacked(pgd20(ball), x, y)
    both = torch.cat([x, attacked])
    with torch.no_grad():
        parts = [classifier.spaces(images) for images in both.split(studio.batch_size)]
    spaces = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not all(z.isfinite().all() for z in spaces.values()):
        return Exhibit({"why_not": "some embeddings are not finite"}, {})
    clean, told, arrays = small(x, THUMBNAIL), {}, {}
    for name, z in spaces.items():
        plane, shares = geometry.principal_plane(z)
        told[name] = {"dimensions": z.shape[1], "pca_shares": shares, "tsne_perplexity": geometry.perplexity(len(z))}
        coordinates = torch.stack([plane, geometry.neighbour_plane(z)]).cpu().numpy().astype(np.float32)
        arrays[f"map_{name}_pca"], arrays[f"map_{name}_tsne"] = coordinates.reshape(2, 2, len(x), 2)
    return Exhibit(
        {"images": len(y), "spaces": told},
        {
            "map_index": array(indices),
            "map_label": array(y),
            "map_clean": array(clean).astype(np.uint8),
            "map_move": array(small(attacked, THUMBNAIL) - clean),
            "map_prediction": array(studio.answers(both)[0]).reshape(2, -1),
            **arrays,
        },
    )


def small(x: Tensor, side: int) -> Tensor:
    """Pixels x [n c h w] as grey levels, int16, pictures larger than `side` reduced by averaging."""
    scale = side / max(x.shape[2:])
    if scale < 1:
        height, width = (max(1, round(scale * length)) for length in x.shape[2:])
        x = F.adaptive_avg_pool2d(x, (height, width))
    return x.mul(255).round().to(torch.int16)


def array(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()
