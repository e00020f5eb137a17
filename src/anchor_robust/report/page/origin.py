"""Where the numbers come from: recipe, hardware, versions, data, and the commands that make them again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import runs
from ..dotted import written
from ..sheet import Sheet
from .dossier import Dossier
from .parts import Block, Section, named
from .together import Together

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Code:
    """Text to be read or typed as it is."""

    title: str
    text: str


def recipe(page: Together) -> Section:
    having = [entry for entry in page.entries if entry.dossier.recipe]
    says = [] if having else ["No recipe: the model was not trained by anchor train, or its recipe.yaml is missing."]
    apart = [Block("", differences(page))] if differences(page) else []
    blocks = apart + [Block(named(page, entry), [Code("recipe.yaml", entry.dossier.recipe)]) for entry in having]
    return Section("recipe", "Recipe", says, blocks)


def differences(page: Together) -> list[Sheet]:
    """In which settings the methods are not alike."""
    methods = [method for facts in list(page.comparisons.values())[:1] for method in facts["methods"]]
    keys = list(dict.fromkeys(key for method in methods for key in method["differs"]))
    rows = [[key, *(written(method["differs"].get(key, "")) for method in methods)] for key in keys]
    return (
        [Sheet("Settings in which the methods differ", ["setting", *(method["method"] for method in methods)], rows)]
        if rows
        else []
    )


def environment(page: Together) -> Section:
    blocks = [
        Block(named(page, entry), [Sheet("", ["what", "which"], facts(entry.dossier), wrapped=2)])
        for entry in page.entries
    ]
    return Section("environment", "Environment", [], blocks)


def facts(dossier: Dossier) -> list[list[str]]:
    """Hardware, versions and digests, of the training and of the evaluation."""
    record, trained = dossier.record or {}, dossier.environment
    model, data = record.get("model", {}), record.get("data", {})
    told = {
        "model": ", ".join(f"{key} {value}" for key, value in model.items() if key not in ("source", "sha256")),
        "weights, sha256": model.get("sha256"),
        "test images": f"{data['images']:,} of {data['name']} {data['split']}, sha256 {data.get('sha256')}"
        if data
        else None,
        **around("training", trained),
        "training precision": trained.get("precision"),
        **{
            f"{split} images": f"{part['images']:,}, sha256 {part['sha256']}"
            for split, part in trained.get("data", {}).items()
            if isinstance(part, Mapping)
        },
        **around("evaluation", record.get("environment", {})),
        "evaluation seed": record.get("seed"),
        "evaluation batch size": record.get("batch_size"),
    }
    return [[name, str(value)] for name, value in told.items() if value not in (None, "")]


def around(what: str, environment: Facts) -> dict[str, str]:
    if not environment:
        return {}
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    return {
        f"{what} hardware": runs.machine(environment),
        f"{what} versions": f"Python {environment.get('python')}, {versions}",
        f"{what} platform": str(environment.get("platform", "")),
    }


def reproduce(page: Together, command: str) -> Section:
    """The commands in the order in which they were given; `command` made this page."""
    blocks = []
    for entry in page.entries:
        found = entry.dossier.records.values()
        commands = [entry.dossier.environment.get("command")]
        commands += [record.get("environment", {}).get("command") for record in found]
        given = list(dict.fromkeys(each for each in commands if each))
        if given:
            blocks.append(Block(named(page, entry), [Code("", "\n".join(given))]))
    versions = [each.dossier.environment.get("versions", {}).get("anchor-robust") for each in page.entries]
    version = next((each for each in versions if each), None)
    install = f"pip install .  # in the folder of anchor-robust {version}\n" if version else ""
    says = ["The same command, version, data, machine and thread count give the same numbers."]
    return Section(
        "reproduce", "How to do it again", says, [*blocks, Block("", [Code("This page", install + command)])]
    )
