"""Run the benchmarks that fill docs/performance.md, each into a JSON of its own.

    python benchmarks --out results/benchmarks [--only train_step-resnet18-128,startup] [--list]

They take an hour or two on two cores; run nothing else meanwhile. A file that is there already is measured again.
`gpu.py` has a command of its own; `autoattack.py` and `evaluation.py` need CIFAR-10 (ANCHOR_DATA, or it is fetched).
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SUITE = {
    "startup": "startup.py --rounds 10",
    "data_pipeline-256": "data_pipeline.py --batch 256 --rounds 20",
    "mapped_data-128": "mapped_data.py --images 8192 --batch 128 --rounds 20",
    "train_step-resnet18-128": "train_step.py --model resnet18 --batch 128 --steps 10",
    "train_step-resnet18-256": "train_step.py --model resnet18 --batch 256 --steps 3",
    "train_step-resnet18-512": "train_step.py --model resnet18 --batch 512 --steps 3",
    "train_step-resnet8-128": "train_step.py --model resnet8 --batch 128 --steps 10",
    "train_step-resnet8-256": "train_step.py --model resnet8 --batch 256 --steps 10",
    "train_step-resnet8-512": "train_step.py --model resnet8 --batch 512 --steps 10",
    "train_step-resnet18-128-float32": "train_step.py --model resnet18 --batch 128 --steps 5 --precision float32",
    "train_step-resnet8-256-float32": "train_step.py --model resnet8 --batch 256 --steps 5 --precision float32",
    "attack-resnet18-128": "attack.py --model resnet18 --batch 128 --rounds 5",
    "attack-resnet8-256": "attack.py --model resnet8 --batch 256 --rounds 10",
    "evaluation-resnet8": "evaluation.py --run results/cifar10-resnet8-anchor --images 500 --rounds 5",
    "evaluation-resnet18": "evaluation.py --model resnet18 --images 250 --rounds 3",
    "autoattack-resnet8": "autoattack.py results/cifar10-resnet8-anchor --images 200 --chunk 50",
    "breakdown-resnet18-128": "breakdown.py --model resnet18 --batch 128 --steps 10",
    "breakdown-resnet8-256": "breakdown.py --model resnet8 --batch 256 --steps 10",
    "cost-resnet8": "cost.py --model resnet8 --batch 128 --steps 5",
    "step_memory-resnet8": "step_memory.py --model resnet8",
    "contrastive_loss": "contrastive_loss.py",
    "contrastive_loss-mined": "contrastive_loss.py --hardness 4 --hard-fraction 0.25 --rounds 2",
    "estimate": "estimate.py",
}


def main() -> None:
    asked = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the JSON files")
    asked.add_argument("--only", help="names, comma-separated; all if not given")
    asked.add_argument("--list", action="store_true", help="print the commands and run nothing")
    given = asked.parse_args()
    chosen = given.only.split(",") if given.only else list(SUITE)
    if unknown := [name for name in chosen if name not in SUITE]:
        asked.error(f"--only {unknown[0]} is unknown; allowed: {', '.join(SUITE)}")
    for name in chosen:
        script, *words = [*shlex.split(SUITE[name]), "--json", str(given.out / f"{name}.json")]
        print(shlex.join(["python", f"benchmarks/{script}", *words]), flush=True)
        if not given.list:
            subprocess.run([sys.executable, str(HERE / script), *words], check=True)


if __name__ == "__main__":
    main()
