"""The page of anchor report: what it says, what it leaves out, and that nothing in a name becomes markup or code."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anchor_robust import runs
from anchor_robust.amplified import amplification
from anchor_robust.cli import main
from anchor_robust.errors import Refusal
from anchor_robust.finite import finite
from anchor_robust.report.compare import comparison
from anchor_robust.report.page import tiles, write
from anchor_robust.report.page.accuracy import by_name
from anchor_robust.report.page.dossier import read
from anchor_robust.report.page.explanations import why
from anchor_robust.report.page.figures import plain
from anchor_robust.report.page.pictures import png
from anchor_robust.report.page.together import mark, together
from anchor_robust.report.page.training import best, training
from anchor_robust.report.page.verdict import headline, radius, verdict

RESULTS = Path(__file__).parents[1] / "results"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, texts, scripts by their place, and what the script draws."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        where = self.texts if self.open[-1:] not in (["script"], ["style"]) else None
        if self.open[-1:] == ["script"]:
            where = self.scripts
        if where is not None:
            where.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write([evaluated_run], tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def run(evaluated_run: Path, tmp_path: Path) -> Path:
    """A copy to take things away from."""
    return Path(shutil.copytree(evaluated_run, tmp_path / "run"))


def edit(file: Path, **changes: Any) -> None:
    record = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def three_runs(evaluated: Path, folder: Path) -> list[Path]:
    """Two seeds of one recipe, and another recipe that holds fewer images."""
    made = []
    for name, seed, method, fewer in (("a-0", 0, "anchor", 0), ("a-1", 1, "anchor", 4), ("b-0", 0, "pgd-at", 9)):
        run = Path(shutil.copytree(evaluated, folder / name))
        recipe = yaml.safe_load((run / runs.RECIPE).read_text())
        recipe |= {"name": method, "seed": seed, "objective": {"name": method}}
        (run / runs.RECIPE).write_text(yaml.safe_dump(recipe))
        outcomes = dict(np.load(run / runs.OUTCOMES))
        held = outcomes["held_pgd20"]
        held[np.flatnonzero(held)[:fewer]] = False
        outcomes["prediction_pgd20"] = np.where(held, outcomes["label"], (outcomes["label"] + 1) % 10)
        np.savez(run / runs.OUTCOMES, **outcomes)
        record = runs.read_json(run / runs.EVALUATION)
        record["results"][1] |= {"accuracy": float(held.mean())}
        record["outcomes"]["sha256"] = hashlib.sha256((run / runs.OUTCOMES).read_bytes()).hexdigest()
        runs.write_json(run / runs.EVALUATION, record)
        made.append(run)
    return made


# --- one run ----------------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_and_no_other_script_may_run(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster", "background"):
            assert attributes.get(name, "").startswith(("#", "data:")) or name not in attributes, (tag, attributes)
    assert "@import" not in page.source
    assert not re.search(r"url\(\s*['\"]?(?!data:)[a-z]", page.source.split("<style>")[1].split("</style>")[0])
    policy = next(each["content"] for each in page.all("meta") if "http-equiv" in each)
    assert "default-src 'none'" in policy
    hashes = re.findall(r"'(sha256-[^']+)'", policy)
    run = page.scripts[1:]
    assert len(run) == 2
    assert hashes == [f"sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}" for each in run]
    assert "unsafe" not in policy.split("script-src")[1]


def test_the_markup_is_sound(page: Page) -> None:
    assert page.source.count("<!DOCTYPE html>") == 1
    assert page.all("html") == [{"lang": "en"}]
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all("alt" in image for image in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    targets = [each["href"][1:] for each in page.all("a")]
    assert targets
    assert set(targets) <= set(ids)
    assert len(page.all("title")) == 1


def test_everything_that_was_asked_of_the_page_is_there(page: Page, evaluated_run: Path) -> None:
    record = runs.read_json(evaluated_run / runs.EVALUATION)
    sections = [each["id"] for each in page.all("section")]
    expected = ["results", "checks", "gallery", "curves", "classes", "confusion", "map", "training"]
    assert sections == [*expected, "cost", "recipe", "environment", "reproduce"]
    assert "no warnings" in page.text or "warning" in page.text
    for result in record["results"]:
        assert f"{100 * result['accuracy']:.2f} %" in page.text
    assert "linf eps 0.15, 20 x 0.01452, uniform start, 1 restart, ce, float32" in page.text
    for check in record["checks"]:
        assert check["name"] in page.text
        assert check["detail"] in page.text
        assert why(check["name"]), "every check is explained"
        assert why(check["name"]) in page.text
    assert (evaluated_run / runs.RECIPE).read_text().split()[1] in page.text
    environment = runs.read_json(evaluated_run / runs.ENVIRONMENT)
    for fact in (environment["command"], environment["device"], record["model"]["sha256"], record["data"]["sha256"]):
        assert fact in page.text
    assert "anchor report" in page.text
    kinds = {name.split("-")[0]: part for name, part in page.data["parts"].items()}
    assert set(kinds) == {"gallery", "curves", "classes", "confusion", "map", "training"}
    drawn = page.text
    for logged in (
        "Contrastive loss",
        "Learning rate",
        "validation, under attack",
        "Cross-entropy",
        "training batches",
    ):
        assert logged in drawn


def test_every_figure_is_one_that_plotly_knows(page: Page) -> None:
    from plotly.graph_objects import Figure

    figures = [part for part in page.data["parts"].values() if "layout" in part]
    assert len(figures) >= 9
    for figure in figures:
        Figure(figure)


def test_the_gallery_and_the_map_show_what_was_kept(page: Page, evaluated_run: Path) -> None:
    kept = np.load(evaluated_run / runs.PICTURES)
    parts, pictures = page.data["parts"], page.data["pictures"]
    gallery, embeddings = parts["gallery-0-0"], parts["map-0-0"]

    def pixels(place: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[place]))), dtype=int)

    assert gallery["eps"][gallery["start"]] == "0.15 (38.2/255)"
    assert len(gallery["cards"]) == len(kept["gallery_index"])
    for place, card in enumerate(gallery["cards"]):
        clean = kept["gallery_clean"][place, 0].astype(int)
        assert (pixels(card["attacked"][0]) == clean).all()
        for at, move in enumerate(kept["gallery_move"][:, place, 0].astype(int)):
            assert (pixels(card["attacked"][1 + at]) == clean + move).all()
            assert (pixels(card["moved"][1 + at]) == (128 + gallery["factor"] * move).clip(0, 255)).all()
        assert card["said"] == [str(answer) for answer in kept["gallery_prediction"][:, place]]
        assert card["right"] == [
            answer == kept["gallery_label"][place] for answer in kept["gallery_prediction"][:, place]
        ]
    assert gallery["factor"] == 127 // 38
    assert [view["name"].split()[0] for view in embeddings["views"]] == ["PCA", "t-SNE", "PCA", "t-SNE"]
    assert np.allclose(embeddings["views"][2]["points"], kept["map_projection_pca"], atol=1e-3)
    for place, point in enumerate(embeddings["points"]):
        assert (pixels(point["pictures"][0]) == kept["map_clean"][place, 0]).all()
        assert (
            pixels(point["pictures"][1]) == kept["map_clean"][place, 0].astype(int) + kept["map_move"][place, 0]
        ).all()
    assert len(pictures) == len(set(pictures)), "each picture is there once"


def test_the_confusion_counts_every_image_once(page: Page, evaluated_run: Path) -> None:
    outcomes = np.load(evaluated_run / runs.OUTCOMES)
    for number, key in enumerate(("clean_prediction", "prediction_pgd20")):
        (trace,) = page.data["parts"][f"confusion-0-{number}"]["data"]
        counts = np.array(trace["text"])
        assert counts.sum() == len(outcomes["label"])
        for true in range(10):
            for said in range(10):
                assert counts[true, said] == ((outcomes["label"] == true) & (outcomes[key] == said)).sum()


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 1000))
def test_pictures_keep_every_pixel(height: int, width: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    opened = np.asarray(Image.open(io.BytesIO(png(pixels)))).reshape(height, width, channels)
    assert (opened.transpose(2, 0, 1) == pixels).all()


def test_perturbations_are_amplified_as_far_as_they_can_be_seen() -> None:
    assert amplification(8) == 10
    assert amplification(38) == 3
    assert amplification(255) == 1
    assert amplification(0) == 10


# --- the verdict ------------------------------------------------------------------------------------------------------


def result(
    label: str, accuracy: float, images: int = 10_000, eps: float | None = 8 / 255, **more: Any
) -> dict[str, Any]:
    interval = [accuracy - 0.0101, accuracy + 0.0099]
    return {
        "label": label,
        "accuracy": accuracy,
        "interval": interval,
        "images": images,
        "norm": "linf",
        "eps": eps,
    } | more


def record(*results: dict[str, Any], warnings: int = 0) -> dict[str, Any]:
    checks = [{"name": f"check {n}", "verdict": "warn" if n < warnings else "pass", "detail": ""} for n in range(4)]
    return {"results": list(results), "checks": checks}


def test_the_verdict_is_one_plain_sentence() -> None:
    clean, pgd, full = result("clean", 0.8, eps=None), result("PGD-20", 0.52), result("AutoAttack", 0.481)
    told = verdict({"evaluation.json": record(clean, pgd, full, warnings=2)})
    assert told == (
        "holds 48.1 % [47.1, 49.1] of its answers under AutoAttack at 8/255 (80.0 % without an attack), "
        "on 10,000 images; two warnings"
    )
    assert "under PGD-20 at 8/255" in verdict({"evaluation.json": record(clean, pgd, result("FGSM", 0.6))})
    assert verdict({"evaluation.json": record(clean, pgd, warnings=1)}).endswith("; one warning")
    assert verdict({"evaluation.json": record(clean, pgd)}).endswith("; no warnings")
    unmade = record(clean, pgd)
    unmade["checks"] += [{"name": "needs a sibling", "verdict": "skip", "detail": ""}]
    assert verdict({"evaluation.json": unmade}).endswith("; no warnings")
    unmade["checks"] += [{"name": "needs images", "verdict": "skip", "detail": ""}]
    assert verdict({"evaluation.json": unmade}).endswith("; no warnings, but 2 of 6 checks could not be made")
    made = {
        "evaluation.json": unmade,
        "more.json": record(pgd) | {"checks": [{"name": "needs images", "verdict": "pass"}]},
    }
    assert verdict(made).endswith("; no warnings"), "made in another evaluation"
    assert "under attack it has not been measured" in verdict({"evaluation.json": record(clean)})
    assert "not been evaluated" in verdict({})


def test_autoattack_counts_even_on_fewer_images_and_beside_the_evaluation() -> None:
    pgd, full = result("PGD-20", 0.3), result("AutoAttack", 0.31, images=500)
    found = headline({"evaluation.json": record(pgd), "autoattack.json": record(full)})
    assert found is not None
    assert found[1] is full
    warned = {"evaluation.json": record(pgd, warnings=3), "autoattack.json": record(full, warnings=2)}
    assert "three warnings" in verdict(warned), "a check counts once"


def test_noise_on_many_images_says_less_than_an_attack_on_some() -> None:
    noise, attack = result("noise", 0.8, images=10_000), result("PGD-100", 0.3, images=500)
    attack["interval"] = [0.26, 0.34]
    few = result("PGD-100", 0.28, images=25) | {"interval": [0.14, 0.47]}
    found = headline({"evaluation.json": record(noise, attack, few)})
    assert found is not None
    assert found[1] is attack


def test_another_ball_is_another_question() -> None:
    own, wide = result("PGD-20", 0.6), result("AutoAttack", 0.0, eps=0.4)
    found = headline({"evaluation.json": record(own), "evaluation-0.4.json": record(wide)})
    assert found is not None
    assert found[1] is own


def test_seeds_are_told() -> None:
    def of(label: str, **by_seed: float) -> dict[str, Any]:
        return result(label, fmean(by_seed.values()), by_seed=by_seed, seeds=3)

    clean, three = of("clean", a=0.7, b=0.8, c=0.9), of("PGD-20", a=0.4, b=0.5, c=0.6) | {"deviation": 0.1}
    told = verdict({"evaluation.json": record(clean, three)})
    assert "holds 50.0 % [49.0, 51.0] of its answers, ± 10.0 over 3 seeds, under PGD-20" in told
    assert "(80.0 % without an attack)" in told
    two = of("AutoAttack", a=0.4, b=0.5) | {"deviation": 0.07}
    told = verdict({"evaluation.json": record(clean, three, two)})
    assert "± 7.0 over 2 of 3 seeds, under AutoAttack at 8/255 (75.0 % without an attack)" in told
    told = verdict({"evaluation.json": record(clean, three, of("AutoAttack", b=0.4))})
    assert "of its answers (1 of 3 seeds) under AutoAttack at 8/255 (80.0 % without an attack)" in told
    told = verdict({"evaluation.json": record(of("clean", a=0.7), of("AutoAttack", b=0.4))})
    assert "under AutoAttack at 8/255, on" in told, "another seed's clean accuracy is none of this one's"
    few = of("AutoAttack", b=0.4) | {"data": {"sha256": "few"}}
    told = verdict({"evaluation.json": record(clean, of("clean", b=0.9) | {"data": {"sha256": "few"}}, few)})
    assert "(90.0 % without an attack)" in told, "on the same images"


@pytest.mark.parametrize(
    "norm, eps, told",
    [("linf", 8 / 255, "8/255"), ("linf", 0.031, "0.031"), ("linf", 0.5 / 255, "0.001961"), ("l2", 0.5, "l2 0.5")],
)
def test_eps_is_told_as_it_was_meant(norm: str, eps: float, told: str) -> None:
    assert radius({"norm": norm, "eps": eps}) == told


# --- what is missing --------------------------------------------------------------------------------------------------

LESS: dict[str, tuple[tuple[str, ...], str]] = {
    "no evaluation": ((runs.EVALUATION, runs.OUTCOMES, runs.PICTURES), "anchor evaluate {run}"),
    "no outcomes": ((runs.OUTCOMES,), "outcomes.npz is missing"),
    "no pictures": ((runs.PICTURES,), "pictures.npz is missing"),
    "no training": ((runs.METRICS,), "metrics.jsonl holds no epoch"),
    "no recipe": ((runs.RECIPE,), "No recipe"),
    "no environment": ((runs.ENVIRONMENT,), "holds"),
    "an evaluation alone": ((runs.RECIPE, runs.METRICS, runs.ENVIRONMENT, runs.WEIGHTS), "No recipe"),
    "a recipe alone": ((runs.METRICS, runs.EVALUATION, runs.OUTCOMES, runs.PICTURES), "anchor evaluate {run}"),
}


@pytest.mark.parametrize("what", LESS)
def test_what_is_missing_is_left_out_with_a_sentence(what: str, run: Path) -> None:
    files, told = LESS[what]
    for name in files:
        (run / name).unlink()
    found = Page(write([run]))
    assert told.format(run=run) in found.text
    assert len(found.all("section")) == 12


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"curves": None}, "anchor evaluate {run} --curve eps,steps"),
        ({"checks": []}, "No checks were made"),
        ({"pictures": None}, "kept no pictures"),
        ({"results": []}, "not been evaluated"),
        ({"classes": None}, "Answers under PGD-20"),
        ({"environment": None, "threat": None, "seed": None, "batch_size": None}, "holds"),
    ],
    ids=str,
)
def test_records_of_other_versions_are_read_as_far_as_they_go(changes: dict[str, Any], told: str, run: Path) -> None:
    if "threat" in changes:
        changes = changes | {"pictures": None}
    edit(run / runs.EVALUATION, **changes)
    assert told.format(run=run) in Page(write([run])).text


def test_curves_of_two_norms_have_an_axis_each(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    record = runs.read_json(other / runs.EVALUATION)
    runs.write_json(other / runs.EVALUATION, record | {"threat": {"norm": "l2", "eps": 0.5}})
    text = Page(write([run, other], tmp_path / "report.html")).text
    for norm in ("linf", "l2"):
        assert f"Accuracy against eps, the size of the ball, {norm}" in text


def test_embeddings_of_other_weights_are_not_shown_as_the_runs(run: Path) -> None:
    embedding = {"spaces": {}, "data": {"images": 9}, "model": {"sha256": "0" * 64}}
    runs.write_json(run / runs.EMBEDDING, embedding)
    assert read(run).embedding == {}
    ours = runs.read_json(run / runs.EVALUATION)["model"]
    runs.write_json(run / runs.EMBEDDING, embedding | {"model": ours})
    assert read(run).embedding["model"] == ours


def test_curves_of_an_evaluation_beside_the_runs_own_are_drawn(run: Path) -> None:
    shutil.copy(run / runs.EVALUATION, run / "curves.json")
    edit(run / runs.EVALUATION, curves=None)
    found = Page(write([run]))
    assert "--curve eps,steps" not in found.text
    assert "Accuracy against eps, the size of the ball" in found.text


@pytest.mark.parametrize(
    "fact, told",
    [
        ({"inside": False}, "left the ball, so that they count for nothing"),
        ({"other_in_8_bits": 7}, "Of 240 pictures 7 get another answer once rounded"),
        ({"other_in_8_bits": 1}, "Of 240 pictures 1 gets another answer once rounded"),
        ({"reduced": True}, "reduced to 64 pixels"),
    ],
    ids=str,
)
def test_what_the_eye_cannot_see_of_the_pictures_is_said(fact: dict[str, Any], told: str, run: Path) -> None:
    pictures = runs.read_json(run / runs.EVALUATION)["pictures"]
    calm = {"inside": True, "other_in_8_bits": 0, "reduced": False}
    edit(run / runs.EVALUATION, pictures=pictures | {"gallery": pictures["gallery"] | calm})
    assert told not in Page(write([run])).text
    edit(run / runs.EVALUATION, pictures=pictures | {"gallery": pictures["gallery"] | calm | fact})
    assert told in Page(write([run])).text


def test_what_was_logged_is_drawn_in_words_and_in_order(run: Path) -> None:
    parts = {"boosted_cross_entropy": 1.0, "margin": 0.5, "memory_mb": 1073}
    runs.write_text(run / runs.METRICS, "".join(json.dumps(line | parts) + "\n" for line in runs.read_metrics(run)))
    titles = [part.title for block in training(together([read(run)])).blocks for part in block.parts]
    assert titles == [
        "Accuracy",
        "Loss",
        "Cross-entropy",
        "Contrastive loss",
        "Boosted cross-entropy",
        "Margin",
        "Learning rate",
        "Images per second",
        "Memory at most, MB",
    ]


def test_pictures_of_another_evaluation_are_not_shown(run: Path) -> None:
    np.savez(run / runs.PICTURES, gallery_clean=np.zeros(3))
    found = Page(write([run]))
    assert "does not belong to" in found.text
    assert "gallery-0-0" not in found.data["parts"]


def test_other_evaluations_of_the_same_weights_are_shown_beside(run: Path) -> None:
    own = runs.read_json(run / runs.EVALUATION)
    full = own["results"][1] | {"attack": "autoattack", "label": "AutoAttack", "accuracy": 0.25, "interval": [0.2, 0.3]}
    runs.write_json(run / "autoattack.json", own | {"results": [full]})
    runs.write_json(
        run / "strangers.json", own | {"results": [full | {"label": "Stranger"}], "model": {"sha256": "other"}}
    )
    (run / "notes.json").write_text("{not json")
    found = Page(write([run]))
    assert "holds 25.0 % [20.0, 30.0] of its answers under AutoAttack" in found.text
    assert "autoattack.json" in found.text
    assert "Stranger" not in found.text


@pytest.mark.parametrize("verdicts, kept", [("pass skip", "pass"), ("skip pass", "pass"), ("warn pass", "warn")])
def test_of_two_evaluations_the_verdict_that_says_more_is_shown(verdicts: str, kept: str, run: Path) -> None:
    own = runs.read_json(run / runs.EVALUATION)
    for name, verdict_of in zip((runs.EVALUATION, "later.json"), verdicts.split(), strict=True):
        check = {"name": "a check", "verdict": verdict_of, "detail": name}
        runs.write_json(run / name, own | {"checks": [check]})
    (entry,) = together([read(run)]).entries
    assert by_name(entry)["a check"][0] == kept


def test_the_command_that_measures_again_has_the_settings_of_the_record(run: Path) -> None:
    record = runs.read_json(run / runs.EVALUATION)
    command = "anchor evaluate somewhere/else --eps 8/255 --limit 40"
    edit(run / runs.EVALUATION, environment=record["environment"] | {"command": command})
    edit(run / runs.EVALUATION, model=record["model"] | {"source": "somewhere/else"})
    assert read(run).evaluated("--curve eps") == f"anchor evaluate {run} --eps 8/255 --limit 40 --curve eps"


def test_embeddings_in_numbers_are_shown_if_they_were_measured(run: Path) -> None:
    numbers = {"accuracy": 0.9, "interval": [0.8, 1.0]}
    measures = dict.fromkeys(("alignment", "uniformity", "mean_cosine", "min_cosine", "effective_rank"), 0.5)
    space = {
        "dimensions": 7,
        "linear_probe": numbers,
        "nearest_neighbours": numbers,
        **measures,
        "moved_by_attack": 0.25,
    }
    told = {
        "spaces": {"features": space | {"per_class": [{"class": "zero", "moved_by_attack": 0.1}]}},
        "data": {"name": "digits", "split": "test", "images": 40},
        "fitted_to": {"images": 40, "split": "train"},
        "attack": {"label": "PGD-20", "norm": "linf", "eps": 0.15},
        "nearest_neighbours": {"neighbours": 40, "temperature": 0.07},
        "model": {"source": "here"},
        "warnings": ["the features space has collapsed"],
    }
    runs.write_json(run / runs.EMBEDDING, told)
    found = Page(write([run]))
    assert "linear probe, fitted to 40 train images" in found.text
    assert "the features space has collapsed" in found.text
    runs.write_json(run / runs.EMBEDDING, {"spaces": 3})
    assert "linear probe" not in Page(write([run])).text


def test_a_record_of_somebody_elses_model_has_a_page(run: Path) -> None:
    record = run / "numbers.json"
    edit(run / runs.EVALUATION, model={"source": "theirs.pt", "sha256": "f00d"})
    (run / runs.EVALUATION).rename(record)
    out = write([record])
    assert out == run / "numbers.html"
    found = Page(out)
    assert "tells nothing of a training" in found.text
    assert "gallery-0-0" in found.data["parts"]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/evaluation.json")))
def test_every_committed_run_has_a_page(name: str, tmp_path: Path) -> None:
    found = Page(write([RESULTS / name], tmp_path / "report.html"))
    assert "of its answers under" in found.text


# --- hostile names ----------------------------------------------------------------------------------------------------


def test_names_stay_text(hostile_run: Path) -> None:
    found = Page(write([hostile_run]))
    assert len(found.all("script")) == 3
    assert not [attributes for _, attributes in found.elements if any(name.startswith("on") for name in attributes)]
    assert not [image for image in found.all("img") if "src" in image]
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"iframe", "object", "embed", "base", "i"}
    for word in (
        "<script>alert(1)</script>",
        "{{ 7 * 7 }} {% raw %}",
        "x" * 200,
        "😀🦊 emoji",
        "<i>check</i>",
        "(blank)",
    ):
        assert word in found.text
    assert "</pre><script>alert(6)</script> {{ 1 }} 😀" in found.text
    assert "\u202e" not in found.source
    written = found.source.split('id="data">')[1].split("</script>")[0]
    assert "<" not in written
    assert found.data["parts"]["gallery-0-0"]["cards"]
    for figure in (part for part in found.data["parts"].values() if "layout" in part):
        assert "<script" not in json.dumps(figure)
        assert "<a " not in json.dumps(figure)


def test_words_for_plotly_are_shown_and_not_interpreted() -> None:
    assert plain("<b>&amp;</b> $x$") == "&lt;b&gt;&amp;amp;&lt;/b&gt; &#36;x&#36;"
    assert plain("a" * 50 + "b" * 50) == "a" * 12 + "…" + "b" * 11
    assert plain("a\n  b") == "a b"


def test_numbers_that_json_cannot_hold_become_gaps() -> None:
    assert finite({"a": [1.5, float("nan"), (float("inf"), "b")]}) == {"a": [1.5, None, [None, "b"]]}


# --- several runs -----------------------------------------------------------------------------------------------------


def test_seeds_are_pooled_and_methods_marked(evaluated_run: Path, tmp_path: Path) -> None:
    made = three_runs(evaluated_run, tmp_path)
    found = Page(write(made, tmp_path / "all.html"))
    facts = comparison(made)
    labels = [method["method"] for method in facts["methods"]]
    assert len(labels) == 2
    assert "2 models side by side" in found.text
    for entry in facts["results"]:
        for row in entry["accuracies"]:
            assert f"{100 * row['mean']:.2f}" in found.text
        for pair in entry["pairs"]:
            assert mark(pair) in found.text
    mean = next(each for each in facts["results"] if each["label"] == "PGD-20")["accuracies"][0]
    assert f"{100 * mean['mean']:.1f} %" in found.text
    assert f"± {100 * mean['deviation']:.1f} over 2 seeds" in found.text
    assert "seed 0" in found.text, "which seed the pictures are of"
    curve = found.data["parts"]["training-1-0"]["data"]
    assert [trace["showlegend"] for trace in curve] == [True, False, True], "each seed is a line, each method a name"
    assert curve[0]["line"]["color"] == curve[1]["line"]["color"] != curve[2]["line"]["color"]
    assert {"gallery-0-0", "gallery-1-0", "map-1-0", "confusion-1-0"} <= found.data["parts"].keys()
    one = len(json.dumps(Page(write(made[:1])).data["pictures"]))
    assert len(json.dumps(found.data["pictures"])) == one, "pictures that runs share are there once"


def test_what_one_run_alone_has_measured_is_shown_with_its_conventions(evaluated_run: Path, tmp_path: Path) -> None:
    made = three_runs(evaluated_run, tmp_path)
    for run, file in ((made[1], "full.json"), (made[2], "full-of-another.json")):
        own = runs.read_json(run / runs.EVALUATION)
        full = own["results"][1] | {"attack": "autoattack", "label": "AutoAttack", "accuracy": 0.2222, "start": "grid"}
        runs.write_json(run / file, own | {"results": [full]})
    told = " ".join(Page(write(made, tmp_path / "all.html")).text.split())
    assert "full.json" in told
    assert "full-of-another.json" in told
    assert "anchor, seed 1" in told, "whose it is"
    assert told.count("22.22") == 2
    assert "grid start" in told


def test_a_tile_says_of_how_many_seeds_it_is(evaluated_run: Path, tmp_path: Path) -> None:
    made = three_runs(evaluated_run, tmp_path)
    with_curve = runs.read_json(made[0] / runs.EVALUATION)
    other = with_curve["results"][1] | {"label": "PGD-20 of one"}
    edit(made[0] / runs.EVALUATION, results=[with_curve["results"][0], other])
    (entry, _) = together([read(run) for run in made]).entries
    notes = {tile["label"]: tile["note"] for tile in tiles(entry)}
    assert notes["PGD-20 of one"].endswith(", 1 of 2 seeds")
    assert "seeds" not in notes["clean"]


def test_a_run_that_is_named_like_a_method_does_not_take_its_place(evaluated_run: Path, tmp_path: Path) -> None:
    made = three_runs(evaluated_run, tmp_path)
    bare = tmp_path / "pgd-at"
    bare.mkdir()
    shutil.copy(evaluated_run / runs.RECIPE, bare)
    page = together([read(path) for path in (*made, bare)])
    assert [entry.label for entry in page.entries] == ["anchor", "pgd-at", str(bare)]


def test_mcnemar_in_words() -> None:
    pair = {"seeds": [0], "against": "first", "only_method": 30, "only_first": 5, "p": 0.0004}
    assert mark(pair) == "▲ better than first (p = 0.0004)"
    two = pair | {"seeds": [0, 1], "p_by_seed": [0.0002, 0.59]}
    assert mark(two) == "▲ better than first (p = 0.0004; by seed 0.0002, 0.59)"
    assert mark(pair | {"only_method": 2, "p": 1e-20}) == "▼ worse than first (p < 1e-16)"
    assert mark(pair | {"p": 0.05}) == "≈ not told apart from first (p = 0.05)"
    assert mark({"seeds": [], "why_not": "no seed"}) == "not paired: no seed"


def test_what_cannot_be_compared_still_has_a_page(evaluated_run: Path, tmp_path: Path) -> None:
    first, twin, bare = (Path(shutil.copytree(evaluated_run, tmp_path / name)) for name in ("first", "twin", "bare"))
    for name in (runs.EVALUATION, runs.OUTCOMES, runs.PICTURES):
        (bare / name).unlink()
    found = Page(write([first, twin], tmp_path / "twins.html"))
    assert "There is no comparison:" in found.text
    assert "a seed counts once" in found.text
    found = Page(write([first, bare], tmp_path / "pair.html"))
    assert "takes two evaluated run directories" in found.text
    assert f"bare: Not evaluated yet; this does it: anchor evaluate {bare}" in found.text
    assert [entry.label for entry in together([read(first), read(bare)]).entries] == ["first", "bare"]


def test_no_more_than_four_galleries(evaluated_run: Path, tmp_path: Path) -> None:
    made = []
    for seed in range(5):
        run = Path(shutil.copytree(evaluated_run, tmp_path / str(seed)))
        recipe = yaml.safe_load((run / runs.RECIPE).read_text()) | {"name": f"method-{seed}"}
        (run / runs.RECIPE).write_text(yaml.safe_dump(recipe))
        made.append(run)
    found = Page(write(made, tmp_path / "five.html"))
    assert "Shown are the first 4 of 5." in found.text
    assert "gallery-3-0" in found.data["parts"]
    assert "gallery-4-0" not in found.data["parts"]


# --- size, imports, command -------------------------------------------------------------------------------------------


def test_ten_thousand_pictures_worth_of_cifar_stay_small_and_need_no_torch(run: Path, tmp_path: Path) -> None:
    """Random pixels are the worst there is to compress."""
    random, record = np.random.default_rng(0), runs.read_json(run / runs.EVALUATION)
    kept = dict(np.load(run / runs.PICTURES))
    spaces = {name: random.normal(size=(2, 200, 2)) for name in kept if name.endswith(("_pca", "_tsne"))}
    kept |= spaces | {
        "gallery_clean": random.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8),
        "gallery_move": random.integers(-8, 9, (8, 30, 3, 32, 32), dtype=np.int16),
        "map_clean": random.integers(0, 256, (200, 3, 32, 32), dtype=np.uint8),
        "map_move": random.integers(-8, 9, (200, 3, 32, 32), dtype=np.int16),
        "map_index": np.arange(200),
        "map_label": np.arange(200) % 10,
        "map_prediction": random.integers(0, 10, (2, 200)),
    }
    np.savez_compressed(run / runs.PICTURES, **kept)
    label = np.arange(10_000) % 10
    said = random.integers(0, 10, 10_000)
    outcomes = {"label": label, "clean_prediction": label, "prediction_pgd20": said, "held_pgd20": said == label}
    np.savez_compressed(run / runs.OUTCOMES, **outcomes)
    for part, file in (("pictures", runs.PICTURES), ("outcomes", runs.OUTCOMES)):
        record[part]["sha256"] = hashlib.sha256((run / file).read_bytes()).hexdigest()
    runs.write_json(run / runs.EVALUATION, record)
    asked = (
        f"import sys; from anchor_robust.cli import main; main(['report', {str(run)!r}]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == f"{run / runs.REPORT}\nFalse\n"
    assert (run / runs.REPORT).stat().st_size < 12e6
    assert len(Page(run / runs.REPORT).data["parts"]["map-0-0"]["points"]) == 200


def test_where_the_page_goes(evaluated_run: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write([run]) == run / "report.html"
    monkeypatch.chdir(tmp_path)
    assert write([run, evaluated_run]) == Path("report.html")
    assert write([run], tmp_path / "mine.html").is_file()
    assert "anchor report run --out mine.html" in Page(write([Path("run")], Path("mine.html"))).text
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


WRONG = {
    "{run}/nowhere": ("does not exist", "give a run directory"),
    "{tmp}": ("holds no run", "recipe.yaml", "give a directory"),
    "{run}/environment.json": ("no record of anchor evaluate",),
    "{run}/recipe.yaml": ("no record", "give a run directory, or the FILE.json"),
    "{run} --out {tmp}": ("is a directory", "report.html"),
    "{run} --out {run}/weights.safetensors": ("allowed", ".html"),
    "{run} --out {tmp}/nowhere/page.html": ("cannot write",),
    "{broken}": ("cannot be read",),
    "": ("RUN",),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_cannot_be_done_is_said_in_one_line(
    typed: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / runs.EVALUATION).write_text('{"schema": 1, "resul')
    assert main(["report", *typed.format(run=run, tmp=tmp_path, broken=broken).split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.strip().splitlines()
    for word in WRONG[typed]:
        assert word in line
    assert not (run / runs.REPORT).exists()


@pytest.mark.parametrize(
    "changes",
    [{"results": 3}, {"results": [{"label": "PGD-20"}]}, {"data": []}, {"checks": [1]}, {"model": None}],
    ids=str,
)
def test_what_is_no_record_is_refused(changes: dict[str, Any], run: Path) -> None:
    edit(run / runs.EVALUATION, **changes)
    with pytest.raises(Refusal, match=r"is no record of anchor evaluate; evaluate again"):
        write([run])


def test_a_record_of_other_weights_is_not_shown_as_the_runs(tmp_path: Path) -> None:
    run = shutil.copytree(RESULTS / "digits-standard", tmp_path / "run")
    assert read(run).record
    with (run / runs.WEIGHTS).open("ab") as weights:
        weights.write(b"trained on")
    found = read(run)
    assert found.record is None
    assert "other weights than those that its record tells of; evaluate it again" in found.lacking["evaluation"]


def test_the_page_names_the_epoch_whose_weights_were_kept() -> None:
    robust = (0.2, 0.5, 0.5, 0.4)
    metrics = [{"epoch": epoch, "validation_robust": share} for epoch, share in enumerate(robust, start=1)]
    (said,) = best(cast("Any", SimpleNamespace(metrics=metrics)))
    assert said == "Most robust on the validation split after epoch 3: 50.0 % under attack."
