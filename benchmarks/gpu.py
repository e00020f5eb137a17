"""Everything about one machine in one go, then a training in whatever time is left; made for accelerators on loan.

    PYTHONPATH=src python benchmarks/gpu.py --minutes 25 --data-dir DIR --run RUN --json FILE

Nobody needs to watch: what cannot be trained is refused before anything is measured, a part that fails is noted and
the next one begins, none begins in the second half of the time, FILE is written anew after every part, and the same
command goes on where a kill left it, with the training too. --measure-only needs no data; the same command without it
trains later. Works on a processor as well; --toy only tries it out.

It needs no network and no installed package, only `src` on PYTHONPATH and torch 2.6 or newer with numpy, scipy,
scikit-learn, pyyaml, rich, safetensors and pillow. Where one of the others is missing, bring its wheel, all of them
pure Python: lightning-fabric, lightning-utilities, jsonargparse, docstring-parser, typeshed-client,
importlib-resources, pooch, platformdirs, requests. Compiling needs a C compiler: gcc, besides Triton, on CUDA; g++
on a processor.
"""

import argparse
import gc
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
from anchor_robust import data, runs
from anchor_robust.errors import Refusal, one_line
from anchor_robust.losses import hard_supcon
from anchor_robust.recipe import settle
from timing import alternated, compared, device_of, parser, record, run, write

SHARED = {"images": 50_000, "attack_steps": 10, "views": 2, "workers": 8, "compile": "auto", "precision": "auto"}
FIRST, *OTHERS = [
    SHARED | {"model": model, "batch": batch, "steps": 20}
    for model, batch in (("resnet18", 128), ("resnet18", 256), ("resnet18", 512), ("resnet8", 256))
]
ATTACKS = [SHARED | {"model": "resnet18", "batch": 256, "rounds": 20}]
EVALUATIONS = [{"run": None, "data_dir": None, "model": "resnet18", "images": 2000, "batch": 500, "rounds": 5}]
EMBEDDINGS = (512, 1024, 4096, 16384, 65536)
WHOLE_MATRIX = 20_000  # embeddings; beyond, the plain loss holds tables of over 1.6 GB and ours takes a processor long
MEASURED_WITH, TRAINED_WITH = ("toy", "threads"), ("recipe", "set", "run")  # settings that decide what a part says
MEASURING = 0.5  # of the time, after which no part begins any more
EVALUATING, AT_LEAST = 0.1, 2  # of the time, and minutes, kept for the evaluation of what was trained
PATIENCE = 60, 10  # seconds for a command to stop after SIGINT, and after SIGTERM
LOG = 30  # lines that are kept of a command that failed
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
    asked.add_argument("--measure-only", action="store_true", help="train nothing")
    asked.add_argument("--toy", action="store_true", help="tiny sizes, to try the script out")
    given = asked.parse_args(words)
    if given.json is None:
        asked.error("--json FILE is needed: that is what a kill leaves behind")
    if not given.minutes > 0:
        asked.error(f"--minutes {given.minutes:g} given; allowed: above 0")
    if not given.measure_only:
        trainable(given)
    device, start = device_of(given), time.monotonic()
    end, enough = (start + 60 * given.minutes * share for share in (1, MEASURING))
    # Asked for once: later the device may not answer any more.
    about = record("gpu", argparse.Namespace(**{**vars(given), "run": str(given.run)}), device, {})
    done = earlier(given.json, about)

    def keep(name: str, part: Any) -> None:
        done[name] = part
        write(about | {"parts": done}, given.json)

    for name, measure in parts(given, device).items():
        if name not in done and time.monotonic() < enough:
            keep(name, attempted(measure))
            print(f"{name}: {brief(done[name])}", file=sys.stderr, flush=True)
            if not usable(device):
                break
    if not given.measure_only:
        training(given, end, done.get("training", {"segments": []}), partial(keep, "training"))


def trainable(given: argparse.Namespace) -> None:
    """Refuse a recipe or data that the training would stumble over when the time is nearly up."""
    try:
        recipe = settle(given.recipe, [f"--{setting}" for setting in given.set])
        data.load(recipe.data.name, "train", given.data_dir)
    except Refusal as refusal:
        raise SystemExit(f"gpu.py: {refusal}") from None


def usable(device: torch.device) -> bool:
    """Free what the last part held; False where the device answers this process no more, as after an illegal access."""
    torch.compiler.reset()  # a part that failed in a graph would keep the next one out of graphs
    gc.collect()
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        print(f"no further part is measured: {one_line(error)}", file=sys.stderr, flush=True)
        return False
    return True


