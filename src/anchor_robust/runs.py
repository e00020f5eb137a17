"""A run directory: which file holds what, and how a file is written whole or not at all. Needs no torch."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import Refusal
from .finite import finite

RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
WEIGHTS = "weights.safetensors"
LAST = "last.ckpt"
EVALUATION = "evaluation.json"
OUTCOMES = "outcomes.npz"
PICTURES = "pictures.npz"
CARD = "card.md"
EMBEDDING = "embedding.json"
REPORT = "report.html"


def machine(environment: Mapping[str, Any]) -> str:
    """`2 threads of AMD EPYC`: what an environment.json says that the work was done on."""
    threads = environment.get("threads")
    return f"{threads} {'thread' if threads == 1 else 'threads'} of {environment.get('device')}"


def check_is_run(path: Path) -> None:
    """Refuse what is no run directory, where a command needs more of a training than its weights."""
    if not (path / RECIPE).is_file():
        lacking = f"holds no {RECIPE}" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise Refusal(f"{path} {lacking}; give the directory of a run of anchor train (weights alone are none)")


def check_free(run: Path) -> None:
    """Refuse a place where something is already: a run is never written over another."""
    if run.exists() and not run.is_dir():
        raise Refusal(f"output directory {run} is a file; name a new directory")
    if run.is_dir() and any(run.iterdir()):
        resumable = f", or go on with the run in it: anchor train --resume {run}" if (run / LAST).exists() else ""
        raise Refusal(f"output directory {run} is not empty; name a new one with --out{resumable}")


def create(run: Path) -> Path:
    """Make an empty run directory, or say why it cannot be one."""
    check_free(run)
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
    check_writable(run / RECIPE)
    return run


@contextmanager
def beginning(run: Path) -> Iterator[None]:
    """Make a run directory and fill it with what a run starts from, or leave no directory at all."""
    create(run)
    try:
        yield
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep every other process that asks for the same directory out of it; leaves no file, not even after a kill."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = f"another process is at work in {directory}; wait until it ends, or name another one"
            raise Refusal(told) from None
        except OSError:
            pass  # a file system that knows no locks
        yield
    finally:
        os.close(handle)


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until no other process has its turn at `path`, a file or folder that has to be there and is not changed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that knows no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check_writable(path: Path) -> None:
    """Refuse, before hours of work, a file that could not be written after them."""
    if path.is_dir():
        raise Refusal(f"{path} is a directory; name a file")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    with writing(path):
        probe.touch()
        probe.unlink()


def check_json(path: Path, key: str, what: str) -> None:
    """Refuse a target that is no .json, cannot be written, or is there and does not hold `what`, told by its `key`."""
    if path.suffix != ".json":
        raise Refusal(f"--json {path} given; name a file that ends in .json")
    check_writable(path)
    if path.exists() and not holds(path, {key}):
        raise Refusal(f"{path} holds something else than {what}; name another file with --json")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk or a user can do to a write into one line."""
    try:
        yield
    except OSError as error:
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name a place you may write to"
        raise Refusal(f"cannot write {path}: {error.strerror or error}; {advice}") from error


def write(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write a file beside `path` and move it there in one step: readers see the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        try:
            fill(partial)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def clear_partial(run: Path) -> None:
    """Remove what a killed training had begun to write; an evaluation of the run may be writing beside it."""
    for name in (RECIPE, ENVIRONMENT, METRICS, WEIGHTS, LAST):
        for partial in run.glob(f".{name}.*.partial"):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    write(path, lambda partial: partial.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    # A path in it may hold bytes that are no UTF-8.
    write(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; {path.parent} is no complete run") from None
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read ({error}); restore it, or delete it and make it anew") from error


def holds(path: Path, keys: Set[str]) -> bool:
    """Whether the file is a JSON object that has these keys."""
    try:
        found = read_json(path)
    except Refusal:
        return False
    return isinstance(found, dict) and keys <= found.keys()


def has_begun(run: Path) -> bool:
    """Whether an epoch has left something: its log point, or the weights that are written before it."""
    return any((run / name).exists() for name in (METRICS, WEIGHTS))


def append_metrics(run: Path, line: dict[str, Any]) -> None:
    with writing(run / METRICS), (run / METRICS).open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(finite(line)) + "\n")


def whole_lines(path: Path) -> list[str]:
    """The lines of a file, none if there is no file; a last one that a kill cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line.removesuffix("\n") for line in text.splitlines(keepends=True) if line.endswith("\n")]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The log points in order."""
    path = run / METRICS
    try:
        points = [json.loads(line) for line in whole_lines(path)]
        if not all(isinstance(point, dict) and isinstance(point.get("step"), int) for point in points):
            raise ValueError("a line of it is no log point")
        return points
    except (ValueError, OSError) as error:
        raise Refusal(f"{path} cannot be read ({error}); restore it or start the run anew") from error


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """The log points, of which there is one at least."""
    if points := read_metrics(run):
        return points
    raise Refusal(f"{run / METRICS} is missing or empty; restore it or start the run anew")


def keep_metrics(run: Path, step: int) -> None:
    """Drop the log points after `step`, which a resumed run writes again."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    write_text(run / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
