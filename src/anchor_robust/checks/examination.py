"""All checks on a few images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..attacks import PGD, Attack, Noise, Square, Transfer, fgsm
from ..attacks.base import Model, frozen
from ..attacks.margins import fooled
from ..attacks.pgd import Loss
from ..threat import Ball
from . import adversarials, gradients, inputs, outputs, strength
from .finding import Finding, skipped
from .gradients import withstood

STEPS = 20
DRAWS = 20
QUERIES = 200
IMAGES, FEWEST = 100, 20
# Attacks that follow more, or other, than the model's own gradient: beating these is what is asked of gradients.
OTHER_WAYS = ("autoattack", "square", "noise", "transfer")


def run(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    held: Mapping[str, np.ndarray] | None = None,
    sibling: Model | None = None,
    generator: torch.Generator | None = None,
    images: int = IMAGES,
    batch_size: int = 500,
) -> list[Finding]:
    """What speaks for and against the robust accuracy of `model` on images x [n c h w] in [0, 1] with labels y [n].

    Works on at most `images` images that the model classifies rightly, drawn from x, and costs about 65 gradients and
    220 forward passes of each, with a sibling 20 gradients more. The model is in evaluation mode and frozen meanwhile,
    and comes back as it was.

    Args:
        model: As in an attack.
        x: Images.
        y: Labels.
        ball: The threat model of the evaluation.
        held: What the evaluation found: by attack, bool [n], which images the model withstood. The gradient attacks
            among them count as such beside the checks' own PGD, and "square" in place of the checks' own Square.
        sibling: Another model of the same classes, best of the same data, from which attacks are transferred.
        generator: Decides the images and all starts; without one a fresh one, seeded with 0.
        batch_size: Images that pass through the model at a time, at most.
        images: How many to work on. With fewer than 20 that the model classifies rightly, attacks are not compared.

    Returns entries of `checks` in evaluation.json: name, verdict (pass, warn or skip) and detail, a sentence.
    """
    generator = generator or torch.Generator(x.device).manual_seed(0)
    chosen = drawn(len(x), images, generator).to(x.device)
    found = {name: torch.as_tensor(outcome).to(x.device)[chosen] for name, outcome in (held or {}).items()}
    return examine(model, x[chosen], y[chosen], ball, found, sibling, generator, images, batch_size)


def drawn(there: int, images: int, generator: torch.Generator) -> Tensor:
    """Places of twice as many of the images that are `there` as are worked on, as some are classified wrongly."""
    return torch.randperm(there, generator=generator, device=generator.device)[: 2 * images]


def examine(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    found: Mapping[str, Tensor],
    sibling: Model | None,
    generator: torch.Generator,
    images: int,
    batch_size: int,
) -> list[Finding]:
    """`run` on images that are `drawn`, with what was `found` of them."""
    x, y = x.detach().float(), y.to(x.device, torch.long)
    together = min(images, batch_size)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(x.device.type, enabled=False),
        frozen(model),
    ):
        before, first, again = outputs.state(model), passed(model, x, together), passed(model, x, together)
        right = ~fooled(first, y)
        sample = right.nonzero().flatten()[:images]
        compared = compare_attacks(
            Case(model, x[sample], y[sample], ball, generator, together),
            {name: outcome[sample] for name, outcome in found.items()},
            sibling,
        )
        steady = outputs.repeatable([first, again, passed(model, x, together)])
        return [
            steady,
            outputs.unchanged(before, outputs.state(model)),
            outputs.logits_not_probabilities(first),
            outputs.independent_of_batch(model, x[:together], first[:together])
            if steady["verdict"] == "pass"
            else skipped(outputs.ALONE, "the same batch gives other logits each time already"),
            inputs.normalised_once(model, x, y, right, together),
            *compared,
        ]


@torch.no_grad()
def passed(model: Model, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([model(batch) for batch in x.split(batch_size)])


@dataclass(frozen=True)
class Case:
    """Images that the model classifies rightly, and what is to be withstood, `batch_size` at a time."""

    model: Model
    x: Tensor
    y: Tensor
    ball: Ball
    generator: torch.Generator
    batch_size: int

    def answers(self, x: Tensor) -> Tensor:
        """The model's logits [n k]."""
        return passed(self.model, x, self.batch_size)

    def attacked(self, attack: Attack) -> Tensor:
        batches = zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
        return torch.cat([attack(self.model, x, y, generator=self.generator) for x, y in batches])

    def held(self, attack: Attack) -> Tensor:
        """Which images withstand the attack, bool [n]."""
        return withstood(self.answers, self.attacked(attack), self.y)


def compare_attacks(case: Case, found: Mapping[str, Tensor], sibling: Model | None) -> list[Finding]:
    names = (
        gradients.REACH,
        gradients.SATURATED,
        strength.STEPS,
        strength.WIDE,
        strength.NOISE,
        strength.BLACK_BOX,
        strength.TRANSFER,
        adversarials.AGAIN,
        adversarials.EIGHT_BITS,
    )
    if not case.ball.eps:
        return [skipped(name, "at eps 0 nothing is attacked") for name in names]
    if len(case.y) < FEWEST:
        few = f"only {len(case.y)} of the images are classified rightly; {FEWEST} are needed to compare attacks"
        return [skipped(name, few) for name in names]
    steep = gradients.steepness(case.model, case.x, case.y, case.batch_size)
    reach = gradients.reach_pixels(steep)
    if steep is None:
        return [reach, *(skipped(name, "there is no gradient to attack with") for name in names[1:])]
    climbed = case.attacked(climb(case.ball))
    held = withstood(case.answers, climbed, case.y)
    wide = strength.wide(case.ball, case.x)
    # What the evaluation broke by gradients counts as broken, even if these few steps do not.
    by_gradient = [held, *(outcome for name, outcome in found.items() if not name.startswith(OTHER_WAYS))]
    standing = torch.stack(by_gradient).all(0)
    held_square = found["square"] if "square" in found else case.held(Square(case.ball, QUERIES, rescale_schedule=True))
    return [
        reach,
        gradients.not_saturated(steep, held, case.held(climb(case.ball, "margin"))),
        strength.more_steps(
            loss(case, case.attacked(fgsm(case.ball))),
            loss(case, climbed),
            STEPS,
        ),
        strength.breaks_everything(case.held(climb(wide)), wide),
        strength.stronger_than_noise(standing, case.held(Noise(case.ball, DRAWS))),
        strength.stronger_than(strength.BLACK_BOX, "Square", standing, held_square),
        against_transfer(case, standing, sibling),
        adversarials.hold_in_float32(case.answers, case.ball, case.x[~held], case.y[~held], climbed[~held]),
        adversarials.hold_in_8_bits(case.answers, case.ball, case.y[~held], climbed[~held]),
    ]


def climb(ball: Ball, loss: Loss = "ce") -> PGD:
    """From the image itself, so that one step and many start alike; 20 steps of an eighth travel 2.5 radii."""
    return PGD(ball, STEPS, ball.eps / 8, start="none", loss=loss)


def loss(case: Case, x_adv: Tensor) -> Tensor:
    return strength.precise_loss(case.answers(x_adv), case.y)


def against_transfer(case: Case, standing: Tensor, sibling: Model | None) -> Finding:
    if sibling is None:
        return skipped(strength.TRANSFER, "no second model of the same classes was given to transfer attacks from")
    held = case.held(Transfer(sibling, climb(case.ball)))
    return strength.stronger_than(strength.TRANSFER, "a transferred attack", standing, held)
