import os

# Two test processes share the cores: one thread each, also in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import math
import shutil
from pathlib import Path

import hypothesis
import pytest
import torch
from rich.console import Console

from anchor_robust import runs
from anchor_robust.audit import audit
from anchor_robust.display import Display
from anchor_robust.subject import Named

torch.set_num_threads(1)

# The same examples each time in continuous integration, new ones on a developer's machine.
hypothesis.settings.register_profile(
    "anchor", deadline=None, max_examples=50, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("anchor")


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    """The folder with the real CIFAR-10. A folder that was named but holds none is a failure, not a skip."""
    named = os.environ.get("ANCHOR_DATA")
    if not named:
        pytest.skip("ANCHOR_DATA names no folder with CIFAR-10")
    folder = Path(named).resolve()
    releases = ("cifar-10-batches-py", "cifar-10-batches-bin")
    if not any((folder / release).is_dir() for release in releases):
        pytest.fail(f"ANCHOR_DATA={named} holds none of {', '.join(releases)}")
    return folder


@pytest.fixture(scope="session")
def evaluated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run on digits, evaluated on a few images with curves and pictures; tests work on copies of it."""
    run = tmp_path_factory.mktemp("evaluated") / "digits-anchor"
    run.mkdir()
    for name in (runs.RECIPE, runs.ENVIRONMENT, runs.METRICS, runs.WEIGHTS):
        shutil.copy(Path(__file__).parents[1] / "results" / "digits-anchor" / name, run)
    quiet = Display(Console(quiet=True))
    audit(Named(str(run)), ("clean", "pgd20"), limit=40, curves=("eps", "steps"), display=quiet)
    return run


HOSTILE = (
    "<script>alert(1)</script>",
    "\"quotes\" & 'apostrophes'",
    "😀🦊 emoji",
    "x" * 200,
    "</script><img src=http://example.invalid/x.png onerror=alert(2)>",
    "{{ 7 * 7 }} {% raw %}",
    "<a href='javascript:alert(3)'>link</a>",
    "%{x} $\\alpha$ `${1}`",
    "   ",
    "turned \u202e around, half a pair \ud800, two lines\u2028",
)


@pytest.fixture
def hostile_run(evaluated_run: Path, tmp_path: Path) -> Path:
    """The same run with names, texts and a folder that try to become markup or code."""
    run = tmp_path / "hostile <b>&\"' $1"
    shutil.copytree(evaluated_run, run)
    record = runs.read_json(run / runs.EVALUATION)
    record["classes"] = list(HOSTILE)
    for result in [*record["results"], *record["curves"]["eps"], *record["curves"]["steps"]]:
        for row in result["per_class"]:
            row["class"] = HOSTILE[int(row["class"])]
    record["checks"][0] = {"name": "<i>check</i>", "verdict": "warn", "detail": "</script><script>alert(4)</script>"}
    record["environment"]["command"] = "anchor evaluate '<script>alert(5)</script>'"
    (run / runs.EVALUATION).write_text(json.dumps(record))
    recipe = (run / runs.RECIPE).read_text() + "notes: '</pre><script>alert(6)</script> {{ 1 }} 😀'\n"
    (run / runs.RECIPE).write_text(recipe)
    lines = [line | {"<script>": 1.0, "not a number": math.nan, "words": "x"} for line in runs.read_metrics(run)]
    (run / runs.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run
