"""What users' own objectives, networks and files do wrong is told in one line as theirs, and nothing is lost by it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from anchor_robust import checkpoint, data, objectives, runs, train
from anchor_robust.cli import main
from anchor_robust.errors import Refusal
from anchor_robust.objectives import Learner, Objective, Step
from anchor_robust.recipe import settle

HERE = __name__
RESULTS = Path(__file__).parents[1] / "results"
DIGITS = RESULTS / "digits-anchor"
TINY = ("--optimise.epochs=1", "--model.width=4", "--attack.steps=1", "--validation.steps=1")


@dataclass(frozen=True)
class Faulty(Objective):
    """Adversarial training with a slip, as `slip` says; `cap` has no value unless it is given one."""

    name: ClassVar[str] = "faulty"

    slip: str = "none"
    cap: float | None = None

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Any:
        logits, _ = learner.forward(learner.light(x, generator))
        loss = learner.cross_entropy(logits, y)
        if self.slip == "raises":
            raise KeyError("foo")
        if self.slip == "twice":
            loss = loss + learner.cross_entropy(learner.forward(x)[0], y)
        slips: dict[str, Any] = {
            **dict.fromkeys(("none", "twice", "warns", "worries"), Step(loss, logits)),
            "tensor": loss,
            "vector": Step(loss.repeat(3), logits),
            "detached": Step(loss.detach(), logits),
            "float": Step(0.5, logits),  # type: ignore[arg-type]
            "fewer": Step(loss, logits[1:]),
            "part": Step(loss, logits, {"extra": 0.5}),  # type: ignore[dict-item]
            "taken": Step(loss, logits, {"epoch": loss}),
            "event": Step(loss, logits, {"event": loss}),
            "nan": Step(loss, logits, {"extra": loss * float("nan")}),
        }
        return slips[self.slip]

    def warning(self, parts: Mapping[str, float], batch_size: int) -> str:
        said = {"warns": lambda: str(parts["nope"]), "worries": lambda: f"beware of {batch_size}"}
        return said.get(self.slip, str)()


@dataclass(frozen=True)
class Unfinished(Objective):
    """No method at all."""

    name: ClassVar[str] = "unfinished"


class Picky(nn.Module):
    """[n c h w] to [n width]; `drop` may be left out."""

    def __init__(self, channels: int, width: int = 4, drop: float | None = None) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).mean((2, 3))


class Stack(nn.Module):
    """[n c h w] to [n widths[-1]]; `norm` is a class, which no recipe can hold, and `widths` has to be a tuple."""

    def __init__(self, channels: int, widths: tuple[int, ...] = (4, 4), norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        steps = zip((channels,) + widths, widths, strict=False)  # noqa: RUF005 - fails with a list, as it shall
        self.layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), norm(b)) for a, b in steps))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.LazyConv2d(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).mean((2, 3))


class Uncopied(Picky):
    def __deepcopy__(self, memo: object) -> "Uncopied":
        raise RuntimeError("cannot be copied")


class Methods:
    @dataclass(frozen=True)
    class Nested(Faulty):
        """Found as module:Methods.Nested; `twice` is made of `half`."""

        half: float = 1.0
        twice: float = field(init=False, default=0.0)


@dataclass(frozen=True)
class Placed(Faulty):
    """Has a setting of a type that no recipe can hold."""

    place: Path = Path("here")


def untyped(channels, depth):  # type: ignore[no-untyped-def]
    return Picky(channels, depth)


def leaves(channels: int) -> nn.Module:
    raise SystemExit(0)


def training(run: Path, *words: str, recipe: str = "digits-standard") -> int:
    given = [word for word in TINY if not (word.startswith("--model") and any("model.name" in each for each in words))]
    return main(["train", recipe, "--out", str(run), *given, *words])


def refused(capsys: pytest.CaptureFixture[str], status: int, *told: str) -> None:
    """One line on standard error, the last, with all these words, and no blame on us."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert status == 2, line
    assert all(word in line for word in told), line
    assert "fault of anchor" not in line


