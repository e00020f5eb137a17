"""Everything about one machine in one go, then a training in whatever time is left; made for accelerators on loan.

    PYTHONPATH=src python benchmarks/gpu.py --minutes 25 --data-dir DIR --run RUN --json FILE

Nobody needs to watch: a part that fails is noted and the next one begins, FILE is written anew after every part, and
the same command goes on where a kill left it, with the training too. Works on a processor as well; --toy only tries
it out.

It needs no network and no installed package, only `src` on PYTHONPATH and torch 2.6 or newer with numpy, scipy,
scikit-learn, pyyaml, rich, safetensors and pillow. Where one of the others is missing, bring its wheel, all of them
pure Python: lightning-fabric, lightning-utilities, jsonargparse, docstring-parser, typeshed-client,
importlib-resources, pooch, platformdirs, requests. Compiling needs a C compiler: gcc, besides Triton, on CUDA; g++
on a processor.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import attack
import evaluation
import machine
import plain
import train_step
from anchor_robust import runs
from anchor_robust.errors import one_line
from anchor_robust.losses import hard_supcon
from timing import alternated, compared, device_of, parser, record, write

SHARED = {"images": 50_000, "attack_steps": 10, "views": 2, "workers": 8, "compile": "auto", "precision": "auto"}
STEPS = [
    SHARED | {"model": model, "batch": batch, "steps": 20}
    for model, batch in (("resnet18", 128), ("resnet18", 256), ("resnet18", 512), ("resnet8", 256))
]
ATTACKS = [SHARED | {"model": "resnet18", "batch": 256, "rounds": 20}]
EVALUATIONS = [{"run": None, "model": "resnet18", "images": 2000, "batch": 500, "rounds": 5}]
EMBEDDINGS = (512, 1024, 4096, 16384, 65536)
WHOLE_MATRIX = 20_000  # embeddings; beyond, the plain loss holds tables of over 1.6 GB and ours takes a processor long
EVALUATING = 0.1  # of the time, kept for the evaluation of what was trained
STOPPED = 130  # asked to, as anchor says it
TOY = {"images": 64, "batch": 8, "attack_steps": 1, "model": "resnet8", "rounds": 1, "steps": 1, "workers": 0}


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--minutes", type=float, required=True, help="when to be done; the training takes what is left")
    asked.add_argument("--segment", type=float, default=8, help="minutes of training between two records (default: 8)")
    asked.add_argument("--recipe", default="cifar10-resnet18-anchor", help="what is trained, with --set on top of it")
    asked.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe")
    asked.add_argument("--run", type=Path, default=Path("runs/gpu"), help="the run's directory (default: runs/gpu)")
    asked.add_argument("--limit", type=int, help="evaluate the run on so many test images; all if not given")
    asked.add_argument("--data-dir", help="folder that holds the recipe's data set")
    asked.add_argument("--toy", action="store_true", help="tiny sizes, to try the script out")
    given = asked.parse_args(words)
    if given.json is None:
        asked.error("--json FILE is needed: that is what a kill leaves behind")
    device = device_of(given)
    end = time.monotonic() + 60 * given.minutes
    done = earlier(given.json, device)

    def keep(name: str, part: Any) -> None:
        done[name] = part
        told = {**vars(given), "run": str(given.run)}
        write(record("gpu", argparse.Namespace(**told), device, {"parts": done}), given.json)

    for name, measure in parts(given, device).items():
        if name not in done and time.monotonic() < end:
            keep(name, attempted(measure))
            print(f"{name}: {brief(done[name])}", file=sys.stderr, flush=True)
    training(given, end, done.get("training", {"segments": []}), partial(keep, "training"))


def earlier(path: Path, device: torch.device) -> dict[str, Any]:
    """The parts that this machine's record holds already, but for those that failed."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["environment"]["cuda"] != (device.type == "cuda"):
        raise SystemExit(f"{path} is the record of another kind of device; name a new file")
    return {name: part for name, part in before["parts"].items() if "failed" not in part}