def earlier(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that the record holds already, but for those that failed; refused where they came about otherwise."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    there, device = before["environment"]["device"], about["environment"]["device"]
    if there != device:
        raise SystemExit(f"{path} is the record of {there}, not {device}; name a new file")
    decide = MEASURED_WITH + (TRAINED_WITH if "training" in before["parts"] else ())
    for name in decide:
        kept, asked = (each["settings"].get(name) for each in (before, about))
        if kept != asked:
            raise SystemExit(f"{path} holds what was made with {name} {kept}, not {asked}; name a new file")
    return {name: part for name, part in before["parts"].items() if "failed" not in part}


def parts(given: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured before anything is trained, by name: first what would be missed most."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "limits": lambda: asdict(machine.limits(device, toy=given.toy)),
    }

    def add(kind: str, measured: Callable[..., dict[str, Any]], settings: Sequence[dict[str, Any]]) -> None:
        for each in settings:
            sized = {key: TOY.get(key, value) if given.toy else value for key, value in each.items()}
            name = f"{kind}-{sized['model']}-{sized['batch']}"
            found[name] = partial(measured, argparse.Namespace(**sized), device)

    add("train_step", train_step.measured, [FIRST])
    add("attack", attack.measured, ATTACKS)
    add("evaluation", evaluation.measured, EVALUATIONS)
    for count in EMBEDDINGS[: 1 if given.toy else None]:
        if count <= WHOLE_MATRIX or device.type != "cpu":
            found[f"loss-{count}"] = partial(loss, count, 1 if given.toy else 20, device)
    add("train_step", train_step.measured, [] if given.toy else OTHERS)
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
    if "plain" in timings:
        return compared(timings, count)
    return timings | {"anchor_images_per_s": count / timings["anchor"]["median_s"]}


def training(
    given: argparse.Namespace, end: float, told: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> None:
    """Train segment by segment, and evaluate in the last of the time; `told` is what earlier calls did."""
    where = ["--data-dir", given.data_dir] if given.data_dir else []
    if reached(told) and not told["finished"] and not (given.run / runs.LAST).exists():
        print(f"{given.run / runs.LAST} is gone; training begins anew", file=sys.stderr, flush=True)
        told = {"segments": []}
    stop = end - 60 * min(max(EVALUATING * given.minutes, AT_LEAST), given.minutes / 2)
    if not told.get("finished") and stop <= time.monotonic():
        print("no time was left to train; the same command goes on with that", file=sys.stderr, flush=True)
    while not told.get("finished") and (left := stop - time.monotonic()) > 0:
        resumable = (given.run / runs.LAST).exists()
        chosen = [f"--{setting}" for setting in given.set]
        what = ["--resume", str(given.run)] if resumable else [given.recipe, *chosen, "--out", str(given.run)]
        started = time.monotonic()
        status, log = anchor(["train", *what, *where], min(60 * given.segment, left))
        lines = runs.read_metrics(given.run) if given.run.exists() else []
        segment = {"seconds": time.monotonic() - started, "status": status, "said": said(log)}
        if status not in (0, STOPPED):
            segment["log"] = log
        told["segments"].append(segment | {"last": lines[-1] if lines else None})
        told["finished"] = status == 0
        keep(told)
        if status not in (0, STOPPED):
            return
    if (given.run / runs.WEIGHTS).exists() and told.get("evaluated_at", 0) != reached(told):
        limit = ["--limit", str(given.limit)] if given.limit else []
        status, log = anchor(["evaluate", str(given.run), *limit, *where], max(end - time.monotonic(), 0))
        told["evaluation"] = {"status": status, "said": said(log)}
        if status == 0:
            told["results"] = runs.read_json(given.run / runs.EVALUATION)["results"]
            told["evaluated_at"] = reached(told)
        keep(told)


def reached(told: Mapping[str, Any]) -> int | None:
    """The last step that a segment has told of, None before there is one."""
    steps = [segment["last"]["step"] for segment in told["segments"] if segment["last"]]
    return steps[-1] if steps else None


def said(log: Sequence[str]) -> str:
    return log[-1] if log else ""


def anchor(words: Sequence[str], seconds: float) -> tuple[int, list[str]]:
    """Run the command, asking it to stop after so many seconds; its exit status, and the last lines it said."""
    command = [sys.executable, "-m", "anchor_robust", *words, "--debug"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, told = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        told = stopped(process)
        status = STOPPED  # whatever it was at, even at starting python
    return status, told.strip().splitlines()[-LOG:]


def stopped(process: "subprocess.Popen[str]") -> str:
    """What it said to the end, which it may not come to by SIGINT: in the background of a shell that is ignored."""
    for number, patience in zip((signal.SIGINT, signal.SIGTERM), PATIENCE, strict=True):
        process.send_signal(number)
        try:
            return process.communicate(timeout=patience)[1]
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    return process.communicate()[1]


if __name__ == "__main__":
    run(main)
