"""Which images of a call still stand. A search works on those alone: an image that fell costs nothing more."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


class Standing:
    """The result of a search in the making.

    Attributes:
        x_adv: What the search returns, [n ...]: each fallen image's first adversarial; of the others the most
            damaging point that was offered, and the image itself where none was.
        index: Places in x_adv of the m images that still stand, [m].
    """

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x.clone()
        self.index = torch.arange(len(x), device=x.device)
        self.damage = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)

    def __len__(self) -> int:
        return len(self.index)

    def drop(self, fallen: Tensor, candidates: Tensor) -> Tensor | None:
        """Keep the candidates [m ...] of the `fallen` [m]; which of the m stand, or None when all do."""
        if not fallen.any():
            return None
        self.x_adv[self.index[fallen]] = candidates[fallen]
        left = (~fallen).nonzero().flatten()
        self.index = self.index[left]
        return left

    def offer(self, candidates: Tensor, damage: Tensor) -> None:
        """Keep those candidates [m ...] of the standing whose damage [m] is above what was offered before."""
        worse = damage > self.damage[self.index]
        places = self.index[worse]
        self.x_adv[places] = candidates[worse]
        self.damage[places] = damage[worse].to(self.damage.dtype)


def packed(state: Any, left: Tensor) -> Any:
    """A dataclass whose fields are tensors [m ...], with only the images `left`."""
    return type(state)(*(getattr(state, field.name)[left] for field in fields(state)))
