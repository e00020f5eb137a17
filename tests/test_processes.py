"""Two processes that share a batch are one process: losses, gradients, verdicts, files."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from anchor_robust import processes, runs, train
from anchor_robust.attacks import PGD
from anchor_robust.data import Given
from anchor_robust.display import Display
from anchor_robust.errors import Refusal
from anchor_robust.evaluation import Ledger, measure
from anchor_robust.losses import hard_supcon
from anchor_robust.models import synced
from anchor_robust.objectives import Learner, Objective, Step
from anchor_robust.recipe import settle
from anchor_robust.threat import Ball
from anchor_robust.train import launched, validate
from anchor_robust.train.launch import made_by_others
from test_in_parts import OBJECTIVES, STRENGTHENED, same, stepped, training

Found = dict[str, Any]
COUNT = 2
STEPS = OBJECTIVES | STRENGTHENED
STEPS["batch norm"] = ("--objective.name=anchor", "--model.name=resnet8", "--model.width=4")
STEPS["unused head"] = ("--objective.name=test_processes.LeavesOut",)
STEPS["micro-batches"] = ("--objective.name=anchor", "--optimise.micro_batch=6")


@dataclass(frozen=True)
class LeavesOut(Objective):
    """Asks for a projection head and makes nothing of it."""

    name: ClassVar[str] = "leaves-out"
    projection_width: int = 8

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        logits, _ = learner.forward(x)
        return Step(learner.cross_entropy(logits, y), logits)


def steps(folder: Path, fabric: Fabric | None = None) -> Found:
    """What `stepped` gives for each of STEPS, and the running statistics after it."""
    found = {}
    for name, settings in STEPS.items():
        at = training(folder, *settings, fabric=fabric)
        found[name] = (*stepped(at), list(at.network.buffers()))
    return found


def validated(folder: Path, fabric: Fabric | None = None) -> Found:
    """Accuracies in batches that two processes cannot halve, the last of them of one image."""
    at = training(folder, "--optimise.batch_size=66", "--optimise.micro_batch=33", "--attack.steps=1", fabric=fabric)
    return validate(at)


def embedded(folder: Path, fabric: Fabric | None = None) -> Found:
    """A contrastive loss over gathered embeddings; its gradient averaged over the processes, as DDP does."""
    z, labels = embeddings()
    own = z[processes.part(len(z))].requires_grad_()
    loss = hard_supcon(processes.gathered(F.normalize(own, dim=1)), labels, hard_fraction=0.5)
    loss.backward()
    return {"loss": loss.detach(), "gradient": own.grad / processes.count()}


def embeddings() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.arange(12) % 3


def normalised(folder: Path, fabric: Fabric | None = None) -> Found:
    """Output, input gradient and statistics of BatchNorm over a shared batch, for every kind of it."""
    found = {}
    x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5
    for name, made in norms().items():
        norm = made if processes.count() == 1 else synced(made)
        given = x if isinstance(made, nn.BatchNorm2d) else x.flatten(1)
        own = given[processes.part(8)].clone().requires_grad_()
        output = norm(norm(own))
        processes.gathered(output).square().pow(1.5).sum().backward()
        found[name] = [output.detach(), own.grad / processes.count(), *(each.clone() for each in made.buffers())]
    return found


def norms() -> dict[str, nn.Module]:
    norms = {
        "plain": nn.BatchNorm2d(3),
        "cumulative": nn.BatchNorm2d(3, momentum=None),
        "without scale": nn.BatchNorm2d(3, affine=False),
        "without statistics": nn.BatchNorm2d(3, track_running_stats=False),
        "of features": nn.BatchNorm1d(75),
    }
    return {name: norm.double() for name, norm in norms.items()}


def told(folder: Path, fabric: Fabric | None = None) -> Found:
    """The small things that processes say to each other."""
    index = processes.index()
    refused = None
    try:
        with processes.refusing_together():
            if index == 1:
                raise Refusal("the disk is full")
    except Refusal as refusal:
        refused = str(refusal)
    return {
        "parts": [processes.part(images) for images in (1, 5, 8)],
        "first": processes.first(),
        "any": [processes.any_says(index == 1), processes.any_says(False)],
        "averaged": processes.averaged(
            {"loss": torch.tensor(float(index)), "nan": torch.tensor([1.0, torch.nan][index])}
        ),
        "refused": refused,
    }


def measured(folder: Path, fabric: Fabric | None = None) -> Found:
    """An evaluation in seven batches, and what its ledger holds at the end."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(50, 1, 3, 3, generator=generator), torch.randn(4, 9, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4, bias=False))
    model[1].weight.data = weight
    y = model(x).argmax(1)
    ledger = Ledger(folder / "evaluation.json")
    found = measure(model, Given(x, y), ("clean", PGD(Ball("linf", 0.1), steps=3)), batch_size=8, ledger=ledger)
    seconds = [result.pop("seconds") for result in found.record["results"]]
    for result in found.record["results"]:
        for stage in result.get("stages", []):
            stage.pop("seconds")
    return {
        "record": found.record,
        "outcomes": {name: array.tolist() for name, array in found.outcomes.items()},
        "seconds": seconds,
        "units": [line["unit"] for line in map(json.loads, ledger.path.read_text().splitlines()) if "unit" in line],
    }


