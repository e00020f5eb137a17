"""The hard-mined contrastive loss with its gradient: all similarities at once, and a block of anchors at a time.

    python benchmarks/contrastive_loss.py [--sizes 512 4096 16384 65536] [--hard-fraction 0.25] [--json FILE]

Plain is the formula by autograd, with matrices [m m]; ours is what `hard_supcon` does with many embeddings, whatever
their number here. At each size both run in turn. Memory is what one call, forward and backward, takes at its peak
beyond its inputs: on a processor in a fresh process, by the system's count of its resident pages, on a GPU by torch's
allocator. Plain is left out where it would not fit.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import memory
from anchor_robust.losses.blockwise import ENTRIES, BlockwiseLoss
from anchor_robust.losses.contrastive import AT_ONCE, at_once
from timing import alternated, count, device_of, parser, record, run, write

WAYS: dict[str, Callable[..., Tensor]] = {"plain": at_once, "anchor": BlockwiseLoss.apply}
SIZES = (512, 1024, 2048, 4096, 16384, 65536)
PLAIN_BYTES = 30  # for each of the m^2 pairs at the peak; measured at 4,096: 23, with mining 27


def inputs(m: int, asked: argparse.Namespace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(m, asked.width, generator=generator), dim=1).to(asked.device)
    return z.requires_grad_(), torch.randint(asked.classes, (m,), generator=generator).to(asked.device)


def once(way: str, z: Tensor, labels: Tensor, asked: argparse.Namespace) -> tuple[float, Tensor]:
    loss = WAYS[way](z, labels, asked.temperature, asked.hardness, asked.hard_fraction)
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient


def peak_of(way: str, m: int, asked: argparse.Namespace) -> float | None:
    """What one call takes beyond its inputs and the program, at most; None where the system does not tell."""
    torch.set_num_threads(asked.threads)
    once(way, *inputs(64, asked), asked)  # libraries load what they need
    z, labels = inputs(m, asked)
    return memory.peak_mib(lambda: once(way, z, labels, asked), torch.device(asked.device))


def fits(m: int, asked: argparse.Namespace) -> bool:
    """Whether plain takes less than half of the memory."""
    if asked.device == "cuda":
        there = torch.cuda.mem_get_info()[1]
    else:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return PLAIN_BYTES * m * m < there / 2


def measured(m: int, asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds, peak memory, ratio, and how far the two results are apart, of the largest gradient."""
    ways = ["plain", "anchor"] if fits(m, asked) else ["anchor"]
    z, labels = inputs(m, asked)
    timings = alternated({way: partial(once, way, z, labels, asked) for way in ways}, asked.rounds, device)
    found: dict[str, Any] = {"embeddings": m}
    for way, timing in timings.items():
        found[f"{way}_seconds"] = {"median": timing["median_s"], "quartiles": timing["quartiles_s"]}
        # A fresh process, as freed memory stays with an old one.
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            found[f"{way}_peak_mib"] = fresh.apply(peak_of, (way, m, asked))
    if "plain" in ways:
        found["ratio"] = found["plain_seconds"]["median"] / found["anchor_seconds"]["median"]
        (plain, plain_gradient), (ours, gradient) = (once(way, z, labels, asked) for way in ways)
        found["loss_differs"] = abs(ours - plain) / abs(plain)
        found["gradient_differs"] = ((gradient - plain_gradient).abs().max() / plain_gradient.abs().max()).item()
    return found


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--sizes", type=count, nargs="+", default=list(SIZES), help="numbers of embeddings")
    asked.add_argument("--width", type=count, default=128, help="of an embedding (default: 128)")
    asked.add_argument("--classes", type=count, default=10)
    asked.add_argument("--temperature", type=float, default=0.1)
    asked.add_argument("--hardness", type=float, default=1.0)
    asked.add_argument("--hard-fraction", type=float, default=1.0)
    asked.add_argument("--rounds", type=count, default=5, help="timed calls of each way (default: 5)")
    given = asked.parse_args(words)
    device = device_of(given)
    given.device, given.threads = device.type, torch.get_num_threads()
    sizes = []
    for m in given.sizes:
        sizes.append(measured(m, given, device))
        print(json.dumps(sizes[-1]), file=sys.stderr, flush=True)
    blocks = {"block_entries": ENTRIES, "at_once_up_to": AT_ONCE}
    write(record("contrastive_loss", given, device, {"sizes": sizes} | blocks), given.json)


if __name__ == "__main__":
    run(main)
