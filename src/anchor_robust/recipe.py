"""A recipe: every setting of one experiment, read from YAML, checked, and written back resolved."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from . import models, objectives
from .errors import Refusal, one_line
from .lookup import nearest
from .objectives import Objective
from .optimise import Optimise
from .sections import Attack, Data, Model, Validation
from .settings import arguments, from_yaml, known, to_yaml, typed, writable
from .threat import Ball


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's numbers.

    Attributes:
        name: What the run is called in tables.
        seed: Seed of the initial weights, the order of the images, augmentation and attacks.
    """

    name: str
    seed: int
    data: Data
    model: Model
    threat: Ball
    attack: Attack
    objective: Objective
    optimise: Optimise
    validation: Validation

    def warnings(self) -> list[str]:
        """What can be run and is probably not meant."""
        told, ball = [], f"eps {self.threat.eps:g}"
        for where, search in (("attack", self.attack), ("validation", self.validation)):
            reach = search.steps * search.step_size
            if reach < self.threat.eps:
                told.append(
                    f"{where} moves at most {reach:g} from its start, less than {ball}; raise steps or step_size"
                )
            if search.step_size > 2 * self.threat.eps:
                told.append(f"{where} crosses the ball of {ball} in one step of {search.step_size:g}; lower step_size")
        return told

    def passes(self) -> float:
        """Forward-and-backward passes that a step costs for each image, those of the attack included, on average.

        Not in it: what Fast-AT's guard adds in a collapse, and the second forward pass of micro-batches.
        """
        perturbing = self.objective.passes(0) * (1 - self.optimise.awp_from) if self.optimise.awp else 0
        return self.objective.passes(self.attack.steps) + perturbing

    def cost(self) -> str:
        """What training costs, in forward-and-backward passes of one image; what seconds are made of everywhere."""
        passes, epochs = self.passes(), self.optimise.epochs
        total = f"{passes:g} x {epochs} = {passes * epochs:g}"
        return f"{total} forward-and-backward passes of every image (per step x epochs)"

    def text(self) -> str:
        """The recipe as YAML that reads back as the same recipe."""
        return to_yaml(as_mapping(self))


REPLACING = {"model.name": "resnet18", "objective.name": "anchor"}  # and what they are where nothing is said
SECTIONS: dict[str, type] = {
    "data": Data,
    "threat": Ball,
    "attack": Attack,
    "optimise": Optimise,
    "validation": Validation,
}


def built_in() -> dict[str, str]:
    """Built-in recipes: name -> YAML text, header comment included."""
    folder = resources.files(__package__) / "recipes"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda f: f.name)
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in files}


