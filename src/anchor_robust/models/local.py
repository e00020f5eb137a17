"""Logits of images that differ from remembered ones in one window: only what the window reaches is computed anew.

A convolution carries a change as far as its kernel reaches, so that a window of a few pixels touches a few per cent of
the first maps, and all of the last ones alone. What is not reached stands in maps that were remembered.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .spans import Region, Size, around, clipped, overlap, reached, relative, seen, slices

POINTWISE = {
    *(nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Identity, nn.Dropout),
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.relu, F.relu, F.silu, F.gelu),
}
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


@dataclass(frozen=True)
class Patch:
    """The new values [n c h w] of a region of a map; everywhere else it is as remembered."""

    region: Region
    values: Tensor


class Local:
    """A traced network in evaluation mode, from images [n c h w] to a tuple whose first entry is logits [n k].

    It remembers the maps of images x; `look` passes others through it that differ from those in one window alone, and
    `accept` puts some of these in their place. Any operation is allowed but one that writes to what
    it is given: what is neither a convolution nor pointwise is computed on the whole map. Raises ValueError for that.
    """

    def __init__(self, network: fx.GraphModule, x: Tensor) -> None:
        self.network = network
        self.outline = Outline(network)
        with torch.no_grad():
            self.outline.run(x[:1])
            self.remembering = Remembering(network, self.outline.wanted())
            self.remembering.run(x)
        self.maps = self.remembering.maps
        self.patches: dict[fx.Node, Patch | None] = {}
        self.whole: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def look(self, new: Tensor, window: tuple[slice, slice]) -> Tensor:
        """Logits [n k] of the images remembered with `new` [n c r s] in the window, rows and columns."""
        rows, columns = window
        region = ((rows.start, rows.stop), (columns.start, columns.stop))
        self.patches, self.whole = {}, dict(self.outline.constants)
        for node in self.network.graph.nodes:
            if node.op == "placeholder":
                self.patches[node] = Patch(region, new)
            elif node.op != "output" and node not in self.whole:
                self.follow(node)
        logits: Tensor = self.filled(node.args[0][0])
        return logits

    def follow(self, node: fx.Node) -> None:
        """Compute a node: what the change reaches, where that can be known, or all of it."""
        kind = self.outline.kinds[node]
        if kind is nn.Conv2d:
            self.patches[node] = self.convolved(node)
        elif kind is Patch:
            regions = [patch.region for given in self.outline.maps_of(node) if (patch := self.patches[given])]
            region = around(regions) if regions else None
            self.patches[node] = (
                Patch(region, self.run(node, lambda given: self.cut(given, region))) if region else None
            )
        else:
            self.whole[node] = self.run(node, self.filled)

    def convolved(self, node: fx.Node) -> Patch | None:
        module = cast(nn.Conv2d, self.network.get_submodule(str(node.target)))
        (given,) = node.all_input_nodes
        patch, out = self.patches[given], self.outline.sizes[node]
        if patch is None:
            return None
        # torch's annotation of padding knows the words as well, which the outline leaves out.
        axes: Any = list(zip(module.kernel_size, module.stride, module.padding, module.dilation, strict=True))
        rows, columns = (reached(patch.region[axis], out[axis], *each) for axis, each in enumerate(axes))
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            return None  # a stride may step over the change
        needed = self.cut(given, (seen(rows, *axes[0]), seen(columns, *axes[1])))
        values = F.conv2d(needed, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)
        return Patch((rows, columns), values)

    def cut(self, node: fx.Node, region: Region) -> Any:
        """The present values of a region of a map, 0 outside of it; of a constant all."""
        if node in self.whole:
            return self.whole[node]
        patch = self.patches[node]
        if patch and patch.region == region:
            return patch.values
        inside, beyond = clipped(region, self.outline.sizes[node])
        values = self.maps[node][(..., *slices(inside))]
        if patch and (common := overlap(inside, patch.region)):
            values = values.clone()
            new = patch.values[(..., *slices(relative(common, patch.region)))]
            values[(..., *slices(relative(common, inside)))] = new
        return F.pad(values, beyond) if any(beyond) else values

    def filled(self, node: fx.Node) -> Any:
        """All present values of a node."""
        if node not in self.whole:
            height, width = self.outline.sizes[node]
            self.whole[node] = self.cut(node, ((0, height), (0, width)))
        return self.whole[node]

    def run(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = (fx.node.map_arg(given, value) for given in (node.args, node.kwargs))
        return getattr(self.remembering, node.op)(node.target, args, kwargs)

    def accept(self, better: Tensor, left: Tensor | None) -> None:
        """Remember the images last looked at where `better`, bool [n]; go on with those `left`, by place, or all."""
        chosen = better.nonzero().flatten()
        for node, values in self.maps.items():
            patch = self.patches[node]
            if patch and len(chosen):
                values[(chosen, slice(None), *slices(patch.region))] = patch.values[chosen]
            self.maps[node] = values if left is None else values[left]


class Outline(fx.Interpreter):
    """Runs a network once and finds out of each node how a change passes through it, and what no image changes."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.constants: dict[fx.Node, Any] = {}
        self.sizes: dict[fx.Node, Size] = {}
        self.kinds: dict[fx.Node, type | None] = {}  # nn.Conv2d; Patch if pointwise; None if computed on whole maps

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op not in ("placeholder", "output") and all(each in self.constants for each in n.all_input_nodes):
            self.constants[n] = value
            return value
        if isinstance(value, Tensor) and value.ndim == 4:
            self.sizes[n] = (value.shape[2], value.shape[3])
        self.kinds[n] = Patch if n.op == "placeholder" else self.kind(n)
        return value

    def kind(self, node: fx.Node) -> type | None:
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if getattr(module, "inplace", False) or node.kwargs.get("inplace") or node.target in IN_PLACE:
            raise ValueError(f"{node} writes to what it is given")
        maps = self.maps_of(node)
        if not all(self.kinds[each] for each in maps):
            return None
        if type(module) is nn.Conv2d:
            return nn.Conv2d if module.padding_mode == "zeros" and not isinstance(module.padding, str) else None
        constants = [self.constants[each] for each in node.all_input_nodes if each in self.constants]
        alike = all(each.numel() == 1 or (each.ndim >= 2 and each.shape[-2:] == (1, 1)) for each in constants)
        pointwise = (type(module) if module else node.target) in POINTWISE
        return Patch if pointwise and alike and len({self.sizes[each] for each in maps}) == 1 else None

    def maps_of(self, node: fx.Node) -> list[fx.Node]:
        return [each for each in node.all_input_nodes if each not in self.constants]

    def wanted(self) -> set[fx.Node]:
        """The nodes of which a later one may need more than what has changed."""
        return {node for node in self.sizes if self.kinds[node] and any(map(self.looks_beyond, node.users))}

    def looks_beyond(self, node: fx.Node) -> bool:
        return self.kinds.get(node) is not Patch or len(self.maps_of(node)) > 1


class Remembering(fx.Interpreter):
    """Runs a network and keeps the maps of some nodes."""

    def __init__(self, network: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(network)
        self.wanted = wanted
        self.maps: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            # A copy: images that are accepted are written into it.
            self.maps[n] = value.clone()
        return value
