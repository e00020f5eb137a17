"""Methods against one another, from run files alone: accuracy over seeds, paired tests, and what each cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..intervals import wilson
from ..runs import EVALUATION
from .methods import Method, Run, convention, pooled, read
from .paired import mcnemar, paired_t

Facts = dict[str, Any]
SCHEMA = 1
# What two validation accuracies depend on, beside the weights.
VALIDATED = (
    *("data.name", "threat.norm", "threat.eps"),
    *("validation.steps", "validation.step_size", "validation.images", "validation_images"),
)


def comparison(paths: Sequence[Path], evaluation: str = EVALUATION) -> Facts:
    """JSON-ready facts about the runs in `paths`, pooled into methods; pairs are against the first method.

    `evaluation` is the file in each run that holds its record.

    Accuracies are fractions. Two stand under one entry of `results` only if label, norm, eps, steps, step size,
    restarts, start, loss, dtype and the very test images agree. Raises Refusal for what is no evaluated run.
    """
    methods = pooled([read(path, evaluation) for path in paths])
    return {
        "schema": SCHEMA,
        "methods": [about(method) for method in methods],
        "results": results(methods),
        "cost": [cost(method) for method in methods],
        "equal_epochs": equal_epochs(methods),
        "equal_seconds": equal_seconds(methods),
        "equal_passes": equal_passes(methods),
    }


def about(method: Method) -> Facts:
    runs = {"seeds": list(method.runs), "runs": [str(run.path) for run in method.runs.values()]}
    return {"method": method.label, "differs": method.differs, **runs}


def results(methods: Sequence[Method]) -> list[Facts]:
    """One entry for each attack with all its conventions and images."""
    measured = [
        (convention(run, result), method, run, result)
        for method in methods
        for run in method.runs.values()
        for result in run.record["results"]
    ]
    conventions: list[Facts] = []
    for stated, *_ in measured:
        if stated not in conventions:
            conventions.append(stated)
    entries = []
    for stated in conventions:
        of_method: dict[str, dict[int, tuple[Run, Facts]]] = {method.label: {} for method in methods}
        for its, method, run, result in measured:
            if its == stated:
                of_method[method.label][run.seed] = (run, result)
        present = {label: found for label, found in of_method.items() if found}
        first = methods[0].label
        rows = [accuracy(label, [result for _, result in found.values()], found) for label, found in present.items()]
        pairs = [paired(label, found, first, of_method[first]) for label, found in present.items() if label != first]
        entries.append(stated | {"accuracies": rows, "pairs": pairs})
    return entries


def accuracy(label: str, found: Sequence[Facts], seeds: Mapping[int, Any]) -> Facts:
    """Mean, sample deviation over seeds, and Wilson's interval at the mean on the images, which all seeds share."""
    values, images = [result["accuracy"] for result in found], found[0]["images"]
    return {
        "method": label,
        "seeds": list(seeds),
        "values": values,
        "mean": mean(values),
        "deviation": stdev(values) if len(values) > 1 else None,
        "interval": list(wilson(mean(values) * images, images)),
    }


def paired(
    label: str, ours: Mapping[int, tuple[Run, Facts]], first: str, theirs: Mapping[int, tuple[Run, Facts]]
) -> Facts:
    """McNemar's exact test against the first method: seed with seed, image with image.

    Pooled over seeds, an image counts once for each seed, though the seeds are not independent on it; `p_by_seed` and,
    from three seeds, the interval of the mean difference do without that assumption.
    """
    told = {"method": label, "against": first}
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        other = f"{first} has no seed in common with it" if theirs else f"{first} was not measured in this way"
        return told | {"seeds": [], "why_not": f"{other}, on these images"}
    if not all(run.held for found in (ours, theirs) for run, _ in (found[seed] for seed in seeds)):
        return told | {"seeds": [], "why_not": "outcomes.npz is missing"}
    attack = {seed: ours[seed][1]["attack"] for seed in seeds}
    held = [(ours[seed][0].held[attack[seed]], theirs[seed][0].held[theirs[seed][1]["attack"]]) for seed in seeds]
    alone = [(int((our & ~their).sum()), int((their & ~our).sum())) for our, their in held]
    only_method, only_first = (sum(counts) for counts in zip(*alone, strict=True))
    differences = [ours[seed][1]["accuracy"] - theirs[seed][1]["accuracy"] for seed in seeds]
    return told | {
        "seeds": seeds,
        "only_method": only_method,
        "only_first": only_first,
        "p": mcnemar(only_method, only_first),
        "p_by_seed": [mcnemar(*counts) for counts in alone],
        "difference": mean(differences),
        "difference_interval": list(paired_t(differences)) if len(seeds) > 2 else None,
    }


