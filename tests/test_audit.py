"""Attacks that need more than a model and a ball, corruptions, and what goes into the record beside accuracies."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor_robust import audit, data, load, runs
from anchor_robust.attacks import PGD, EmbeddingAttack, Transfer
from anchor_robust.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from anchor_robust.display import Display
from anchor_robust.errors import Refusal
from anchor_robust.evaluation import Ledger
from anchor_robust.evaluation.protocols import pgd20
from anchor_robust.report.card import card
from anchor_robust.report.measured import corruptions
from anchor_robust.report.record import read
from anchor_robust.subject import Named, under_test
from anchor_robust.threat import Ball

RESULTS = Path(__file__).parents[1] / "results"
DIGITS, SIBLING = (str(RESULTS / f"digits-{method}") for method in ("anchor", "pgd-at"))
LIMIT, BALL = 60, Ball("linf", 0.15)
CONTEXTUAL = ("transfer", "embedding-centroid", "embedding-contrast")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return audit.audit(
        Named(DIGITS),
        ["clean", "pgd20", *CONTEXTUAL],
        limit=LIMIT,
        corruptions=True,
        transfer_from=SIBLING,
        out=tmp_path_factory.mktemp("audit") / "record.json",
        display=Display(),
    )


def test_contextual_attacks_are_those_of_the_attacks_room(record: dict[str, Any]) -> None:
    model, sibling = load(DIGITS), load(SIBLING)
    images, bank = data.load("digits", "test").first(LIMIT), data.sample(data.load("digits", "train"), audit.REFERENCES)
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


def test_a_run_is_measured_on_arrays_with_all_that_needs_more(tmp_path: Path) -> None:
    """The sibling is tried on the same file, and references come from what the model was trained on."""
    arrays(tmp_path / "mine.npz")
    record = audit.audit(
        Named(DIGITS, data=str(tmp_path / "mine.npz")),
        ["clean", "transfer", "embedding-centroid"],
        transfer_from=SIBLING,
        out=tmp_path / "record.json",
        display=Display(),
    )
    assert [result["attack"] for result in record["results"]] == ["clean", "transfer", "embedding-centroid"]
    assert record["transfer_from"]["source"] == SIBLING


def test_adversarials_of_another_model_are_another_result(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(DIGITS, run)
    for file in run.glob("evaluation*"):
        file.unlink()
    for sibling in (SIBLING, DIGITS, SIBLING):
        audit.audit(Named(str(run)), ["clean", "transfer"], limit=30, transfer_from=sibling, display=Display())
    first, second = (
        runs.read_json(path) for path in sorted(run.glob("evaluation*.json"), key=lambda path: len(path.name))
    )
    labels = [record["results"][1]["label"] for record in (first, second)]
    assert [label.split()[:3] for label in labels] == [
        ["PGD-20", "(from", "digits-pgd-at"],
        ["PGD-20", "(from", "digits-anchor"],
    ]


def arrays(path: Path, count: int = 30) -> None:
    """The first digits as arrays of the user's own."""
    test = data.load("digits", "test").first(count)
    x = test.images.permute(0, 2, 3, 1).numpy()
    np.savez(path, x=x, y=test.labels.numpy(), classes=np.array(test.classes))


def test_an_evaluation_that_ended_meanwhile_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, measure = tmp_path / "run", audit.measure
    run.mkdir()
    shutil.copy(Path(DIGITS) / runs.WEIGHTS, run)

    def slowly(*given: Any, **words: Any) -> Any:
        monkeypatch.setattr(audit, "measure", measure)
        audit.audit(Named(str(run)), ["clean", "pgd20"], limit=20, display=Display())
        return measure(*given, **words)

    monkeypatch.setattr(audit, "measure", slowly)
    audit.audit(Named(str(run)), ["clean", "fgsm"], limit=20, display=Display())
    attacks = {
        path.name.split("-digits-")[0]: [result["attack"] for result in runs.read_json(path)["results"]]
        for path in run.glob("evaluation*.json")
    }
    assert attacks == {runs.EVALUATION: ["clean", "pgd20"], "evaluation-clean-fgsm": ["clean", "fgsm"]}
    for path in run.glob("evaluation*.json"):
        read(path)  # each with its own outcomes
    assert f"kept: {run / runs.EVALUATION}" in capsys.readouterr().err
    assert not list(run.glob("*.partial-*"))


