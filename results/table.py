"""Write the tables of the README, of docs/ and of this folder from its files: `make results`."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import yaml

import agreement
import embedding
import forms
import performance
import search
from anchor_robust import checkpoint, runs
from anchor_robust.intervals import wilson
from anchor_robust.recipe import settle
from anchor_robust.report.compare import comparison
from anchor_robust.report.compared import markdown
from anchor_robust.report.conventions import conventions
from anchor_robust.report.dotted import flat
from anchor_robust.report.paired import mcnemar, stated
from anchor_robust.report.pauses import without_pauses
from anchor_robust.report.record import read
from grid import grid

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
EXPERIMENT = "cifar10-resnet8"
METHODS = {
    "standard": "standard training",
    "pgd-at": "PGD-AT",
    "trades": "TRADES",
    "mart": "MART",
    "supcon-at": "SupCon + AT",
    "two-view": "two views without contrast",
    "anchor": "**ANCHOR**",
}
VARIANTS = {  # with settings that no search chose
    "anchor-attacked-only": "ANCHOR, cross-entropy on attacked images alone",
    "anchor-contrast05": "ANCHOR, contrast 0.5",
    "anchor-clean25": "ANCHOR, contrast 0.5 and clean 0.25",
    "anchor-margin4": "ANCHOR, contrast 0.5, clean 0.25 and margin 4",
    "anchor-hardest-quarter": "ANCHOR on the hardest quarter of the positives (collapsed)",
    "mart-beta5": "MART, beta 5",
    "pgd-at-more-decay": "PGD-AT, weight decay 0.0005",
    "anchor-ramp": "ANCHOR, ramp of eps",
    "mart-ramp": "MART, ramp of eps",
}
ALL = METHODS | VARIANTS
AUTOATTACK = "autoattack.json"  # beside evaluation.json, on fewer images
MARGIN = "margin.json"  # PGD-20 on the margin, on all of them
PREVIEW = "preview.json"  # its quick half, on more of them
HELD = {  # where the outcome of every image stands
    "clean": (runs.EVALUATION, "clean"),
    "PGD-20": (runs.EVALUATION, "pgd20"),
    "CW-PGD-20": (MARGIN, "pgd20-margin"),
    "AutoAttack": (AUTOATTACK, "autoattack"),
}
BOTH = ("PGD-20", "CW-PGD-20")  # one climbs the cross-entropy, the other the margin
OTHERS = ("five-steps", "first-settings")  # folders of runs like this one, with other settings
BEST = "cifar10-resnet8-anchor"  # its weights come with the package
BEGIN, END = "<!-- results: written by make results -->", "<!-- end of results -->"


def seeds(method: str, where: Path) -> list[Path]:
    """The evaluated runs of a method, seed 0 first."""
    folders = [where / f"{EXPERIMENT}-{method}", *sorted(where.glob(f"{EXPERIMENT}-{method}-seed*"))]
    return [folder for folder in folders if (folder / runs.EVALUATION).exists()]


def found(where: Path, methods: Iterable[str] = ALL) -> dict[str, list[Path]]:
    return {method: folders for method in methods if (folders := seeds(method, where))}


def accuracy(results: Sequence[dict[str, Any]]) -> str:
    """The mean over seeds, their deviation, and Wilson's interval at that mean: images seen again are no new images."""
    values, images = [result["accuracy"] for result in results], results[0]["images"]
    low, high = wilson(fmean(values) * images, images)
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{deviation} [{100 * low:.1f}, {100 * high:.1f}]"


def results_of(folders: Sequence[Path], file: str, attack: str) -> list[dict[str, Any]]:
    records = [runs.read_json(folder / file) for folder in folders if (folder / file).exists()]
    return [result for record in records for result in record["results"] if result["attack"] == attack]


def summary(where: Path, methods: Iterable[str] = ALL) -> str:
    """One Markdown table: a row per method, and what the numbers depend on."""
    attacks = measured_in(where)
    headings = ("training", *attacks, "seeds", "passes")
    rows = [
        [
            ALL[method],
            *(in_some(results_of(folders, *where_held), len(folders)) for where_held in attacks.values()),
            str(len(folders)),
            f"{settle(str(folders[0] / runs.RECIPE)).passes():g}",
        ]
        for method, folders in found(where, methods).items()
    ]
    return grid(headings, rows, note(where))


