"""The numbers of docs/performance.md, from the JSON files that the benchmarks left in results/benchmarks."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from anchor_robust import runs
from anchor_robust.report.conventions import measured
from anchor_robust.report.sheet import spread
from grid import grid

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "benchmarks"
DOCUMENT = HERE.parent / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- benchmark: (\w+) -->\n).*?(<!-- end of benchmark -->)", re.DOTALL)
LIMITS = (("bandwidth", 1e9, "GB/s"), ("float32", 1e12, "TFLOP/s in float32"), ("bf16", 1e12, "TFLOP/s in bf16"))

Record = dict[str, Any]
Columns = Mapping[str, Callable[[Record], str]]
BLOCKS: dict[str, Callable[[], str]] = {}


def filled() -> str:
    """The document with every block between its markers as the files have it."""

    def block(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise SystemExit(f"{DOCUMENT} asks for {match[2]!r}; there are {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[match[2]]()}\n{match[3]}"

    return MARKED.sub(block, DOCUMENT.read_text(encoding="utf-8"))


def block(benchmark: str, otherwise: str = "run `make bench`") -> Callable[[Callable[[list[Record]], str]], None]:
    """Make a function of all records whose file begins with `benchmark` the block of the function's name."""

    def entered(function: Callable[[list[Record]], str]) -> None:
        def told() -> str:
            paths = sorted(FOLDER.glob(f"{benchmark}*.json"))
            records = [runs.read_json(path) | {"file": path.stem} for path in paths]
            return function(records) if records else f"Not measured yet: {otherwise}."

        BLOCKS[function.__name__] = told

    return entered


def table(rows: Iterable[Record], columns: Columns, notes: str) -> str:
    return grid(list(columns), [[column(row) for column in columns.values()] for row in rows], notes)


def where(records: Iterable[Record]) -> str:
    """What the numbers of a table were measured on, and what else ran meanwhile."""
    loads: dict[str, list[float]] = {}
    for about in (record["environment"] for record in records):
        machine = f"{runs.machine(about)}, torch {about['versions']['torch']}"
        loads.setdefault(machine, []).append(about["load"])
    return "; ".join(
        f"On {machine}, load average {min(each):.1f} to {max(each):.1f}" for machine, each in loads.items()
    )


def network(record: Record) -> str:
    return f"{record['settings']['model']}, batch {record['settings']['batch']}"


def times(value: float) -> str:
    return f"{value:.2f}x"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def processor(record: Record) -> str:
    device: str = record["environment"]["device"]
    return device


SPEEDS: Columns = {
    "plain": lambda row: rate(row["plain_images_per_s"]),
    "ANCHOR": lambda row: rate(row["anchor_images_per_s"]),
    "ratio": lambda row: times(row["ratio"]),
}


@block("train_step")
def limits(records: list[Record]) -> str:
    def bound(record: Record) -> float:
        return record["limits"]["bf16" if record["precision"] == "bfloat16" else "float32"]

    columns: Columns = {
        "network": network,
        "on": processor,
        "precision": lambda row: row["precision"],
        "copy GB/s": lambda row: f"{row['limits']['bandwidth'] / 1e9:.1f}",
        "float32 TFLOP/s": lambda row: f"{row['limits']['float32'] / 1e12:.2f}",
        "bf16 TFLOP/s": lambda row: f"{row['limits']['bf16'] / 1e12:.2f}",
        "GFLOP an image": lambda row: f"{row['flops_per_image'] / 1e9:.2f}",
        "limit": lambda row: rate(bound(row) / row["flops_per_image"]),
        "reached": lambda row: rate(row["anchor_images_per_s"]),
        "share": lambda row: percent(row["flop_utilisation"]),
    }
    return table(records, columns, f"Limit and reached in images a second. {where(records)}.")


@block("train_step")
def step(records: list[Record]) -> str:
    columns: Columns = {
        "network": network,
        "on": processor,
        "precision": lambda row: row["precision"],
        **SPEEDS,
        "quartiles": lambda row: "{:.2f} to {:.2f}".format(*row["ratio_quartiles"]),
        "compiled and warm": lambda row: f"{row['compile_s'] + row['anchor']['warm_up_s']:.0f} s",
    }
    settings = records[0]["settings"]
    notes = (
        f"Images a second, PGD-{settings['attack_steps']}, {settings['views']} views. The ratio is of medians, the "
        f"quartiles are of the ratios step by step. Compiling and two first steps are not in it. {where(records)}."
    )
    return table(records, columns, notes)


@block("attack")
def measures(records: list[Record]) -> str:
    return "\n\n".join(map(ladder, records))


