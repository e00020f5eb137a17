"""Take the picture of a report that README and docs show, of a committed run: `make screenshot`.

It needs the extra `browser` and a Chromium, which ANCHOR_CHROMIUM or the PATH names.
"""

import io
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from anchor_robust import runs
from anchor_robust.report.page import write
from figures import FIGURES
from table import HERE

RUN = HERE / "cifar10-resnet8-anchor"
WINDOW = {"width": 1000, "height": 1200}
BETWEEN = "#results, #checks"  # what is left out between the verdict and the gallery
CARDS, MARGIN = 4, 12  # of the gallery, two rows; pixels below them


def screenshot(run: Path, browser: Browser) -> bytes:
    """The top of the report about `run` and a piece of its gallery, as a PNG."""
    with TemporaryDirectory() as folder, browser.new_page(viewport=WINDOW, color_scheme="light") as tab:
        tab.goto(write([run], Path(folder) / runs.REPORT).as_uri())
        tab.locator(BETWEEN).evaluate_all("(sections) => sections.forEach((section) => { section.hidden = true; })")
        last = tab.locator(".card").nth(CARDS - 1).bounding_box()
        height = last["y"] + last["height"] + MARGIN
        taken = tab.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WINDOW["width"], "height": height})
    small = io.BytesIO()
    Image.open(io.BytesIO(taken)).convert("RGB").quantize().save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    chromium = os.environ.get("ANCHOR_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        sys.exit("no Chromium on the PATH; install one, or name it with ANCHOR_CHROMIUM")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        runs.write_bytes(FIGURES / "report.png", screenshot(RUN, browser))


if __name__ == "__main__":
    main()
