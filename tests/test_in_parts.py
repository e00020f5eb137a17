"""A batch in parts is the same batch: one loss, one gradient, one stream of random numbers."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import Tensor, nn

from anchor_robust import data, objectives, train
from anchor_robust.draws import drawn, parts
from anchor_robust.recipe import settle
from anchor_robust.threat import Ball
from anchor_robust.train import Training

IMAGES = 24
SETTINGS = (
    "--optimise.batch_size=24",
    "--attack.steps=2",
    "--validation.images=200",
    "--optimise.precision=float32",
    f"--model.name={__name__}.WithoutNorm",
)


class WithoutNorm(nn.Module):
    """A backbone in which no image sees another."""

    def __init__(self, classes: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Dropout(dropout)
        )
        self.linear = nn.Linear(96, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


def training(tmp_path: Path, *more: str, fabric: Fabric | None = None) -> Training:
    recipe = settle("digits-pgd-at", [*SETTINGS, *more])
    return train.build(recipe, data.load("digits", "train"), tmp_path, fabric)


def stepped(at: Training, number: int = 3) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
    """What a step reports, the gradients that it took, and where its generator is afterwards."""
    reported = train.update.step(at, number, 10, torch.arange(IMAGES) + 100)
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in at.network.parameters()]
    return reported, gradients, at.generator.get_state()


def same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    for (name, one), other in zip(ours[0].items(), theirs[0].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=lambda why, name=name: f"{name}: {why}")
    for one, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
    assert torch.equal(ours[2], theirs[2])


OBJECTIVES = {name: (f"--objective.name={name}",) for name in objectives.discover()}
OBJECTIVES["fast-at"] += ("--objective.guard=1",)
OBJECTIVES["anchor"] += ("--objective.hard_fraction=0.5", "--objective.attack_contrast=0", "--objective.margin=1")
OBJECTIVES["anchor on MART"] = ("--objective.name=anchor", "--objective.margin=1", "--objective.consistency=5")
STRENGTHENED = {
    "awp and mixup": ("--optimise.awp=0.01", "--data.mix=mixup"),
    "cutmix and clipping": ("--data.mix=cutmix", "--optimise.clip=0.1"),
    "l2": ("--threat.norm=l2", "--threat.eps=0.5", "--attack.step_size=0.2"),
}


@pytest.mark.parametrize("settings", [*OBJECTIVES.values(), *STRENGTHENED.values()], ids=[*OBJECTIVES, *STRENGTHENED])
def test_micro_batches_give_the_loss_and_the_gradient_of_the_batch(settings: tuple[str, ...], tmp_path: Path) -> None:
    whole = stepped(training(tmp_path, *settings))
    for micro_batch in (12, 2):
        same(stepped(training(tmp_path, *settings, f"--optimise.micro_batch={micro_batch}")), whole)


def test_micro_batches_bound_what_passes_at_a_time(tmp_path: Path) -> None:
    at = training(tmp_path, "--objective.name=anchor", "--optimise.micro_batch=8")
    attacked, passed = [], []
    at.search.register_forward_pre_hook(lambda module, given: attacked.append(len(given[0])))
    at.network.register_forward_pre_hook(lambda module, given: passed.append(len(given[0])))
    stepped(at)
    assert set(attacked) == {8}
    assert passed == [16] * 6, "two views of eight images, three times without and three times with a graph"


def with_a_graph(learner: objectives.Learner, seeds: list[int], views: Tensor) -> tuple[Tensor, Tensor]:
    """Slow and obvious: the parts one after another, each with its seed, and one graph over all of them."""
    made = []
    for seed, part in zip(seeds, torch.arange(IMAGES).split(learner.micro_batch), strict=True):
        torch.manual_seed(seed)
        made.append(learner.forward(torch.cat([views[part], views[part + IMAGES]])))
    first, second = ([torch.cat([of[output].chunk(2)[view] for of in made]) for view in (0, 1)] for output in (0, 1))
    return torch.cat(first), torch.cat(second)


@pytest.mark.parametrize("model", [f"{__name__}.WithoutNorm --model.dropout=0.5", "resnet8 --model.width=4"])
def test_both_passes_of_a_part_are_the_same_function(model: str, tmp_path: Path) -> None:
    """Dropout and BatchNorm: as if a graph over all parts were kept; statistics move once for each part."""
    settings = ["--objective.name=anchor", "--optimise.micro_batch=8", *f"--model.name={model}".split()]
    ours, theirs = training(tmp_path, *settings), training(tmp_path, *settings)
    for at in (ours, theirs):
        at.network.train()
    x, y = ours.train.pixels(torch.arange(IMAGES)), ours.train.labels[:IMAGES]
    reported = train.update.descend(ours, ours.learner, x, y, 0)
    seeds = [train.update.global_seed(0, 0, part) for part in range(3)]
    kept = dataclasses.replace(theirs.learner, forward=functools.partial(with_a_graph, theirs.learner, seeds))
    expected = theirs.recipe.objective(kept, x, y, theirs.generator)
    expected.loss.backward()
    torch.testing.assert_close(reported["loss"], expected.loss)
    for one, other in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
    for one, other in zip(ours.network.buffers(), theirs.network.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@given(images=st.integers(1, 9), size=st.integers(0, 10), seed=st.integers(0, 5))
def test_parts_draw_what_the_whole_draws(images: int, size: int, seed: int) -> None:
    x = torch.rand(images, 1, 2, 2)
    whole, cut = (torch.Generator().manual_seed(seed) for _ in range(2))

    def draw(x: Tensor, generator: torch.Generator) -> Tensor:
        once = torch.rand(1, generator=generator)  # for the batch, such as the order of a colour jitter
        each = drawn(torch.rand, (len(x), 3), generator)
        return torch.cat([Ball("l2", 1.0).random_point(x, generator).flatten(1), each, once.expand(len(x), 1)], dim=1)

    expected = draw(x, whole)
    found = torch.cat([draw(x[part], generator) for part, generator in parts(images, size, cut)])
    assert torch.equal(found, expected)
    assert torch.equal(cut.get_state(), whole.get_state())
    again = torch.cat(
        [
            draw(x[outer][inner], own)
            for outer, part in parts(images, 4, cut)
            for inner, own in parts(len(x[outer]), 2, part)
        ]
    )
    assert torch.equal(again, draw(x, whole)), "parts of parts"
