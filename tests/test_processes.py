"""Two processes that share a batch are one process: losses, gradients, verdicts, files."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from anchor_robust import processes
from anchor_robust.losses import hard_supcon
from anchor_robust.models import synced
from anchor_robust.objectives import Learner, Objective, Step
from anchor_robust.train import launched, validate
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
                raise processes.Refusal("the disk is full")
    except processes.Refusal as refusal:
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


JOBS: tuple[Callable[[Path, Fabric], Found], ...] = (steps, validated, embedded, normalised, told)


def work(index: int, port: int, folder: Path) -> None:
    own = {"LOCAL_RANK": index, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    torch.set_num_threads(1)
    with launched(devices=COUNT) as fabric:
        found = {job.__name__: job(folder, fabric) for job in JOBS}
    torch.save(found, folder / f"{index}.pt")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("shared")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder), nprocs=COUNT)
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
