"""The memory that a call takes at its peak, beyond what the process held before it."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20


def peak_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """By torch's allocator on a GPU, else by the system's count of resident pages; None where it does not tell.

    To be asked in a fresh process, whose libraries are loaded: memory that was freed stays with an old one.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    if sys.platform != "linux":
        return None
    # What was freed and is still held would serve the call unseen.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    held = resident("VmRSS")
    call()
    return resident("VmHWM") - held


def resident(which: str) -> float:
    """Resident memory of this process in MiB, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) / 1024
