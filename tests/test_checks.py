"""Every check warns on a model that was built to have its fault, and none on honest ones."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

import anchor_robust
from anchor_robust import checks, data
from anchor_robust.attacks import Attack
from anchor_robust.attacks.worst import damage, worst
from anchor_robust.checks import adversarials, gradients, inputs, outputs, strength
from anchor_robust.checks.finding import beyond
from anchor_robust.data import corrupt
from anchor_robust.threat import Ball

BALL = Ball("linf", 0.15)
MEAN, DEVIATION = 0.3, 0.37


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Honest(nn.Module):
    """A small convolutional network for digits, normalisation included."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
            self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised((x - MEAN) / DEVIATION)

    def normalised(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.body(x)).flatten(1))


def train(net: Honest, steps: int = 60) -> Honest:
    digits, generator = data.load("digits", "train"), seeded()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(steps):
        chosen = torch.randint(len(digits), (128,), generator=generator)
        loss = F.cross_entropy(net(digits.pixels(chosen)), digits.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def honest() -> Honest:
    return train(Honest())


@pytest.fixture(scope="module")
def sibling() -> Honest:
    return train(Honest(seed=1))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = data.load("digits", "test")
    return test.pixels(slice(None)), test.labels


class RandomSigns(Attack):
    """A black-box attack of a dozen lines: random corners of the ball."""

    def __init__(self, ball: Ball, draws: int) -> None:
        self.ball, self.draws = ball, draws

    def search(self, model, x, y, generator):
        corners = (torch.randint(2, x.shape, generator=generator) * 2 - 1 for _ in range(self.draws))
        tries = (self.ball.project(x + self.ball.eps * corner, x) for corner in corners)
        return worst(tries, lambda x_adv: damage(model, x_adv, y, lambda z: -F.cross_entropy(z, y, reduction="none")))


def verdicts(model, digits, **settings) -> dict[str, str]:
    findings = checks.run(model, *digits, settings.pop("ball", BALL), images=60, **settings)
    assert all(entry.keys() == {"name", "verdict", "detail"} for entry in findings)
    assert all("\n" not in entry["detail"] and entry["detail"] for entry in findings)
    assert len({entry["name"] for entry in findings}) == len(findings) == 14
    return {entry["name"]: entry["verdict"] for entry in findings}


@pytest.mark.parametrize(("ball", "seed"), [(BALL, 0), (Ball("linf", 8 / 255), 1), (Ball("l2", 0.5), 2)])
def test_an_honest_network_passes_every_check(ball, seed, honest, sibling, digits) -> None:
    black_box = RandomSigns(ball, 20)
    found = verdicts(honest, digits, ball=ball, sibling=sibling, black_box=black_box, generator=seeded(seed))
    assert set(found.values()) == {"pass"}


class Faulty(nn.Module):
    def __init__(self, net: Honest) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)


class Quantised(Faulty):
    def forward(self, x):
        return self.net((x * 8).round() / 8)


class Jpeg(Faulty):
    def forward(self, x):
        return self.net(corrupt("jpeg", 1, x.detach().clamp(0, 1), seeded()))


class RandomlyResized(Faulty):
    def forward(self, x):
        size = int(torch.randint(5, 8, ()))
        small = F.interpolate(x, (size, size), mode="bilinear")
        return self.net(F.interpolate(small, (8, 8), mode="bilinear"))


class Saturated(Faulty):
    scale = 1e3

    def forward(self, x):
        return self.net(x) * self.scale


class MoreSaturated(Saturated):
    scale = 1e4


class MostSaturated(Saturated):
    scale = 1e5


class BatchStatistics(Faulty):
    def forward(self, x):
        return self.net(F.batch_norm(x, None, None, training=True) * DEVIATION + MEAN)


class RoutedByArgmax(Faulty):
    """The answer goes through a choice, and what flows around it is not the answer's gradient."""

    def forward(self, x):
        return F.one_hot(self.net(x).argmax(1), 10) + 0 * x.sum((1, 2, 3))[:, None]


class Softmax(Faulty):
    def forward(self, x):
        return self.net(x).softmax(1)


class NormalisedTwice(Faulty):
    def forward(self, x):
        return self.net((x - MEAN) / DEVIATION)


class NeverNormalised(Faulty):
    def forward(self, x):
        return self.net.normalised(x)


class ExpectsBytes(Faulty):
    def forward(self, x):
        return self.net(x / 255)


class Counting(Faulty):
    def __init__(self, net):
        super().__init__(net)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.net(x)


class Tiring(Faulty):
    """Where no buffer shows it: after 50 calls another answer."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (1 if self.calls < 50 else 1.5)


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Misleading(Faulty):
    """Gradients that are there, and lead away from every mistake."""

    def forward(self, x):
        return self.net(Backwards.apply(x))


class MisleadingBesidesTheGrid(Faulty):
    """Right gradients on 8-bit images, wrong ones between them: a single step is better than many."""

    def forward(self, x):
        levels = x * 255
        off = (levels - levels.round()).abs().flatten(1).amax(1).view(-1, 1, 1, 1) > 1e-3
        return self.net(torch.where(off, Backwards.apply(x), x))


class BelowGreyLevels(Faulty):
    """Reacts to what lies between two grey levels, and to nothing else."""

    def forward(self, x):
        levels = x * 255
        between = (levels - levels.round().detach()).square().sum((1, 2, 3))[:, None]
        clean = self.net(levels.round() / 255).detach()
        return clean - between * 10 * F.one_hot(clean.argmax(1), 10)


class NotANumber(Faulty):
    def forward(self, x):
        logits = self.net(x)
        return logits / (logits.amax(1, keepdim=True) > logits.amax(1).median())


FAULTS = {
    Quantised: {gradients.REACH, strength.WIDE},
    Jpeg: {gradients.REACH},
    RandomlyResized: {outputs.REPEATABLE},
    Saturated: {gradients.SATURATED, strength.WIDE},
    MoreSaturated: {gradients.SATURATED, strength.WIDE},
    MostSaturated: {gradients.SATURATED, strength.WIDE},
    BatchStatistics: {outputs.ALONE},
    RoutedByArgmax: {gradients.REACH, strength.WIDE},
    Softmax: {outputs.LOGITS},
    NormalisedTwice: {inputs.NORMALISED},
    NeverNormalised: {inputs.NORMALISED},
    ExpectsBytes: {inputs.NORMALISED},
    Counting: {outputs.UNCHANGED},
    Tiring: {outputs.REPEATABLE},
    Misleading: {strength.WIDE, strength.NOISE, strength.BLACK_BOX, strength.TRANSFER},
    MisleadingBesidesTheGrid: {strength.STEPS},
    BelowGreyLevels: {adversarials.EIGHT_BITS},
    NotANumber: {outputs.LOGITS},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found(fault, honest, sibling, digits) -> None:
    found = verdicts(
        fault(honest).eval(), digits, sibling=sibling, black_box=RandomSigns(BALL, 50), ball=Ball("linf", 0.25)
    )
    print({name for name, verdict in found.items() if verdict == "warn"})
    assert FAULTS[fault] <= {name for name, verdict in found.items() if verdict == "warn"}
