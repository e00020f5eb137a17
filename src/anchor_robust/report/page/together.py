"""Several runs on one page: seeds of one recipe under one name, and what McNemar's test says of each pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ... import runs
from ...errors import Refusal
from ..compare import comparison
from ..compared import probability
from ..paired import stated
from .dossier import Dossier
from .figures import colours

Facts = Mapping[str, Any]
LEVEL = 0.05


@dataclass(frozen=True)
class Entry:
    """What one name on the page stands for: a method with its seeds, or a single run; the first seed is shown whole.

    `records` are its evaluations by file; of several seeds the accuracies are means, and checks those of all.
    """

    label: str
    colour: str
    seeds: Sequence[Dossier]
    records: Mapping[str, Facts]

    @property
    def dossier(self) -> Dossier:
        return self.seeds[0]


@dataclass(frozen=True)
class Together:
    """The entries of a page; comparisons of them by the file that holds their records; why there is none."""

    entries: Sequence[Entry]
    comparisons: dict[str, Facts]
    why_not: str = ""


def together(dossiers: Sequence[Dossier]) -> Together:
    if len(dossiers) == 1:
        return apart(dossiers)
    evaluated = [each for each in dossiers if each.path.is_dir() and each.record and each.recipe]
    if len(evaluated) < 2:
        return apart(dossiers, "There is no comparison, as that takes two evaluated run directories or more.")
    try:
        facts = comparison([each.path for each in evaluated])
    except Refusal as refusal:
        return apart(dossiers, f"There is no comparison: {refusal}.")
    by_path = {str(each.path): each for each in evaluated}
    groups = {method["method"]: [by_path[run] for run in method["runs"]] for method in facts["methods"]}
    for other in dossiers:
        if other not in evaluated:
            groups[other.name if other.name not in groups else str(other.path)] = [other]
    comparisons = {runs.EVALUATION: facts} | compared_further(evaluated)
    entries = [
        Entry(label, colour, seeds, seeds[0].records if len(seeds) == 1 else pooled(label, seeds, comparisons))
        for (label, seeds), colour in zip(groups.items(), colours(len(groups)), strict=True)
    ]
    return Together(entries, comparisons)


def pooled(label: str, seeds: Sequence[Dossier], comparisons: Mapping[str, Facts]) -> dict[str, Facts]:
    """The evaluations of the method `label`: means and deviations over its seeds, and what any seed's checks say.

    `by_seed` are the accuracies of those of its `seeds` that were measured in this way.
    """
    return {
        file: {
            "results": [
                {
                    **entry,
                    "accuracy": row["mean"],
                    "interval": row["interval"],
                    "deviation": row["deviation"],
                    "by_seed": dict(zip(row["seeds"], row["values"], strict=True)),
                    "seeds": len(seeds),
                }
                for entry in facts["results"]
                for row in entry["accuracies"]
                if row["method"] == label
            ],
            "checks": [check for seed in seeds if file in seed.records for check in seed.records[file]["checks"]],
        }
        for file, facts in comparisons.items()
    }


def compared_further(evaluated: Sequence[Dossier]) -> dict[str, Facts]:
    """Comparisons of what lies beside the evaluations in two runs or more under one name."""
    found: dict[str, Facts] = {}
    for name in sorted({name for each in evaluated for name in each.further}):
        having = [each.path for each in evaluated if name in each.further]
        try:
            found |= {name: comparison(having, name)} if len(having) > 1 else {}
        except Refusal:
            continue  # its record is of no use without its outcomes; the evaluation above stands for itself
    return found


def apart(dossiers: Sequence[Dossier], why_not: str = "") -> Together:
    """Each run on its own, under names that differ."""
    names = [each.name for each in dossiers]
    labels = [name if names.count(name) == 1 else str(each.path) for name, each in zip(names, dossiers, strict=True)]
    entries = [
        Entry(label, colour, [each], each.records)
        for label, colour, each in zip(labels, colours(len(labels)), dossiers, strict=True)
    ]
    return Together(entries, {}, why_not)


def mark(pair: Facts) -> str:
    """What McNemar's exact test says of a method against the first one, in words."""
    if not pair["seeds"]:
        return f"not paired: {pair['why_not']}"
    # Pooled, it takes the seeds for independent; each by itself does not.
    by_seed = ", ".join(map(probability, pair["p_by_seed"])) if len(pair["seeds"]) > 1 else ""
    p = stated(pair["p"]) + (f"; by seed {by_seed}" if by_seed else "")
    if pair["p"] >= LEVEL:
        return f"≈ not told apart from {pair['against']} ({p})"
    return f"{'▲ better' if pair['only_method'] > pair['only_first'] else '▼ worse'} than {pair['against']} ({p})"
