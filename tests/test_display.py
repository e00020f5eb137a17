"""Progress: what is said on a terminal, in a log file, to a program, and when nothing is to be said."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from anchor_robust.display import Display, JsonLines, Plan, Quiet
from anchor_robust.display.lines import Lines, Tally
from anchor_robust.display.plan import Seldom
from anchor_robust.display.told import duration

PLAN = Plan("tiny [bold]", Path("runs/tiny"), epochs=4, steps_per_epoch=10, batch_size=8, selects_on="robust")


def point(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": -(-step // 10),
        "lr": 0.125,
        "loss": 2.5,
        "cross_entropy": 1.5,
        "contrast": 2.0,
        "batch_accuracy": 0.375,
        "images_per_s": 1234.5,
        "memory_mb": 567,
        "seconds": 12.0,
        **more,
    }


def validated(step: int, clean: float, robust: float) -> dict[str, Any]:
    return point(step, validation_clean=clean, validation_robust=robust)


class Clock:
    """time.monotonic, turned by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def plain() -> tuple[Display, io.StringIO]:
    written = io.StringIO()
    return Display(Console(file=written, width=60)), written


def test_a_log_file_gets_a_line_an_epoch_and_nothing_that_moves() -> None:
    shown, written = plain()
    with shown.training(PLAN) as observer:
        for step in range(1, 11):
            observer.step(lambda step=step: point(step))  # type: ignore[misc] # mypy cannot infer it
        observer.epoch(validated(10, 0.5, 0.25))
        shown.warning("beware [red]")
        observer.finished(Path("runs/tiny/weights.safetensors"), 0.25)
    assert written.getvalue().splitlines() == [
        "tiny [bold]: 4 epochs of 10 steps, run runs/tiny",
        "epoch 1/4  loss 2.500  batches 37.5% right  validation clean 50.0% robust 25.0%  1,234 images/s  12 s",
        "warning: beware [red]",
        "finished: runs/tiny/weights.safetensors has robust accuracy 25.0% on the validation split; "
        "next: anchor evaluate runs/tiny",
    ]


def test_within_a_long_epoch_a_log_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said, read = Clock(monkeypatch), [], []
    lines = Lines(said.append, PLAN)
    for step in range(1, 10):
        clock.now += 25
        lines.step(lambda step=step: read.append(step) or point(step))  # type: ignore[misc] # mypy cannot infer it
    assert read == [3, 6, 9], "reading waits for the device, so it is seldom done"
    assert [line.split("  ")[0] for line in said] == [f"epoch 1/4 step {step}/40" for step in read]
    clock.now += 25
    lines.epoch(point(10))
    clock.now += 59
    lines.step(lambda: pytest.fail("an epoch's line has just been said"))


def test_nobody_reads_when_all_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Quiet()
    with quiet.training(PLAN) as observer, quiet.bar("clean", 10) as advance:
        observer.step(lambda: pytest.fail("read"))
        observer.epoch(validated(10, 0.5, 0.25))
        observer.finished(Path("weights"), 0.25)
        advance(10)
        quiet.line("news")
        assert capsys.readouterr() == ("", "")
        quiet.warning("beware")
    assert capsys.readouterr() == ("", "warning: beware\n")


def test_a_program_gets_one_json_object_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = Clock(monkeypatch), JsonLines()
    with lines.training(PLAN) as observer:
        observer.step(lambda: pytest.fail("too early"))
        clock.now += 10
        observer.step(lambda: point(2))
        observer.epoch(validated(10, 0.5, 0.25))
        lines.warning("beware")
        observer.finished(Path("runs/tiny/weights.safetensors"), 0.25)
    out, err = capsys.readouterr()
    assert err == ""
    events = [json.loads(line) for line in out.splitlines()]
    assert [event.pop("event") for event in events] == ["start", "progress", "epoch", "warning", "finished"]
    start, progress, epoch, warning, finished = events
    assert start["run"] == "runs/tiny"
    assert start["steps"] == 40
    assert progress == point(2)
    assert epoch == validated(10, 0.5, 0.25)
    assert warning == {"text": "beware"}
    assert finished == {
        "run": "runs/tiny",
        "weights": "runs/tiny/weights.safetensors",
        "selects_on": "robust",
        "best": 0.25,
    }


def screen(width: int = 100) -> tuple[Display, io.StringIO]:
    written = io.StringIO()
    return Display(Console(file=written, width=width, force_terminal=True, force_interactive=True)), written


def rendered(board: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(board.render())
    return console.export_text()


@pytest.mark.parametrize("width", (40, 100))
def test_a_terminal_shows_where_training_stands(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, (shown, written) = Clock(monkeypatch), screen(width)
    with shown.training(PLAN) as observer:
        assert "epoch" not in rendered(observer, width), "nothing is shown that is not known yet"
        observer.step(lambda: pytest.fail("read at every step"))
        clock.now += 1
        observer.step(lambda: point(2))
        seen = " ".join(rendered(observer, width).split())
        for part in ("epoch 1/4", "step 2/40", "learning rate 0.125", "567 MB", "2.500 from cross_entropy 1.500"):
            assert part in seen
        assert "5%" in seen, "2 of 40 steps"
        assert "validation" not in seen
        observer.epoch(validated(10, 0.5, 0.25))
        observer.epoch(validated(20, 0.625, 0.2))
        seen = " ".join(rendered(observer, width).split())
        assert "validation clean 62.5% robust 20.0% (epoch 2)" in seen
        assert "best robust 25.0% (epoch 1)" in seen, "the kept weights are not the last"
        observer.epoch(validated(30, 0.6, 0.25))
        assert "best robust 25.0% (epoch 3)" in " ".join(rendered(observer, width).split()), "of equals the later"
    assert "epoch 2/4  loss 2.500" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())


def test_a_resumed_training_knows_how_far_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = screen()
    resumed = Plan("tiny", Path("run"), 4, 10, 8, "robust", done=20, best=0.5)
    with shown.training(resumed) as observer:
        seen = " ".join(rendered(observer).split())
        assert "50%" in seen
        assert "best robust 50.0% (before the stop)" in seen
        observer.epoch(validated(30, 0.5, 0.4))
        assert "best robust 50.0% (before the stop)" in " ".join(rendered(observer).split())


def test_markup_in_names_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = screen()
    with shown.training(PLAN) as observer:
        assert "tiny [bold]" in rendered(observer)


def test_a_bar_for_a_log_file_is_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), []
    tally = Tally(said.append, "PGD-20", total=1000)
    for _ in range(5):
        clock.now += 20
        tally(60)
    assert said == ["PGD-20: 180/1,000 images, 3.0 images/s, 4:33 left"]
    clock.now += 60
    tally(700)
    assert len(said) == 1, "that it is done will be said elsewhere"


def test_a_bar_is_drawn_where_somebody_watches() -> None:
    shown, written = screen()
    with shown.bar("PGD-20", 10) as advance:
        advance(4)
    assert "PGD-20" in written.getvalue()


def test_seldom_waits_before_the_first_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seldom = Clock(monkeypatch), Seldom(5)
    due = []
    for _ in range(12):
        clock.now += 1
        due.append(seldom.due())
    assert [place + 1 for place, each in enumerate(due) if each] == [5, 10]


@pytest.mark.parametrize(
    "seconds, told", ((0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (7384, "2:03:04"))
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
