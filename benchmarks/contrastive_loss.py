"""The hard-mined contrastive loss with its gradient: all similarities at once, and a block of anchors at a time.

    python benchmarks/contrastive_loss.py [--sizes 512,4096,16384,65536] [--hard-fraction 0.25] [--json FILE]

Plain is the formula of design and documentation by autograd, with matrices [m m]; ours is what `hard_supcon` does with
many embeddings, whatever their number here. At each size both run in turn, who is first alternating. Memory is what one
call, forward and backward, takes at its peak beyond its inputs: on a processor in a fresh process, by the system's
count of its resident pages, on a GPU by torch's allocator. Plain is left out where it would not fit.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anchor_robust import environment
from anchor_robust.losses.blockwise import ENTRIES, BlockwiseLoss
from anchor_robust.losses.contrastive import AT_ONCE, at_once

WAYS: dict[str, Callable[..., Tensor]] = {"plain": at_once, "anchor": BlockwiseLoss.apply}
PLAIN_BYTES = 30  # for each of the m^2 pairs at the peak; measured at 4,096: 23, with mining 27
MIB = 2**20


def inputs(m: int, asked: argparse.Namespace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(m, asked.width, generator=generator), dim=1).to(asked.device)
    return z.requires_grad_(), torch.randint(asked.classes, (m,), generator=generator).to(asked.device)


def once(way: str, z: Tensor, labels: Tensor, asked: argparse.Namespace) -> tuple[float, Tensor]:
    loss = WAYS[way](z, labels, asked.temperature, asked.hardness, asked.hard_fraction)
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient


def timed(way: str, z: Tensor, labels: Tensor, asked: argparse.Namespace) -> float:
    started = time.perf_counter()
    once(way, z, labels, asked)  # .item() waits for the device
    return time.perf_counter() - started


def peak_mib(way: str, m: int, asked: argparse.Namespace) -> float | None:
    """What one call takes beyond its inputs and the program, at most; None where the system does not tell."""
    torch.set_num_threads(asked.threads)
    once(way, *inputs(64, asked), asked)  # libraries load what they need
    z, labels = inputs(m, asked)
    if asked.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(way, z, labels, asked)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    if sys.platform != "linux":
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    once(way, z, labels, asked)
    return resident("VmHWM") - before


def resident(which: str) -> float:
    """Resident memory of this process in MiB, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) / 1024


def fits(m: int, asked: argparse.Namespace) -> bool:
    """Whether plain takes less than half of the memory."""
    if asked.device == "cuda":
        there = torch.cuda.mem_get_info()[1]
    else:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return PLAIN_BYTES * m * m < there / 2


def measured(m: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds (median, least, most), peak memory, ratio, and how far the two results are apart."""
    ways = ["plain", "anchor"] if fits(m, asked) else ["anchor"]
    z, labels = inputs(m, asked)
    results = {way: once(way, z, labels, asked) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(asked.rounds):
        for way in ways if number % 2 == 0 else ways[::-1]:
            seconds[way].append(timed(way, z, labels, asked))
    found: dict[str, Any] = {"embeddings": m}
    for way, all_ in seconds.items():
        found[f"{way}_seconds"] = {"median": statistics.median(all_), "least": min(all_), "most": max(all_)}
        # A fresh process, as freed memory stays with an old one.
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            found[f"{way}_peak_mib"] = fresh.apply(peak_mib, (way, m, asked))
    if "plain" in ways:
        found["ratio"] = found["plain_seconds"]["median"] / found["anchor_seconds"]["median"]
        (plain, plain_gradient), (ours, gradient) = results["plain"], results["anchor"]
        found["loss_differs"] = abs(ours - plain) / abs(plain)
        found["gradient_differs"] = ((gradient - plain_gradient).abs().max() / plain_gradient.abs().max()).item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="512,1024,2048,4096,16384,65536", help="numbers of embeddings")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--hardness", type=float, default=1.0)
    parser.add_argument("--hard-fraction", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sizes = []
    for m in map(int, asked.sizes.split(",")):
        sizes.append(measured(m, asked))
        print(json.dumps(sizes[-1]), file=sys.stderr, flush=True)
    settings = {name: value for name, value in vars(asked).items() if name not in ("json", "sizes")}
    command = shlex.join(["python", *sys.argv])
    record = {
        "benchmark": "contrastive_loss",
        "settings": settings | {"block_entries": ENTRIES, "at_once_up_to": AT_ONCE},
        "sizes": sizes,
        "environment": environment.describe(torch.device(asked.device)) | {"command": command},
    }
    text = json.dumps(record, indent=2)
    asked.json.write_text(text + "\n") if asked.json else print(text)


if __name__ == "__main__":
    main()
