"""How the cost of a training step grows with the attack's steps, the batch and the views: the plain way and ours.

    python benchmarks/cost.py --model resnet8 --steps 5 --json FILE

One setting varies at a time, the others stay at 10 steps, the given batch and two views; each point is a run of
`train_step.py`'s comparison.
"""

import argparse
from collections.abc import Sequence

import train_step
from timing import device_of, record, run, write

AXES = {"attack_steps": (0, 1, 5, 10, 20), "batch": (64, 128, 256, 512), "views": (1, 2, 3)}


def main(words: Sequence[str] | None = None) -> None:
    asked = train_step.arguments(__doc__)
    asked.add_argument("--axes", nargs="+", default=list(AXES), choices=tuple(AXES), help="what varies (default: all)")
    asked.add_argument("--few", action="store_true", help="only the first two values of each")
    given = asked.parse_args(words)
    device, points = device_of(given), []
    for axis in given.axes:
        for value in AXES[axis][: 2 if given.few else None]:
            setting = argparse.Namespace(**{**vars(given), axis: value})
            points.append({"axis": axis, "value": value, **train_step.measured(setting, device)})
    write(record("cost", given, device, {"points": points}), given.json)


if __name__ == "__main__":
    run(main)
