"""Where a run can be followed beside its own files: TensorBoard, MLflow, Weights & Biases, as loggers of Fabric's."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from ..errors import Refusal
from ..lookup import named

PROJECT = "anchor"
Rows = list[list[str]]


class Follower(Logger):
    """A logger that begins with `log_hyperparams` and takes pictures. By `key` a run that is resumed is found again."""

    key: str

    @property
    def name(self) -> str:
        return PROJECT

    @property
    def version(self) -> int | str:
        return self.key

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        """A picture, uint8 [3 h w]."""

    def log_embeddings(self, embeddings: Tensor, rows: Rows, images: Tensor, step: int) -> None:
        """Embeddings [n d], what is said of each (class, view, answer) and its image [n c h w] in [0, 1]."""


class TensorBoard(TensorBoardLogger, Follower):
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, key: str) -> None:
        super().__init__(run, name="tensorboard", version="", default_hp_metric=False)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.experiment.add_text("recipe", "\n".join(f"    {name}: {value}" for name, value in params.items()))

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        self.experiment.add_image(name, picture, step)

    def log_embeddings(self, embeddings: Tensor, rows: Rows, images: Tensor, step: int) -> None:
        coloured = images.expand(-1, 3, -1, -1)
        self.experiment.add_embedding(embeddings, rows, coloured, step, "embedding", ["class", "view", "answer"])


@dataclass
class MLflow(Follower):
    """A run of the experiment MLFLOW_EXPERIMENT_NAME, or anchor, where MLFLOW_TRACKING_URI says."""

    run: Path
    key: str

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        before = self.client.search_runs([experiment], f"tags.anchor_run = '{self.key}'")
        if before:
            self.run_id = before[0].info.run_id
            return
        created = self.client.create_run(experiment, run_name=self.run.name, tags={"anchor_run": self.key})
        self.run_id = created.info.run_id
        self.client.log_batch(self.run_id, params=[Param(name, str(value)) for name, value in params.items()])

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self.client.log_batch(self.run_id, [Metric(name, value, now, step or 0) for name, value in metrics.items()])

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        self.client.log_image(self.run_id, picture.permute(1, 2, 0).numpy(), key=name, step=step)

    def finalize(self, status: str) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if status == "success" else "KILLED")


@dataclass
class Wandb(Follower):
    """A run of the project WANDB_PROJECT, or anchor; WANDB_MODE=offline keeps it on this machine, in RUN/wandb."""

    run: Path
    key: str

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.experiment = wandb.init(
            project=project, name=self.run.name, id=self.key, resume="allow", dir=self.run, config=dict(params)
        )

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(metrics, step=step)

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        import wandb

        self.experiment.log({name: wandb.Image(picture.permute(1, 2, 0).numpy())}, step=step)

    def finalize(self, status: str) -> None:
        self.experiment.finish(exit_code=0 if status == "success" else 1)


LOGGERS: dict[str, Callable[[Path, str], Follower]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": Wandb,
}


def follower(name: str, run: Path, key: str) -> Follower:
    """The logger `name`, not yet begun. Raises Refusal for another name, and where its package is not installed."""
    make = named("logger", name, LOGGERS)
    found = find_spec(name)
    if found is None or found.origin is None:  # a folder of that name is no package
        raise Refusal(f"--logger {name} needs {name}, which is not installed; pip install 'anchor-robust[{name}]'")
    return make(run.resolve(), key)
