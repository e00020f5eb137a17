"""What each subcommand of `anchor` takes."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..errors import Refusal
from . import commands

Command = Callable[[argparse.Namespace], int | None]
IMAGES = "cifar10, digits, a FOLDER with test/x.npy and test/y.npy, or a FILE.npz of x and y"
TAKING_SETTINGS = ("train", "sweep")
OVER = "a setting and its values: objective.hardness=0,1,2; with --tries also a range: 0.1..1 or log:0.1..1"


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}; {self.prog} --help shows what is allowed")


def parser() -> Parser:
    top = Parser(prog="anchor", description="Train image classifiers that hold under attack, and measure how well.")
    top.add_argument("--version", action="store_true", help="print the version")
    top.set_defaults(command=commands.version_or_help, name="", takes_settings=False, parser=top)
    top.epilog = "--debug behind a command shows where in the code it ended."
    subcommands = top.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        sub = subcommands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command, name=name, takes_settings=name in TAKING_SETTINGS)
        return sub

    sub = add("quickstart", commands.quickstart, "train and attack three small networks on real digits, in minutes")
    sub.add_argument(
        "--out", type=Path, default=Path("anchor-quickstart"), help="new directory for the runs (anchor-quickstart)"
    )
    add_quiet(sub)

    sub = add(
        "train",
        commands.train,
        "train a recipe; any setting of it can follow as --section.key value",
    )
    sub.add_argument("recipe", nargs="?", help="built-in name (anchor recipes lists them) or a YAML file")
    sub.add_argument("--out", type=Path, help="new directory for the run; runs/NAME if not given")
    sub.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped")
    add_processes(sub)
    sub.add_argument("--logger", metavar="NAME", help="follow the run in tensorboard, mlflow or wandb as well")
    said = add_quiet(sub)
    said.add_argument(
        "--json", dest="json_lines", action="store_true", help="progress as JSON lines on standard output, for programs"
    )
    sub.add_argument(
        "--explain", action="store_true", help="say what would be fast here, what not and why; trains nothing"
    )
    add_data_dir(sub)
    sub.epilog = "anchor recipes NAME prints the settings of a recipe and what each one means."

    sub = add(
        "sweep",
        commands.sweep,
        "train a recipe over many settings and seeds, ranked on the validation split",
    )
    sub.add_argument("recipe", help="built-in name (anchor recipes lists them) or a YAML file")
    sub.add_argument("--over", action="append", default=[], metavar="KEY=VALUES", help=OVER)
    sub.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 at each (default: 3)")
    sub.add_argument("--tries", type=int, metavar="N", help="search: N combinations, picked by Optuna, not the grid")
    sub.add_argument("--out", type=Path, metavar="DIR", help="the sweep's directory; runs/sweep-NAME if not given")
    add_quiet(sub)
    add_data_dir(sub)
    sub.epilog = "--section.key value sets what stays fixed. Stopped, the same command goes on; it may grow, too."

    sub = add("evaluate", commands.evaluate, "measure clean and robust accuracy on the test images")
    sub.add_argument(
        "source",
        metavar="RUN|MODEL",
        nargs="?",
        help="run directory, .safetensors, state dict, TorchScript, torch.export program or Hugging Face folder",
    )
    sub.add_argument(
        "--attacks",
        default="clean,pgd20",
        help="comma-separated, such as clean,pgd20,autoattack; a name that is unknown is answered with all that are",
    )
    sub.add_argument(
        "--engine", choices=("anchor", "reference"), default="anchor", help="reference: AutoAttack by its authors' code"
    )
    sub.add_argument(
        "--search",
        choices=("float32", "bf16"),
        default="float32",
        help="bf16: faster on matrix units, and the accuracy an upper bound; the verdicts are in float32 either way",
    )
    sub.add_argument("--curve", default="", metavar="eps,steps", help="accuracy also against eps, steps, or both")
    sub.add_argument("--corruptions", action="store_true", help="accuracy under noise, blur, JPEG and the like as well")
    sub.add_argument("--transfer-from", metavar="RUN", help="second run, for the attack transfer and the checks")
    sub.add_argument("--claim", type=float, metavar="0.5", help="exit 1 if the whole interval lies below this accuracy")
    sub.add_argument(
        "--claim-attack", metavar="ATTACK", help="which accuracy is claimed; that of the last attack if not given"
    )
    add_ball(sub)
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N test images")
    sub.add_argument("--batch-size", type=int, default=500, help="images at a time (default: 500)")
    sub.add_argument("--seed", type=seed, default=0, help="seed of the attacks' random starts (default: 0)")
    sub.add_argument("--out", type=Path, metavar="FILE.json", help="where the record goes, if not into the run")
    add_foreign(sub, data=f"{IMAGES}; if not the run's own")
    add_processes(sub)
    add_quiet(sub)
    add_data_dir(sub)

    sub = add("attack", commands.attack, "attack single pictures; the verdict is on the saved file, as it is read back")
    sub.add_argument("pictures", nargs="+", type=Path, metavar="IMAGE", help="PNG, JPEG or any other, 8 bits a channel")
    sub.add_argument(
        "--run",
        dest="source",
        metavar="RUN|MODEL",
        help="run directory, shipped name, or any model that anchor evaluate takes",
    )
    sub.add_argument("--attack", default="pgd20", help="pgd20 (default), autoattack, fgsm, square, noise, ...")
    sub.add_argument(
        "--label", metavar="CLASS", help="the true class of the pictures; what the model says of each if not given"
    )
    sub.add_argument("--out", type=Path, metavar="DIR", default=Path("attacked"), help="where the PNGs go (attacked)")
    sub.add_argument("--seed", type=seed, default=0, help="seed of the attack's random start (default: 0)")
    add_ball(sub)
    add_foreign(sub, data=f"not with a run; tells classes and image size of any other model: {IMAGES}")
    add_data_dir(sub)
    sub.epilog = "PNG keeps every pixel. Saved as JPEG, or resized, an attacked picture may fool the model no more."

    sub = add("second-stage", commands.second_stage, "freeze a run's encoder and train a fresh linear head on it")
    sub.add_argument("run", type=Path, metavar="RUN", help="run directory of anchor train")
    sub.add_argument("--adversarial", action="store_true", help="train the head on attacked images, not on clean ones")
    sub.add_argument("--epochs", type=int, default=10, help="passes over the training images (default: 10)")
    sub.add_argument("--lr", type=float, default=0.1, help="peak learning rate (default: 0.1)")
    sub.add_argument("--out", type=Path, help="new directory for the run; runs/NAME-clean-head or -adversarial-head")
    sub.add_argument("--model", metavar="MODULE.CLASS", help="the run's model, where its code is not of this package")
    sub.add_argument("--objective", metavar="MODULE.CLASS", help="the same of its objective")
    add_quiet(sub)
    add_data_dir(sub)

    sub = add(
        "embedding", commands.embedding, "measure a run's embeddings: probes, spread, collapse, what an attack moves"
    )
    sub.add_argument("source", metavar="RUN|WEIGHTS", help="run directory or .safetensors file")
    sub.add_argument("--limit", type=int, metavar="N", help="the first N test and about N training images")
    sub.add_argument("--batch-size", type=int, default=500, help="images at a time (default: 500)")
    sub.add_argument("--seed", type=seed, default=0, help="seed of the attack's random start (default: 0)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="where the record goes; a run keeps its own")
    sub.add_argument("--model", help="the weights' own class, your.module.Class, if you trust its code")
    add_quiet(sub)
    add_data_dir(sub)

    sub = add("watch", commands.watch, "show a run's curves on a page of this machine while it trains")
    sub.add_argument("run", type=Path, metavar="RUN", help="run directory, begun or finished")
    sub.add_argument("--port", type=int, default=8710, metavar="N", help="of this machine; 0 takes any free one (8710)")

    sub = add("compare", commands.compare, "set evaluated runs side by side: accuracy over seeds, paired tests, cost")
    sub.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories; the first method is the yardstick"
    )
    sub.add_argument("--json", type=Path, metavar="FILE", help="also write the facts, full precision, as JSON")

    sub = add("report", commands.report, "write one HTML page about a run, or about several side by side")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a record of evaluate --out")
    sub.add_argument(
        "--out", type=Path, metavar="FILE.html", help="RUN/report.html, or report.html for several, if not given"
    )

    sub = add("recipes", commands.recipes, "list the built-in recipes and what they promise")
    sub.add_argument("recipe", nargs="?", help="print this one whole, with what each setting means")

    sub = add("data", commands.data, "fetch a data set once, verify it and say where it is")
    sub.add_argument("dataset", choices=("cifar10",))
    add_data_dir(sub)
    return top


def seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text} given; allowed: 0 to {2**32 - 1}")
    return number


def add_processes(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--devices", type=int, metavar="N", help="accelerators on each machine, or processes without one")
    sub.add_argument("--nodes", type=int, metavar="N", help="machines; torchrun and srun say both by themselves")


def add_data_dir(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data-dir", help="folder that holds cifar-10-batches-py; ANCHOR_DATA, or fetched, if not given")


def add_quiet(sub: argparse.ArgumentParser) -> Any:
    """How progress is said; the group, to which other ways may be added."""
    said = sub.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="say nothing on the way but warnings")
    return said


def add_ball(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--norm",
        choices=("linf", "l2"),
        help="norm of the ball; the run's own, or linf, if not given; another one needs --eps",
    )
    sub.add_argument(
        "--eps", help="radius of the ball, such as 8/255; the run's own, or 0.031, if not given, and in that norm alone"
    )


def add_foreign(sub: argparse.ArgumentParser, data: str) -> None:
    """What a model of other people's does not say of itself."""
    sub.add_argument(
        "--model",
        help="what a state dict fills: resnet8, resnet18, preact-resnet18, your.module.Class; or a factory of a whole "
        "model, your.module:factory; torch.export to trust such a program",
    )
    sub.add_argument("--model-args", metavar="NAME=VALUE,..", help="arguments of --model, such as width=32,depth=4")
    sub.add_argument("--data", help=data)
    sub.add_argument(
        "--normalize",
        help="before the model: none (it takes pixels in [0, 1]), cifar10 or MEAN,..:STD,..; never guessed",
    )