def ladder(record: Record) -> str:
    columns: Columns = {
        "measure, on top of those before": lambda row: row["measure"],
        "an attack": lambda row: f"{1000 * row['median_s']:.0f} ms",
        "predicted": lambda row: times(row["predicted_gain"]),
        "gained": lambda row: times(row["gain"]),
        "so far": lambda row: times(record["measures"][0]["median_s"] / row["median_s"]),
        "of the bound": lambda row: percent(row["predicted_s"] / row["median_s"]),
    }
    notes = (
        f"{network(record)}, PGD-{record['settings']['attack_steps']}. Of the bound: the seconds that operations and "
        f"bytes need at least, over those it took. The attack ran at {percent(record['flop_utilisation'])} of the "
        f"measured {record['precision']} matrix rate. {where([record])}."
    )
    return table(record["measures"], columns, notes)


@block("breakdown")
def parts(records: list[Record]) -> str:
    names = dict.fromkeys(part["part"] for record in records for part in record["parts"])
    rows = [{"part": name} for name in names]
    columns: dict[str, Callable[[Record], str]] = {"part of a step": lambda row: row["part"]}
    for record in records:
        shares = {part["part"]: part["share"] for part in record["parts"]}
        columns[network(record)] = lambda row, shares=shares: percent(shares.get(row["part"], 0.0))
    return table(rows, columns, f"{where(records)}.")


@block("breakdown")
def operations(records: list[Record]) -> str:
    def top(record: Record) -> str:
        shares: dict[str, float] = {}
        for each in record["operations"]:
            name = "compiled code" if "CompiledFxGraph" in each["operation"] else f"`{each['operation']}`"
            shares[name] = shares.get(name, 0.0) + each["share"]
        longest = sorted(shares.items(), key=lambda item: -item[1])[:6]
        return ", ".join(f"{name} {percent(share)}" for name, share in longest)

    return "\n".join(f"* {network(record)}: {top(record)}." for record in records)


@block("cost")
def cost(records: list[Record]) -> str:
    settings = records[0]["settings"]
    columns: Columns = {
        "setting": lambda row: f"{row['axis'].replace('_', ' ')} {row['value']}",
        "passes": lambda row: str(row["passes"]),
        **SPEEDS,
        "ANCHOR, passes a second": lambda row: rate(row["passes"] * row["anchor_images_per_s"]),
    }
    notes = (
        f"Images a second; {network(records[0])}, PGD-{settings['attack_steps']} and {settings['views']} views but for "
        f"what the row says. {where(records)}."
    )
    return table([point for record in records for point in record["points"]], columns, notes)


@block("step_memory")
def memory(records: list[Record]) -> str:
    columns: Columns = {
        "images a step": lambda row: str(row["batch"]),
        "steps of the attack": lambda row: str(row["attack_steps"]),
        "updates": lambda row: str(row["updates"]),
        "memory": lambda row: mebibytes(row["peak_mib"]),
        "an image": lambda row: f"{row['peak_mib'] / row['batch']:.2f} MiB",
    }
    points = sorted(
        (point for record in records for point in record["points"]),
        key=lambda row: (row["attack_steps"], row["updates"], row["batch"]),
    )
    notes = f"{records[0]['settings']['model']}, two views, not compiled; at the peak, beyond what was held before. "
    return table(points, columns, f"{notes}{where(records)}.")


@block("data_pipeline")
def pipeline(records: list[Record]) -> str:
    columns: Columns = {"batch": lambda row: str(row["settings"]["batch"]), **SPEEDS}
    notes = "Images a second, both views of each; the plain way in one thread, without workers of the DataLoader."
    return table(records, columns, f"{notes} {where(records)}.")


@block("mapped_data")
def mapped(records: list[Record]) -> str:
    columns: Columns = {
        "batch": lambda row: str(row["settings"]["batch"]),
        "of images": lambda row: f"{row['settings']['side']} x {row['settings']['side']}",
        **SPEEDS,
    }
    fetched = records[0]["read_ahead_kb"]
    around = f" The system fetches {fetched:,} KiB around what is touched." if fetched else ""
    notes = f"Images a second, from the disk to the device, of a file that is forgotten before each batch.{around}"
    return table(records, columns, f"{notes} {where(records)}.")


@block("evaluation")
def evaluation(records: list[Record]) -> str:
    columns: Columns = {
        "PGD-20 of": lambda row: row["settings"]["run"] or row["settings"]["model"],
        **SPEEDS,
        "held": lambda row: " and ".join(f"{100 * share:.1f} %" for share in row["robust_accuracy"].values()),
        "same verdict": lambda row: f"{100 * row['same_verdicts']:.1f} %",
    }
    notes = (
        "Images a second; held after the plain attack and after ours, which starts elsewhere, and of how many images"
    )
    return table(records, columns, f"{notes} both say the same. {where(records)}.")


@block("autoattack")
def autoattack(records: list[Record]) -> str:
    columns: Columns = {
        "AutoAttack of": lambda row: row["settings"]["run"],
        "images": lambda row: str(row["data"]["images"]),
        **SPEEDS,
        "same verdict": lambda row: f"{100 * row['agreement']:.1f} %",
    }
    return table(records, columns, f"Images a second of the process's own time, searched in float32. {where(records)}.")


