"""Following a run in TensorBoard, MLflow or Weights & Biases: what they are told, and that nothing depends on it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anchor_robust import runs, train
from anchor_robust.cli import main
from anchor_robust.display import Quiet
from anchor_robust.recipe import Recipe, settle
from anchor_robust.train import followers, tracking

EPOCHS, PER_EPOCH = 3, 9
SMALL = (
    f"--optimise.epochs={EPOCHS}",
    "--optimise.batch_size=128",
    "--model.width=4",
    "--attack.steps=1",
    "--validation.every=2",
    "--validation.images=200",
    "--validation.steps=2",
)


def small(*more: str) -> Recipe:
    return settle("digits-anchor", [*SMALL, *more])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody follows."""
    return train.start(small(), tmp_path_factory.mktemp("alone") / "run", None, Quiet())


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train.start(small(), tmp_path_factory.mktemp("board") / "run", None, Quiet(), "tensorboard")


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()


@pytest.mark.parametrize("file", (runs.WEIGHTS, runs.RECIPE))
def test_a_logger_changes_nothing_of_what_is_trained(file: str, alone: Path, board: Path) -> None:
    assert (alone / file).read_bytes() == (board / file).read_bytes()


def test_tensorboard_holds_every_number_of_the_metrics(board: Path) -> None:
    held, lines = events(board), runs.read_metrics(board)
    assert len(lines) == EPOCHS
    names = {
        "loss": "train/loss",
        "contrast": "train/contrast",
        "batch_accuracy": "train/batch_accuracy",
        "lr": "lr",
        "validation_clean": "validation/clean",
        "validation_robust": "validation/robust",
    }
    for key, name in names.items():
        told = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in held.Scalars(name)]
        assert [(line["step"], line[key]) for line in lines if key in line] == told
    assert "objective.contrast: 0.5" in held.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_tensorboard_shows_attacked_validation_images_where_there_was_a_validation(board: Path) -> None:
    shown = events(board).Images("adversarial")
    assert [image.step for image in shown] == [2 * PER_EPOCH, 3 * PER_EPOCH]
    picture = np.asarray(Image.open(__import__("io").BytesIO(shown[-1].encoded_image_string)))
    factor = picture.shape[1] // (3 * 10)
    small_picture = picture[::factor, ::factor, 0].astype(int)
    assert small_picture.shape == (8 * 10, 3 * 10), "eight rows of clean, change and attacked, framed"
    clean, attacked = small_picture[1:9, 1:9], small_picture[1:9, 21:29]
    training = train.build(small(), train.data.load("digits", "train"), board)
    assert np.array_equal(clean, training.validation.images[0, 0].numpy())
    assert 1 <= np.abs(clean - attacked).max() <= round(0.15 * 255)


def test_tensorboard_projects_embeddings_of_both_views(board: Path) -> None:
    folders = sorted((board / "tensorboard").glob("*/embedding"))
    assert [folder.parent.name for folder in folders] == ["00018", "00027"]
    header, *rows = (folders[-1] / "metadata.tsv").read_text().splitlines()
    assert header.split("\t") == ["class", "view", "answer"]
    labels = [row.split("\t") for row in rows]
    assert [view for _, view, _ in labels] == ["clean"] * 100 + ["attacked"] * 100
    assert [label for label, *_ in labels[:100]] == [label for label, *_ in labels[100:]]
    points = np.loadtxt(folders[-1] / "tensors.tsv")
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-4)
    # The last line's accuracy is of 200 images, the rows are the first 100 of them.
    network = train.build(small(), train.data.load("digits", "train"), board)
    saved = train.checkpoint.read_state(board / runs.LAST)["average"]
    network.average.network.load_state_dict(saved)
    first = network.validation.first(100).pixels(slice(None))
    with torch.no_grad():
        logits, embeddings = network.average.network.eval()(first)
    assert [answer for *_, answer in labels[:100]] == [str(int(place)) for place in logits.argmax(1)]
    assert np.allclose(points[:100], embeddings.numpy(), atol=1e-4)


def test_pictures_are_shown_about_ten_times() -> None:
    for epochs, every in ((3, 1), (15, 1), (100, 1), (100, 5), (7, 3), (200, 30), (1, 1), (2, 5)):
        recipe = small(f"--optimise.epochs={epochs}", f"--validation.every={every}")
        validated = {epoch for epoch in range(1, epochs + 1) if epoch % every == 0 or epoch == epochs}
        shown = {epoch for epoch in range(1, epochs + 1) if tracking.due(epoch, recipe)}
        assert shown <= validated
        assert epochs in shown
        assert min(len(validated), 5) <= len(shown) <= 11