def test_another_sibling_does_not_go_on_where_the_first_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = set()

    def stopped(*args: Any, ledger: Ledger, **more: Any) -> None:
        ledger.open(data="the same")
        files.add(ledger.path)
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "measure", stopped)
    for sibling in (SIBLING, DIGITS, SIBLING):
        with pytest.raises(KeyboardInterrupt):
            audit.audit(
                Named(DIGITS), ["transfer"], limit=5, transfer_from=sibling, out=tmp_path / "r.json", display=Display()
            )
    assert len(files) == 2


def test_a_function_whose_weights_nobody_sees_starts_anew_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unseen.py").write_text("def make():\n    return lambda x: x.flatten(1)[:, :10]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    search, calls = PGD.search, list[int]()

    def interrupted(self: PGD, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(self, *given)

    monkeypatch.setattr(PGD, "search", interrupted)
    words: dict[str, Any] = {"limit": 360, "batch_size": 9, "out": tmp_path / "r.json", "display": Display()}
    named = Named(None, "unseen:make", data="digits", normalize="none")
    with pytest.raises(KeyboardInterrupt, match="begins anew, as nobody can see whether the weights of unseen"):
        audit.audit(named, ["pgd20"], **words)
    audit.audit(named, ["pgd20"], **words)
    assert "other settings" not in capsys.readouterr().err
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_second_model_whose_weights_nobody_sees_starts_anew_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = audit.under_test

    def unseen(named: Named, device: torch.device) -> Any:
        found = under(named, device)
        if named.source == SIBLING:
            del found.about["sha256"]
        return found

    def interrupted(self: PGD, *given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "under_test", unseen)
    monkeypatch.setattr(PGD, "search", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"begins anew, as nobody can see whether the weights of {SIBLING}"):
        audit.audit(
            Named(DIGITS), ["pgd20"], transfer_from=SIBLING, out=tmp_path / "r.json", limit=9, display=Display()
        )
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.parametrize("taken", ("data", "card", "outcomes of the run"))
def test_nothing_but_an_evaluation_is_written_over(taken: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(DIGITS, tmp_path / "run"))
    arrays(tmp_path / "mine.npz")
    (tmp_path / "notes.md").write_text("mine")
    out = {
        "data": tmp_path / "mine.json",
        "card": tmp_path / "notes.json",
        "outcomes of the run": run / "outcomes.json",
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(Refusal, match="would be written over; give another name"):
        audit.audit(
            Named(str(run), data=str(tmp_path / "mine.npz") if taken == "data" else None),
            ["clean"],
            limit=5,
            out=out[taken],
            display=Display(),
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("limit", (200, None))
def test_a_limit_that_leaves_classes_out_is_told(
    limit: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = data.load("digits", "test")
    ordered = images.subset(images.labels.argsort(stable=True))
    np.savez(tmp_path / "sorted.npz", x=ordered.images.permute(0, 2, 3, 1).numpy(), y=ordered.labels.numpy())
    lacking = 10 - len(ordered.labels[:limit].unique())
    mine = str(tmp_path / "sorted.npz")
    audit.audit(Named(DIGITS, data=mine), ["clean"], limit=limit, out=tmp_path / "r.json", display=Display())
    told = f"lack {lacking} of the classes" in capsys.readouterr().err
    assert told == (lacking > 0)


@pytest.mark.parametrize("ours", (True, False))
def test_a_card_whose_record_is_gone_is_written_over_if_it_is_ours(ours: bool, tmp_path: Path) -> None:
    run = Path(shutil.copytree(DIGITS, tmp_path / "run"))
    (run / runs.EVALUATION).unlink()
    if ours:
        audit.audit(Named(str(run)), ["clean"], limit=5, display=Display())
        assert (run / runs.EVALUATION).exists()
        return
    (run / runs.CARD).write_text("mine")
    with pytest.raises(Refusal, match="would be written over"):
        audit.audit(Named(str(run)), ["clean"], limit=5, display=Display())
    assert (run / runs.CARD).read_text() == "mine"


def test_a_record_of_ones_own_name_may_be_measured_again(tmp_path: Path) -> None:
    for _ in range(2):
        audit.audit(Named(DIGITS), ["clean"], limit=5, out=tmp_path / "again.json", display=Display())


def test_references_hold_every_class_of_a_set_in_order() -> None:
    train = data.load("digits", "train")
    ordered = train.subset(train.labels.argsort())
    rare = ordered.subset(torch.cat([torch.arange(170), torch.tensor([len(ordered) - 1])]))
    few = data.sample(rare, 20)
    assert len(few) <= 22
    assert set(few.labels.tolist()) == set(rare.labels.tolist())


def test_images_of_other_channels_than_the_models_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rgb.npz", x=np.zeros((20, 8, 8, 3), np.uint8), y=np.arange(20) % 10)
    with pytest.raises(Refusal, match=r"rgb has images of 3 channels, and .* was trained on 1"):
        audit.audit(Named(DIGITS, data=str(tmp_path / "rgb.npz")), out=tmp_path / "r.json", display=Display())


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


def test_the_mean_over_severities_is_that() -> None:
    entries = [{"corruption": "fog", "severity": n + 1, "accuracy": share} for n, share in enumerate((0.9, 0.6, 0.3))]
    assert corruptions(entries).rows == [["fog", "90.00 %", "60.00 %", "30.00 %", "60.00 %"]]


def test_the_card_has_a_row_per_corruption(record: dict[str, Any]) -> None:
    page = card(record)
    assert all(f"| {name} |" in page for name in CORRUPTIONS)
    assert "by severity\n\n| corruption | 1 | 2 | 3 | 4 | 5 | mean |" in page


@pytest.mark.parametrize(
    "attacks, more, told",
    (
        (["transfer"], {}, "needs --transfer-from RUN"),
        (["pgd20"], {"transfer_from": "nowhere"}, "nowhere does not exist"),
    ),
)
def test_what_is_missing_is_asked_for(attacks: list[str], more: dict[str, Any], told: str) -> None:
    with pytest.raises(Refusal, match=told):
        audit.audit(Named(DIGITS), attacks, limit=5, display=Display(), **more)


def test_a_file_that_does_not_say_all_is_no_source_of_transfers(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "small.pt")
    with pytest.raises(Refusal, match=r"--transfer-from .*small.pt given; allowed: a run or weights of anchor train"):
        audit.audit(Named(DIGITS), ["transfer"], limit=5, transfer_from=str(tmp_path / "small.pt"), display=Display())


def test_it_says_where_nothing_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    audit.audit(Named(f"{DIGITS}/{runs.WEIGHTS}"), ["clean"], limit=2, display=Display())
    assert "nothing is kept; --out FILE.json keeps the record" in capsys.readouterr().err


def test_a_stop_within_the_corruptions_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "corrupted", stopped)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from"):
        audit.audit(Named(DIGITS), ["clean"], limit=2, corruptions=True, out=tmp_path / "r.json", display=Display())


def test_embedding_attacks_need_an_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_model.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    named = Named(None, "plain_model:make", data="digits", normalize="none")
    with pytest.raises(Refusal, match="needs the embedding of a model that anchor train has written"):
        audit.audit(named, ["embedding-centroid"], limit=5, display=Display())


def test_every_word_reaches_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def stopped(*given: Any, **more: Any) -> None:
        seen.update(more)
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "measure", stopped)
    asked: dict[str, Any] = {"batch_size": 7, "seed": 3, "engine": "reference", "search": "bf16", "curves": ("eps",)}
    where = {"limit": 5, "out": tmp_path / "r.json", "display": Display()}
    with pytest.raises(KeyboardInterrupt):
        audit.audit(Named(DIGITS), ["autoattack"], norm="l2", eps=0.5, **asked, **where)
    assert asked.items() <= seen.items()
    assert seen["ball"] == Ball("l2", 0.5)
    told = seen["ledger"].identity
    assert told["model"]["sha256"] == hashlib.sha256((Path(DIGITS) / runs.WEIGHTS).read_bytes()).hexdigest()
    assert {"device", "versions"} <= told["environment"].keys()


@pytest.mark.parametrize("loss", ("centroid", "contrast"))
def test_embedding_attacks_climb_their_own_loss_from_training_images(loss: str) -> None:
    planned = audit.in_context(f"embedding-{loss}", under_test(Named(DIGITS), torch.device("cpu")), None, BALL, None)
    (attack,) = planned.stages[0].attacks
    bank = data.sample(data.load("digits", "train"), audit.REFERENCES)
    assert attack.loss == loss
    assert torch.equal(attack.references, bank.pixels(slice(None)))
