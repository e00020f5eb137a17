"""How long the command line makes one wait before it does anything.

    python benchmarks/startup.py --rounds 10 --json FILE

The plain way is what training scripts do: import the libraries on top, then look at the arguments.
"""

import subprocess
import sys
from collections.abc import Sequence

import torch

from timing import alternated, count, device_of, parser, record, run, write

EAGER = "import torch, lightning_fabric, jsonargparse; from anchor_robust.cli import main; main(['--help'])"
COMMANDS = {
    "plain": ("-c", EAGER),
    "anchor": ("-m", "anchor_robust", "--help"),
    "anchor recipes": ("-m", "anchor_robust", "recipes"),
    "anchor train --help": ("-m", "anchor_robust", "train", "--help"),
}


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.add_argument("--rounds", type=count, default=10, help="timed starts of each (default: 10)")
    given = asked.parse_args(words)
    device_of(given)
    timings = alternated(
        {name: lambda words=words: started(words) for name, words in COMMANDS.items()},
        given.rounds,
        torch.device("cpu"),
    )
    ratio = timings["plain"]["median_s"] / timings["anchor"]["median_s"]
    write(record("startup", given, torch.device("cpu"), {"ratio": ratio, **timings}), given.json)


def started(words: Sequence[str]) -> None:
    """Run python with `words`; --help leaves with status 0."""
    subprocess.run([sys.executable, *words], check=True, capture_output=True)


if __name__ == "__main__":
    run(main)
