"""The command `anchor`: what each subcommand takes, and how every error becomes one line and an exit status."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import Refusal, one_line

DONE, FAULT, REFUTED, REFUSED, INTERRUPTED = 0, 1, 1, 2, 130
OVER = "a setting and its values: objective.hardness=0,1,2; with --tries also a range: 0.1..1 or log:0.1..1"


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}; {self.prog} --help shows what is allowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `anchor`; returns the exit status: 0 done, 1 a claim refuted or our fault, 2 refused, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        asked, rest = parser().parse_known_args([word for word in words if word != "--debug"])
        if rest and asked.command not in (train, sweep):
            raise Refusal(f"{' '.join(rest)!r} is not understood; anchor {asked.name} --help shows what is allowed")
        asked.settings = rest
        return asked.command(asked) or DONE
    except Refusal as refusal:
        return failed(REFUSED, one_line(refusal), debug)
    except KeyboardInterrupt as interruption:
        return failed(INTERRUPTED, str(interruption) or "interrupted", debug)
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can or need be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        told = f"this is a fault of anchor: {type(error).__name__}: {one_line(error)}; --debug shows where"
        return failed(FAULT, told, debug)


def failed(status: int, message: str, debug: bool) -> int:
    if debug:
        raise
    print(f"anchor: {message}", file=sys.stderr)
    return status


def parser() -> Parser:
    top = Parser(prog="anchor", description="Train image classifiers that hold under attack, and measure how well.")
    top.add_argument("--version", action="store_true", help="print the version")
    top.set_defaults(command=version_or_help, name="", parser=top)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Callable[..., int | None], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command, name=name)
        return sub

    sub = add("quickstart", quickstart, "train and attack three small networks on real digits, in minutes")
    sub.add_argument("--out", type=Path, default=Path("anchor-quickstart"), help="new directory for the runs")

    sub = add("train", train, "train a recipe; any setting of it can follow as --section.key value")
    sub.add_argument("recipe", nargs="?", help="built-in name (anchor recipes lists them) or a YAML file")
    sub.add_argument("--out", type=Path, help="new directory for the run; runs/NAME if not given")
    sub.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped")
    add_data_dir(sub)
    sub.epilog = "anchor recipes NAME prints the settings of a recipe and what each one means."

    sub = add("sweep", sweep, "train a recipe over many settings and seeds, ranked on the validation split")
    sub.add_argument("recipe", help="built-in name (anchor recipes lists them) or a YAML file")
    sub.add_argument("--over", action="append", default=[], metavar="KEY=VALUES", help=OVER)
    sub.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 at each (default: 3)")
    sub.add_argument("--tries", type=int, metavar="N", help="search: N combinations, picked by Optuna, not the grid")
    sub.add_argument("--out", type=Path, metavar="DIR", help="the sweep's directory; runs/sweep-NAME if not given")
    add_data_dir(sub)
    sub.epilog = "--section.key value sets what stays fixed. Stopped, the same command goes on; it may grow, too."

    sub = add("evaluate", evaluate, "measure clean and robust accuracy on the test images")
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
        help="bf16: faster, and the accuracy an upper bound; the verdicts are in float32 either way",
    )
    sub.add_argument("--curve", default="", metavar="eps,steps", help="accuracy also against eps, steps, or both")
    sub.add_argument("--corruptions", action="store_true", help="accuracy under noise, blur, JPEG and the like as well")
    sub.add_argument("--transfer-from", metavar="RUN", help="second run, for the attack transfer and the checks")
    sub.add_argument("--claim", type=float, metavar="0.5", help="exit 1 if the whole interval lies below this accuracy")
    sub.add_argument("--claim-attack", metavar="ATTACK", help="which accuracy is claimed; that of the last attack")
    sub.add_argument("--norm", choices=("linf", "l2"), help="norm of the ball; the run's own, or linf")
    sub.add_argument("--eps", help="radius of the ball, such as 8/255; the run's own, or 0.031")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N test images")
    sub.add_argument("--batch-size", type=int, default=500, help="images at a time (default: 500)")
    sub.add_argument("--seed", type=int, default=0, help="seed of the attacks' random starts (default: 0)")
    sub.add_argument("--out", type=Path, metavar="FILE.json", help="where the record goes; a run keeps its own")
    sub.add_argument(
        "--model",
        help="what a state dict fills: resnet8, resnet18, preact-resnet18, your.module.Class; or a factory of a whole "
        "model, your.module:factory; torch.export to trust such a program",
    )
    sub.add_argument("--model-args", metavar="NAME=VALUE,..", help="arguments of --model, such as width=32,depth=4")
    sub.add_argument(
        "--data", help="cifar10, digits or a FILE.npz of images x and labels y; the run's own if not given"
    )
    sub.add_argument(
        "--normalize",
        help="before the model: none (it takes pixels in [0, 1]), cifar10 or MEAN,..:STD,..; never guessed",
    )
    add_data_dir(sub)

    sub = add("second-stage", second_stage, "freeze a run's encoder and train a fresh linear head on it")
    sub.add_argument("run", type=Path, metavar="RUN", help="run directory of anchor train")
    sub.add_argument("--adversarial", action="store_true", help="train the head on attacked images, not on clean ones")
    sub.add_argument("--epochs", type=int, default=10, help="passes over the training images (default: 10)")
    sub.add_argument("--lr", type=float, default=0.1, help="peak learning rate (default: 0.1)")
    sub.add_argument("--out", type=Path, help="new directory for the run; runs/NAME-clean-head or -adversarial-head")
    add_data_dir(sub)

    sub = add("embedding", embedding, "measure a run's embeddings: probes, spread, collapse, what an attack moves")
    sub.add_argument("source", metavar="RUN|WEIGHTS", help="run directory or .safetensors file")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N test and the first N training images")
    sub.add_argument("--batch-size", type=int, default=500, help="images at a time (default: 500)")
    sub.add_argument("--seed", type=int, default=0, help="seed of the attack's random start (default: 0)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="where the record goes; a run keeps its own")
    sub.add_argument("--model", help="the weights' own class, your.module.Class, if you trust its code")
    add_data_dir(sub)

    sub = add("compare", compare, "set evaluated runs side by side: accuracy over seeds, paired tests, cost")
    sub.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories; the first method is the yardstick"
    )
    sub.add_argument("--json", type=Path, metavar="FILE", help="also write the facts, full precision, as JSON")

    sub = add("recipes", recipes, "list the built-in recipes and what they promise")
    sub.add_argument("recipe", nargs="?", help="print this one whole, with what each setting means")

    sub = add("data", data, "fetch a data set once, verify it and say where it is")
    sub.add_argument("dataset", choices=("cifar10",))
    add_data_dir(sub)
    return top


def add_data_dir(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data-dir", help="folder that holds cifar-10-batches-py; ANCHOR_DATA, or fetched, if not given")


def version_or_help(asked: argparse.Namespace) -> None:
    from importlib.metadata import version

    print(f"anchor {version('anchor-robust')}") if asked.version else asked.parser.print_help()


def quickstart(asked: argparse.Namespace) -> None:
    from .display import Display
    from .quickstart import run

    run(asked.out, Display())


def train(asked: argparse.Namespace) -> None:
    if asked.resume and (asked.recipe or asked.settings or asked.out):
        raise Refusal("--resume RUN takes no recipe or settings: a resumed run keeps its own; start a new one instead")
    if asked.recipe is None and asked.resume is None:
        raise Refusal("give a recipe or --resume RUN; anchor recipes lists the recipes")
    from . import train as training
    from .display import Display
    from .recipe import settle

    if asked.resume:
        run = training.resume(asked.resume, asked.data_dir, Display())
    else:
        recipe = settle(asked.recipe, asked.settings)
        run = training.start(recipe, asked.out or Path("runs") / recipe.name, asked.data_dir, Display())
    print(run)


def sweep(asked: argparse.Namespace) -> None:
    from . import sweep as sweeping
    from .display import Display
    from .report.ranking import sheet
    from .report.sheet import show

    record, out = sweeping.sweep(
        asked.recipe,
        asked.over,
        settings=asked.settings,
        seeds=asked.seeds,
        tries=asked.tries,
        out=asked.out,
        data_dir=asked.data_dir,
        display=Display(),
    )
    show([sheet(record)])
    print(f"written: {out / sweeping.RECORD}, {out / sweeping.TABLE}; next: anchor evaluate {out}/NAME of a run")
    failed = sum("failed" in run for run in record["runs"])
    if failed:
        raise Refusal(f"{failed} of {len(record['runs'])} runs failed; {out / sweeping.TABLE} has the reasons")


def evaluate(asked: argparse.Namespace) -> int:
    attacks, curves = listed(asked.attacks), listed(asked.curve)
    if asked.claim is not None and not 0 <= asked.claim <= 1:
        raise Refusal(f"--claim {asked.claim:g} given; allowed: 0 to 1, such as 0.52 for 52 %")
    if asked.claim_attack is not None and (asked.claim is None or asked.claim_attack not in attacks):
        raise Refusal(f"--claim-attack {asked.claim_attack} needs --claim, and to be one of --attacks {asked.attacks}")
    from .audit import audit
    from .display import Display
    from .report.record import refuted
    from .report.table import show
    from .settings import fraction

    record = audit(
        asked.source,
        attacks,
        norm=asked.norm,
        eps=None if asked.eps is None else number("--eps", fraction(asked.eps)),
        limit=asked.limit,
        batch_size=asked.batch_size,
        seed=asked.seed,
        engine=asked.engine,
        search=asked.search,
        curves=curves,
        corruptions=asked.corruptions,
        transfer_from=asked.transfer_from,
        out=asked.out,
        model=asked.model,
        model_args=asked.model_args,
        dataset=asked.data,
        normalize=asked.normalize,
        data_dir=asked.data_dir,
        display=Display(),
    )
    show(record)
    why = None if asked.claim is None else refuted(record, asked.claim, asked.claim_attack)
    if why:
        print(f"anchor: {why}", file=sys.stderr)
    return REFUTED if why else DONE


def listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def second_stage(asked: argparse.Namespace) -> None:
    from .display import Display
    from .report.table import compare, output
    from .second_stage import start

    run, records = start(
        asked.run,
        asked.out,
        asked.data_dir,
        Display(),
        adversarial=asked.adversarial,
        epochs=asked.epochs,
        lr=asked.lr,
    )
    images = records[str(run)]["data"]["images"]
    output().print(compare(records, f"before and after, on the {images:,} validation images that chose both"))
    print(run)


def embedding(asked: argparse.Namespace) -> None:
    from .display import Display
    from .embedding import measure
    from .report.embedding import show

    record = measure(
        asked.source,
        limit=asked.limit,
        batch_size=asked.batch_size,
        seed=asked.seed,
        out=asked.json,
        model=asked.model,
        data_dir=asked.data_dir,
        display=Display(),
    )
    show(record)


def compare(asked: argparse.Namespace) -> None:
    from . import runs
    from .report.compare import comparison
    from .report.compared import sheets
    from .report.sheet import show

    if len(asked.runs) < 2:
        raise Refusal(f"only {asked.runs[0]} given; name two runs or more, of several methods or seeds")
    facts = comparison(asked.runs)
    if asked.json:
        runs.write_json(asked.json, facts)
    show(sheets(facts))


def number(option: str, given: object) -> float:
    try:
        return float(str(given))
    except ValueError:
        raise Refusal(f"{option} {given} given; allowed: a number such as 0.031 or 8/255") from None


def recipes(asked: argparse.Namespace) -> None:
    from .recipe import built_in, explained, promise

    if asked.recipe:
        print(explained(asked.recipe), end="")
        return
    for name, text in built_in().items():
        print(name, *(f"    {line}" for line in promise(text)), "", sep="\n")


def data(asked: argparse.Namespace) -> None:
    from .data import cifar

    folder = cifar.locate(asked.data_dir)
    cifar.verify(folder)
    print(folder)
