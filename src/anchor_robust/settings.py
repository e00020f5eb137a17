"""From plain mappings to typed arguments: what a signature takes, with the types that it states."""

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from .errors import Refusal, one_line
from .lookup import nearest

OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")
FAILED = re.compile(r'Parser key "(\w+)')
FRACTION = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


class Loader(yaml.SafeLoader):
    """Plain values as YAML 1.2's core schema has them, and a key once in a mapping.

    PyYAML follows YAML 1.1, to which 010 is eight, 1:30 ninety, 2024-05-01 a date and 1e-3 a word, and lets a key pass
    that is given twice: the first of two sections would be lost.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


class Dumper(yaml.SafeDumper):
    """Puts words into quotes that either YAML would take for something else."""


CORE = {  # YAML 1.2.2, section 10.3.2, without 0o10 and 0xff; and the merge key of 1.1
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?[0-9]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    "merge": (r"<<", ["<"]),
}
Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in CORE.items():
    for _reader in (Loader, Dumper):
        _reader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_whole_number)


def from_yaml(text: str) -> Any:
    """Plain YAML as plain values; raises yaml.YAMLError, for a key that is given twice as well."""
    try:
        return yaml.load(text, Loader=Loader)
    except ValueError as error:  # a number of more digits than Python reads
        raise yaml.YAMLError(one_line(error)) from error


def to_yaml(value: Any, **style: Any) -> str:
    """YAML that reads back as the same plain values; raises yaml.YAMLError for others."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, **style)


