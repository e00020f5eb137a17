"""The gallery and the maps of an evaluation, from its pictures.npz, as data for the page's script."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...amplified import amplification
from ..embedding import sheet as embedding_sheet
from ..sheet import Sheet
from .dossier import Dossier
from .parts import Block, Section, missing, named
from .together import Entry, Together
from .verdict import radius

Facts = dict[str, Any]
MOST_ENTRIES = 4  # whose pictures one page shows: they are most of its size
SPACES = {"features": "features, what the linear head sees", "projection": "projection head"}
METHODS = {"pca": "PCA", "tsne": "t-SNE"}


class Album:
    """Every picture of a page once, as base64 of a PNG; what refers to one holds its place."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def place(self, pixels: np.ndarray) -> int:
        """Of pixels uint8 [c h w]."""
        encoded = base64.b64encode(png(pixels)).decode()
        return self.places.setdefault(encoded, len(self.places))

    @property
    def pictures(self) -> list[str]:
        return list(self.places)


def png(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [c h w], of one or three channels, as a file."""
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(held, "png", optimize=True)
    return held.getvalue()


@dataclass(frozen=True)
class Gallery:
    """Cards of clean, perturbation and attacked, over a grid of eps that begins at 0."""

    data: Facts


@dataclass(frozen=True)
class Map:
    """Where clean images and their attacked twins lie, in each space by each method."""

    data: Facts


def gallery(page: Together, album: Album) -> Section:
    title = "What the attack does to a picture"
    having = [entry for entry in page.entries if "gallery_clean" in entry.dossier.pictures]
    if not having:
        return Section("gallery", title, lacking(page))
    shown = having[:MOST_ENTRIES]
    blocks = [Block(named(page, entry), [Gallery(hung(entry.dossier, album))]) for entry in shown]
    facts = [(entry.dossier.record or {})["pictures"]["gallery"] for entry in shown]
    return Section("gallery", title, [*lacking(page), *told(facts), *left_out(having)], blocks)


def told(facts: Sequence[Facts]) -> list[str]:
    """How the pictures came about, and what of it the eye cannot see."""
    says = [
        "Test images drawn at random, classes in proportion and the same for every model. At each eps PGD-20 attacked "
        "anew, and the model gave its answer in float32. Perturbations are shown stronger than they are, around grey."
    ]
    if not all(each["inside"] for each in facts):
        says.append("Some of these pictures left the ball, so that they count for nothing.")
    other = sum(each["other_in_8_bits"] for each in facts)
    if other:
        pictures = sum(each["images"] * len(each["eps"]) for each in facts)
        get = "gets" if other == 1 else "get"
        says.append(
            f"Of {pictures:,} pictures {other:,} {get} another answer once rounded to the 8 bits that are shown here."
        )
    if any(each["reduced"] for each in facts):
        says.append("Pictures are reduced to 64 pixels by averaging, which weakens the perturbation that one sees.")
    return says


def hung(dossier: Dossier, album: Album) -> Facts:
    arrays, record = dossier.pictures, dossier.record or {}
    facts = record["pictures"]["gallery"]
    clean = arrays["gallery_clean"].astype(np.int16)
    levels = [clean, *(clean + move for move in arrays["gallery_move"])]
    moves = [np.zeros_like(clean), *arrays["gallery_move"]]
    norm, threat = record["threat"]["norm"], record["threat"]["eps"]
    grid = [0.0, *facts["eps"]]
    start = min(range(len(grid)), key=lambda place: abs(grid[place] - threat))
    factor = amplification(int(np.abs(moves[start]).max()))
    return {
        "factor": factor,
        "eps": ["0: no attack", *(spelled(norm, eps) for eps in facts["eps"])],
        "start": start,
        "cards": [
            {
                "index": int(index),
                "true": dossier.class_name(label),
                "label": int(label),
                "said": [dossier.class_name(answer) for answer in arrays["gallery_prediction"][:, card]],
                "right": [bool(answer == label) for answer in arrays["gallery_prediction"][:, card]],
                "sure": [round(100 * float(share)) for share in arrays["gallery_confidence"][:, card]],
                "attacked": [album.place(as_bytes(level[card])) for level in levels],
                "moved": [album.place(as_bytes(128 + factor * move[card])) for move in moves],
            }
            for card, (index, label) in enumerate(zip(arrays["gallery_index"], arrays["gallery_label"], strict=True))
        ],
    }


def spelled(norm: str, eps: float) -> str:
    """`0.031 (7.9/255)`."""
    return f"{eps:.4g} ({255 * eps:.3g}/255)" if norm == "linf" else f"{norm} {eps:.4g}"


def maps(page: Together, album: Album) -> Section:
    title = "Map of the embeddings"
    having = [entry for entry in page.entries if any(key.startswith("map_") for key in entry.dossier.pictures)]
    says = [
        f"There is no map of {entry.label}: {reason}."
        for entry in page.entries
        if (reason := (entry.dossier.record or {}).get("pictures", {}).get("map", {}).get("why_not"))
    ]
    shown = having[:MOST_ENTRIES]
    if shown:
        says.append(
            f"Each line joins a clean image (circle) to its twin attacked by PGD-20 at {threats(shown)}: a square "
            "where the answer is right, a cross where it is wrong. Long lines are images that the attack carries far. "
            "PCA keeps large distances; t-SNE keeps neighbours, and its distances between groups mean little."
        )
    else:
        says = says or lacking(page)
    blocks = [Block(named(page, entry), [Map(plotted(entry.dossier, album))]) for entry in shown]
    numbers = [Block(named(page, entry), found) for entry in page.entries if (found := measured(entry.dossier))]
    return Section("map", title, [*says, *left_out(having)], blocks + numbers)


def measured(dossier: Dossier) -> list[Sheet]:
    """embedding.json as a table, if it is one."""
    try:
        return [embedding_sheet(dossier.embedding)] if dossier.embedding else []
    except (KeyError, TypeError, AttributeError):
        return []  # another version's, or no file of ours


def threats(entries: Sequence[Entry]) -> str:
    """The threat model's ball, or that of each model where they differ."""
    each = {entry.label: radius((entry.dossier.record or {})["threat"]) for entry in entries}
    alike = len(set(each.values())) == 1
    return next(iter(each.values())) if alike else ", ".join(f"{ball} ({label})" for label, ball in each.items())


def plotted(dossier: Dossier, album: Album) -> Facts:
    arrays, record = dossier.pictures, (dossier.record or {})["pictures"]["map"]
    clean = arrays["map_clean"].astype(np.int16)
    attacked, labels = clean + arrays["map_move"], arrays["map_label"]
    return {
        "views": [
            {
                "name": f"{METHODS[method]} of the {SPACES.get(space, space)}",
                "axes": axes(method, facts),
                "points": np.round(arrays[f"map_{space}_{method}"], 4).tolist(),
            }
            for space, facts in record["spaces"].items()
            for method in METHODS
        ],
        "points": [
            {
                "index": int(index),
                "true": dossier.class_name(label),
                "label": int(label),
                "said": [dossier.class_name(answer) for answer in arrays["map_prediction"][:, place]],
                "right": [bool(answer == label) for answer in arrays["map_prediction"][:, place]],
                "pictures": [album.place(as_bytes(clean[place])), album.place(as_bytes(attacked[place]))],
            }
            for place, (index, label) in enumerate(zip(arrays["map_index"], labels, strict=True))
        ],
    }


def axes(method: str, facts: Mapping[str, Any]) -> list[str]:
    if method == "pca":
        return [
            f"component {number}, {100 * share:.0f} % of the variance"
            for number, share in enumerate(facts["pca_shares"], 1)
        ]
    return [f"t-SNE, perplexity {facts['tsne_perplexity']:.3g}", ""]


def as_bytes(levels: np.ndarray) -> np.ndarray:
    return levels.clip(0, 255).astype(np.uint8)


def lacking(page: Together) -> list[str]:
    """Why there are no pictures, and how to get them."""
    says = []
    for entry in page.entries:
        if entry.dossier.record is None:
            says += [missing(page, entry, "evaluation")] if "evaluation" in entry.dossier.lacking else []
        elif not entry.dossier.pictures:
            of = f"{entry.label}: " if len(page.entries) > 1 else ""
            says.append(f"{of}{entry.dossier.lacking['pictures']} This makes them: {entry.dossier.evaluated()}")
    return says


def left_out(having: Sequence[Entry]) -> list[str]:
    return [f"Shown are the first {MOST_ENTRIES} of {len(having)}."] if len(having) > MOST_ENTRIES else []