@pytest.mark.parametrize(
    "slip, told",
    [
        ("raises", "KeyError"),
        ("tensor", "a Tensor; allowed: a Step"),
        ("vector", "the loss as [3]"),
        ("detached", "without a gradient"),
        ("float", "the loss as a float"),
        ("fewer", "a row for each image"),
        ("part", "the part extra as a float"),
        ("taken", "called epoch"),
        ("event", "called event"),
        ("warns", "KeyError"),
    ],
)
def test_a_slip_in_an_objective(slip: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = training(tmp_path / "run", f"--objective.name={HERE}.Faulty", f"--objective.slip={slip}")
    refused(capsys, status, "objective Faulty", told)


def test_two_passes_in_a_step_of_micro_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second would be all that is carried back, and the gradient another than without them."""
    words = (f"--objective.name={HERE}.Faulty", "--objective.slip=twice")
    assert training(tmp_path / "whole", *words) == 0
    status = training(tmp_path / "parts", *words, "--optimise.micro_batch=32")
    refused(capsys, status, "calls learner.forward twice", "call it once")


def test_a_package_that_is_called_like_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Faulty, "__module__", "anchor_robust_mine")
    assert not objectives.base.ours(Faulty())
    assert objectives.base.ours(objectives.find("pgd-at")())


@pytest.mark.parametrize("recipe, name", [("digits-standard", f"{HERE}:Methods.Nested"), ("digits-anchor", "anchor")])
def test_a_recipe_reads_back_as_it_was(recipe: str, name: str, tmp_path: Path) -> None:
    written = settle(recipe, [f"--objective.name={name}"])
    (tmp_path / "recipe.yaml").write_text(written.text())
    assert settle(str(tmp_path / "recipe.yaml")) == written


def test_a_setting_that_no_recipe_can_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        capsys, training(tmp_path / "run", f"--objective.name={HERE}.Placed"), "objective.place", "allowed: numbers"
    )
    words = (f"--model.name={HERE}.Stack", "--model.norm=torch.nn.InstanceNorm2d")
    refused(capsys, training(tmp_path / "run", *words), "model.norm", "allowed: numbers")


def test_a_model_is_built_again_as_it_was(tmp_path: Path) -> None:
    name = f"{HERE}.Stack"
    assert training(tmp_path / "run", f"--model.name={name}", "--model.widths=[3,5]") == 0
    assert main(["evaluate", str(tmp_path / "run"), "--model", name, "--attacks", "clean", "--limit", "5"]) == 0


@pytest.mark.parametrize("model, told", [("Lazy", "has lazy layers"), ("Uncopied", "cannot be copied")])
def test_a_network_that_cannot_be_tried(
    model: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, training(tmp_path / "run", f"--model.name={HERE}.{model}"), f"{HERE}.{model}", told)


def test_a_lasting_worry_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"--objective.name={HERE}.Faulty", "--objective.slip=worries")
    for epochs, times in ((1, 0), (4, 1)):
        assert training(tmp_path / str(epochs), *words, f"--optimise.epochs={epochs}") == 0
        assert capsys.readouterr().err.count("warning: beware of 64") == times


def test_an_objective_without_its_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = training(tmp_path / "run", f"--objective.name={HERE}.Unfinished")
    refused(capsys, status, "lacks __call__")
    assert not (tmp_path / "run").exists()


def test_a_part_that_is_no_number_is_a_gap_in_the_log(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert training(run, f"--objective.name={HERE}.Faulty", "--objective.slip=nan") == 0
    (line,) = (run / runs.METRICS).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["extra"] is None
    assert main(["evaluate", str(run), "--limit", "5", "--attacks", "clean", "--quiet"]) == 0
    assert main(["report", str(run)]) == 0


def test_a_setting_that_may_be_empty_is_read_back(tmp_path: Path) -> None:
    for place, words in enumerate(((f"--objective.name={HERE}.Faulty",), (f"--model.name={HERE}.Picky",))):
        run = tmp_path / str(place)
        assert training(run, *words) == 0
        assert main(["train", "--resume", str(run)]) == 0


def test_a_factory_that_ends_the_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--data", "digits", "--normalize", "none", "--attacks", "clean"]
    refused(capsys, main(["evaluate", "--model", f"{HERE}:leaves", *words]), "cannot be built", "SystemExit")


def test_an_objective_edited_before_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_to_edit.py").write_text(
        "from anchor_robust.objectives import pgd_at\n\n\nclass Mine(pgd_at.PGDAdversarialTraining):\n    pass\n"
    )
    assert training(tmp_path / "run", "--objective.name=mine_to_edit.Mine") == 0
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "has changed" not in capsys.readouterr().err
    with (tmp_path / "mine_to_edit.py").open("a") as file:
        file.write("# another\n")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "warning: the file of the objective has changed since" in capsys.readouterr().err


def test_a_recipe_edited_before_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training(tmp_path / "run") == 0
    recipe = tmp_path / "run" / runs.RECIPE
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 5").replace("batch_size: 64", "batch_size: 32"))
    refused(capsys, main(["train", "--resume", str(tmp_path / "run")]), "seed, optimise.batch_size differ")


def test_a_stop_before_the_first_step_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "accelerate", stopped)
    with pytest.raises(train.Interrupted, match=r"anchor train --resume .* goes on"):
        train.start(train.settle("digits-standard", [*TINY]), tmp_path / "run", None, train.Display())


# --- data -------------------------------------------------------------------------------------------------------------


def packed(folder: Path, y: np.ndarray) -> Path:
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "x.npy", np.zeros((len(y), 8, 8, 1), np.uint8))
        np.save(folder / split / "y.npy", y)
    return folder


@pytest.mark.parametrize("label", [2**64 - 1, 10**12])
def test_labels_that_are_ids(label: int, tmp_path: Path) -> None:
    y = np.array([0, 1, label], np.uint64)
    np.savez(tmp_path / "mine.npz", x=np.zeros((3, 8, 8, 1), np.uint8), y=y)
    for source in (packed(tmp_path / "folder", y), tmp_path / "mine.npz"):
        with pytest.raises(Refusal, match=f"holds the label {label}; allowed: classes numbered"):
            data.load(str(source), "test")


def test_one_class_is_no_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = packed(tmp_path / "folder", np.zeros(50, np.int64))
    words = (f"--data.name={folder}", "--validation.images=10", "--optimise.batch_size=16")
    refused(capsys, training(tmp_path / "run", *words), "has one class")
    assert not (tmp_path / "run").exists()


# --- weights ----------------------------------------------------------------------------------------------------------


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    tensors = {name: tensor.to(torch.int8) for name, tensor in network.state_dict().items()}
    with pytest.raises(Refusal, match=r"weight is \[2, 3\] whole numbers, not \[2, 3\]"):
        checkpoint.fill(network, tensors, "mine.pt")
    checkpoint.fill(network, {name: tensor.half() for name, tensor in network.state_dict().items()}, "mine.pt")


def test_safetensors_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "mine.pt")
    assert checkpoint.read_tensors(tmp_path / "mine.pt")["weight"].tolist() == [1, 1]


def test_a_header_that_is_none_of_ours(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "mine.safetensors", {checkpoint.HEADER: "[1]"})
    assert checkpoint.read_weights(tmp_path / "mine.safetensors")[0] == {}


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    tensors = {"weight": torch.eye(2).to_sparse(), "bias": torch.zeros(2)}
    with pytest.raises(Refusal, match=r"mine.pt cannot be loaded .* save dense tensors"):
        checkpoint.fill(nn.Linear(2, 2), tensors, "mine.pt")


def test_an_argument_without_a_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = training(tmp_path / "run", f"--model.name={HERE}.untyped", "--model.depth=2")
    refused(capsys, status, "state a type for each of its arguments")


def test_a_picture_in_laboratory_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("LAB", (8, 8)).save(tmp_path / "lab.tif")
    words = ["--run", str(DIGITS), "--out", str(tmp_path / "out")]
    refused(capsys, main(["attack", str(tmp_path / "lab.tif"), *words]), "in LAB colours")


# --- files and pipes --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = Path(shutil.copytree(DIGITS, tmp_path / "copy"))
    for file in run.glob("evaluation*"):
        file.unlink()
    return run


def evaluating(run: Path, *words: str) -> int:
    return main(["evaluate", str(run), "--limit", "20", "--quiet", *words])


def test_a_record_of_other_images_of_that_name_stays(run: Path, tmp_path: Path) -> None:
    images = data.load("digits", "test")
    for place, start in (("a", 0), ("b", 100)):
        part = images.subset(slice(start, start + 40))
        (tmp_path / place).mkdir()
        x = part.images.permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / place / "mine.npz", x=x, y=part.labels.numpy(), classes=np.array(part.classes))
        assert evaluating(run, "--attacks", "clean", "--data", str(tmp_path / place / "mine.npz")) == 0
    records = [runs.read_json(path) for path in run.glob("evaluation*.json")]
    assert len({record["data"]["sha256"] for record in records}) == 2


def test_the_claim_is_of_the_last_attack_that_was_named(run: Path, tmp_path: Path) -> None:
    words = ("--claim", "0.98", "--out", str(tmp_path / "record.json"))
    assert evaluating(run, "--attacks", "pgd20,clean", *words) == 0
    assert evaluating(run, "--attacks", "clean,pgd20", "--eps", "0.5", *words) == 1


def test_a_file_that_is_no_record_is_not_written_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (runs.ENVIRONMENT, "."):
        before = (run / runs.ENVIRONMENT).read_bytes()
        (run / "x.json").mkdir(exist_ok=True)
        out = run / name if name != "." else run / "x.json"
        refused(capsys, evaluating(run, "--attacks", "clean", "--out", str(out)), str(out))
        assert (run / runs.ENVIRONMENT).read_bytes() == before


def test_a_record_is_not_put_in_the_place_of_another_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    status = evaluating(run, "--attacks", "clean", "--out", str(other / runs.EVALUATION))
    refused(capsys, status, "the place of another run's record")
    assert not (other / runs.EVALUATION).exists()
    (run / runs.CARD).unlink()
    assert evaluating(run, "--attacks", "clean", "--out", str(run / runs.EVALUATION)) == 0


def test_what_is_told_can_be_pasted_and_printed(tmp_path: Path) -> None:
    """A path with a space and an umlaut, on a terminal that knows ASCII alone; and no standard output at all."""
    command = [sys.executable, "-m", "anchor_robust", "train", "digits-standard", *TINY, "--optimise.batch_size=700"]
    around = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "--out", "r ä"], cwd=tmp_path, env=around, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"next: anchor evaluate 'r \\xe4'" in done.stderr
    assert b"537 of 1237 images are left out of each epoch" in done.stderr
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command, "--out", "b"], cwd=tmp_path, check=False)
    assert closed.returncode == 0


def test_a_damaged_ledger_begins_anew(tmp_path: Path) -> None:
    from anchor_robust.evaluation import Ledger

    (ledger := Ledger(tmp_path / "record.json")).open(what="this")
    assert ledger.path
    with ledger.path.open("a") as file:
        file.write("no json\n")
    said: list[str] = []
    Ledger(tmp_path / "record.json", say=said.append).open(what="this")
    assert said == [f"beginning anew: {ledger.path} is damaged"]
    assert "no json" not in ledger.path.read_text()


@pytest.mark.parametrize("line", ["3", '{"epoch": 1}', '{"step": "one"}', "garbage"])
def test_a_damaged_log_is_named(line: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "damaged")
    log = tmp_path / "damaged" / runs.METRICS
    log.write_text(log.read_text() + line + "\n")
    refused(capsys, main(["report", str(tmp_path / "damaged")]), f"{log} cannot be read")


def test_a_folder_that_may_not_be_entered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main(["train", "digits-standard", "--out", str(tmp_path / ("x" * 300))]), "File name too long")


@pytest.mark.parametrize("words", [("--json",), ()])
def test_a_reader_that_leaves_does_not_stop_a_training(words: tuple[str, ...], tmp_path: Path) -> None:
    """Standard output is closed after one line with --json; standard error else."""
    command = [sys.executable, "-m", "anchor_robust", "train", "digits-standard", *TINY, "--out", "run", *words]
    stream = {"stdout" if words else "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--optimise.epochs=3"], cwd=tmp_path, text=True, **stream) as process:  # type: ignore[call-overload]
        pipe = process.stdout or process.stderr
        pipe.readline()
        pipe.close()
        assert process.wait() == 0
    assert len(runs.read_metrics(tmp_path / "run")) == 3


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "anchor_robust", "recipes"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "standard output cannot be used: No space left on device" in done.stderr