def scalar(value: Any) -> str:
    """A value as YAML writes it on one line."""
    return to_yaml(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def writable(value: Any) -> bool:
    """Whether a recipe can hold the value."""
    try:
        return bool(scalar(value))
    except yaml.YAMLError:
        return False


def typed(cls: type, mapping: Mapping[str, Any], where: str) -> Any:
    values = arguments(cls, mapping, where)
    try:
        return cls(**values)
    except Refusal:
        raise
    except Exception as error:  # a class of the user's can refuse in any way
        raise Refusal(f"{where} cannot be set to {values} ({one_line(error)}); change its settings") from error


def arguments(
    make: Callable[..., Any], mapping: Mapping[str, Any], where: str, skip: Sequence[str] = ()
) -> dict[str, Any]:
    """The arguments that `make` takes, with the types that its signature states, defaults included."""
    if isinstance(make, functools.partial):
        raise Refusal(f"{where} is given as a functools.partial; allowed: a class or a function, which can call it")
    parameters = inspect.signature(make).parameters.items()
    named = [name for name, each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    allowed = [name for name in named if name not in skip]
    known(where, mapping, allowed)
    for key in mapping:
        if mapping[key] is None and dict(parameters)[key].default is not None:
            full = f"{where}.{key}" if where else key
            raise Refusal(f"setting {full} has no value; give one, or leave it out for the default")
    required = {name for name, each in parameters if each.default is each.empty}
    lacking = [f"{where}.{name}" for name in allowed if name in required and name not in mapping]
    if lacking:
        raise Refusal(f"recipe: {' and '.join(lacking)} not given; there is no default")
    try:
        parser = settings_parser(make, skip)
    except ValueError as error:
        raise Refusal(f"{where} cannot be set ({one_line(error)}); state a type for each of its arguments") from error
    meant = {key: as_meant(value, dict(parameters)[key].annotation) for key, value in mapping.items()}
    for key, value in meant.items():
        kind = dict(parameters)[key].annotation
        if isinstance(value, str) and no_words(kind):  # jsonargparse would read 1:30 as YAML 1.1 does, as ninety
            raise Refusal(f"{where}.{key} {value} given; allowed: {wanted(kind)}".removeprefix("."))
    try:
        values = parser.parse_object(meant)
    except ArgumentError as error:
        found = FAILED.search(str(error))
        if not found:
            raise Refusal(f"recipe: {where}: {one_line(error)}") from error
        key = found[1]
        full, kind = f"{where}.{key}" if where else key, inspect.signature(make).parameters[key].annotation
        number = kind in (str, "str") and isinstance(mapping[key], int | float)
        quoted = f", such as {scalar(str(mapping[key]))!r} with both quotes" if number else ""
        raise Refusal(f"{full} {mapping[key]} given; allowed: {wanted(kind)}{quoted}") from error
    return dict(values.as_dict())


def wanted(kind: Any) -> str:
    """A type in the words of who has to give a value of it."""
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(wanted(each) for each in get_args(kind))
    if get_origin(kind) in (tuple, list):
        return "a list of words, such as [a,b]" if str in get_args(kind) else "a list of numbers, such as [1,2]"
    words = {
        float: "a number, such as 0.5 or 8/255",
        int: "a whole number",
        bool: "true or false",
        str: "a word",
        dict: "names with values, such as {a: 1}",
        types.NoneType: "null",
    }
    return words.get(get_origin(kind) or kind, str(kind))


def settings_parser(make: Callable[..., Any], skip: Sequence[str]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    if inspect.isclass(make):
        parser.add_class_arguments(make, skip=set(skip))
    else:
        parser.add_function_arguments(make, skip=set(skip))
    return parser


def known(
    where: str,
    mapping: Mapping[str, Any],
    allowed: Sequence[str],
    sections: Mapping[str, Callable[..., Any]] = types.MappingProxyType({}),
) -> None:
    """Refuse a key that is not `allowed`; the setting of one of the `sections` may be meant."""
    for key in mapping:
        if key not in allowed:
            full = f"{where}.{key}" if where else str(key)
            word = str(key).replace("-", "_")
            meant = [f"{name}.{word}" for name, make in sections.items() if word in inspect.signature(make).parameters]
            told = f"; did you mean {' or '.join(meant)}?" if meant else nearest(word, allowed)
            raise Refusal(f"setting {full} is unknown{told}")


def keywords(text: str) -> dict[str, Any]:
    """'width=32,blocks=[2, 2]' as typed arguments: each value as YAML writes it."""
    found: dict[str, Any] = {}
    for part in OUTSIDE_BRACKETS.split(text) if text.strip() else ():
        key, _, value = part.strip().partition("=")
        if not key.isidentifier() or not value or key in found:
            raise Refusal(f"arguments {text!r} given; allowed: name=value,name=value, each name once")
        found[key] = one_value(key, value)
    return found


def one_value(key: str, text: str) -> Any:
    try:
        return from_yaml(text)
    except yaml.YAMLError as error:
        raise Refusal(f"{key}={text} given; allowed: a value as YAML writes it, such as 3 or [a, b]") from error


def fraction(value: Any) -> Any:
    """'8/255' as a number; anything else as it is."""
    match = FRACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None or not float(match[2]):
        return value
    return float(match[1]) / float(match[2])


def no_words(kind: Any) -> bool:
    """Whether a setting of this type takes numbers, true or false, or nothing."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return all(each in (int, float, bool, types.NoneType) for each in kinds)


def as_meant(value: Any, kind: Any) -> Any:
    """'8/255' as a number, but where a word is wanted; 'a,b', as tables show it, as a list where words are listed."""
    if kind in (str, "str") or (get_origin(kind) in (Union, types.UnionType) and str in get_args(kind)):
        return value
    if isinstance(value, str) and no_words(kind):  # a number in quotes can be nothing else
        with suppress(yaml.YAMLError):
            value = from_yaml(value)
    words = get_origin(kind) in (tuple, list) and str in get_args(kind)
    listed = words and isinstance(value, str) and "," in value
    return [word.strip() for word in value.split(",")] if listed else fraction(value)


def meaning(documented: Sequence[Any]) -> dict[str, str | None]:
    """What the docstrings of functions and classes, bases included, say of each setting; the first to speak wins."""
    each = [base for thing in documented for base in (inspect.getmro(thing) if inspect.isclass(thing) else (thing,))]
    said = [docstring_parser.parse(base.__doc__ or "").params for base in each]
    return {param.arg_name: param.description for params in reversed(said) for param in params}
