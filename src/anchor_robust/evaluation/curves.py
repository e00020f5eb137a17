"""Accuracy against the size of the ball, and against the attack's effort: where a defence gives way, and whether the
attack has converged. Every point is an attack of its own on all images; no point is derived from another, so that
a curve that is not monotone is seen (arXiv 1902.06705, section 5)."""

from collections.abc import Sequence

from ..errors import Refusal
from ..threat import LARGEST, Ball
from .protocols import Planned, alone, pgd20

CURVES = ("eps", "steps")
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the threat model's eps; 0 is the clean accuracy
STEPS = (1, 2, 5, 10, 20, 50, 100)


def points(curve: str, ball: Ball) -> list[Planned]:
    """The attacks of a curve: PGD-20 in balls up to 4 eps, or PGD in this ball with the step size of PGD-20."""
    if curve == "steps":
        return [Planned(f"steps {steps}", f"PGD-{steps}", alone(pgd20(ball, steps))) for steps in STEPS]
    return [Planned(f"eps {each.eps:.6g}", f"PGD-20 at {each.eps:.4g}", alone(pgd20(each))) for each in balls(ball)]


def balls(ball: Ball) -> list[Ball]:
    """The balls of a curve against eps, around that of the threat model."""
    radii = [share * ball.eps for share in SHARES]
    return [Ball(ball.norm, eps) for eps in radii if eps <= (1 if ball.norm == "linf" else LARGEST)]


def known_curves(names: Sequence[str]) -> None:
    for name in names:
        if name not in CURVES:
            raise Refusal(f"curve {name!r} is unknown; allowed: {', '.join(CURVES)}")
