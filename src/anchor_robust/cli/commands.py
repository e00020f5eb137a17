"""What each subcommand of `anchor` does. Imports are inside: `anchor --help` must not wait for torch."""

import argparse
import sys
from pathlib import Path

from ..errors import Refusal

DONE, REFUTED = 0, 1


def version_or_help(asked: argparse.Namespace) -> None:
    from importlib.metadata import version

    print(f"anchor {version('anchor-robust')}") if asked.version else asked.parser.print_help()


def quickstart(asked: argparse.Namespace) -> None:
    from ..display import Display
    from ..quickstart import run

    run(asked.out, Display())


def train(asked: argparse.Namespace) -> None:
    if asked.resume and (asked.recipe or asked.settings or asked.out):
        raise Refusal("--resume RUN takes no recipe or settings: a resumed run keeps its own; start a new one instead")
    if asked.recipe is None and asked.resume is None:
        raise Refusal("give a recipe or --resume RUN; anchor recipes lists the recipes")
    from .. import processes
    from .. import train as training
    from ..display import Display
    from ..recipe import settle

    shared = {"devices": asked.devices, "nodes": asked.nodes}
    if asked.resume:
        run = training.resume(asked.resume, asked.data_dir, Display(), **shared)
    else:
        recipe = settle(asked.recipe, asked.settings)
        run = training.start(recipe, asked.out or Path("runs") / recipe.name, asked.data_dir, Display(), **shared)
    if processes.first():
        print(run)


def sweep(asked: argparse.Namespace) -> None:
    from .. import sweep as sweeping
    from ..display import Display
    from ..report.ranking import sheet
    from ..report.sheet import show

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
    from ..train import launched

    with launched(asked.devices, asked.nodes):
        return evaluated(asked)


def evaluated(asked: argparse.Namespace) -> int:
    attacks, curves = listed(asked.attacks), listed(asked.curve)
    if asked.claim is not None and not 0 <= asked.claim <= 1:
        raise Refusal(f"--claim {asked.claim:g} given; allowed: 0 to 1, such as 0.52 for 52 %")
    if asked.claim_attack is not None and (asked.claim is None or asked.claim_attack not in attacks):
        raise Refusal(f"--claim-attack {asked.claim_attack} needs --claim, and to be one of --attacks {asked.attacks}")
    from .. import processes
    from ..audit import audit
    from ..display import Display
    from ..report.record import refuted
    from ..report.table import show
    from ..settings import fraction
    from ..train import heard

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
        display=heard(Display()),
    )
    if not processes.first():
        return DONE
    show(record)
    why = None if asked.claim is None else refuted(record, asked.claim, asked.claim_attack)
    if why:
        print(f"anchor: {why}", file=sys.stderr)
    return REFUTED if why else DONE


def listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def second_stage(asked: argparse.Namespace) -> None:
    from ..display import Display
    from ..report.table import compare, output
    from ..second_stage import start

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
    from ..display import Display
    from ..embedding import measure
    from ..report.embedding import show

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
    from .. import runs
    from ..report.compare import comparison
    from ..report.compared import sheets
    from ..report.sheet import show

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
    from ..recipe import built_in, explained, promise

    if asked.recipe:
        print(explained(asked.recipe), end="")
        return
    for name, text in built_in().items():
        print(name, *(f"    {line}" for line in promise(text)), "", sep="\n")


def data(asked: argparse.Namespace) -> None:
    from ..data import cifar

    folder = cifar.locate(asked.data_dir)
    cifar.verify(folder)
    print(folder)