JOBS: tuple[Callable[[Path, Fabric], Found], ...] = (steps, validated, embedded, normalised, measured, told)


def work(index: int, port: int, folder: Path) -> None:
    own = {"LOCAL_RANK": index, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    torch.set_num_threads(1)
    with launched(devices=COUNT) as fabric:
        found = {job.__name__: job(folder, fabric) for job in JOBS}
    torch.save(found, folder / f"{index}.pt")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("shared")
    torch.multiprocessing.spawn(work, (free_port(), folder), nprocs=COUNT)
    return [torch.load(folder / f"{index}.pt", weights_only=False) for index in range(COUNT)]


@pytest.mark.parametrize("name", STEPS)
def test_a_shared_step_is_that_of_one_process(name: str, shared: list[Found], tmp_path: Path) -> None:
    at = training(tmp_path, *STEPS[name])
    reported, gradients, state = stepped(at)
    for each in shared:
        *found, buffers = each["steps"][name]
        same(tuple(found), (reported, gradients, state))
        torch.testing.assert_close(buffers, list(at.network.buffers()), rtol=1e-5, atol=1e-6)


def test_shared_validation_is_that_of_one_process(shared: list[Found], tmp_path: Path) -> None:
    alone = validated(tmp_path)
    assert 0 < alone["validation_clean"] < 1
    assert [each["validated"] for each in shared] == [alone, alone]


def test_a_shared_evaluation_is_that_of_one_process(shared: list[Found], tmp_path: Path) -> None:
    alone = measured(tmp_path)
    (held,) = (held for name, held in alone["outcomes"].items() if name.startswith("held"))
    assert 0 < sum(held) < 50
    for each in shared:
        for what in ("record", "outcomes"):
            assert each["measured"][what] == alone[what]
    assert shared[0]["measured"]["units"] == alone["units"], "the first process wrote the ledger, and it alone"
    assert shared[0]["measured"]["seconds"] == shared[1]["measured"]["seconds"]


def test_gathered_embeddings_carry_the_whole_gradient(shared: list[Found]) -> None:
    z, labels = embeddings()
    loss = hard_supcon(F.normalize(z.requires_grad_(), dim=1), labels, hard_fraction=0.5)
    loss.backward()
    for each in shared:
        torch.testing.assert_close(each["embedded"]["loss"], loss.detach())
    torch.testing.assert_close(torch.cat([each["embedded"]["gradient"] for each in shared]), z.grad)


def test_batch_norm_is_over_the_images_of_all_processes(shared: list[Found], tmp_path: Path) -> None:
    for name, (output, gradient, *buffers) in normalised(tmp_path).items():
        found = [each["normalised"][name] for each in shared]
        torch.testing.assert_close(torch.cat([each[0] for each in found]), output)
        torch.testing.assert_close(torch.cat([each[1] for each in found]), gradient)
        for each in found:
            assert len(each) == len(buffers) + 2
            torch.testing.assert_close(each[2:], buffers)


def test_what_processes_tell_each_other(shared: list[Found]) -> None:
    one, other = (each["told"] for each in shared)
    assert (one["first"], other["first"]) == (True, False)
    for images, mine, theirs in zip((1, 5, 8), one["parts"], other["parts"], strict=True):
        assert [*range(images)[mine], *range(images)[theirs]] == list(range(images))
    for each in (one, other):
        assert each["any"] == [True, False]
        assert each["averaged"]["loss"] == 0.5
        assert each["averaged"]["nan"].isnan()
    assert one["refused"] == "process 1 says: the disk is full"
    assert other["refused"] == "the disk is full"


def anchor(*words: object) -> list[str]:
    return [sys.executable, "-m", "anchor_robust", *map(str, words)]


def test_what_all_processes_refuse_is_told_once(tmp_path: Path) -> None:
    words = ("train", "digits-standard", "--devices", COUNT, "--optimise.batch_size=4096", "--out", tmp_path / "run")
    done = subprocess.run(anchor(*words), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "anchor: optimise.batch_size 4096 given; allowed: up to 1237, the training images without those for validation",
    ]
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_is_refused_before_a_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "launched", lambda *given: pytest.fail("started"))
    with pytest.raises(Refusal, match="batch_size 63 given; allowed: a multiple of the 6 processes"):
        train.start(
            settle("digits-standard", ["--optimise.batch_size=63"]), tmp_path / "run", None, Display(), None, 2, 3
        )


