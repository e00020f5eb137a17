"""Whether the model gets pixels on the scale that it was trained on."""

import math

import torch
from torch import Tensor, nn

from ..attacks.base import Model, module_behind
from ..attacks.margins import fooled
from ..errors import one_line
from .finding import Finding, beyond, finding, skipped

NORMALISED = "inputs normalised once"

# A gain of less than five points in accuracy does not spoil a number.
GAIN = 0.05
# Where easy data hide the mistake, the first BatchNorm shows it. On networks of this project its misfit is below 0.07
# on the right scale and above 0.43 on a wrong one, and undoing the mistake divides it by eight or more.
MISFIT = 0.2
BETTER = 4


def normalised_once(model: Model, x: Tensor, y: Tensor, right: Tensor, batch_size: int) -> Finding:
    """Does another scale suit the model better than that of x [n c h w], of which it classifies `right` [n] rightly?"""
    accuracy, misfit = right.double().mean().item(), look(model, x, batch_size)[1]
    for change, rescaled in scales(x).items():
        try:
            logits, other_misfit = look(model, rescaled, batch_size)
        except Exception as error:  # a model that refuses other pixels than [0, 1] has settled the question
            return skipped(NORMALISED, f"the model takes no pixels outside [0, 1] ({one_line(error)})")
        now = ~fooled(logits, y)
        won, lost = int((now & ~right).sum()), int((right & ~now).sum())
        clearer = (won - lost) / len(x) >= GAIN and beyond(won, won + lost, 0.5)
        if clearer or (misfit > MISFIT and other_misfit < misfit / BETTER):
            seen = (
                f"with the images {change} first, accuracy goes from {accuracy:.1%} to {now.double().mean():.1%}"
                + fits(misfit, other_misfit)
            )
            advice = (
                "the model does not get the pixels of its training, and eps is not what it seems; normalise once, "
                "inside the model, by the numbers of its training"
            )
            return finding(NORMALISED, True, seen, advice)
    compared = "accuracy" if math.isnan(misfit) else f"accuracy and misfit to the first BatchNorm ({misfit:.2g})"
    return finding(NORMALISED, False, f"no other scale suits the model better by {compared}", "")


def fits(before: float, after: float) -> str:
    """How the misfit changes, as the rest of a sentence; nothing where there is no BatchNorm to misfit."""
    if math.isnan(before) or math.isnan(after):
        return ""
    return f", and the misfit to the first BatchNorm's statistics from {before:.2g} to {after:.2g}"


def scales(x: Tensor) -> dict[str, Tensor]:
    """What the usual mistakes leave out or do twice, undone."""
    over = [dimension for dimension in range(x.ndim) if dimension != 1]
    mean, deviation = x.mean(over, keepdim=True), x.std(over, keepdim=True).clamp_min(1e-6)
    return {
        "normalised by their mean and deviation": (x - mean) / deviation,
        "un-normalised by their mean and deviation": x * deviation + mean,
        "moved from [0, 1] to [-1, 1]": 2 * x - 1,
        "multiplied by 255": x * 255,
    }


@torch.no_grad()
def look(model: Model, x: Tensor, batch_size: int) -> tuple[Tensor, float]:
    """Logits [n k], and how far what reaches the first BatchNorm is from its statistics (NaN without one)."""
    module = module_behind(model)
    norms = [] if module is None else [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    misfits: list[float] = []

    def listen(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not misfits and isinstance(norm, nn.BatchNorm2d):
            misfits.append(divergence(given[0], norm))

    hooks = [norm.register_forward_pre_hook(listen) for norm in norms]
    try:
        logits = torch.cat([model(images) for images in x.split(batch_size)])
    finally:
        for hook in hooks:
            hook.remove()
    return logits, misfits[0] if misfits else torch.nan


def divergence(x: Tensor, norm: nn.BatchNorm2d) -> float:
    """KL(N(m, v) | N(M, V)) = (v/V + (m - M)^2/V - 1 - log(v/V)) / 2, the mean over channels, in nats.

    m, v of x [n c h w] over all but channels, M, V the running statistics; NaN where none are kept.
    """
    if norm.running_mean is None or norm.running_var is None:
        return torch.nan
    variance, known = x.var((0, 2, 3), unbiased=False) + norm.eps, norm.running_var + norm.eps
    ratio, shift = variance / known, (x.mean((0, 2, 3)) - norm.running_mean).square() / known
    return ((ratio + shift - 1 - ratio.log()) / 2).mean().item()