class FakeMlflow:
    """MlflowClient as far as it is used; what it was told stays with the class, as on a server."""

    runs: ClassVar[list[SimpleNamespace]] = []

    def get_experiment_by_name(self, name: str) -> None:
        assert name == "anchor"

    def create_experiment(self, name: str) -> str:
        return "7"

    def search_runs(self, experiment_ids: list[str], filter_string: str) -> list[SimpleNamespace]:
        return [run for run in self.runs if f"tags.anchor_run = '{run.tags['anchor_run']}'" == filter_string]

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> SimpleNamespace:
        info = SimpleNamespace(run_id=str(len(self.runs)))
        self.runs.append(
            SimpleNamespace(info=info, name=run_name, tags=tags, metrics=[], params=[], images=[], status="")
        )
        return self.runs[-1]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[int(run_id)].metrics += [(name, value, step) for name, value, _, step in metrics]
        self.runs[int(run_id)].params += params

    def log_image(self, run_id: str, image: np.ndarray, *, key: str, step: int) -> None:
        self.runs[int(run_id)].images.append((key, step, image.shape, image.dtype))

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[int(run_id)].status = status


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> type[FakeMlflow]:
    FakeMlflow.runs = []
    entities = SimpleNamespace(Metric=lambda *given: given, Param=lambda *given: given)
    module = SimpleNamespace(MlflowClient=FakeMlflow, entities=entities, __spec__=SimpleNamespace(origin="mlflow.py"))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return FakeMlflow


def test_mlflow_gets_recipe_numbers_and_pictures(
    mlflow: type[FakeMlflow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and resumed: the one run goes on, and every epoch is told once."""
    run, step = tmp_path / "mine", train.loop.step

    def step_until_killed(training: train.Training, number: int, *rest: Any) -> Any:
        if number == PER_EPOCH + 2:
            raise KeyboardInterrupt
        return step(training, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "step", step_until_killed)
        with pytest.raises(KeyboardInterrupt):
            train.start(small(), run, None, Quiet(), "mlflow")
    assert mlflow.runs[0].status == "KILLED"
    train.resume(run, None, Quiet())
    (told,) = mlflow.runs
    assert told.name == "mine"
    assert ("objective.temperature", "0.1") in told.params
    assert told.status == "FINISHED"
    losses = [(value, step) for name, value, step in told.metrics if name == "train/loss"]
    assert losses == [(line["loss"], line["step"]) for line in runs.read_metrics(run)]
    assert [(key, step) for key, step, *_ in told.images] == [("adversarial", 18), ("adversarial", 27)]
    (shape, dtype), *_ = [picture[2:] for picture in told.images]
    assert shape[2] == 3
    assert dtype == np.uint8


def test_wandb_gets_recipe_numbers_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[dict[str, Any], int]] = []
    opened: dict[str, Any] = {}
    ended: list[int] = []
    experiment = SimpleNamespace(
        log=lambda facts, step: told.append((facts, step)), finish=lambda exit_code: ended.append(exit_code)
    )
    module = SimpleNamespace(
        init=lambda **given: opened.update(given) or experiment,
        Image=lambda array: ("image", array.shape),
        __spec__=SimpleNamespace(origin="wandb.py"),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    run = train.start(small(), tmp_path / "mine", None, Quiet(), "wandb")
    assert (opened["project"], opened["name"], opened["dir"]) == ("anchor", "mine", run)
    assert opened["config"]["objective.temperature"] == 0.1
    assert opened["id"] == runs.read_json(run / runs.ENVIRONMENT)["logger"]["key"]
    losses = [(facts["train/loss"], step) for facts, step in told if "train/loss" in facts]
    assert losses == [(line["loss"], line["step"]) for line in runs.read_metrics(run)]
    assert [step for facts, step in told if "adversarial" in facts] == [18, 27]
    assert ended == [0]


def failing(when: str) -> Callable[..., followers.Follower]:
    class Failing(followers.Follower):
        def log_hyperparams(self, *given: Any, **named: Any) -> None:
            self.stumble("begin")

        def log_metrics(self, *given: Any, **named: Any) -> None:
            self.stumble("metrics")

        def log_picture(self, *given: Any) -> None:
            self.stumble("picture")

        def finalize(self, status: str) -> None:
            self.stumble("end")

        def stumble(self, what: str) -> None:
            if what == when:
                raise ConnectionError(f"no\nserver at {what}")

    return lambda run, key: Failing()


@pytest.mark.parametrize("when", ("metrics", "picture", "end"))
def test_a_service_that_fails_on_the_way_does_not_stop_the_training(
    when: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(followers.LOGGERS, "tensorboard", failing(when))
    run = train.start(small(), tmp_path / "run", None, Quiet(), "tensorboard")
    assert (run / runs.WEIGHTS).read_bytes() == (alone / runs.WEIGHTS).read_bytes()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "logger" in line]
    assert warnings == [f"warning: the logger failed (no server at {when}); the run goes on without it"]


def test_a_service_that_cannot_be_reached_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(followers.LOGGERS, "tensorboard", failing("begin"))
    assert main(["train", "digits-anchor", "--out", str(tmp_path / "run"), "--logger", "tensorboard"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", followers.LOGGERS)
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "build", lambda *given: pytest.fail("too late: data was read"))
    run = tmp_path / "run"
    for found in (None, SimpleNamespace(origin=None)):  # nothing, and a folder of that name
        monkeypatch.setattr(followers, "find_spec", lambda asked, found=found: found)
        assert main(["train", "digits-anchor", "--out", str(run), "--logger", name]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert f"pip install 'anchor-robust[{name}]'" in told
    assert not run.exists()


def test_a_run_without_logger_says_nothing_of_one(alone: Path) -> None:
    assert "logger" not in json.loads((alone / runs.ENVIRONMENT).read_text())
    assert not (alone / "tensorboard").exists()
