"""The gradient of a whole batch in the memory of a part of it.

A contrastive loss couples all images of a batch, so gradients of parts do not add up to its own. As in GradCache (Gao
et al., arXiv 2101.06983), every part passes through the network twice: without a graph, for the outputs of the whole
batch; then, when the gradient of the loss in these outputs is known, with a graph, to carry it into the parameters. One
more forward pass of each image is what it costs, whatever the loss.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..errors import Refusal
from ..objectives import Learner
from ..optimise import unmoved_statistics
from .setup import Training


class InParts:
    """The one training pass of a step over `images` images, a micro-batch of them, with all their views, at a time.

    Loss and gradient are those of the whole batch but for layers that look across images: BatchNorm in training mode
    sees the views of one part. What a layer draws from the global generator begins, for each part, from its seed.
    """

    def __init__(self, training: Training, learner: Learner, images: int, seeds: Sequence[int]) -> None:
        self.training = training
        self.through = learner.forward
        self.images = images
        self.parts = [slice(first, first + learner.micro_batch) for first in range(0, images, learner.micro_batch)]
        self.seeds = seeds
        self.leaves: tuple[Tensor, ...] = ()

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embeddings of all the views [v images c h w], in their order; leaves of the loss's graph."""
        if self.leaves:
            raise Refusal(
                "optimise.micro_batch given, but the objective calls learner.forward twice in a step; call it once, "
                "with all its views"
            )
        self.views = views
        with torch.no_grad(), unmoved_statistics(self.training.network):
            outputs = [self.outputs(number) for number in range(len(self.parts))]
        logits, embeddings = (self.together(each).requires_grad_() for each in zip(*outputs, strict=True))
        self.leaves = (logits, embeddings)
        return logits, embeddings

    def backward(self) -> None:
        """Carry the gradient that the leaves were given into the parameters."""
        fabric, wrapped = self.training.fabric, self.training.wrapped
        for number, part in enumerate(self.parts):
            more = number + 1 < len(self.parts)
            # Processes exchange gradients once, with the last part.
            with fabric.no_backward_sync(wrapped) if more and fabric.world_size > 1 else nullcontext():
                outputs = self.outputs(number)
                # Its gradient in the outputs is the one that the whole batch's loss has there.
                carrier = torch.stack(
                    [
                        (output * self.of(leaf.grad, part)).sum()
                        for output, leaf in zip(outputs, self.leaves, strict=True)
                        if leaf.grad is not None
                    ]
                ).sum()
                fabric.backward(carrier)

    def outputs(self, number: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(self.seeds[number])
        return self.through(self.of(self.views, self.parts[number]))

    def of(self, whole: Tensor, part: slice) -> Tensor:
        """The rows of a part's images in every view."""
        return torch.cat([view[part] for view in whole.split(self.images)])

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all parts in the order of the whole batch; the inverse of `of`."""
        size = self.parts[0].stop
        by_view = zip(*(rows.split(size) for rows in parts), strict=True)
        return torch.cat([rows for view in by_view for rows in view])
