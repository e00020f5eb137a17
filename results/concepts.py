"""Draw the pictures that explain concepts, from real images and the committed runs: `make pictures`."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_image, make_moons
from torch import Tensor, nn

from anchor_robust import data, load, runs
from anchor_robust.attacks import PGD
from anchor_robust.evaluation.protocols import pgd20
from anchor_robust.threat import Ball
from figures import FIGURES, WIDTH
from svg import legend, linear, page, picture, polyline, region, rows, shares, tag, text
from table import HERE

PHOTOGRAPH = 64  # pixels a side
DIGITS_EPS = 0.15
HARDNESSES = {0: "green", 1: "blue", 2: "orange", 4: "black"}
CLASSES = ("blue", "orange")  # of the points in the plane


def grey(image: Tensor) -> np.ndarray:
    """[1 h w] in [0, 1] as uint8 [h w 3], dark strokes on white as on paper."""
    levels = (255 * (1 - image[0])).round().byte().numpy()
    return np.repeat(levels[:, :, None], 3, axis=2)


def photograph() -> str:
    """A photograph whose every pixel was moved by the whole eps, up or down."""
    block = 384 // PHOTOGRAPH
    crop = load_sample_image("china.jpg")[20:404, 128:512].reshape(PHOTOGRAPH, block, PHOTOGRAPH, block, 3)
    image = crop.mean((1, 3))
    up_or_down = np.where(np.random.default_rng(0).random(image.shape) < 0.5, -1, 1)
    drawn = []
    size, step = 172, 184
    for place, eps in enumerate((0, 8, 16, 32)):
        moved = np.clip(image + eps * up_or_down, 0, 255).round().astype(np.uint8)
        left = 16 + step * place
        drawn += [
            picture(moved, left, 42, size),
            text(left + size / 2, 234, f"eps {eps}/255" if eps else "the photograph", "middle"),
        ]
    told = "A photograph, and the same with every channel of every pixel moved by 8, 16 and 32 grey levels of 255."
    return page(WIDTH, 250, "What an L-inf eps looks like", told, *drawn)


def attacked_digit() -> str:
    """One digit, the perturbation that PGD-20 finds for two networks, and what they answer."""
    images = data.load("digits", "test")
    x, y = images.pixels(slice(None)), images.labels
    attack = pgd20(Ball("linf", DIGITS_EPS))
    networks = {"standard training": load(HERE / "digits-standard"), "PGD-AT": load(HERE / "digits-pgd-at")}
    moved = {name: attack(network, x, y) for name, network in networks.items()}
    answers = {name: (network(x).argmax(1), network(moved[name]).argmax(1)) for name, network in networks.items()}
    (clean, fallen), (robust, held) = answers.values()
    chosen = int(((clean == y) & (fallen != y) & (robust == y) & (held == y)).nonzero()[0])
    drawn, size = [], 150
    for row, name in enumerate(networks):
        top = 46 + row * 192
        drawn.append(text(16, top + size / 2 + 4, name, "bold"))
        before, after = (int(answer[chosen]) for answer in answers[name])
        change = 0.5 - (moved[name][chosen] - x[chosen]) / (2 * DIGITS_EPS)
        cells = (
            (grey(x[chosen]), f"answers {before}"),
            (grey(1 - change), "change"),
            (grey(moved[name][chosen]), f"answers {after}"),
        )
        for place, (pixels, words) in enumerate(cells):
            left = 170 + 196 * place
            drawn += [picture(pixels, left, top, size), text(left + size / 2, top + size + 18, words, "middle")]
    note = f"change: black adds {DIGITS_EPS:g} of a pixel's range, white takes as much away, grey leaves it"
    drawn.append(text(16, 434, note, "muted"))
    told = f"A digit {int(y[chosen])}: under attack standard training answers wrongly, PGD-AT rightly."
    return page(WIDTH, 450, "One digit under attack", told, *drawn)


def boundaries() -> str:
    """Two classes of points in the plane, each with its ball; the boundary of standard and of adversarial training."""
    points, y = moons()
    ball = Ball("linf", 0.07)
    networks = {"standard training": fitted(points, y, None), "adversarial training": fitted(points, y, ball)}
    drawn, size, told = [], 350, []
    for place, (name, network) in enumerate(networks.items()):
        left, top = 20 + 370 * place, 64
        x, height = linear((0, 1), (left, left + size)), linear((0, 1), (top + size, top))
        attacked = PGD(ball, steps=40, step_size=0.01, restarts=5)(network, points, y)
        fell = network(attacked).argmax(1) != y
        drawn += [text(left, 54, name, "bold"), *regions(network, left, top, size)]
        side = x(2 * ball.eps) - x(0)
        for (across, up), label, lost in zip(points.tolist(), y.tolist(), fell.tolist(), strict=True):
            colour = CLASSES[label]
            corner = {"x": x(across - ball.eps), "y": height(up + ball.eps), "width": side, "height": side}
            drawn += [
                tag("rect", kind="lost" if lost else f"{colour} hollow", **corner),
                tag("circle", kind=f"{colour} point", cx=x(across), cy=height(up), r=3.5),
            ]
        told.append(f"{name}: {int(fell.sum())} of {len(y)} balls are crossed by the boundary")
        drawn.append(text(left, top + size + 22, told[-1].partition(": ")[2], "muted"))
    return page(WIDTH, 452, "What adversarial training does", ". ".join(told) + ".", *drawn)


def moons() -> tuple[Tensor, Tensor]:
    points, labels = make_moons(28, noise=0.04, random_state=3)
    points = (points - points.min(0)) / (points.max(0) - points.min(0))
    return torch.tensor(0.12 + 0.76 * points, dtype=torch.float32), torch.from_numpy(labels).long()


def fitted(points: Tensor, y: Tensor, ball: Ball | None) -> nn.Module:
    """A small network after full-batch training on the points, attacked in each step where a ball is given."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(400):
        x = PGD(ball, steps=5, step_size=0.02)(network, points, y) if ball else points
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


