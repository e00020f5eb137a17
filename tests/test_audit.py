"""Attacks that need more than a model and a ball, corruptions, and what goes into the record beside accuracies."""

from pathlib import Path
from typing import Any

import pytest
import torch

from anchor_robust import audit, data, load
from anchor_robust.attacks import EmbeddingAttack, Transfer
from anchor_robust.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from anchor_robust.display import Display
from anchor_robust.errors import Refusal
from anchor_robust.evaluation.protocols import pgd20
from anchor_robust.report.card import card
from anchor_robust.threat import Ball

RESULTS = Path(__file__).parents[1] / "results"
DIGITS, SIBLING = (str(RESULTS / f"digits-{method}") for method in ("anchor", "pgd-at"))
LIMIT, BALL = 60, Ball("linf", 0.15)
CONTEXTUAL = ("transfer", "embedding-centroid", "embedding-contrast")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return audit.audit(
        DIGITS,
        ["clean", "pgd20", *CONTEXTUAL],
        limit=LIMIT,
        corruptions=True,
        transfer_from=SIBLING,
        out=tmp_path_factory.mktemp("audit") / "record.json",
        display=Display(),
    )


def test_contextual_attacks_are_those_of_the_attacks_room(record: dict[str, Any]) -> None:
    model, sibling = load(DIGITS), load(SIBLING)
    images, bank = data.load("digits", "test").first(LIMIT), data.load("digits", "train").first(audit.REFERENCES)
    x, y = images.pixels(slice(None)), images.labels
    references = (bank.pixels(slice(None)), bank.labels)
    attacks = {
        "transfer": Transfer(sibling, pgd20(BALL)),
        "embedding-centroid": EmbeddingAttack(pgd20(BALL), model.embed, *references),
        "embedding-contrast": EmbeddingAttack(pgd20(BALL), model.embed, *references, loss="contrast"),
    }
    results = {result["attack"]: result for result in record["results"]}
    right = model(x).argmax(1) == y
    for name, attack in attacks.items():
        x_adv = attack(model, x[right], y[right], generator=torch.Generator().manual_seed(1))
        held = (model(x_adv).argmax(1) == y[right]).sum().item() / LIMIT
        assert results[name]["accuracy"] == pytest.approx(held, abs=4 / LIMIT), "another start moves a few images"
        assert results[name]["accuracy"] < results["clean"]["accuracy"]
    assert results["transfer"]["accuracy"] > results["pgd20"]["accuracy"]


def test_the_sibling_serves_the_checks(record: dict[str, Any]) -> None:
    verdicts = {check["name"]: check["verdict"] for check in record["checks"]}
    assert verdicts["stronger than a transferred attack"] == "pass"
    assert "warn" not in verdicts.values()


def test_every_corruption_and_severity_is_measured(record: dict[str, Any]) -> None:
    found = {(entry["corruption"], entry["severity"]): entry for entry in record["corruptions"]}
    assert list(found) == [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    model, images = load(DIGITS), data.load("digits", "test").first(LIMIT)
    x, y = images.pixels(slice(None)), images.labels
    for name in ("brightness", "gaussian_blur"):
        distorted = corrupt(name, 3, x, torch.Generator().manual_seed(0))
        right = (model(distorted).argmax(1) == y).double().mean().item()
        assert found[name, 3]["accuracy"] == pytest.approx(right)
        low, high = found[name, 3]["interval"]
        assert low <= right <= high


def test_the_card_has_a_row_per_corruption(record: dict[str, Any]) -> None:
    page = card(record)
    assert all(f"| {name} |" in page for name in CORRUPTIONS)
    assert "severity 5" in page


@pytest.mark.parametrize(
    "attacks, more, told",
    (
        (["transfer"], {}, "needs --transfer-from RUN"),
        (["pgd20"], {"transfer_from": "nowhere"}, "nowhere does not exist"),
    ),
)
def test_what_is_missing_is_asked_for(attacks: list[str], more: dict[str, Any], told: str) -> None:
    with pytest.raises(Refusal, match=told):
        audit.audit(DIGITS, attacks, limit=5, display=Display(), **more)


def test_embedding_attacks_need_an_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_model.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"model": "plain_model:make", "dataset": "digits", "normalize": "none"}
    with pytest.raises(Refusal, match="needs the embedding of a model that anchor train has written"):
        audit.audit(None, ["embedding-centroid"], limit=5, display=Display(), **named)
