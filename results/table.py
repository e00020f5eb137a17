"""Write the tables of results/README.md and of the README from the run files in this folder: `make results`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from anchor_robust import runs
from anchor_robust.report.paired import mcnemar
from anchor_robust.report.record import read
from anchor_robust.report.table import conventions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
METHODS = {
    "standard": "standard training",
    "pgd-at": "PGD-AT",
    "anchor": "**ANCHOR**",
    "anchor-hardest-quarter": "ANCHOR on the hardest quarter of the positives (collapsed)",
}
BEGIN, END = "<!-- results: written by make results -->", "<!-- end of results -->"


def accuracy(result: dict[str, Any]) -> str:
    low, high = result["interval"]
    return f"{100 * result['accuracy']:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def comparison(experiment: str) -> str:
    """One Markdown table: a row per method, and what the numbers depend on."""
    folders = {method: HERE / f"{experiment}-{method}" for method in METHODS}
    records = {method: runs.read_json(folder / runs.EVALUATION) for method, folder in folders.items()}
    labels = [result["label"] for result in records["anchor"]["results"]]
    lines = [f"| training | {' | '.join(labels)} | minutes |", "|---" * (len(labels) + 2) + "|"]
    for method, record in records.items():
        minutes = runs.read_metrics(folders[method])[-1]["seconds"] / 60
        cells = [accuracy(result) for result in record["results"]]
        lines.append(f"| {METHODS[method]} | {' | '.join(cells)} | {minutes:.0f} |")
    return "\n".join([*lines, "", note(folders, records)])


def note(folders: dict[str, Path], records: dict[str, Any]) -> str:
    record, environment = records["anchor"], runs.read_json(folders["anchor"] / runs.ENVIRONMENT)
    recipe = yaml.safe_load((folders["anchor"] / runs.RECIPE).read_text())
    attacked = [f"{result['label']}: {conventions(result)}" for result in record["results"] if result["norm"]]
    model, data = recipe["model"], record["data"]
    return " ".join(
        (
            f"Accuracy in % with its 95 % Wilson interval on {data['images']:,} {data['name']} test images;",
            f"{'; '.join(attacked)}.",
            f"{model['name']} of width {model['width']} ({environment['parameters']:,} parameters),",
            f"{recipe['optimise']['epochs']} epochs, seed {recipe['seed']},",
            f"weights chosen on {recipe['validation']['images']:,} held-out training images.",
            f"Minutes of training on {environment['threads']} threads of {environment['device']},",
            f"with other work running beside it. {paired(folders)}",
        )
    )


def paired(folders: dict[str, Path]) -> str:
    """ANCHOR against PGD-AT, image by image."""
    ours, theirs = (read(folders[method] / runs.EVALUATION)[1] for method in ("anchor", "pgd-at"))
    sentences = []
    for what in ("clean", "PGD-20"):
        first, second = (held(outcomes, what) for outcomes in (ours, theirs))
        alone, others = int((first & ~second).sum()), int((second & ~first).sum())
        p = mcnemar(alone, others)
        sentences.append(f"{what}: {alone} images held by ANCHOR alone, {others} by PGD-AT alone, p = {p:.2g}")
    return f"McNemar's exact test: {'; '.join(sentences)}."


def held(outcomes: Any, what: str) -> np.ndarray:
    return outcomes["clean_prediction"] == outcomes["label"] if what == "clean" else outcomes["held_pgd20"]


def insert(document: Path, table: str) -> str:
    """The document with `table` between its two markers."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{document} has no place for the table; it must hold {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def measured(folder: Path) -> str:
    """The line of a recipe's header that promises numbers."""
    record, environment = runs.read_json(folder / runs.EVALUATION), runs.read_json(folder / runs.ENVIRONMENT)
    seconds = runs.read_metrics(folder)[-1]["seconds"]
    time = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    numbers = ", ".join(f"{result['label']} {accuracy(result)} %" for result in record["results"])
    eps = next(result["eps"] for result in record["results"] if result["norm"])
    where = f"{time} on {environment['threads']} threads of {environment['device']}"
    return f"# Measured (seed 0, {record['data']['images']:,} test images, eps {eps:g}): {numbers}; {where}."


def promising(recipe: Path) -> str:
    """The recipe with the measured line of its header as the result files have it."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    folder = HERE / recipe.stem
    line = measured(folder) if (folder / runs.EVALUATION).exists() else "# Measured: not yet."
    return "\n".join(line if old.startswith("# Measured") else old for old in lines) + "\n"


def main() -> None:
    """Rewrite the documents and recipes; with --check, only say whether they are up to date."""
    table = comparison("cifar10-resnet8")
    texts = {document: insert(document, table) for document in (ROOT / "README.md", HERE / "README.md")}
    texts |= {recipe: promising(recipe) for recipe in sorted((ROOT / "src/anchor_robust/recipes").glob("*.yaml"))}
    for document, text in texts.items():
        if "--check" not in sys.argv[1:]:
            runs.write_text(document, text)
        elif text != document.read_text(encoding="utf-8"):
            raise SystemExit(f"{document.relative_to(ROOT)} is not what the result files say; run make results")


if __name__ == "__main__":
    main()
