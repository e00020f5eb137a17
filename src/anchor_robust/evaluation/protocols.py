"""Attacks by the names of `--attacks`: the sequence of stages that each name stands for."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, Literal, get_args

from ..attacks import APGD, PGD, Attack, Noise, Square, Stage, fgsm, stages
from ..attacks.pgd import LEAST_LIKELY
from ..errors import Refusal
from ..lookup import nearest
from ..threat import Ball
from . import reference

PAPER_EPS = 0.031
Engine = Literal["anchor", "reference"]


@dataclass(frozen=True)
class Protocol:
    """A named evaluation.

    Attributes:
        label: What tables call it, for a ball.
        stages: The attacks, for a ball and a number of classes, one after another. Each works on the images that the
            ones before left standing, so that an image's worst case is over all of them.
        engine: Whose attacks they are.
    """

    label: Callable[[Ball], str]
    stages: Callable[[Ball, int], Sequence[Stage]]
    engine: str = "anchor"


def single(label: str, build: Callable[[Ball], Attack]) -> Protocol:
    """A protocol of one attack."""
    return Protocol(lambda ball: label, lambda ball, classes: alone(build(ball)))


def alone(attack: Attack) -> tuple[Stage]:
    return (Stage(type(attack).__name__.lower(), (attack,)),)


def quarter_label(ball: Ball) -> str:
    return "PGD-20 (2/255)" if (ball.norm, ball.eps) == ("linf", 8 / 255) else "PGD-20 (eps/4)"


def quarter(ball: Ball) -> PGD:
    return PGD(ball, steps=20, step_size=ball.eps / 4)


def pgd20(ball: Ball, steps: int = 20) -> PGD:
    """TRADES: 20 steps of 0.003 at eps 0.031 from a uniform start; at another eps the step keeps its share of eps."""
    return PGD(ball, steps=steps, step_size=0.003 * ball.eps / PAPER_EPS)


PROTOCOLS: dict[str, Protocol] = {
    "noise": single("random noise", Noise),
    "fgsm": single("FGSM", fgsm),
    "pgd20": single("PGD-20", pgd20),
    # AWP, AdvCL: 20 steps of 2/255 at 8/255, a quarter of eps.
    "pgd20-2-255": Protocol(quarter_label, lambda ball, classes: alone(quarter(ball))),
    "pgd100": single("PGD-100 (10 restarts)", lambda ball: PGD(ball, steps=100, step_size=ball.eps / 4, restarts=10)),
    "pgd20-margin": single("CW-PGD-20", lambda ball: replace(pgd20(ball), loss="margin")),
    "pgd20-targeted": single("PGD-20 (least likely)", lambda ball: replace(pgd20(ball), target=LEAST_LIKELY)),
    "apgd-ce": single("APGD-CE", APGD),
    "square": single("Square", Square),
    "autoattack-preview": Protocol(
        lambda ball: "AutoAttack (preview)", lambda ball, classes: stages(ball, "preview", classes)
    ),
    "autoattack": Protocol(lambda ball: "AutoAttack", lambda ball, classes: stages(ball, "standard", classes)),
}
# Names for attacks that need more than a model and a ball; who has it (`anchor_robust.audit`) gives them as Planned.
CONTEXTUAL = ("transfer", "embedding-centroid", "embedding-contrast")
# The authors' own code, which stands in for ours where it is asked for.
REFERENCE: dict[str, Protocol] = {
    "autoattack": Protocol(lambda ball: "AutoAttack", reference.standard, reference.NAME),
    "autoattack-preview": Protocol(lambda ball: "AutoAttack (preview)", reference.preview, reference.NAME),
}


@dataclass(frozen=True)
class Planned:
    """One entry of the results to come: `name` in files, `label` in tables."""

    name: str
    label: str
    stages: Sequence[Stage]
    engine: str = "anchor"

    def conventions(self) -> dict[str, Any]:
        """The settings on which all stages agree, None where they differ."""
        told = [stage.describe() for stage in self.stages]
        common = {
            key: value if all(each.get(key) == value for each in told) else None for key, value in told[0].items()
        }
        return {"label": self.label, **common, "engine": self.engine}


def plan(
    attacks: Sequence[str | Attack | Planned], ball: Ball, classes: int, engine: Engine = "anchor"
) -> list[Planned]:
    """What to run for names of `PROTOCOLS` and for attacks of the caller's own, each once, clean left out."""
    planned: dict[str, Planned] = {}
    named = [attack for attack in attacks if isinstance(attack, str)]
    protocols = PROTOCOLS | REFERENCE if engine == "reference" else PROTOCOLS
    for place, attack in enumerate(attacks):
        if any(attack is other for other in attacks[:place]):
            continue
        if isinstance(attack, Planned):
            planned[attack.name] = attack
        elif isinstance(attack, Attack):
            name = free(type(attack).__name__.lower(), [*planned, *named])
            _, _, number = name.partition("-")
            label = type(attack).__name__ + (f" ({number})" if number else "")
            planned[name] = Planned(name, label, alone(attack))
        elif attack in CONTEXTUAL:
            raise Refusal(f"attack {attack!r} needs more than a model and its images; give the attack itself")
        elif attack != "clean" and attack not in planned:
            protocol = protocols[attack]
            planned[attack] = Planned(attack, protocol.label(ball), protocol.stages(ball, classes), protocol.engine)
    return list(planned.values())


def comparable(planned: Planned, ball: Ball) -> bool:
    """Whether what the attack breaks says something of gradient attacks, or black boxes by a known name, in `ball`."""
    attacks = [attack for stage in planned.stages for attack in stage.attacks]
    known = planned.name in (*PROTOCOLS, *CONTEXTUAL) or all(isinstance(attack, PGD | APGD) for attack in attacks)
    return known and within(planned, ball)


def within(planned: Planned, ball: Ball) -> bool:
    """Whether all that the attack does is in `ball`."""
    return all(attack.ball == ball for stage in planned.stages for attack in stage.attacks)


def free(name: str, taken: Collection[str]) -> str:
    """`name`, or `name-2`, `name-3`, ... if it is taken."""
    return next(each for each in chain([name], (f"{name}-{number}" for number in count(2))) if each not in taken)


def known_attacks(attacks: Iterable[str | Attack | Planned], engine: Engine = "anchor") -> None:
    """Refuse names that mean nothing, and an engine that changes nothing."""
    if engine not in get_args(Engine):
        raise Refusal(f"engine {engine!r} given; allowed: {', '.join(get_args(Engine))}")
    names = []
    for attack in attacks:
        if isinstance(attack, str):
            names.append(attack)
        elif not isinstance(attack, Attack | Planned):
            raise Refusal(f"attack {attack!r:.60} given; allowed: a name, or an attack with its ball: PGD(Ball(...))")
    for name in names:
        if name not in ("clean", *PROTOCOLS, *CONTEXTUAL):
            raise Refusal(f"attack {name!r} is unknown{nearest(name, ['clean', *PROTOCOLS, *CONTEXTUAL])}")
    if engine == "reference" and not set(names) & set(REFERENCE):
        raise Refusal(
            f"--engine reference given; it runs {' and '.join(REFERENCE)} alone; add one of them to --attacks"
        )