def measured_in(where: Path) -> dict[str, tuple[str, str]]:
    """What of HELD any run of a folder has."""
    folders = [folder for each in found(where).values() for folder in each]
    return {label: (file, name) for label, (file, name) in HELD.items() if results_of(folders, file, name)}


def in_some(results: Sequence[dict[str, Any]], seeds: int) -> str:
    """The accuracy, and of how many seeds where not all were attacked."""
    if not results:
        return "not yet"
    of = f" ({len(results)} of {seeds} seeds)" if len(results) < seeds else ""
    return accuracy(results) + of


def note(where: Path) -> str:
    folder = seeds("anchor", where)[0]
    record, environment = runs.read_json(folder / runs.EVALUATION), runs.read_json(folder / runs.ENVIRONMENT)
    recipe = yaml.safe_load((folder / runs.RECIPE).read_text())
    model, data = recipe["model"], record["data"]
    steps, step_size = recipe["attack"]["steps"], recipe["attack"]["step_size"]
    attacked = {label: results_of([folder], *HELD[label]) for label in HELD if label != "clean"}
    attacks = [
        f"{label}{told_of(data, result)}: {conventions(result)}"
        for label, results in attacked.items()
        for result in results
    ]
    trained = [folder for folders in found(where).values() for folder in folders]
    processors = sorted({runs.read_json(folder / runs.ENVIRONMENT)["device"] for folder in trained})
    return "\n".join(
        (
            "* Accuracy in %, the mean over the seeds ± their deviation where there are several, with its 95 % Wilson "
            f"interval on {data['images']:,} {data['name']} test images.",
            *(f"* {attack}." for attack in attacks),
            f"* {model['name']} of width {model['width']} ({environment['parameters']:,} parameters), "
            f"{recipe['optimise']['epochs']} epochs, weights chosen on {recipe['validation']['images']:,} held-out "
            "training images.",
            f"* Passes: forward-and-backward, of an image in one step; attacks in training have {steps} steps of "
            f"{step_size:g}. On 1 or 2 threads of {' or '.join(processors)}.",
        )
    )


def told_of(data: dict[str, Any], result: dict[str, Any]) -> str:
    return f" on the first {result['images']:,}" if result["images"] < data["images"] else ""


def paired(where: Path) -> str:
    """ANCHOR against every other method, image by image, seed by seed."""
    ours = {seed(folder): folder for folder in seeds("anchor", where)}
    columns = {label: (label,) for label in measured_in(where)}
    if set(BOTH) <= columns.keys():
        columns |= {" and ".join(BOTH): BOTH}
    rows = []
    for method, folders in found(where).items():
        pairs = [(ours[seed(folder)], folder) for folder in folders if seed(folder) in ours]
        if method != "anchor" and pairs:
            rows.append([ALL[method], *(alone(labels, pairs) for labels in columns.values())])
    told = (
        "Images held by ANCHOR alone : by the other alone, and McNemar's exact test on them, which takes seeds for "
        "independent; the comparison tells p by seed."
    )
    return grid(["ANCHOR against", *columns], rows, told)


def alone(labels: Sequence[str], pairs: Sequence[tuple[Path, Path]]) -> str:
    """`12 : 34 (p = 0.01)` of what holds under all of these, over those pairs of runs where they were measured."""
    pairs = [pair for pair in pairs if all((folder / HELD[label][0]).exists() for label in labels for folder in pair)]
    if not pairs:
        return "not yet"
    both = [[held(folder, labels) for folder in pair] for pair in pairs]
    first, second = (sum(int((a & ~b).sum()) for a, b in each) for each in (both, [pair[::-1] for pair in both]))
    return f"{first} : {second} ({stated(mcnemar(first, second))})"


def seed(folder: Path) -> int:
    return int(yaml.safe_load((folder / runs.RECIPE).read_text())["seed"])


def held(folder: Path, labels: Sequence[str]) -> np.ndarray:
    """Of every image, whether a run answers it rightly under all of these."""
    return np.all([outcome(read(folder / file)[1], name) for file, name in map(HELD.__getitem__, labels)], axis=0)


