"""AutoAttack: its stages, what every one of its attacks promises, and the verdicts of the authors' package."""

import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack import AutoAttack as Reference
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from sklearn.datasets import load_digits
from torch import Tensor, nn

from anchor_robust.attacks import APGD, APGDT, FAB, AutoAttack, Square, Stage, autoattack, stages
from anchor_robust.errors import Refusal
from anchor_robust.threat import Ball

LINF, L2 = Ball("linf", 0.15), Ball("l2", 0.8)
SHORT = [
    lambda ball: APGD(ball, 6, restarts=2),
    lambda ball: APGD(ball, 6, loss="dlr"),
    lambda ball: APGDT(ball, 6),
    lambda ball: FAB(ball, 4),
    lambda ball: Square(ball, 12),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("classes, targets", [(2, 1), (3, 2), (9, 8), (10, 9), (1000, 9)])
def test_stages_are_those_of_the_paper(classes, targets) -> None:
    ranks = range(1, targets + 1)
    preview = (
        Stage("apgd-ce", (APGD(LINF, 100, 1),)),
        Stage("apgd-t", tuple(APGDT(LINF, 100, target=k) for k in ranks)),
    )
    rest = (Stage("fab-t", tuple(FAB(LINF, 100, target=k) for k in ranks)), Stage("square", (Square(LINF, 5000),)))
    assert stages(LINF, "preview", classes) == preview
    assert stages(LINF, "standard", classes) == (*preview, *rest)
    assert stages(LINF, "standard", classes)[1].describe()["targets"] == targets


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^version 'plus' given; allowed: standard, preview$"):
        AutoAttack(LINF, version="plus")
    with pytest.raises(Refusal, match=r"^a model of 1 classes given;"):
        AutoAttack(LINF)(lambda x: x, torch.rand(2, 1), torch.tensor([0, 0]))


def test_describe_names_every_setting() -> None:
    record = AutoAttack(L2).describe()
    parts = record.pop("stages")
    assert record == {
        "norm": "l2",
        "eps": 0.8,
        "steps": 100,
        "step_size": None,
        "restarts": 1,
        "start": "uniform",
        "targets": "at most 9",
        "loss": "apgd-ce, then apgd-t, then fab-t, then square",
        "version": "standard",
    }
    assert [part["stage"] for part in parts] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [part.get("targets") for part in parts] == [None, "at most 9", "at most 9", None]
    assert parts[3]["queries"] == 5000


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ELU(), nn.Dropout(), nn.Flatten())
        self.head = nn.Linear(4 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        return self.head(self.body(x))


@settings(max_examples=40)
@given(
    attack=st.sampled_from(SHORT),
    ball=st.builds(Ball, st.sampled_from(["linf", "l2"]), st.floats(1e-3, 1)),
    classes=st.sampled_from([2, 3, 4, 10]),
    seed=st.integers(0, 1000),
)
def test_stays_in_ball_and_box_and_leaves_all_else_as_it_was(attack, ball, classes, seed) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(classes)
    x = torch.rand(5, 1, 6, 6, generator=seeded(seed)).mul(1.5).clamp(max=1)
    y = torch.randint(classes, (5,), generator=seeded(seed))
    before, flags = torch.get_rng_state(), [module.training for module in net.modules()]
    x_adv, again = (attack(ball)(net, x, y, generator=seeded(seed)) for _ in range(2))
    assert ball.contains(x_adv, x).all()
    assert x_adv.equal(again)
    assert torch.get_rng_state().equal(before)
    assert [module.training for module in net.modules()] == flags
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("attack", SHORT)
def test_gives_float64_for_float64_and_float32_under_autocast(attack) -> None:
    net, y = Net(5).eval(), torch.tensor([0, 1, 2])
    x = torch.rand(3, 1, 6, 6, generator=seeded())
    assert attack(LINF)(net.double(), x.double(), y).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = attack(LINF)(net.float(), x, y)
    assert x_adv.dtype == torch.float32
    assert LINF.contains(x_adv, x).all()


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(bunch.target)


@pytest.fixture(scope="module")
def trained(digits) -> nn.Module:
    """A network for the digits that knows the attack a little, so that some images stand and some fall."""
    x, y = digits[0][:600], digits[1][:600]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(60):
            noisy = x + 0.15 * torch.empty_like(x).bernoulli_().mul(2).sub(1)
            loss = nn.functional.cross_entropy(net(noisy), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.fixture
def untouched():
    """The authors' package reseeds the global generator and takes tracers (coverage, debuggers) away."""
    tracer = sys.gettrace()
    with torch.random.fork_rng():
        yield
    sys.settrace(tracer)


def verdicts(net, x_adv: Tensor, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    assert ball.contains(x_adv, x).all()
    return net(x_adv).argmax(1) == y


def first(model: nn.Module, classes: int, digits) -> tuple:
    """The model, and 40 images, of the first classes alone."""
    own = digits[1] < classes
    return (lambda x: model(x)[:, :classes]), digits[0][own][:40], digits[1][own][:40]


PAIRS = {
    "ce": (APGD, partial(APGDAttack, n_restarts=1)),
    "dlr": (partial(APGD, loss="dlr"), partial(APGDAttack, n_restarts=1, loss="dlr")),
    "targeted": (partial(APGDT, target=1), partial(APGDAttack_targeted, n_target_classes=1)),
    "fab": (partial(FAB, target=1), partial(FABAttack_PT, targeted=True, n_target_classes=1)),
    "square": (partial(Square, queries=300), partial(SquareAttack, n_queries=300, resc_schedule=False)),
}
# Radii at which some of the forty stand and some fall.
BALLS = {(k, "linf"): Ball("linf", eps) for k, eps in {2: 0.22, 3: 0.18, 4: 0.14, 10: 0.12}.items()}
BALLS |= {(k, "l2"): Ball("l2", 5.5 * ball.eps) for (k, _), ball in BALLS.items()}
FEW = {"ce": 2, "square": 2, "dlr": 3, "fab": 2, "targeted": 4}  # classes that the authors' code can do with


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("few", [False, True])
def test_each_attack_agrees_with_the_authors_image_by_image(norm, name, few, digits, trained, untouched) -> None:
    classes = FEW[name] if few else 10
    model, x, y = first(trained, classes, digits)
    ball, (ours, theirs) = BALLS[classes, norm], PAIRS[name]
    with torch.no_grad():
        found = theirs(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=ball.eps).perturb(x, y)
        expected = verdicts(model, found, x, y, ball)
    held = verdicts(model, ours(ball)(model, x, y), x, y, ball)
    assert 0 < expected.sum() < 40
    assert (held != expected).sum() <= (5 if name == "square" else 2)  # a random search differs from itself as well


def test_the_whole_agrees_with_the_authors(digits, trained, untouched, monkeypatch) -> None:
    model, x, y = first(trained, 4, digits)
    ball = BALLS[4, "linf"]
    reference = Reference(model, eps=ball.eps, seed=0)
    reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = 3
    reference.square.n_queries = 300
    expected = verdicts(model, reference.run_standard_evaluation(x, y)[0], x, y, ball)
    monkeypatch.setattr(autoattack, "Square", partial(Square, queries=300))
    held = verdicts(model, AutoAttack(ball)(model, x, y), x, y, ball)
    assert 0 < expected.sum() < 40
    assert (held != expected).sum() <= 1


@pytest.mark.parametrize("classes", [2, 3])
def test_works_where_the_authors_package_cannot(classes, digits, trained) -> None:
    model, x, y = first(trained, classes, digits)
    ball = BALLS[classes, "linf"]
    held = verdicts(model, AutoAttack(ball, "preview")(model, x, y), x, y, ball)
    assert 0 < held.sum() <= verdicts(model, APGD(ball)(model, x, y), x, y, ball).sum()


def test_preview_is_the_first_half_and_wrong_images_come_back(digits, trained) -> None:
    model, x, y = first(trained, 3, digits)
    ball, right = BALLS[3, "linf"], model(x).argmax(1) == y
    right[:3] = False
    y[:3] = (model(x[:3]).argmax(1) + 1) % 3
    x_adv = AutoAttack(ball, "preview")(model, x, y, generator=seeded(1))
    assert x_adv[~right].equal(x[~right])
    generator, left = seeded(1), right.nonzero().flatten()
    expected = x.clone()
    for stage in stages(ball, "preview", 3):
        for attack in stage.attacks:
            found = attack(model, x[left], y[left], generator=generator)
            fooled = model(found).argmax(1) != y[left]
            expected[left[fooled]], left = found[fooled], left[~fooled]
    assert x_adv.equal(expected)
    assert 0 < len(left) < right.sum()
