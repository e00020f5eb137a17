"""What every benchmark shares: ways of doing the same timed in turn, and the record that it writes.

Ways are run one after the other, round by round and in turning order, so that whatever else the machine does meets
them alike. The first calls, which compile and fill caches, are timed apart. Numbers are medians; quartiles show the
spread.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from anchor_robust import environment, runs
from anchor_robust.errors import Refusal

Way = Callable[[], object]
MODELS = ("resnet18", "resnet8")


def alternated(ways: Mapping[str, Way], rounds: int, device: torch.device, warm_ups: int = 1) -> dict[str, Any]:
    """Seconds of each way: `warm_up_s` of its first calls together, then of `rounds` calls in turn with the others."""
    warming = {name: sum(timed(way, device) for _ in range(warm_ups)) for name, way in ways.items()}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(timed(ways[name], device))
    return {name: summary(samples[name]) | {"warm_up_s": warming[name]} for name in names}


def timed(way: Way, device: torch.device) -> float:
    """Seconds of one call, until the device has done what it queued."""
    wait(device)
    started = time.perf_counter()
    way()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(samples: Sequence[float]) -> dict[str, Any]:
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return {"median_s": median(samples), "quartiles_s": [low, high], "samples_s": list(samples)}


def compared(timings: Mapping[str, Any], images: int) -> dict[str, Any]:
    """Images a second of `plain` and `anchor`, and how many times as many: of the medians, with quartiles by round."""
    plain, anchor = timings["plain"], timings["anchor"]
    by_round = [a / b for a, b in zip(plain["samples_s"], anchor["samples_s"], strict=True)]
    return {
        "plain_images_per_s": images / plain["median_s"],
        "anchor_images_per_s": images / anchor["median_s"],
        "ratio": plain["median_s"] / anchor["median_s"],
        "ratio_quartiles": summary(by_round)["quartiles_s"],
        **timings,
    }


def parser(doc: str | None) -> argparse.ArgumentParser:
    told = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--json", type=Path, metavar="FILE", help="where the record goes; printed if not given")
    told.add_argument("--threads", type=int, help="threads of torch; those it takes itself if not given")
    return told


def count(text: str) -> int:
    """A number of things, as argparse asks for it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given; allowed: a whole number from 1 on")
    return int(text)


def run(main: Callable[[], None]) -> None:
    """As a script: what the product refuses is said in a line."""
    try:
        main()
    except Refusal as refusal:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {refusal}") from None


def device_of(given: argparse.Namespace) -> torch.device:
    if given.threads:
        torch.set_num_threads(given.threads)
    return environment.accelerator()


def record(
    benchmark: str, given: argparse.Namespace, device: torch.device, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """What was measured with every setting and circumstance; `load` is how many processes wanted to run meanwhile."""
    settings = {key: value for key, value in vars(given).items() if key != "json"}
    about = environment.describe(device) | {
        "command": shlex.join(["python", f"benchmarks/{benchmark}.py", *sys.argv[1:]]),
        "cuda": device.type == "cuda",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "compiler": environment.has_compiler(device),
        # On CUDA what is not evaluated strictly in float32 may round its products to TF32.
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32},
    }
    return {"benchmark": benchmark, "settings": settings, **measured, "environment": about}


def write(content: Mapping[str, Any], path: Path | None) -> None:
    """To a file, whole or not at all; to standard output without one."""
    if path is None:
        print(json.dumps(content, indent=2))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(path, content)