def outcome(outcomes: Any, name: str) -> np.ndarray:
    return outcomes["clean_prediction"] == outcomes["label"] if name == "clean" else outcomes[f"held_{name}"]


def digits() -> str:
    """The three runs of anchor quickstart, as the tour shows them."""
    rows = []
    for method, told in {"standard": "standard", "pgd-at": "PGD-AT", "anchor": "ANCHOR"}.items():
        found = [results_of([HERE / f"digits-{method}"], runs.EVALUATION, attack) for attack in ("clean", "pgd20")]
        rows.append([told, *map(accuracy, found)])
    return grid(["training", "clean", "under PGD-20"], rows, "Accuracy in % with its 95 % interval.")


def heads() -> str:
    """ANCHOR with its own linear head and with fresh ones on its frozen encoder."""
    folders = {
        "trained with the encoder": HERE / BEST,
        "fresh, on clean images": embedding.FOLDER / f"{BEST}-clean-head",
        "fresh, on attacked images": embedding.FOLDER / f"{BEST}-adversarial-head",
    }
    labels = ("clean", *BOTH)
    rows = [
        [told, *(accuracy(results_of([folder], *HELD[label])) for label in labels)] for told, folder in folders.items()
    ]
    return grid(["linear head", *labels], rows)


def previews(where: Path) -> str:
    """AutoAttack's two gradient attacks on more images than the whole of it."""
    rows = []
    for method, folders in found(where).items():
        attacked = [results_of(folders, PREVIEW, attack) for attack in ("clean", "pgd20", "autoattack-preview")]
        if all(attacked):
            rows.append([METHODS[method], *map(accuracy, attacked)])
    ours = results_of(seeds("anchor", where), PREVIEW, "autoattack-preview")[0]
    told = f"Accuracy in % on the first {ours['images']:,} test images; preview: {conventions(ours)}."
    return grid(["training", "clean", "PGD-20", "AutoAttack (preview)"], rows, told)


def tries() -> str:
    """What was tried on the validation split alone; no test image was looked at."""
    rows = []
    folders = [path.parent for path in sorted((HERE / "tries").glob(f"*/{runs.RECIPE}"))]
    settings = {folder: flat(yaml.safe_load((folder / runs.RECIPE).read_text())) for folder in folders}
    keys = dict.fromkeys(key for each in settings.values() for key in each if key.startswith("objective."))
    varied = [key for key in keys if len({str(each[key]) for each in settings.values() if key in each}) > 1]
    for folder in folders:
        told = [
            f"{key.removeprefix('objective.')} {settings[folder][key]}" for key in varied if key in settings[folder]
        ]
        last = runs.read_metrics(folder)[-1]
        images = settings[folder]["validation.images"]
        rows.append(
            [
                folder.name,
                ", ".join(told),
                accuracy([{"accuracy": last["validation_clean"], "images": images}]),
                accuracy([{"accuracy": last["validation_robust"], "images": images}]),
                f"{last['contrast']:.2f}" if "contrast" in last else "",
            ]
        )
    first = settings[folders[0]]
    attack = f"PGD-{first['validation.steps']} of {first['validation.step_size']:g}"
    note = (
        f"Accuracy in % on {first['validation.images']:,} held-out training images, robust under {attack} at eps "
        f"{first['threat.eps']:g}; {first['optimise.epochs']} epochs, seed {first['seed']}, last epoch."
    )
    return grid(["tried", "differs in", "clean", "robust", "contrast at the end"], rows, note, words=2)


def in_full(where: Path) -> str:
    """What anchor compare says of all of them; of equal costs without standard training, whose attack costs nothing."""
    ordered = dict.fromkeys(["anchor", *found(where)])
    facts, defended = (
        comparison([folder for method in ordered if method not in without for folder in seeds(method, where)])
        for without in ((), ("standard",))
    )
    return "\n".join(
        markdown(facts | {key: defended[key] for key in ("equal_epochs", "equal_seconds", "equal_passes")})
    )


