"""What each subcommand of `anchor` does. Imports are inside: `anchor --help` must not wait for torch."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Refusal

if TYPE_CHECKING:
    from ..display import Display
    from ..subject import Named

DONE, REFUTED = 0, 1


def version_or_help(asked: argparse.Namespace) -> None:
    from importlib.metadata import version

    print(f"anchor {version('anchor-robust')}") if asked.version else asked.parser.print_help()


def quickstart(asked: argparse.Namespace) -> None:
    from ..quickstart import run

    run(asked.out, progress(asked))


def train(asked: argparse.Namespace) -> None:
    if asked.resume and (asked.recipe or asked.settings or asked.out or asked.logger):
        raise Refusal("--resume RUN takes no recipe or settings: a resumed run keeps its own; start a new one instead")
    others = (asked.resume, asked.out, asked.logger, asked.devices, asked.nodes, asked.json_lines)
    if asked.explain and any(others):
        raise Refusal(
            "--explain takes a recipe and its settings, nothing else: it trains nothing, and tells of one process"
        )
    if asked.recipe is None and asked.resume is None:
        raise Refusal("give a recipe or --resume RUN; anchor recipes lists the recipes")
    from .. import processes
    from .. import train as training
    from ..recipe import settle

    if asked.explain:
        from ..report.sheet import Sheet, show

        told = training.explain(settle(asked.recipe, asked.settings), asked.data_dir)
        rows = [(path.name, "yes" if path.taken else "no", path.why, path.otherwise) for path in told.paths]
        show([Sheet(told.title, ("fast path", "taken", "why", "without it"), rows, told.cost, wrapped=4)])
        return
    shared = {"devices": asked.devices, "nodes": asked.nodes}
    if asked.resume:
        run = training.resume(asked.resume, asked.data_dir, progress(asked), **shared)
    else:
        recipe = settle(asked.recipe, asked.settings)
        out = asked.out or Path("runs") / recipe.name
        run = training.start(recipe, out, asked.data_dir, progress(asked), asked.logger, **shared)
    if processes.first() and not asked.json_lines:
        print(run)


def progress(asked: argparse.Namespace) -> "Display":
    """What is said on the way: as --quiet and --json ask, if the command has them."""
    from ..display import Display, JsonLines, Quiet

    if asked.quiet:
        return Quiet()
    return JsonLines() if getattr(asked, "json_lines", False) else Display()


def sweep(asked: argparse.Namespace) -> None:
    from .. import sweep as sweeping
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
        display=progress(asked),
    )
    show([sheet(record)])
    failed = sum("failed" in run for run in record["runs"])
    advice = f"; next: anchor evaluate {out}/NAME of a run" if failed < len(record["runs"]) else ""
    print(f"written: {out / sweeping.RECORD}, {out / sweeping.TABLE}{advice}")
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
    from ..report.measured import show
    from ..report.record import refuted
    from ..train import heard

    record = audit(
        named(asked),
        attacks,
        norm=asked.norm,
        eps=radius(asked),
        limit=asked.limit,
        batch_size=asked.batch_size,
        seed=asked.seed,
        engine=asked.engine,
        search=asked.search,
        curves=curves,
        corruptions=asked.corruptions,
        transfer_from=asked.transfer_from,
        out=asked.out,
        display=heard(progress(asked)),
    )
    if not processes.first():
        return DONE
    show(record)
    why = None if asked.claim is None else refuted(record, asked.claim, asked.claim_attack or attacks[-1])
    if why:
        print(f"anchor: {why}", file=sys.stderr)
    return REFUTED if why else DONE


def attack(asked: argparse.Namespace) -> None:
    if asked.source is None and asked.model is None:
        raise Refusal("no model given; name one with --run: a run, a model file, or cifar10-resnet8-anchor")
    from ..attack_pictures import attack_pictures
    from ..report.attacked import show

    record = attack_pictures(
        asked.pictures,
        named(asked),
        attack=asked.attack,
        label=asked.label,
        norm=asked.norm,
        eps=radius(asked),
        seed=asked.seed,
        out=asked.out,
    )
    show(record)


def named(asked: argparse.Namespace) -> "Named":
    from ..subject import Named

    return Named(asked.source, asked.model, asked.model_args, asked.data, asked.normalize, asked.data_dir)


def radius(asked: argparse.Namespace) -> float | None:
    from ..settings import fraction

    return None if asked.eps is None else number("--eps", fraction(asked.eps))


def listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def second_stage(asked: argparse.Namespace) -> None:
    from ..report.measured import compare
    from ..report.sheet import show
    from ..second_stage import start

    run, records = start(
        asked.run,
        asked.out,
        asked.data_dir,
        progress(asked),
        adversarial=asked.adversarial,
        epochs=asked.epochs,
        lr=asked.lr,
        model=asked.model,
        objective=asked.objective,
    )
    images = records[str(run)]["data"]["images"]
    show([compare(records, f"before and after, on the {images:,} validation images that chose both")])
    print(run)


def embedding(asked: argparse.Namespace) -> None:
    from ..embedding import measure
    from ..report.embedding import sheet
    from ..report.sheet import show

    record = measure(
        asked.source,
        limit=asked.limit,
        batch_size=asked.batch_size,
        seed=asked.seed,
        out=asked.json,
        model=asked.model,
        data_dir=asked.data_dir,
        display=progress(asked),
    )
    show([sheet(record)])


def watch(asked: argparse.Namespace) -> None:
    from ..watch import watch as show

    show(asked.run, asked.port)


def compare(asked: argparse.Namespace) -> None:
    from .. import runs
    from ..report.compare import comparison
    from ..report.compared import sheets
    from ..report.sheet import show

    if len(asked.runs) < 2:
        raise Refusal(f"only {asked.runs[0]} given; name two runs or more, of several methods or seeds")
    if asked.json:
        runs.check_json(asked.json, "methods", "a comparison")
    facts = comparison(asked.runs)
    if asked.json:
        runs.write_json(asked.json, facts)
    show(sheets(facts))


def report(asked: argparse.Namespace) -> None:
    from ..report.page import write

    print(write(asked.runs, asked.out))


def number(option: str, given: object) -> float:
    try:
        return float(str(given))
    except ValueError:
        raise Refusal(f"{option} {given} given; allowed: a number such as 0.031 or 8/255") from None


def recipes(asked: argparse.Namespace) -> None:
    from ..recipe import built_in
    from .explained import explained, promise

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