@torch.no_grad()
def regions(network: nn.Module, left: float, top: float, size: float, side: int = 120) -> list[str]:
    """Which class the network answers where."""
    axis = (torch.arange(side) + 0.5) / side
    places = torch.stack(torch.meshgrid(axis.flip(0), axis, indexing="ij")[::-1], dim=-1).view(-1, 2)
    answers = network(places).argmax(1).view(side, side).numpy()
    drawn = [region(answers == label, left, top, size, f"{colour} band") for label, colour in enumerate(CLASSES)]
    return [*drawn, tag("rect", kind="frame", x=left, y=top, width=size, height=size)]


def hardness() -> str:
    """How much each positive of an anchor weighs, by its similarity, and what that does on the sphere."""
    angles = np.radians([14, 38, 66, 100, 150])
    others = np.radians([212, 236, 258, 282, 310, 334])
    cx, cy, r = 190, 226, 138
    drawn = [tag("circle", kind="axis", cx=cx, cy=cy, r=r, fill="none")]
    share = weights(np.cos(angles), 2.0)

    def at(angle: float) -> tuple[float, float]:
        return cx + r * np.cos(angle), cy - r * np.sin(angle)

    anchor = at(0)
    for angle, weight in zip(angles, share, strict=True):
        x, y = at(angle)
        drawn.append(tag("line", kind="blue pull", x1=anchor[0], y1=anchor[1], x2=x, y2=y, stroke_width=3 * weight))
        drawn.append(tag("circle", kind="blue dot", cx=x, cy=y, r=6))
        drawn.append(text(x + 12 * np.cos(angle), y - 12 * np.sin(angle) + 4, f"{weight:.2f}", "end" if x < cx else ""))
    drawn += [tag("circle", kind="orange dot", cx=at(angle)[0], cy=at(angle)[1], r=5) for angle in others]
    drawn += [
        tag("circle", kind="black dot", cx=anchor[0], cy=anchor[1], r=8),
        text(anchor[0] + 14, anchor[1] + 5, "anchor", "bold"),
    ]
    drawn += legend(30, [("blue", "positives, w at h = 2"), ("orange", "other classes")], 170)
    drawn += curves_of_hardness()
    told = "Positives further from the anchor weigh more; hardness 0 weighs all alike."
    return page(WIDTH, 400, "Hard positives pull hardest", told, *drawn)