def test_two_processes_stop_together_and_one_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--devices", COUNT, "--optimise.epochs=15", "--validation.every=15", "--model.width=4", "--out", run)
    process = subprocess.Popen(
        anchor("train", "digits-standard", *words), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while len(runs.read_metrics(run)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert told.count(f"anchor train --resume {run} goes on") == 1
    done = subprocess.run(anchor("train", "--resume", run), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line["epoch"] for line in runs.read_metrics(run)] == [*range(1, 16)]
    around = runs.read_json(run / runs.ENVIRONMENT)
    assert (around["processes"], around["batch"]) == (2, {"global": 64, "process": 32, "at_a_time": 32})


def test_two_machines_under_torchrun_train_one_run(tmp_path: Path) -> None:
    """Both on this machine, each with a torchrun and a process of its own."""
    run = tmp_path / "run"
    meet = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test")
    endpoint = ("--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    words = ("train", "digits-standard", "--optimise.epochs=2", "--model.width=4", "--out", str(run))
    command = [sys.executable, "-m", "torch.distributed.run", *meet, *endpoint, "-m", "anchor_robust", *words]
    machines = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert "".join(told).count(f"finished: {run / runs.WEIGHTS}") == 1
    assert [line["epoch"] for line in runs.read_metrics(run)] == [1, 2]
    assert runs.read_json(run / runs.ENVIRONMENT)["batch"] == {"global": 64, "process": 32, "at_a_time": 32}


@pytest.mark.parametrize(
    ("asked", "hint"),
    [({"devices": 0}, "--devices 0 --nodes 1 given"), ({"nodes": 2}, "torchrun or srun")],
)
def test_processes_that_cannot_be_are_refused(asked: dict[str, int], hint: str) -> None:
    with pytest.raises(Refusal, match=hint), launched(**asked):
        pytest.fail("went on")


def test_torchrun_and_srun_say_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made_by_others() == (1, 1)
    slurm = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert made_by_others() == (4, 2)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    assert made_by_others() == (4, 2), "srun --ntasks 8 --nodes 2"
    monkeypatch.setenv("SLURM_NNODES", "1")
    assert made_by_others() == (8, 1)
    elastic = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}
    for name, value in elastic.items():
        monkeypatch.setenv(name, value)
    assert made_by_others() == (2, 3)