def settle(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a built-in name or a YAML file, with `--key value` pairs on top; Refusal names what is wrong."""
    mapping = merge(read(source), overrides)
    mapping.setdefault("name", Path(source).stem)
    return from_mapping(mapping)


def read(source: str) -> dict[str, Any]:
    recipes = built_in()
    if source in recipes:
        return from_yaml(recipes[source])
    path = Path(source)
    if not path.is_file():
        raise Refusal(f"recipe {source!r} is neither a YAML file nor built in{nearest(source, recipes)}")
    try:
        mapping = from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Refusal(f"recipe {source} cannot be read: {one_line(error)}") from error
    if not isinstance(mapping, dict):
        raise Refusal(f"recipe {source} holds a {type(mapping).__name__}; it must hold settings as key: value")
    return mapping


def merge(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `--section.key value` or `--section.key=value` over a mapping.

    Another model or objective starts from its own defaults: the settings of the one that it replaces are dropped.
    """
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise Refusal(f"settings {' '.join(overrides)!r} given; write them as --section.key value")
    pairs = [(key.removeprefix("--"), value) for key, value in zip(words[::2], words[1::2], strict=True)]
    for key, value in sorted(pairs, key=lambda pair: pair[0] not in REPLACING):
        *sections, last = key.split(".")
        target = mapping
        for section in sections:
            target[section] = {} if target.get(section) is None else target[section]
            target = target[section]
            if not isinstance(target, dict):
                raise Refusal(f"setting {key} given, but {section} is no section")
        if key in REPLACING and target.get("name", REPLACING[key]) != value:
            target.clear()
        try:
            target[last] = from_yaml(value)
        except yaml.YAMLError as error:
            raise Refusal(
                f"--{key} {value!r} given; allowed: a value as YAML writes it, such as 3 or [a, b]"
            ) from error
    return mapping


def from_mapping(mapping: Mapping[str, Any]) -> Recipe:
    """Check every key and type of a nested mapping and build the recipe."""
    known("", mapping, [field.name for field in dataclasses.fields(Recipe)], within(mapping))
    sections = {name: typed(cls, section(mapping, name), name) for name, cls in SECTIONS.items()}
    model = dict(section(mapping, "model"))
    name = str(model.pop("name", REPLACING["model.name"]))
    make = models.factory(name)
    # A layer's class or a function as a default, which YAML cannot write, is left to the model.
    settings = {
        key: value
        for key, value in arguments(make, model, "model", skip=("classes", "channels")).items()
        if key in model or writable(value)
    }
    objective = dict(section(mapping, "objective"))
    method = objectives.find(str(objective.pop("name", REPLACING["objective.name"])))
    top = typed(Top, {key: mapping[key] for key in ("name", "seed") if key in mapping}, "")
    recipe = Recipe(
        **dataclasses.asdict(top),
        model=Model(name, settings),
        objective=typed(method, objective, "objective"),
        **sections,
    )
    if recipe.threat.eps == 0:
        raise Refusal("threat.eps 0 given; allowed: above 0; objective standard trains without an attack")
    for where, held in as_mapping(recipe).items():
        for key, value in held.items() if isinstance(held, dict) else ():
            if not writable(value):
                raise Refusal(f"{where}.{key} {value!r} given; allowed: numbers, words, and lists or mappings of them")
    for search in (recipe.attack, recipe.validation):
        search.pgd(recipe.threat)  # refuses steps that no attack can take, before anything is trained
    return recipe


def within(mapping: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """What each section's settings are those of, as far as its `name` is one that is known."""
    found: dict[str, Callable[..., Any]] = dict(SECTIONS)
    for name, named in (("model", models.factory), ("objective", objectives.find)):
        with suppress(Refusal, KeyError, TypeError):
            found[name] = named(str(mapping[name]["name"]))
    return found


@dataclass(frozen=True)
class Top:
    """What stands outside the sections."""

    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name.strip(". ") or "/" in self.name:
            raise Refusal(f"name {self.name!r} given; allowed: a word without /, as it also names the run's directory")
        if not 0 <= self.seed < 2**32:
            raise Refusal(f"seed {self.seed} given; allowed: 0 to {2**32 - 1}")


def as_mapping(recipe: Recipe) -> dict[str, Any]:
    nested: dict[str, Any] = {
        key: value if isinstance(value, str | int) else given(value) for key, value in given(recipe).items()
    }
    nested["model"] = {"name": recipe.model.name, **recipe.model.settings}
    nested["objective"] = {"name": found_by(type(recipe.objective)), **nested["objective"]}
    return nested


def found_by(method: type[Objective]) -> str:
    """The name by which a recipe finds a method: its short one, or where it is imported from."""
    if method in objectives.discover().values():
        return method.name
    return f"{method.__module__}{':' if '.' in method.__qualname__ else '.'}{method.__qualname__}"


def given(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that were given to it, not those that it makes of them."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings) if field.init}


def section(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = {} if mapping.get(name) is None else mapping[name]
    if not isinstance(found, Mapping):
        raise Refusal(f"{name}: {found!r} given; it is a section, write {name}.key: value")
    return found
