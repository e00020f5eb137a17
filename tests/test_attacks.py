"""Attacks reach the known optimum, stay in the ball, agree with foolbox, and leave the model as it was."""

import copy
import functools
from typing import Any

import foolbox
import pytest
import torch
import torch.nn.functional as F
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import anchor_robust
from anchor_robust import data
from anchor_robust.attacks import APGD, APGDT, FAB, PGD, Attack, AutoAttack, GreyLevels, Noise, Square, fgsm
from anchor_robust.errors import Refusal
from anchor_robust.threat import Ball

BALLS = [Ball("linf", 0.1), Ball("l2", 0.5)]
balls = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ConvNet(nn.Module):
    """Dropout and BatchNorm show whether the mode is right; `head` is frozen by its user."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ELU(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 8, 4, stride=2),
            nn.ELU(),
        )
        self.head = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 5))
        self.head[0].eval()
        self.head.requires_grad_(False)
        self.fails = False

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if self.fails:
            raise RuntimeError("as ordered")
        assert not any(module.training for module in self.modules())
        assert not any(parameter.requires_grad for parameter in self.parameters())
        return self.head(self.body(x).flatten(1)) * scale

    def logits(self, x: Tensor) -> Tensor:
        return self(x)


@pytest.fixture
def net() -> ConvNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConvNet()
    for parameter in net.body.parameters():
        parameter.grad = torch.ones_like(parameter)
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=seeded())


@pytest.fixture
def y() -> Tensor:
    return torch.randint(5, (6,), generator=seeded(1))


def snapshot(net: nn.Module) -> list:
    flags = [(name, module.training) for name, module in net.named_modules()]
    trainable = [(name, parameter.requires_grad) for name, parameter in net.named_parameters()]
    grads = [None if p.grad is None else p.grad.sum().item() for p in net.parameters()]
    state = [(name, value.double().sum().item()) for name, value in net.state_dict().items()]
    return [flags, trainable, grads, state, torch.get_rng_state().tolist()]


CALLS = {
    "module": lambda net: net,
    "method": lambda net: net.logits,
    "partial": lambda net: functools.partial(net, scale=2.0),
    "partial of a partial of a method": lambda net: functools.partial(functools.partial(net.logits)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(net, x, y, call, fails) -> None:
    net.fails = fails
    before = snapshot(net)
    attack = PGD(BALLS[0], steps=2, restarts=2)
    if fails:
        with pytest.raises(RuntimeError, match="as ordered"):
            attack(CALLS[call](net), x, y)
    else:
        attack(CALLS[call](net), x, y)
    assert snapshot(net) == before


class Search(Attack):
    """An attack that misbehaves: leaves the ball, returns a graph and another dtype, writes to its images."""

    def __init__(self, ball: Ball) -> None:
        self.ball = ball

    def search(self, model, x, y, generator):
        x.mul_(0.1)
        return (x.requires_grad_() * 3 + 1).double()


@balls
def test_the_call_repairs_what_a_search_returns(ball, net, x, y) -> None:
    before = x.clone()
    x_adv = Search(ball)(net, x, y)
    assert ball.contains(x_adv, x).all()
    assert not x_adv.requires_grad
    assert x_adv.dtype == x.dtype
    assert x.equal(before)
    assert not x.requires_grad


def test_the_call_is_sealed() -> None:
    with pytest.raises(TypeError, match="sealed"):
        type("Unsealed", (PGD,), {"__call__": lambda self: None})


@balls
@pytest.mark.parametrize("start", ["uniform", "none"])
def test_linear_model_reaches_the_closed_form_optimum(ball, start) -> None:
    """The margin of w . x falls by eps |w|_1 in linf and by eps |w|_2 in l2 when the box does not bind."""
    w = torch.randn(12, dtype=torch.float64, generator=seeded())
    x = 0.5 + 0.02 * torch.randn(7, 12, dtype=torch.float64, generator=seeded(1))
    y = torch.arange(7) % 2
    ball = Ball(ball.norm, 0.2)
    x_adv = PGD(ball, steps=60, step_size=0.05, start=start)(lambda x: torch.stack([-x @ w, x @ w], 1), x, y)
    drop = ((x - x_adv) @ w) * (2 * y - 1)
    optimum = ball.eps * (w.abs().sum() if ball.norm == "linf" else w.norm())
    torch.testing.assert_close(drop, optimum.expand(7), rtol=1e-6, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    ball=st.builds(Ball, st.sampled_from(["linf", "l2"]), st.floats(1e-3, 1)),
    steps=st.integers(0, 4),
    step_size=st.floats(1e-3, 10),
    start=st.sampled_from(["uniform", "none"]),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_never_leaves_the_ball_or_the_box(ball, steps, step_size, start, restarts, seed) -> None:
    x = torch.rand(3, 1, 4, 4, generator=seeded(seed)).mul(1.5).clamp(max=1)
    weight = torch.randn(16, 3, generator=seeded(seed))
    attack = PGD(ball, steps, step_size, start=start, restarts=restarts)
    x_adv = attack(lambda x: (x.flatten(1) @ weight).sin(), x, torch.tensor([0, 1, 2]), generator=seeded(seed))
    delta = (x_adv.double() - x.double()).flatten(1)
    length = delta.abs().amax(1) if ball.norm == "linf" else delta.norm(dim=1)
    assert (length <= ball.eps + 1e-6).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize(
    ("ball", "theirs"),
    [(BALLS[0], foolbox.attacks.LinfPGD), (BALLS[1], foolbox.attacks.L2PGD)],
    ids=["linf", "l2"],
)
@pytest.mark.parametrize("steps", [1, 5])
def test_agrees_with_foolbox(ball, theirs, steps, net, x, y) -> None:
    step_size = ball.eps / 3
    ours = PGD(ball, steps, step_size, start="none")(net, x, y)
    net.eval().requires_grad_(False)
    reference = theirs(abs_stepsize=step_size, steps=steps, random_start=False)
    _, expected, _ = reference(foolbox.PyTorchModel(net, (0, 1), device="cpu"), x, y, epsilons=ball.eps)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert (ours - x).abs().max() > 0.01


@balls
@pytest.mark.parametrize("steps", [1, 5])
def test_agrees_with_art(ball, steps, net, x, y) -> None:
    """Where the box does not bind: ART clips to it before the L2 projection, foolbox and ANCHOR after it."""
    x = x * 0.5 + 0.25
    ours = PGD(ball, steps, ball.eps / 3, start="none")(net, x, y)
    theirs = by_art(net.eval().requires_grad_(False), ball, steps, ball.eps / 3, x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert 0 < theirs.min() < theirs.max() < 1


def by_art(net: nn.Module, ball: Ball, steps: int, step_size: float, x: Tensor, y: Tensor) -> Tensor:
    shape, classes = tuple(x.shape[1:]), net(x).shape[1]
    theirs = PyTorchClassifier(net, nn.CrossEntropyLoss(), shape, classes, clip_values=(0, 1), device_type="cpu")
    norm = {"linf": "inf", "l2": 2}[ball.norm]
    attack = ProjectedGradientDescentPyTorch(
        theirs, norm, ball.eps, step_size, max_iter=steps, batch_size=len(x), verbose=False
    )
    return torch.from_numpy(attack.generate(x.numpy(), F.one_hot(y, classes).numpy()))


def test_agrees_with_foolbox_and_art_on_cifar10(cifar_dir) -> None:
    """The usual network and images: the accuracy is the same, image by image."""
    net = anchor_robust.load("cifar10-resnet8-anchor").requires_grad_(False)
    test, ball = data.load("cifar10", "test", cifar_dir).first(50), Ball("linf", 0.031)
    x, y = test.pixels(slice(None)), test.labels
    ours = PGD(ball, 5, 0.007, start="none")(net, x, y)
    reference = foolbox.attacks.LinfPGD(abs_stepsize=0.007, steps=5, random_start=False)
    _, by_foolbox, _ = reference(foolbox.PyTorchModel(net, (0, 1), device="cpu"), x, y, epsilons=ball.eps)
    held = net(ours).argmax(1) == y
    assert held.sum() < (net(x).argmax(1) == y).sum()
    for theirs in (by_foolbox, by_art(net, ball, 5, 0.007, x, y)):
        assert held.equal(net(theirs).argmax(1) == y)


@balls
def test_raises_the_loss_and_returns_the_last_iterate(ball, net, x, y) -> None:
    x_adv = PGD(ball, steps=10, step_size=ball.eps / 4)(net, x, y)
    net.eval().requires_grad_(False)
    assert (F.cross_entropy(net(x_adv), y, reduction="none") > F.cross_entropy(net(x), y, reduction="none")).all()
    assert PGD(ball, steps=0, start="none")(net, x, y).equal(x)
    assert not PGD(ball, steps=0)(net, x, y).equal(x)


def test_fgsm_is_one_step_of_the_whole_radius(net, x, y) -> None:
    x = x * 0.5 + 0.25
    x_adv = fgsm(BALLS[0])(net, x, y)
    torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, 0.1))


def test_generators_decide_the_outcome(net, x, y) -> None:
    attack = PGD(BALLS[0], steps=2)
    first, again, other = (attack(net, x, y, generator=seeded(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert attack(net, x, y).equal(attack(net, x, y, generator=seeded(0)))


class Rugged(nn.Module):
    """One pixel, two logits: loss rises to either side of 0.5, more to the right; fooled above 0.917."""

    def forward(self, x: Tensor) -> Tensor:
        offset = x[:, 0] - 0.5
        return torch.stack([torch.full_like(offset, 1.0), torch.where(offset > 0, 2.4, 1.6) * offset.abs()], 1)


def test_restarts_keep_the_worst_of_each_image() -> None:
    """With 40 images a climb ends left or right by chance; with restarts each one finds the right end."""
    x, y = torch.full((40, 1), 0.5), torch.zeros(40, dtype=torch.long)
    once = PGD(Ball("linf", 0.5), steps=20, step_size=0.05)(Rugged(), x, y)
    assert {0.0, 1.0} == set(once.flatten().round(decimals=4).tolist())
    often = PGD(Ball("linf", 0.5), steps=20, step_size=0.05, restarts=12)(Rugged(), x, y)
    assert often.flatten().allclose(torch.tensor(1.0))
    # Nobody is fooled at 0.4: then the higher loss wins, again to the right.
    calm = PGD(Ball("linf", 0.4), steps=20, step_size=0.05, restarts=12)(Rugged(), x, y)
    assert calm.flatten().allclose(torch.tensor(0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restarts_keep_the_highest_loss_of_all(dtype) -> None:
    """In bfloat16 the losses of neighbouring logits would be equal: they are compared in float32."""
    ball, x, y = Ball("linf", 0.25), torch.full((30, 1), 0.5), torch.zeros(30, dtype=torch.long)
    attack = PGD(ball, steps=0, restarts=30)
    highest = attack(lambda x: torch.cat([2 + 0 * x, x], 1).to(dtype), x, y, generator=seeded())
    generator = seeded()
    starts = torch.stack([ball.random_point(x, generator) for _ in range(30)])
    assert highest.to(dtype).equal(starts.amax(0).to(dtype))


def test_an_image_already_fooled_keeps_its_first_adversarial() -> None:
    x, y = torch.full((5, 3), 0.5), torch.zeros(5, dtype=torch.long)

    def always_fooled(x: Tensor) -> Tensor:
        return torch.stack([x.sum(1) * 0, x.sum(1)], 1)

    attack = functools.partial(PGD, Ball("linf", 0.1), steps=0)
    assert attack(restarts=5)(always_fooled, x, y).equal(attack()(always_fooled, x, y))


def test_gradients_that_are_tiny_still_move_the_image() -> None:
    """A saturated model: the gradient of a mean over the images would underflow to 0 in float32."""
    x, y = torch.full((1000, 1), 0.5), torch.zeros(1000, dtype=torch.long)
    x_adv = fgsm(Ball("linf", 0.1))(lambda x: torch.cat([86 + 0 * x, 1e-6 * x], 1), x, y)
    assert x_adv.allclose(torch.tensor(0.6))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context, net, x, y) -> None:
    expected = PGD(BALLS[0], steps=2)(net, x, y)
    with context():
        assert PGD(BALLS[0], steps=2)(net, x.clone(), y.clone()).equal(expected)
        assert not torch.is_grad_enabled()


def test_weights_without_gradients_for_good_are_refused(x, y) -> None:
    with torch.inference_mode():
        made = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 5))
    with pytest.raises(Refusal, match=r"weights made under torch\.inference_mode given; allowed: any others"):
        PGD(BALLS[0])(made, x, y)


@balls
def test_works_under_bfloat16_autocast(ball, net, x, y) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = PGD(ball, steps=5, step_size=ball.eps / 4, restarts=2)(net, x, y)
    assert x_adv.dtype == torch.float32
    assert ball.contains(x_adv, x).all()
    plain = PGD(ball, steps=5, step_size=ball.eps / 4, restarts=2)(net, x, y)
    assert (x_adv - plain).abs().mean() < 0.3 * (plain - x).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_has_the_dtype_of_the_images_and_no_graph(dtype, net, x, y) -> None:
    images = x.to(dtype).requires_grad_()
    x_adv = PGD(BALLS[0], steps=1)(copy.deepcopy(net).to(dtype), images, y.int())
    assert x_adv.dtype == dtype
    assert not x_adv.requires_grad
    assert images.grad is None


def test_describe_names_every_setting() -> None:
    ball = Ball("l2", 0.5)
    attack = PGD(ball, 20, 0.1, restarts=3, start="none")
    expected = {
        "norm": "l2",
        "eps": 0.5,
        "steps": 20,
        "step_size": 0.1,
        "restarts": 3,
        "start": "none",
        "loss": "ce",
    }
    assert attack.describe() == expected
    assert Search(ball).describe() == {**dict.fromkeys(expected), "norm": "l2", "eps": 0.5}
    assert fgsm(ball).describe() == {**expected, "steps": 1, "step_size": 0.5, "restarts": 1}


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda x, y: (x * 255, y), "normalisation"),
        (lambda x, y: (x - 0.5, y), "normalisation"),
        (lambda x, y: (x.where(x > 0.01, torch.nan), y), "nan"),
        (lambda x, y: (x.half(), y), "autocast"),
        (lambda x, y: (x.mul(255).byte(), y), "uint8"),
        (lambda x, y: (x[:0], y[:0]), "at least 1"),
        (lambda x, y: (x.numpy(), y), "^images given as ndarray; allowed: a tensor"),
        (lambda x, y: (x, y.tolist()), "^labels given as list; allowed: a tensor"),
        (lambda x, y: (x, y[:3]), r"labels \[3\]"),
        (lambda x, y: (x, y.float()), "float32"),
        (lambda x, y: (x, y - 5), "label -"),
        (lambda x, y: (x, y + 1), "label 5 given; allowed: 0 to 4"),
    ],
)
def test_wrong_data_is_refused_in_one_line(change, hint, net, x, y) -> None:
    x[0, 0, 0, 0], y[0], y[1] = 0, 0, 4
    with pytest.raises(Refusal, match=hint) as refusal:
        PGD(BALLS[0], steps=1)(net, *change(x, y))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("generator", (0, 1, "cpu"))
def test_what_is_no_generator_is_refused(generator: Any, net, x, y) -> None:
    with pytest.raises(Refusal, match=rf"^generator {generator!r} given; allowed: a torch\.Generator or None"):
        PGD(BALLS[0], steps=1)(net, x, y, generator=generator)


@pytest.mark.parametrize(
    ("attack", "more"),
    [
        *((attack, {}) for attack in (PGD, fgsm, APGD, APGDT, FAB, Square, Noise, AutoAttack)),
        (GreyLevels, {"found": 0}),
    ],
)
def test_a_radius_is_no_ball(attack: Any, more: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=r'^ball 0\.1 given; allowed: a Ball, such as Ball\("linf", 8/255\)$'):
        attack(0.1, **more)


def test_an_attack_of_ones_own_needs_a_ball_as_well(net, x, y) -> None:
    with pytest.raises(Refusal, match=r"^ball 0\.1 given; allowed: a Ball"):
        Search(0.1)(net, x, y)  # type: ignore[arg-type] # which is what is tried


def test_a_ball_that_rounding_leaves_nothing_of_is_refused(net, x, y) -> None:
    small = PGD(Ball("l2", 5e-7), steps=1)
    with pytest.raises(Refusal, match="l2 eps 5e-07 given; in float32 nothing of that ball is left on 192 pixels"):
        small(net, x, y)
    assert not small(copy.deepcopy(net).double(), x.double(), y).equal(x.double())


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        (lambda x: (x.flatten(1), x), "tuple"),
        (lambda x: x, r"\[6, 3, 8, 8\]"),
        (lambda x: x.detach().flatten(1), "gradient"),
    ],
)
def test_wrong_models_are_refused(model, hint, x, y) -> None:
    with pytest.raises(Refusal, match=hint):
        PGD(BALLS[0], steps=1)(model, x, y)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": 1.5},
        {"step_size": 0},
        {"step_size": float("nan")},
        {"step_size": "2/255"},
        {"restarts": 0},
        {"start": "normal"},
        {"loss": "dlr"},
        {"target": 0},
        {"target": 1.0},
        {"target": -2},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong) -> None:
    (name,) = wrong
    with pytest.raises(Refusal, match=f"^{name} ") as refusal:
        PGD(BALLS[0], **wrong)
    assert "\n" not in str(refusal.value)


# --- the search of TRADES ---------------------------------------------------------------------------------------------


def test_kl_climbs_away_from_the_clean_prediction_whatever_the_label() -> None:
    weight = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 1.0, 0.0]], dtype=torch.float64)
    model, x = (lambda images: images @ weight), torch.full((4, 2), 0.5, dtype=torch.float64)

    def moved(x_adv: Tensor) -> Tensor:
        p, q = model(x).softmax(1), model(x_adv).softmax(1)
        return (p * (p / q).log()).sum(1)

    attack = PGD(Ball("linf", 0.2), steps=20, step_size=0.02, loss="kl", start="gaussian")
    x_adv = attack(model, x, torch.tensor([0, 1, 2, 0]))
    corners = [torch.tensor([[0.5 + a, 0.5 + b]]).double() for a in (-0.2, 0.2) for b in (-0.2, 0.2)]
    local_maxima = torch.stack([moved(corner.expand(4, 2))[0] for corner in corners])
    for value in moved(x_adv).tolist():
        assert min(abs(value - corner) for corner in local_maxima.tolist()) < 1e-6, "it ends in a corner"
        assert value > local_maxima.min()


def test_a_gaussian_start_is_close_to_the_image() -> None:
    x = torch.full((64, 3, 8, 8), 0.5)
    x_adv = PGD(Ball("linf", 0.1), steps=0, start="gaussian")(
        lambda images: images.flatten(1)[:, :3], x, torch.zeros(64).long()
    )
    assert (x_adv - x).std().item() == pytest.approx(0.001, rel=0.05)


@pytest.mark.parametrize("settings", ({"start": "none"}, {"target": 1}), ids=str)
def test_kl_without_a_random_start_or_with_a_target_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="loss 'kl' given; allowed"):
        PGD(Ball("linf", 0.1), loss="kl", **settings)
