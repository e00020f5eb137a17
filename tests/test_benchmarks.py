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
