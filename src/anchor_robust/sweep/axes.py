"""What is swept: `KEY=VALUES` as typed, and the points that a grid or a search takes from it."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import Refusal
from ..recipe import merge
from ..report.compare import VALIDATED
from ..report.dotted import flat
from ..settings import fraction, from_yaml, scalar

Point = dict[str, str]
NUMBER = r"[-+.\deE/ ]+?"
RANGE = re.compile(rf"(?P<log>log:)?(?P<low>{NUMBER})\.\.(?P<high>{NUMBER})")
FORBIDDEN = {
    "seed": "--seeds N trains each combination with seeds 0 to N - 1",
    "name": "a name decides no number",
    **dict.fromkeys(
        VALIDATED, "it decides how hard the validation is that ranks them; sweep at one value, then at another"
    ),
}


@dataclass(frozen=True)
class Axis:
    """A setting `key` and its values as YAML writes them; of a range, its two ends.

    `scale` is `values` for a list, else how a search draws between the ends: `linear` or `log`.
    """

    key: str
    values: tuple[str, ...]
    scale: str = "values"


def parse(over: Sequence[str], settings: Sequence[str], search: bool) -> list[Axis]:
    """The axes of `--over` words; `settings` are the `--key value` words that stay fixed."""
    if not over:
        raise Refusal("nothing to sweep given; write --over section.key=value,value, once for each setting")
    found = [axis(text) for text in over]
    keys = [each.key for each in found]
    fixed = flat(merge({}, settings))
    for key in keys:
        if key in FORBIDDEN:
            raise Refusal(f"--over {key} given; it is not swept: {FORBIDDEN[key]}")
        if keys.count(key) > 1:
            raise Refusal(f"--over {key} given {keys.count(key)} times; write its values behind one --over")
        if key in fixed:
            raise Refusal(f"--{key} and --over {key} given; allowed: one of the two")
    if "seed" in fixed:
        raise Refusal(f"--seed {fixed['seed']} given; {FORBIDDEN['seed']}")
    for each in found:
        if each.scale != "values" and not search:
            raise Refusal(f"--over {each.key} is a range; only a search takes one: add --tries N, or list its values")
    return found


def axis(text: str) -> Axis:
    key, _, listed = text.partition("=")
    if not key.strip() or not listed.strip():
        raise Refusal(f"--over {text} given; write --over section.key=value,value")
    between = RANGE.fullmatch(listed.strip())
    if between:
        scale = "log" if between["log"] else "linear"
        return Axis(key, ends(text, between["low"], between["high"], scale), scale)
    try:
        # YAML's own list splits at the right commas: [a,b],[c] are two values.
        values = from_yaml(f"[{listed}]")
    except yaml.YAMLError:
        values = None
    if not isinstance(values, list) or not values or any(isinstance(value, dict) for value in values):
        raise Refusal(f"--over {text} given; allowed: values with commas between, such as 1,2 or [a,b],[c]")
    return Axis(key, tuple(scalar(value) for value in values))


def ends(text: str, low: str, high: str, scale: str) -> tuple[str, str]:
    try:
        first, last = number(low), number(high)
    except ValueError:
        raise Refusal(f"--over {text} given; allowed: a range of numbers such as 0.1..1 or log:0.1..1") from None
    if not first < last or (scale == "log" and first <= 0):
        raise Refusal(f"--over {text} given; the lower end comes first" + " and lies above 0" * (scale == "log"))
    return low, high


def number(text: str) -> float:
    return float(fraction(text))


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination, the last axis fastest."""
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def corners(axes: Sequence[Axis]) -> list[Point]:
    """Each value, and each end of a range, beside the first ones of the others: what a search may meet."""
    first = {axis.key: axis.values[0] for axis in axes}
    return [first, *(first | {axis.key: value} for axis in axes for value in axis.values[1:])]


def search(axes: Sequence[Axis], whole: Sequence[str], tries: int, visit: Callable[[Point], float | None]) -> None:
    """Visit `tries` points, picked by Optuna's TPE sampler to make `visit` large (Bergstra et al. 2011, NeurIPS 24).

    The sampler is seeded and the study lives in memory: a search that is begun anew, whose visits give the values that
    they gave before, picks the points that it picked before. `visit` returns None where a point failed; the settings
    in `whole` take whole numbers, others are drawn with four significant digits.
    """
    optuna = optional_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    space = {axis.key: distribution(optuna, axis, axis.key in whole) for axis in axes}
    for _ in range(tries):
        trial = study.ask(space)
        score = visit({axis.key: written(trial.params[axis.key], axis) for axis in axes})
        study.tell(trial, score, state=optuna.trial.TrialState.FAIL if score is None else None)


def optional_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise Refusal("--tries needs optuna, which is not installed: pip install 'anchor-robust[sweep]'") from None
    return optuna


def distribution(optuna: Any, axis: Axis, whole: bool) -> Any:
    if axis.scale == "values":
        return optuna.distributions.CategoricalDistribution(axis.values)
    low, high = map(number, axis.values)
    if whole:
        return optuna.distributions.IntDistribution(round(low), round(high), log=axis.scale == "log")
    return optuna.distributions.FloatDistribution(low, high, log=axis.scale == "log")


def written(value: str | int | float, axis: Axis) -> str:
    """A drawn value as YAML writes it, rounded inside its range; values of a list are written already."""
    if not isinstance(value, float):
        return str(value)
    low, high = map(number, axis.values)
    return scalar(min(max(float(f"{value:.4g}"), low), high))
