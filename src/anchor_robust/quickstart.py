"""The first five minutes: three ways to train one small network on real digits, and what an attack does to each."""

from pathlib import Path

from . import runs
from .audit import audit
from .display import Display
from .recipe import settle
from .report.measured import compare
from .report.page import write
from .report.sheet import output, show
from .subject import Named
from .train import start

METHODS = ("standard", "pgd-at", "anchor")


def run(out: Path, display: Display) -> None:
    """Train, attack and compare; every method leaves a run directory in `out`."""
    runs.create(out)
    records = {}
    try:
        for method in METHODS:
            directory = start(settle(f"digits-{method}"), out / method, None, display)
            records[method] = audit(Named(str(directory)), ("clean", "pgd20"), display=display)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; delete {out}, or give another --out, and start again") from None
    attack = records["anchor"]["results"][-1]
    images = records["anchor"]["data"]["images"]
    title = f"{images} held-out digits; PGD-20 moves each pixel by at most {attack['eps']:g} of its range"
    show([compare(records, title)])
    console = output()
    console.print(
        "A cell: share answered rightly [95 % interval]. Without a defence the answers collapse under attack.",
        highlight=False,
    )
    page = write([out / method for method in METHODS], out / runs.REPORT)
    written = (
        f"written: {out} ({', '.join(METHODS)}), one run each; try: anchor compare {out / 'pgd-at'} {out / 'anchor'}"
    )
    for line in (written, f"open in a browser: {page}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