def documents() -> dict[Path, Sequence[str]]:
    """The tables of every document, from this folder's files."""
    return {
        ROOT / "README.md": [summary(HERE, METHODS)],
        ROOT / "docs" / "tour.md": [digits()],
        HERE / "README.md": [summary(HERE), paired(HERE)],
        HERE / "comparison.md": [in_full(HERE)],
        **{HERE / folder / "README.md": other(HERE / folder) for folder in OTHERS},
        search.FOLDER / "README.md": [search.table()],
        search.FEW / "README.md": [search.few()],
        HERE / "forms" / "README.md": [forms.table(forms.FORMS)],
        HERE / "strengtheners" / "README.md": [forms.table(forms.STRENGTHENERS)],
        HERE / "tries" / "README.md": [tries()],
        embedding.FOLDER / "README.md": [*embedding.tables(METHODS), heads()],
        agreement.FOLDER / "README.md": [agreement.table()],
    }


def other(where: Path) -> list[str]:
    """The same tables of runs with other settings, and their previews where they were taken."""
    tables = [summary(where), paired(where), in_full(where)]
    if (seeds("anchor", where)[0] / PREVIEW).exists():
        tables += ["**AutoAttack's gradient attacks on more images**", previews(where)]
    return tables


def insert(document: Path, tables: Sequence[str]) -> str:
    """The document with `tables` between its two markers."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{document} has no place for the table; it must hold {BEGIN} and {END}")
    between = "\n\n".join(tables)
    return f"{before}{BEGIN}\n{between}\n{END}{after}"


def measured(folder: Path) -> str:
    """The line of a recipe's header that promises numbers."""
    record, environment = runs.read_json(folder / runs.EVALUATION), runs.read_json(folder / runs.ENVIRONMENT)
    epochs, _ = without_pauses(runs.read_metrics(folder))
    seconds = epochs[-1]["seconds"]
    time = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    numbers = ", ".join(f"{result['label']} {accuracy([result])} %" for result in record["results"])
    eps = next(result["eps"] for result in record["results"] if result["norm"])
    where = f"{time} on {runs.machine(environment)}"
    return f"# Measured (seed 0, {record['data']['images']:,} test images, eps {eps:g}): {numbers}; {where}."


def same(folder: Path, recipe: Path) -> bool:
    """Whether the run is of the recipe as it is today."""
    return settle(str(folder / runs.RECIPE)) == settle(str(recipe))


def promising(recipe: Path) -> str:
    """The recipe with its header's cost as its settings, and its measured line as the result files, have it."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    folders = [where / recipe.stem for where in (HERE, *(HERE / each for each in OTHERS))]
    evaluated = [folder for folder in folders if (folder / runs.EVALUATION).exists() and same(folder, recipe)]
    told = {
        "# Cost": f"# Cost: {settle(str(recipe)).cost()}.",
        "# Measured": measured(evaluated[0]) if evaluated else "# Measured: not yet.",
    }
    return "\n".join(told.get(old.partition(":")[0].partition(" (")[0], old) for old in lines) + "\n"


def ship(check: bool) -> None:
    """Put the weights and the card of the best CPU-size ANCHOR run into the package."""
    for source, name in ((runs.WEIGHTS, f"{BEST}.safetensors"), (runs.CARD, f"{BEST}.md")):
        content, target = (HERE / BEST / source).read_bytes(), checkpoint.SHIPPED / name
        if not check:
            runs.write_bytes(target, content)
        elif not target.exists() or target.read_bytes() != content:
            raise SystemExit(f"{target.relative_to(ROOT)} is not that of results/{BEST}; run make results")


def main() -> None:
    """Rewrite the documents and recipes; with --check, only say whether they are up to date."""
    ship("--check" in sys.argv[1:])
    texts = {document: insert(document, tables) for document, tables in documents().items()}
    texts[performance.DOCUMENT] = performance.filled()
    texts |= {recipe: promising(recipe) for recipe in sorted((ROOT / "src/anchor_robust/recipes").glob("*.yaml"))}
    for document, text in texts.items():
        if "--check" not in sys.argv[1:]:
            runs.write_text(document, text)
        elif text != document.read_text(encoding="utf-8"):
            raise SystemExit(f"{document.relative_to(ROOT)} is not what the result files say; run make results")


if __name__ == "__main__":
    main()
