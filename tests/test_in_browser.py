"""Pages in a real browser: charts, slider, filters, hover, keyboard, dark, narrow, print, accessibility.

Needs the extra `browser` and a Chromium, which ANCHOR_CHROMIUM or the PATH names.
"""

import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anchor_robust.report.page import write
from anchor_robust.runs import METRICS, RECIPE
from test_watch import watching

CHROMIUM = os.environ.get("ANCHOR_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if not CHROMIUM:
    pytest.skip("no Chromium on the PATH; ANCHOR_CHROMIUM names one", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra browser)")
axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed (extra browser)")

RESULTS = Path(__file__).parents[1] / "results"
COMMITTED = {
    "cifar": ["cifar10-resnet8-anchor"],
    "three": ["cifar10-resnet8-pgd-at", "cifar10-resnet8-mart", "cifar10-resnet8-anchor"],
}
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 380, "height": 800}
INK = "(node) => getComputedStyle(node)[node.namespaceURI.endsWith('svg') ? 'fill' : 'color']"
CHARTS = "[...document.querySelectorAll('.chart')]"
CONTRAST = "color-contrast"  # axe's rule for colours, and most of its time; all others are for what the page is made of


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def single(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write([evaluated_run], tmp_path_factory.mktemp("single") / "report.html")


@contextmanager
def opened(chromium: Any, url: str, asks: Sequence[str] = ("",), **context: Any) -> Iterator[Any]:
    """A page; when it is closed nothing may have been fetched but `asks`, below its address, or complained of."""
    within = chromium.new_context(**{"viewport": WIDE, **context})
    tab, told, asked = within.new_page(), [], set()
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("dialog", lambda dialog: told.append(f"dialog {dialog.message}"))
    tab.on("request", lambda request: asked.add(request.url))
    tab.goto(url)
    yield tab
    assert told == []
    assert {each for each in asked if not each.startswith("data:")} == {url + path for path in asks}
    within.close()


@contextmanager
def report(chromium: Any, page: Path, **context: Any) -> Iterator[Any]:
    """A report, opened and drawn."""
    with opened(chromium, page.as_uri(), **context) as tab:
        until(tab, f"{CHARTS}.every((chart) => chart.querySelector('.main-svg'))")
        yield tab


def until(tab: Any, holds: str) -> None:
    """Wait for an expression to hold; Playwright's own wait is a script that the page forbids."""
    for _ in range(200):
        if tab.evaluate(holds):
            return
        tab.wait_for_timeout(50)
    pytest.fail(f"{holds} does not come to hold")


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def violations(tab: Any, options: str = "{}") -> list[tuple[str, str]]:
    """What axe-core holds against the page, as impact and rule."""
    tab.evaluate(resources.files(axe).joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = tab.evaluate(f"axe.run(document, {{resultTypes: ['violations'], ...{options}}})")["violations"]
    return [(each["impact"], each["id"]) for each in found if each["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("which", ["digits", "hostile", *COMMITTED])
def test_it_is_whole_and_accessible_narrow_wide_and_dark(
    which: str, chromium: Any, tmp_path: Path, evaluated_run: Path, hostile_run: Path
) -> None:
    runs = {"digits": [evaluated_run], "hostile": [hostile_run]} | {
        name: [RESULTS / run for run in members] for name, members in COMMITTED.items()
    }
    with report(chromium, write(runs[which], tmp_path / "report.html"), viewport=NARROW) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at the side"
        assert tab.evaluate("[...document.images].every((image) => image.naturalWidth)"), "every picture is there"
        assert violations(tab, f"{{rules: {{'{CONTRAST}': {{enabled: false}}}}}}") == []
        tab.set_viewport_size(WIDE)
        until(tab, f"{CHARTS}.every((chart) => chart.clientWidth === chart.querySelector('svg').clientWidth)")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert violations(tab, f"{{runOnly: ['{CONTRAST}']}}") == []
        light = legible(tab)
        tab.emulate_media(color_scheme="dark")
        until(tab, f"({INK})(document.querySelector('.chart .xtick text')) !== '{light}'")
        legible(tab)
        assert luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.05
        assert violations(tab, f"{{runOnly: ['{CONTRAST}']}}") == []


def legible(tab: Any) -> str:
    """Writing stands out from the paper; returns the colour of that in charts."""
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    inks = {
        node: tab.eval_on_selector(node, INK)
        for node in (".chart .xtick text", ".chart .legendtext", "main p", ".note", ".tiles .muted")
    }
    assert min(contrast(ink, paper) for ink in inks.values()) > 4.5, inks
    return inks[".chart .xtick text"]


def test_the_slider_changes_the_pictures_and_what_is_said_of_them(single: Path, chromium: Any) -> None:
    with report(chromium, single) as tab:
        slider, card = tab.locator(".eps"), tab.locator(".card").first
        attacked, state = card.locator("img.attacked"), tab.locator(".gallery .state").first
        before, told = attacked.get_attribute("src"), state.inner_text()
        assert "eps 0.15" in told
        slider.focus()
        for _ in range(9):
            tab.keyboard.press("ArrowLeft")
        assert "no attack" in state.inner_text()
        assert attacked.get_attribute("src") == card.locator("img").first.get_attribute("src")
        tab.keyboard.press("End")
        assert attacked.get_attribute("src") not in (before, card.locator("img").first.get_attribute("src"))
        right = int(re.findall(r"right on (\d+)", state.inner_text())[0])
        assert right == tab.locator("img.attacked + p > .right").count()
        assert "0.6" in str(slider.get_attribute("aria-valuetext"))


def test_filters_leave_what_they_say(single: Path, chromium: Any) -> None:
    with report(chromium, single) as tab:
        gallery, embeddings = (tab.locator(f".controls[data-for={name}]") for name in ("gallery", "map"))
        gallery.locator(".of-class").select_option("3")
        cards = tab.locator(".card:visible .name")
        assert cards.count() > 0
        assert set(cards.all_inner_texts()) == {"3"}
        gallery.locator(".of-class").select_option("")
        tab.locator(".eps").fill("8")
        gallery.locator(".fate").select_option("held")
        assert tab.locator(".card:visible img.attacked + p > .wrong").count() == 0
        everything = tab.locator("#map-0-0-chart .points path").count()
        embeddings.locator(".of-class").select_option("7")
        assert 0 < tab.locator("#map-0-0-chart .points path").count() < everything
        embeddings.locator(".view").select_option(index=3)
        assert tab.locator("#map-0-0-chart .xtitle").text_content() == "t-SNE, perplexity 26.3"


def test_hover_and_keyboard_show_both_pictures(single: Path, chromium: Any) -> None:
    with report(chromium, single) as tab:
        tab.locator("#map-0-0").scroll_into_view_if_needed()
        state, twins = tab.locator("#map-0-0 .state"), tab.locator("#map-0-0 .pair img")
        first, clean = state.inner_text(), twins.nth(0).get_attribute("src")
        tab.locator("#map-0-0 .step").focus()
        tab.keyboard.press("ArrowRight")
        assert state.inner_text() != first
        assert twins.nth(0).get_attribute("src") != clean
        assert twins.nth(1).get_attribute("src") not in ("", None)
        assert str(twins.nth(1).get_attribute("alt")).endswith("attacked")
        now = state.inner_text()
        box = tab.locator("#map-0-0-chart .points path").nth(30).bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        until(tab, f"document.querySelector('#map-0-0 .state').textContent !== {now!r}")


def test_maps_side_by_side_show_the_same_image(evaluated_run: Path, tmp_path: Path, chromium: Any) -> None:
    record = tmp_path / "numbers.json"
    shutil.copy(evaluated_run / "evaluation.json", record)
    for name in ("outcomes.npz", "pictures.npz"):
        shutil.copy(evaluated_run / name, tmp_path)
    with report(chromium, write([evaluated_run, record], tmp_path / "both.html")) as tab:
        tab.locator("#map-0-0 .step").focus()
        tab.keyboard.press("ArrowRight")
        first, second = (tab.locator(f"#map-{place}-0 .state").inner_text() for place in (0, 1))
        assert first == second
        assert tab.locator("#map-1-0 .step").input_value() == "1"


def test_dark_mode_may_come_and_go_and_prints_are_light(single: Path, chromium: Any) -> None:
    colour = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    with report(chromium, single, color_scheme="dark") as tab:
        dark = tab.evaluate(colour)
        assert luminance(dark) > 0.5
        tab.emulate_media(color_scheme="light")
        until(tab, f"{colour} !== {dark!r}")
        light = tab.evaluate(colour)
        tab.emulate_media(color_scheme="dark")
        until(tab, f"{colour} === {dark!r}")
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        until(tab, f"{colour} === {light!r}")
        widths = "(all) => all.map((one) => one.querySelector('svg').clientWidth)"
        assert 0 < max(tab.locator(".chart").evaluate_all(widths)) <= 680
        tab.emulate_media(media="print", color_scheme="dark")
        assert luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor")) == 1
        assert not tab.locator("nav").is_visible()
        assert not tab.locator("details").first.is_visible()
        heights = "(all) => all.map((one) => one.querySelector('svg').clientHeight - one.clientHeight)"
        assert max(tab.locator(".chart").evaluate_all(heights)) <= 0, "nothing is printed over something else"
        tab.emulate_media(media="screen", color_scheme="dark")
        tab.evaluate("dispatchEvent(new Event('afterprint'))")
        until(tab, f"{colour} !== {light!r}")


def test_watch_draws_what_is_added_and_is_accessible(tmp_path: Path, chromium: Any) -> None:
    run, committed = tmp_path / "run", RESULTS / "digits-anchor"
    run.mkdir()
    shutil.copy(committed / RECIPE, run)
    lines = (committed / METRICS).read_text().splitlines(keepends=True)
    (run / METRICS).write_text("".join(lines[:3]))
    points = "document.querySelector('.chart .curve')?.points.length"
    asks = ("", "page.css", "page.js", "state.json")
    with watching(run) as client, opened(chromium, f"http://127.0.0.1:{client.port}/", asks) as tab:
        until(tab, f"{points} === 3")
        with (run / METRICS).open("a") as metrics:
            metrics.write(lines[3])
        until(tab, f"{points} === 4")
        assert tab.title().startswith("4/")
        assert tab.locator("#table tbody tr").count() == 4
        for view in ("light", "dark"):
            tab.emulate_media(color_scheme=view)
            assert violations(tab) == []
        tab.set_viewport_size(NARROW)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_picture_of_a_report_can_be_taken_again(
    evaluated_run: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(RESULTS))
    from screenshot import FIGURES, screenshot

    for taken in (screenshot(evaluated_run, chromium), (FIGURES / "report.png").read_bytes()):
        image = Image.open(io.BytesIO(taken))
        assert (image.format, image.width) == ("PNG", 1000)
        assert 900 < image.height < 1600, "the top of the page, and two rows of its gallery"
        assert len(taken) < 300_000