@block("startup")
def startup(records: list[Record]) -> str:
    names = {"plain": "the libraries imported first", "anchor": "`anchor --help`", "anchor recipes": "`anchor recipes`"}
    told = (f"{name} {records[0][way]['median_s']:.2f} s" for way, name in names.items())
    return f"Until the answer stands there: {', '.join(told)}. {where(records)}."


@block("contrastive_loss")
def loss(records: list[Record]) -> str:
    columns: Columns = {
        "embeddings": lambda row: f"{row['embeddings']:,}",
        "positives": lambda row: "all" if row["hard_fraction"] == 1 else f"hardest {100 * row['hard_fraction']:.0f} %",
        "on": processor,
        "plain": lambda row: f"{row['plain_seconds']['median']:.3f} s" if "plain_seconds" in row else "",
        "ANCHOR": lambda row: f"{row['anchor_seconds']['median']:.3f} s",
        "plain, memory": lambda row: mebibytes(row.get("plain_peak_mib")),
        "ANCHOR, memory": lambda row: mebibytes(row.get("anchor_peak_mib")),
    }
    sizes = [
        size | {"hard_fraction": record["settings"]["hard_fraction"], "environment": record["environment"]}
        for record in records
        for size in record["sizes"]
    ]
    return table(sizes, columns, f"Forward and backward, median; peak memory beyond the inputs. {where(records)}.")


def mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MiB"


@block("parity", "run what stands below")
def parity(records: list[Record]) -> str:
    """Sweeps over optimise.precision, read from their validation split."""
    rows = []
    for record in records:
        chosen = dict.fromkeys(run["settings"]["optimise.precision"] for run in record["runs"])
        for precision in chosen:
            seeds = [run for run in record["runs"] if run["settings"]["optimise.precision"] == precision]
            compiled = record["settings"].get("optimise", {}).get("compile", "auto")
            rows.append({"sweep": record["file"], "precision": precision, "compile": compiled, "runs": seeds})
    columns: Columns = {
        "sweep": lambda row: row["sweep"],
        "precision": lambda row: row["precision"],
        "compile": lambda row: row["compile"],
        "clean": lambda row: spread([run["validation_clean"] for run in row["runs"]], decimals=1),
        "robust": lambda row: spread([run["validation_robust"] for run in row["runs"]], decimals=1),
        "validation images": lambda row: f"{row['runs'][0]['validation_images']:,}",
        "seeds": lambda row: str(len(row["runs"])),
    }
    return table(
        rows, columns, "Accuracy in % of the kept weights on the validation split, mean and deviation over seeds."
    )


@block("gpu", "run what stands above")
def accelerator(records: list[Record]) -> str:
    return "\n\n".join(map(accelerated, records))


def accelerated(record: Record) -> str:
    done = record["parts"]
    columns: Columns = {
        "part": lambda row: row["part"],
        "plain": lambda row: rate(row["plain_images_per_s"]) if "ratio" in row else "",
        "ANCHOR": SPEEDS["ANCHOR"],
        "ratio": lambda row: times(row["ratio"]) if "ratio" in row else "",
        "of the matrix rate": lambda row: percent(row["flop_utilisation"]) if "flop_utilisation" in row else "",
    }
    rows = [{"part": name, **part} for name, part in done.items() if "anchor_images_per_s" in part]
    found = done.get("limits", {})
    notes = [", ".join(f"{name} {found[name] / scale:,.1f} {unit}" for name, scale, unit in LIMITS if name in found)]
    notes += [f"{name} failed: {part['failed']}" for name, part in done.items() if "failed" in part]
    training = done.get("training", {})
    lasts = [each["last"] for each in training.get("segments", []) if each["last"]]
    notes += [f"trained to epoch {last['epoch']} in {last['seconds']:,.0f} s" for last in lasts[-1:]]
    notes += [f"{result['label']} {measured(result)}" for result in training.get("results", [])]
    return table(rows, columns, f"Images or embeddings a second. {'; '.join(filter(None, notes))}. {where([record])}.")


@block("estimate")
def estimate(records: list[Record]) -> str:
    columns: Columns = {
        "task": lambda row: row["name"],
        "epochs": lambda row: str(row["epochs"]),
        "operations": lambda row: f"{row['flops']:.1e}",
        "devices": lambda row: str(row["devices"]),
        "time": lambda row: f"{row['hours']:,.1f} h" if row["hours"] >= 1 else f"{60 * row['hours']:.1f} min",
        "device hours": lambda row: f"{row['device_hours']:.1f}",
        "exchange": lambda row: percent(row["exchange_share"]),
        "images/s to read": lambda row: rate(row["images_per_s"]),
    }
    assumed = records[0]["settings"]
    notes = (
        f"**An estimate, not a measurement.** Operations are counted. Assumed: {assumed['tflops']:g} TFLOP/s of bf16 "
        f"matrix products on a device, {percent(assumed['utilisation'])} of it in a step, {assumed['batch']} images on "
        f"each device in a step, {assumed['network']:g} GB/s from a device to the others, no overlap, two views."
    )
    return table([task | each for task in records[0]["tasks"] for each in task["on"]], columns, notes)
