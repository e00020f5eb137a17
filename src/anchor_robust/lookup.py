"""Things by their names, as recipes and the command line give them; a wrong name is refused with the nearest one."""

import difflib
import importlib
import operator
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from .errors import Refusal, one_line

Thing = TypeVar("Thing")


def nearest(word: str, allowed: Collection[str]) -> str:
    """The end of a refusal: the name probably meant, and all the names there are."""
    if not allowed:
        return "; there is nothing to set here"
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{meant} (allowed: {', '.join(allowed)})"


def named(what: str, name: str, allowed: Mapping[str, Thing]) -> Thing:
    """`allowed[name]`."""
    if name in allowed:
        return allowed[name]
    raise Refusal(f"{what} {name!r} is unknown{nearest(name, allowed)}")


def named_or_imported(what: str, name: str, built_in: Mapping[str, Any]) -> Any:
    """`built_in[name]`, or the user's own from `package.module.Class` or `package.module:Class.method`."""
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if name in built_in or not module:
        return named(f"{what} (built in, or your own as package.module.Class)", name, built_in)
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # a module of the user's can fail in any way, or be a script
        raise Refusal(
            f"{what} {name!r} cannot be imported ({one_line(error)}); is its folder on PYTHONPATH?"
        ) from error