def cost(method: Method) -> Facts:
    runs = list(method.runs.values())
    spent = [run.passes * run.images_seen for run in runs if run.passes]
    return {
        "method": method.label,
        "images_seen": round(mean(run.images_seen for run in runs)),
        "image_passes": round(mean(spent)) if len(spent) == len(runs) else None,
        "seconds": mean(run.metrics[-1]["seconds"] for run in runs),
        "paused": {str(run.path): run.paused for run in runs if run.paused},
        "hardware": sorted({run.hardware for run in runs}),
    }


def equal_epochs(methods: Sequence[Method]) -> Facts:
    """What was reached in the epochs of the shortest training, or how many epochs all have had."""
    epochs = {run.metrics[-1]["epoch"] for method in methods for run in method.runs.values()}
    return {"all": epochs.pop()} if len(epochs) == 1 else equal(methods, lambda run, line: line["epoch"])


def equal_seconds(methods: Sequence[Method]) -> Facts:
    """What was reached in the seconds of training that the cheapest method took.

    Over the runs on one machine: that on which most methods were trained, the first among them, and most runs. Methods
    without a run there are `left_out`.
    """
    trained_on = {run.hardware for run in methods[0].runs.values()}
    here, hardware = max(
        (([on(method, hardware) for method in methods], hardware) for hardware in sorted(trained_on)),
        key=lambda each: (sum(bool(method.runs) for method in each[0]), sum(len(method.runs) for method in each[0])),
    )
    alike = [method for method in here if method.runs]
    if len(alike) == 1 < len(methods):
        return {"why_not": "the methods were not trained on the same hardware"}
    left_out = [method.label for method in here if not method.runs]
    return equal(alike, lambda run, line: line["seconds"]) | {"hardware": hardware, "left_out": left_out}


def on(method: Method, hardware: str) -> Method:
    return replace(method, runs={seed: run for seed, run in method.runs.items() if run.hardware == hardware})


def equal_passes(methods: Sequence[Method]) -> Facts:
    """What was reached in the passes of the cheapest method, forward and backward of an image, on whatever machine."""
    if silent := [method.label for method in methods if not all(run.passes for run in method.runs.values())]:
        return {"why_not": f"{silent[0]} does not say its passes"}
    return equal(methods, lambda run, line: line["step"] / run.metrics[-1]["step"] * run.images_seen * run.passes)


def equal(methods: Sequence[Method], spent: Callable[[Run, Facts], float]) -> Facts:
    """Validation accuracies that each method had reached when the cheapest was done, by what a run had `spent`.

    `budget` is the most that a run of the cheapest method spent. A costlier method is cut off in the middle of its
    learning rate schedule, so that it might have done better with a schedule of that length; and where it is not
    validated at the very budget, its last validation before counts.
    """
    runs = [run for method in methods for run in method.runs.values()]
    if heads := [method.label for method in methods if any(run.second_stage for run in method.runs.values())]:
        return {"why_not": f"{heads[0]} is a head on an encoder whose training is not counted in it"}
    stated = [[run.settings.get(key) for key in VALIDATED] for run in runs]
    if any(each != stated[0] for each in stated):
        return {"why_not": "the methods were not validated in the same way"}
    budget = min(max(spent(run, run.metrics[-1]) for run in method.runs.values()) for method in methods)
    return {"budget": budget, "accuracies": [reached(method, spent, budget) for method in methods]}


def reached(method: Method, spent: Callable[[Run, Facts], float], budget: float) -> Facts:
    """Accuracies by seed: of the most robust epoch until then, if all had one, and of the most robust one of all.

    `counted` is the share of the budget that had been spent at the last validation that could count.
    """
    runs = method.runs.values()
    by_then = [(run, [line for line in validated(run) if spent(run, line) <= budget]) for run in runs]
    facts = {"method": method.label, "at_the_end": [most_robust(validated(run)) for run in runs]}
    if not all(lines for _, lines in by_then):
        return facts | {"by_then": None, "counted": None}
    counted = min(spent(run, lines[-1]) for run, lines in by_then) / budget
    return facts | {"by_then": [most_robust(lines) for _, lines in by_then], "counted": counted}


def validated(run: Run) -> list[Facts]:
    return [line for line in run.metrics if "validation_robust" in line]


def most_robust(lines: Sequence[Facts]) -> Facts:
    """Of equals the later, whose weights training keeps."""
    line = max(reversed(lines), key=lambda line: line["validation_robust"])
    return {"robust": line["validation_robust"], "clean": line["validation_clean"]}
