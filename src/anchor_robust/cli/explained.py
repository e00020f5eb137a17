"""A recipe with the meaning of every setting beside it, as `anchor recipes NAME` prints it."""

import itertools
import textwrap

from .. import models, objectives
from ..recipe import SECTIONS, Recipe, as_mapping, built_in, settle
from ..sections import Model
from ..settings import meaning, scalar


def promise(text: str) -> list[str]:
    """The header of a recipe file: its leading comment lines."""
    return [line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())]


def explained(source: str) -> str:
    """A recipe as YAML with the meaning of every setting beside it, ready to be saved and changed."""
    recipe = settle(source)
    method = {"objective": [type(recipe.objective), objectives.Objective]}
    backbone = {"model": [models.factory(recipe.model.name), Model]}
    documents = {"": [Recipe]} | {name: [cls] for name, cls in SECTIONS.items()} | method | backbone
    meanings = {name: meaning(parts) for name, parts in documents.items()}
    lines = [f"# {line}" for line in promise(built_in().get(source, ""))]
    for key, value in as_mapping(recipe).items():
        if not isinstance(value, dict):
            lines += ["", *comment(meanings[""].get(key)), f"{key}: {scalar(value)}"]
            continue
        lines += ["", f"{key}:"]
        for name, setting in value.items():
            lines += [f"  {line}" for line in (*comment(meanings[key].get(name)), f"{name}: {scalar(setting)}")]
    return "\n".join(lines).lstrip("\n") + "\n"


def comment(meaning: str | None) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(meaning or "", 100)]
