"""BatchNorm over a batch that several processes share."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import processes

Network = TypeVar("Network", bound=nn.Module)


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm whose mean and variance, in training mode, are those of all processes' images, gradients included.

    torch's own SyncBatchNorm does this on GPUs only. Every process gives equally many images.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the layer that it stands for has had its own

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        exact = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        across = [0, *range(2, x.ndim)]
        own = torch.stack(torch.var_mean(exact, across, correction=0))
        variances, means = processes.gathered(own[None]).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        values = processes.count() * x.numel() // x.shape[1]
        self.follow(mean.detach(), variance.detach() * (values / max(values - 1, 1)))
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scaled = (exact - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(x.dtype)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as BatchNorm does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synced(network: Network) -> Network:
    """A twin of `network` that has the very same parameters and buffers, with BatchNorm over all processes."""
    tensors = [*network.parameters(), *network.buffers()]
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    if tensors[0].is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncedBatchNorm
    return twin
