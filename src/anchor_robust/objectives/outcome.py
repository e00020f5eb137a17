"""What an objective says of a batch; what one of the user's does wrong is told in its name, not as a fault of ours."""

import torch
from torch import Tensor

from ..errors import Refusal, one_line
from .base import Learner, Objective, Step

LOGGED = (  # what the log calls its own
    *("step", "epoch", "lr", "loss", "batch_accuracy", "images_per_s", "memory_mb", "seconds"),
    *("validation_clean", "validation_robust"),
)


def outcome_of(objective: Objective, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
    """What the objective says of a batch; what one of the user's does wrong is told in its name."""
    own = type(objective).__module__.startswith(__name__.partition(".")[0])
    try:
        outcome = objective(learner, x, y, generator)
    except Exception as error:
        if own or isinstance(error, Refusal | MemoryError | torch.OutOfMemoryError):
            raise
        told = f"{type(error).__name__}: {one_line(error)}"
        raise Refusal(f"objective {type(objective).__name__} failed ({told}); --debug shows where") from error
    if not own and (wrong := fault(outcome, len(y))):
        raise Refusal(f"objective {type(objective).__name__} gives {wrong}; mend it")
    return outcome


def fault(outcome: object, images: int) -> str | None:
    """What is wrong with what an objective returned, if something is."""
    if not isinstance(outcome, Step):
        return f"a {type(outcome).__name__}; allowed: a Step"
    loss, logits = outcome.loss, outcome.logits
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        return f"the loss {described(loss)}; allowed: one number that depends on the weights"
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != images:
        return f"the logits {described(logits)}; allowed: logits [{images} k], a row for each image"
    for name, part in outcome.parts.items():
        if not isinstance(part, Tensor) or part.shape != ():
            return f"the part {name} {described(part)}; allowed: a tensor of one number"
        if name in LOGGED:
            return f"a part that is called {name}, as another thing in the log; give it another name"
    return None


def described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"as a {type(value).__name__}"
    return f"as {list(value.shape)}{'' if value.requires_grad else ' without a gradient'}"