def parts(given: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured before anything is trained, by name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "limits": lambda: asdict(machine.limits(device, toy=given.toy)),
    }
    kinds = {
        "train_step": (train_step.measured, STEPS),
        "attack": (attack.measured, ATTACKS),
        "evaluation": (evaluation.measured, EVALUATIONS),
    }
    for kind, (measured, settings) in kinds.items():
        for each in settings[: 1 if given.toy else None]:
            sized = {key: TOY.get(key, value) if given.toy else value for key, value in each.items()}
            name = f"{kind}-{sized['model']}-{sized['batch']}"
            found[name] = partial(measured, argparse.Namespace(**sized), device)
    for count in EMBEDDINGS[: 1 if given.toy else None]:
        if count > WHOLE_MATRIX and device.type == "cpu":
            continue
        found[f"loss-{count}"] = partial(loss, count, 1 if given.toy else 20, device)
    return found


def attempted(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it measured, or why it could not."""
    try:
        return measure()
    except Exception as error:  # nobody is there to look; the next part may well work
        return {"failed": f"{type(error).__name__}: {one_line(error)}", "where": traceback.format_exc(limit=-3)}


def brief(part: Mapping[str, Any]) -> str:
    shown = ("failed", "ratio", "plain_images_per_s", "anchor_images_per_s", "flop_utilisation", "bandwidth", "bf16")
    return ", ".join(f"{key} {part[key]:.4g}" if key != "failed" else part[key] for key in shown if key in part)


def loss(count: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """The contrastive loss of `count` embeddings, forward and backward: plain as long as its matrix fits, and ours."""
    generator = torch.Generator(device).manual_seed(0)
    z = F.normalize(torch.randn(count, 128, device=device, generator=generator), dim=1).requires_grad_()
    y = torch.randint(10, (count,), device=device, generator=generator)
    ways = {"anchor": lambda: hard_supcon(z, y, hardness=0).backward()}
    if count <= WHOLE_MATRIX:
        ways = {"plain": lambda: plain.supcon([z], y).backward()} | ways
    timings = alternated(ways, rounds, device, warm_ups=2)
    return compared(timings, count) if "plain" in timings else timings


def training(
    given: argparse.Namespace, end: float, told: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> None:
    """Train segment by segment, and evaluate in the last tenth of the time; `told` is what earlier calls did."""
    where = ["--data-dir", given.data_dir] if given.data_dir else []
    stop = end - EVALUATING * 60 * given.minutes
    while not told.get("finished") and (left := stop - time.monotonic()) > 0:
        resumable = (given.run / runs.LAST).exists()
        chosen = [f"--{setting}" for setting in given.set]
        what = ["--resume", str(given.run)] if resumable else [given.recipe, *chosen, "--out", str(given.run)]
        started = time.monotonic()
        status, last_words = anchor(["train", *what, *where], min(60 * given.segment, left))
        lines = runs.read_metrics(given.run) if given.run.exists() else []
        segment = {"seconds": time.monotonic() - started, "status": status, "said": last_words}
        told["segments"].append(segment | {"last": lines[-1] if lines else None})
        told["finished"] = status == 0
        keep(told)
        if status not in (0, STOPPED):
            return
    if (given.run / runs.WEIGHTS).exists() and not told.get("results"):
        limit = ["--limit", str(given.limit)] if given.limit else []
        status, last_words = anchor(["evaluate", str(given.run), *limit, *where], max(end - time.monotonic(), 0))
        told["evaluation"] = {"status": status, "said": last_words}
        if status == 0:
            told["results"] = runs.read_json(given.run / runs.EVALUATION)["results"]
        keep(told)


def anchor(words: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run the command, asking it to stop after so many seconds; its exit status, and the last line it said."""
    command = [sys.executable, "-m", "anchor_robust", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        status = STOPPED  # whatever it was at, even at starting python
    return status, (said.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