def weights(similarity: np.ndarray, h: float) -> np.ndarray:
    """w_ip = |P| exp(h (1 - s_ip)) / sum_q exp(h (1 - s_iq))."""
    raised = np.exp(h * (1 - similarity))
    return len(similarity) * raised / raised.sum()


def curves_of_hardness() -> list[str]:
    """w against similarity for 21 positives spread evenly from -1 to 1."""
    similarity = np.linspace(-1, 1, 21)
    left, right, top, bottom = 470, WIDTH - 30, 76, 340
    x, y = linear((-1, 1), (left, right)), linear((0, 7), (bottom, top))
    drawn = rows(y, left, right, {mark: f"{mark}" for mark in (0, 1, 2, 4, 6)})
    drawn += [text(x(mark), bottom + 18, f"{mark:g}", "muted middle") for mark in (-1, 0, 1)]
    drawn += [text((left + right) / 2, bottom + 38, "similarity to the anchor", "muted middle")]
    drawn += [text(left - 70, top + 4, "weight w", "muted")]
    for h, colour in HARDNESSES.items():
        share = weights(similarity, h)
        drawn.append(polyline([(x(s), y(w)) for s, w in zip(similarity, share, strict=True)], f"{colour} line"))
    return drawn + legend(left, [(colour, f"h = {h}") for h, colour in HARDNESSES.items()], 70)


class Saturated(nn.Module):
    """The same answers with logits so large that cross-entropy has no gradient left in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.model(x)


def masking() -> str:
    """Accuracy against eps of one network and of its twin without gradients, under two losses."""
    images = data.load("digits", "test").first(100)
    x, y = images.pixels(slice(None)), images.labels
    model = load(HERE / "digits-standard")
    radii = [0, 0.05, 0.1, 0.15, 0.2, 0.35, 0.5]
    attacks: dict[str, tuple[str, nn.Module, Callable[[Ball], PGD]]] = {
        "the network, PGD-20": ("blue", model, pgd20),
        "logits x 1000, PGD-20": ("orange", Saturated(model), pgd20),
        "logits x 1000, PGD-20 on the margin": (
            "black",
            Saturated(model),
            lambda ball: PGD(ball, steps=20, step_size=ball.eps / 8, loss="margin"),
        ),
    }
    left, right, top, bottom = 52, WIDTH - 40, 70, 300
    at, y_of = linear((0, radii[-1]), (left, right)), linear((0, 1), (bottom, top))
    drawn = shares(y_of, left, right)
    drawn += [text(at(eps), bottom + 18, f"{eps:g}", "muted middle") for eps in radii]
    for colour, network, attack in attacks.values():
        moved = {eps: attack(Ball("linf", eps))(network, x, y) if eps else x for eps in radii}
        held = [(at(eps), y_of(right_answers(network, x_adv, y))) for eps, x_adv in moved.items()]
        drawn.append(polyline(held, f"{colour} line"))
    drawn += legend(left, [(attack[0], name) for name, attack in attacks.items()], 196)
    note = f"linf eps; accuracy in % on {len(y)} digits; all three answer alike on clean images"
    drawn.append(text(left, bottom + 42, note, "muted"))
    told = "One network falls to PGD-20; with its logits multiplied it seems to hold, until the margin is attacked."
    return page(WIDTH, 358, "A network that only seems to hold", told, *drawn)


@torch.no_grad()
def right_answers(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


PICTURES = {
    "eps-photograph": photograph,
    "attacked-digit": attacked_digit,
    "boundaries": boundaries,
    "hardness": hardness,
    "masking": masking,
}


def main() -> None:
    """Draw them all into docs/figures, or into the folder that is given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, draw in PICTURES.items():
        runs.write_text(folder / f"{name}.svg", draw())


if __name__ == "__main__":
    main()
