"""Every benchmark runs, and its JSON is complete; how fast things are is no test."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_autoattack_against_its_authors(tmp_path: Path) -> None:
    out = tmp_path / "autoattack.json"
    # A network without a defence: every image falls to the first attack, in both.
    words = [
        str(ROOT / "results" / "digits-standard"),
        "--eps",
        "0.3",
        "--images",
        "8",
        "--chunk",
        "4",
        "--json",
        str(out),
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "autoattack.py"), *words, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["accuracy"] == {"ours": 0.0, "theirs": 0.0}
    assert (record["agreement"], record["differ"], record["data"]["images"]) == (1.0, [], 8)
    assert record["ratio"] == record["seconds"]["theirs"] / record["seconds"]["ours"]
    assert {"model", "norm", "eps", "theirs", "environment"} <= record.keys()


def test_contrastive_loss(tmp_path: Path) -> None:
    out = tmp_path / "contrastive_loss.json"
    words = ["--sizes", "1100", "--hard-fraction", "0.5", "--rounds", "2", "--width", "8", "--json", str(out)]
    command = [sys.executable, str(ROOT / "benchmarks" / "contrastive_loss.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    (size,) = record["sizes"]
    plain, ours = size["plain_seconds"], size["anchor_seconds"]
    assert size["embeddings"] == 1100
    assert size["ratio"] == plain["median"] / ours["median"]
    assert all(0 < each["least"] <= each["median"] <= each["most"] for each in (plain, ours))
    assert size["loss_differs"] < 1e-6
    assert size["gradient_differs"] < 1e-6
    assert min(size["plain_peak_mib"], size["anchor_peak_mib"]) > 0
    assert record["settings"]["hard_fraction"] == 0.5
    assert {"settings", "environment"} <= record.keys()
