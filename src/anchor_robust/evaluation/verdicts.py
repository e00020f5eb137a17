"""The model's verdict on images, clean and attacked, in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import processes
from ..attacks import Attack
from ..attacks.base import Model, in_evaluation_mode
from ..data import Labelled
from ..draws import part_of
from ..errors import Refusal

Advance = Callable[[int], None]


@torch.no_grad()
def predict(model: Model, x: Tensor, y: Tensor, batch_size: int, advance: Advance) -> Tensor:
    """Predicted classes [n], on the CPU; labels y are only checked against the number of logits."""
    predictions = []
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        logits = model(images)
        check_labels(labels, logits)
        predictions.append(answers(logits))
        advance(len(images))
    return torch.cat(predictions)


def attacked(
    model: Model, attack: Attack, x: Tensor, y: Tensor, generator: torch.Generator, search: Model | None = None
) -> tuple[Tensor, bool]:
    """The classes that `model` says of the images under `attack`: int64 [n], on the CPU.

    The attack may look for its adversarials on `search`, a faster form of the same model; the verdict is `model`'s.
    Returns also whether every adversarial lies in the ball and in [0, 1].
    """
    adversarial = attack(search or model, x, y, generator=generator)
    contained = bool(attack.ball.contains(adversarial, x).all())
    with torch.no_grad():
        return answers(model(adversarial)), contained


def answers(logits: Tensor) -> Tensor:
    """The class of each row of logits [n k], on the CPU; -1, which is nobody's label, where one is NaN."""
    return torch.where(logits.isnan().any(1), -1, logits.argmax(1)).cpu()


def withstand(
    model: Model,
    attack: Attack,
    images: Labelled,
    generator: torch.Generator,
    batch_size: int,
    search: Model | None = None,
) -> tuple[Tensor, Tensor]:
    """Which `images` `model` classifies rightly, and which of them under `attack` as well: bool [n] each, on the CPU.

    Several processes share every batch and draw what one would: the verdicts are those of one process.
    """
    y = images.labels
    correct, held = torch.zeros(2, len(images), dtype=torch.uint8, device=y.device)
    for indices in batches(torch.ones(len(images), dtype=torch.bool), batch_size):
        own = indices[processes.part(len(indices))].to(y.device)
        if len(own):
            predictions = predict(model, images.pixels(own), y[own], batch_size, lambda done: None)
            correct[own] = (predictions == y[own].cpu()).to(correct)
    correct = processes.total(correct)
    for indices in batches(correct.bool().cpu(), batch_size):
        share = processes.part(len(indices))
        # A process for which nothing is left attacks another's image: its generator has to go where theirs go.
        own = indices[share if share.start < share.stop else slice(0, 1)].to(y.device)
        with part_of(generator, share.start, len(indices)) as drawing:
            answers, _ = attacked(model, attack, images.pixels(own), y[own], drawing, search)
        if share.start < share.stop:
            held[own] = (answers == y[own].cpu()).to(held)
    return correct.bool().cpu(), processes.total(held).bool().cpu()


def batches(standing: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """The places of the images that are `standing` [n], in full batches but for the last."""
    return standing.nonzero().flatten().split(batch_size) if standing.any() else ()


def check_labels(labels: Tensor, logits: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise Refusal(f"the model gave a {type(logits).__name__}; allowed: logits as one tensor [n, classes]")
    if logits.ndim != 2 or len(logits) != len(labels):
        raise Refusal(
            f"the model gave logits of shape {list(logits.shape)} for {len(labels)} images; allowed: [n, classes]"
        )
    if logits.shape[1] < 2:
        raise Refusal("the model gave one logit an image; allowed: one for each class, such as [0, z] of a lone z")
    wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(wrong):
        raise Refusal(
            f"label {int(wrong[0])} given; allowed: 0 to {logits.shape[1] - 1}, the model's {logits.shape[1]} classes"
        )


@contextmanager
def evaluating(model: Model, device: torch.device) -> Iterator[None]:
    """Evaluation mode for the module behind `model` and all in it, without autocast; each keeps its own mode."""
    cudnn = torch.backends.cudnn
    tf32 = cudnn.allow_tf32
    try:
        # TF32, which cuDNN's convolutions use unasked, keeps 10 of float32's 23 bits.
        cudnn.allow_tf32 = False
        with in_evaluation_mode(model), torch.autocast(device.type, enabled=False):
            yield
    finally:
        cudnn.allow_tf32 = tf32
