"""When a record replaces another, and which names tell records apart."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from anchor_robust import data, runs
from anchor_robust.evaluation.protocols import PROTOCOLS
from anchor_robust.record import Asked, in_run
from anchor_robust.threat import Ball

DIGITS = Path(__file__).parents[1] / "results" / "digits-anchor"

ASKED: dict[str, Any] = {
    "attacks": ("clean", "pgd20"),
    "curves": (),
    "ball": Ball("linf", 0.15),
    "engine": "anchor",
    "search": "float32",
    "corruptions": False,
}


@pytest.mark.parametrize(
    "change, covers",
    (
        ({}, True),
        ({"images": 50}, False),
        ({"attacks": ("pgd20",)}, False),
        ({"attacks": ("clean", "pgd20", "fgsm")}, True),
        ({"ball": Ball("linf", 0.1)}, False),
        ({"search": "bf16"}, False),
        ({"curves": ("eps",), "corruptions": True}, True),
        ({"data": "mine"}, True),
    ),
)
def test_what_a_run_holds_is_replaced_by_at_least_as_much(change: dict[str, Any], covers: bool) -> None:
    images = data.load("digits", "test").first(change.pop("images", 360))
    images = dataclasses.replace(images, name=change.pop("data", "digits"))
    record = runs.read_json(DIGITS / runs.EVALUATION)
    asked = Asked(images, **ASKED | change)
    assert asked.covers(record) == covers
    assert not asked.covers(record | {"corruptions": []}) or asked.corruptions
    assert not asked.covers(record | {"transfer_from": {}})
    assert dataclasses.replace(asked, origin="anchor seed 1").covers(record | {"transfer_from": {}}) == covers


@pytest.mark.parametrize(
    "change, covers",
    (
        ({}, True),
        ({"curves": ()}, False),
        ({"ball": Ball("linf", 0.1)}, False),
        ({"ball": Ball("l2", 0.15)}, False),
        ({"search": "bf16"}, False),
    ),
)
def test_curves_alone_are_replaced_by_curves_of_the_same_attacks(change: dict[str, Any], covers: bool) -> None:
    images = data.load("digits", "test")
    points = [{"norm": "linf", "eps": eps, "search": "float32"} for eps in (0.1, 0.2)]
    record = {
        "data": {"images": 360, "sha256": images.sha256},
        "threat": {"norm": "linf", "eps": 0.15},
        "results": [{"attack": "clean", "label": "clean", "norm": None, "eps": None}],
        "curves": {"eps": [{"norm": "linf", "eps": 0.0}, *points]},
    }
    asked = Asked(images, **ASKED | {"attacks": ("clean",), "curves": ("eps",)} | change)
    assert asked.covers(record) == covers
    in_bf16 = {"eps": [{**point, "search": "bf16"} for point in points]}
    assert asked.covers(record | {"curves": in_bf16}) == (covers or asked.search == "bf16")


def test_what_is_always_searched_in_float32_does_not_keep_a_bf16_search_from_its_place() -> None:
    images = data.load("digits", "test")
    attacked = {"norm": "linf", "eps": 0.15, "engine": "anchor"}
    results = [
        {"attack": "pgd20", "label": "PGD-20", "search": "bf16", **attacked},
        {"attack": "transfer", "label": "PGD-20 (from other)", "search": "float32", **attacked},
    ]
    record = {"data": {"images": 360, "sha256": images.sha256}, "results": results}
    asked = Asked(images, **ASKED | {"attacks": ("pgd20", "transfer"), "search": "bf16"}, origin="other")
    assert asked.covers(record)


def test_the_name_of_an_evaluation_tells_it_from_others() -> None:
    images = data.load("digits", "test")
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"attacks": ("clean",)},
        {"curves": ("eps",)},
        {"ball": Ball("l2", 0.15)},
        {"ball": Ball("linf", 0.1)},
        {"engine": "reference"},
        {"search": "bf16"},
        {"corruptions": True},
    )
    names = {Asked(images, **ASKED | change).name() for change in changes}
    assert len(names | {Asked(images.first(9), **ASKED).name()}) == len(changes) + 1


def test_the_name_of_a_long_evaluation_is_short_and_its_own() -> None:
    images = data.load("digits", "test")
    long = [Asked(images, **ASKED | {"attacks": tuple(PROTOCOLS)[:count] * 3}) for count in (5, 6)]
    assert len({each.name() for each in long}) == 2
    assert all(len(each.name()) < 200 for each in long)


def test_the_authors_outcomes_are_not_replaced_by_ours() -> None:
    images = data.load("digits", "test")
    theirs = {"attack": "autoattack", "label": "AutoAttack", "norm": "linf", "eps": 0.15, "engine": "pyautoattack"}
    record = {"data": {"images": 360, "sha256": images.sha256}, "results": [theirs]}
    for engine in ("anchor", "reference"):
        asked = Asked(images, **ASKED | {"attacks": ("autoattack",), "engine": engine})
        assert asked.covers(record) == (engine == "reference")


def test_what_is_told_of_weights_that_are_gone_is_replaced(tmp_path: Path) -> None:
    record, target = runs.read_json(DIGITS / runs.EVALUATION), tmp_path / runs.EVALUATION
    shutil.copy(DIGITS / runs.WEIGHTS, tmp_path)
    digest, images = record["model"]["sha256"], data.load("digits", "test")
    runs.write_json(target, record)
    assert in_run(target, Asked(images, **ASKED, weights=digest)) == (target, "")
    for asked in (Asked(images.first(10), **ASKED, weights=digest), Asked(images, **ASKED, weights="those before")):
        kept, why = in_run(target, asked)
        assert (kept.name, why[:5]) == (asked.name(), "kept:")
    runs.write_json(target, record | {"model": {"sha256": "those before"}})
    kept, why = in_run(target, Asked(images.first(10), **ASKED, weights=digest))
    assert kept == target
    assert why.endswith("tells of other weights than the run has now; this evaluation takes its place")
