"""The figures of the README and of the documentation: drawn from files alone, well-formed, complete."""

import io
import re
import shutil
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

RESULTS = Path(__file__).parents[1] / "results"
DRAWN = RESULTS.parent / "docs" / "figures"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(RESULTS))
    import figures
    import table

    return figures, table


@pytest.fixture
def seeded(modules: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Results with a second seed of PGD-AT, AutoAttack of ANCHOR alone, and a curve of TRADES."""
    figures, table = modules
    for method in ("pgd-at", "trades", "anchor"):
        name = f"cifar10-resnet8-{method}"
        shutil.copytree(RESULTS / "first-settings" / name, tmp_path / name)
    for method in ("pgd-at", "trades"):
        (tmp_path / f"cifar10-resnet8-{method}" / table.AUTOATTACK).unlink()
    (tmp_path / "cifar10-resnet8-anchor" / figures.CURVES).unlink()
    shutil.copytree(tmp_path / "cifar10-resnet8-pgd-at", tmp_path / "cifar10-resnet8-pgd-at-seed1")
    shutil.copy(RESULTS / "digits-anchor" / figures.CURVES, tmp_path / "cifar10-resnet8-trades" / figures.CURVES)
    monkeypatch.setattr(table, "HERE", tmp_path)
    monkeypatch.setattr(figures, "HERE", tmp_path)
    return figures


def parts(drawing: str, name: str, kind: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(drawing)
    return [each for each in root.iter(f"{SVG}{name}") if kind in each.get("class", "").split()]


def test_every_method_has_a_bar_for_each_attack_and_a_dot_for_each_of_several_seeds(seeded: ModuleType) -> None:
    drawn = seeded.robustness()
    in_legend = 3
    assert len(parts(drawn, "rect", "bar")) == in_legend + 3 + 2 + 2
    assert drawn.count("AutoAttack: not yet") == 2
    assert len(parts(drawn, "circle", "seed")) == 2 * 2
    assert "2 seeds" in drawn


def test_a_bar_is_as_long_as_the_accuracy(seeded: ModuleType) -> None:
    x = seeded.linear((0, 1), (100, 300))
    result = {"accuracy": 0.25, "images": 100}
    rect, *_ = seeded.bar("clean", [result], x, 0, 17)
    assert ElementTree.fromstring(rect).get("width") == "50"


def test_training_has_a_line_for_each_seed_of_each_accuracy(seeded: ModuleType) -> None:
    assert len(parts(seeded.training(), "polyline", "line")) == 2 * (1 + 1 + 2)


def test_every_try_is_a_dot_and_a_line_joins_the_best_of_anchor(modules: tuple[ModuleType, ModuleType]) -> None:
    figures, _ = modules
    drawn = figures.exchange()
    assert len(parts(drawn, "circle", "dot")) == len(figures.search.tried(2))
    assert len(parts(drawn, "polyline", "line")) == 1
    assert figures.unbeaten([(1, 5), (2, 4.9), (3, 3), (4, 3), (2, 1), (0, 4)]) == [(1, 5), (2, 4.9), (4, 3)]
    assert figures.unbeaten([(1, 5), (2, 3), (4, 3)]) == [(1, 5), (4, 3)], "not below what lies between its neighbours"


def test_a_curve_is_drawn_where_a_run_has_one_and_not_where_none_has(seeded: ModuleType) -> None:
    drawn = seeded.against_eps("cifar10-resnet8", "title")
    assert len(parts(drawn, "polyline", "line")) == 1
    assert len(parts(drawn, "circle", "dot")) == 9
    assert seeded.against_eps("digits", "title") == ""


def test_a_png_reads_back_as_its_pixels(modules: tuple[ModuleType, ModuleType]) -> None:
    import svg

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(svg.png(pixels)))), pixels)


def test_a_region_covers_its_cells_and_no_other(modules: tuple[ModuleType, ModuleType]) -> None:
    import svg

    inside = np.array([[True, False, True], [False, False, False], [True, True, False]])
    path = svg.region(inside, 0, 0, 3, "blue")
    assert re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", path) == [("0", "0", "1"), ("2", "0", "1"), ("0", "2", "2")]


def test_words_of_users_cannot_break_a_drawing(modules: tuple[ModuleType, ModuleType]) -> None:
    import svg

    words = '<b>&"quoted"'
    root = ElementTree.fromstring(svg.page(9, 9, words, words, svg.text(0, 0, words, kind=words)))
    assert {each.text for each in root.iter() if each.tag in (f"{SVG}title", f"{SVG}desc", f"{SVG}text")} == {words}


@pytest.mark.parametrize("path", sorted(DRAWN.glob("*.svg")), ids=lambda path: path.stem)
def test_every_committed_figure_says_what_it_shows(path: Path) -> None:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert root.findtext(f"{SVG}title")
    assert len(root.findtext(f"{SVG}desc") or "") > 20
    assert "prefers-color-scheme: dark" in (root.findtext(f"{SVG}style") or "")
    assert "http" not in path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")


def test_the_pictures_of_concepts_are_those_that_are_committed(modules: tuple[ModuleType, ModuleType]) -> None:
    """The words, without numbers: what a network answers may differ by an image on another processor."""
    import concepts

    for name, draw in concepts.PICTURES.items():
        committed = (DRAWN / f"{name}.svg").read_text(encoding="utf-8")
        drawn = draw()
        told, expected = (words(each) for each in (drawn, committed))
        assert told == expected, f"{name}.svg is not what results/concepts.py draws; run make pictures"
        assert len(drawn) == pytest.approx(len(committed), rel=0.1)


def words(drawing: str) -> list[str]:
    texts = [each.text or "" for each in ElementTree.fromstring(drawing).iter(f"{SVG}text")]
    return [re.sub(r"\d+", "#", text) for text in texts]
