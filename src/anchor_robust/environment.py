"""Versions and hardware: what a number depends on, beside the recipe and the data."""

import ctypes
import platform
import resource
import shlex
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

COMPILERS = {"cpu": "a C++ compiler (g++)", "cuda": "Triton with a C compiler (gcc)"}  # by type of device
PACKAGES = ("anchor-robust", "torch", "lightning-fabric", "numpy")


def accelerator() -> torch.device:
    """The CUDA device, or the processor where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> dict[str, object]:
    """JSON-ready: the command, versions, processor or accelerator, threads."""
    return {
        "command": shlex.join(["anchor", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "bf16": has_bf16(device),
    }


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed: giving every activation back to the system costs a tenth to a third of a step.

    Returns whether that could be done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # M_TRIM_THRESHOLD and M_MMAP_MAX
    return bool(mallopt and mallopt(-1, 2**31 - 1) and mallopt(-4, 0))


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: torch's on an accelerator, else what the system gave it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name and its bf16 units, which decide the speed more than the name does."""
    name = cpuinfo().get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(bf16_units())})" if bf16_units() else name


def bf16_units() -> list[str]:
    flags = cpuinfo().get("flags", "").split()
    return [unit for unit in ("amx_bf16", "avx512_bf16") if unit in flags]


def cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can be expected to work: it needs what COMPILERS says."""
    if device.type == "cuda":
        return find_spec("triton") is not None and any(map(shutil.which, ("gcc", "cc", "clang")))
    return device.type == "cpu" and shutil.which("g++") is not None


def has_bf16(device: torch.device) -> bool:
    """Whether the device has units that make bf16 faster than float32.

    Matrix units do. Of vector units AMD's do, by more than two in a product of matrices, and Intel's do not: there
    float32 is nearly twice as fast (both measured, `limits` in results/benchmarks).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    vector = "avx512_bf16" in bf16_units() and cpuinfo().get("vendor_id") != "GenuineIntel"
    return device.type == "cpu" and (vector or "amx_bf16" in bf16_units())
