"""PGD's losses and targets, noise, transfer and embedding attacks, against slow derivations and closed forms."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anchor_robust.attacks import PGD, EmbeddingAttack, Noise, Transfer
from anchor_robust.attacks.worst import worst
from anchor_robust.errors import Refusal
from anchor_robust.losses import hard_supcon
from anchor_robust.threat import Ball

BALL = Ball("linf", 0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 12, generator=seeded()) * 0.6 + 0.2


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1])


class Net(nn.Module):
    """Half of it in evaluation mode, half frozen; it may only be called when all of it is."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.hidden, self.dropout, self.out = nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, width)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=seeded(seed))
        self.hidden.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        assert not any(parameter.requires_grad for parameter in self.parameters())
        return self.out(self.dropout(self.hidden(x).tanh()))

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize(self(x), dim=1)


def flags(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()] + [p.requires_grad for p in net.parameters()]


def test_margin_of_a_linear_model_reaches_the_closed_form_optimum() -> None:
    """With two classes the margin is w . x and rises by eps |w|_1; cross-entropy would get there as well."""
    w = torch.randn(12, dtype=torch.float64, generator=seeded())
    x = torch.full((1, 12), 0.5, dtype=torch.float64)
    attack = PGD(BALL, steps=20, step_size=0.02, loss="margin")
    x_adv = attack(lambda x: torch.stack([-x @ w, x @ w], 1), x, torch.tensor([0]))
    torch.testing.assert_close(((x_adv - x) @ w), 0.1 * w.abs().sum().view(1))


def test_margin_goes_on_where_cross_entropy_is_saturated() -> None:
    x, y = torch.full((3, 1), 0.5), torch.zeros(3, dtype=torch.long)

    def saturated(x: Tensor) -> Tensor:
        return torch.cat([1000 * (0.55 - x), -1000 * (0.55 - x)], 1) * 10

    stuck, moved = (PGD(BALL, 5, 0.05, start="none", loss=loss)(saturated, x, y) for loss in ("ce", "margin"))
    assert stuck.equal(x)
    assert moved.allclose(torch.tensor(0.6))


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("target", [1, 2, -1])
def test_a_target_is_ranked_on_the_clean_image(loss, target) -> None:
    """Logits are the pixels: the target's rises, and with the margin only the label's falls."""
    x = torch.tensor([[0.6, 0.5, 0.4, 0.3]] * 3 + [[0.6, 0.5, 0.4, 0.8]])
    y = torch.tensor([0, 1, 2, 3])
    wrong = [[k for k in row.argsort(descending=True).tolist() if k != label] for row, label in zip(x, y, strict=True)]
    chosen = [classes[target - 1 if target > 0 else -1] for classes in wrong]
    moved = PGD(BALL, 3, 0.05, start="none", loss=loss, target=target)(lambda x: x * 1.0, x, y) - x
    for change, goal, label in zip(moved, chosen, y.tolist(), strict=True):
        assert change.argmax() == goal
        assert change[goal] == pytest.approx(0.1)
        if loss == "margin":
            assert change[label] == pytest.approx(-0.1)
            assert (change != 0).sum() == 2
        else:
            assert (change < 0).sum() == 3  # log softmax falls with every other logit


def test_a_rank_that_the_model_lacks_is_refused(x, y) -> None:
    with pytest.raises(Refusal, match="target 4 given; allowed: 1 to 3"):
        PGD(BALL, target=4)(Net(), x, y)


def test_describe_states_a_target_only_where_there_is_one() -> None:
    assert PGD(BALL, loss="margin", target=-1).describe()["target"] == -1
    assert PGD(BALL, loss="margin").describe()["loss"] == "margin"
    assert "target" not in PGD(BALL).describe()


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_worst_is_per_image_the_first_of_the_highest(damages) -> None:
    tries = [torch.full((4, 1, 2), float(number)) for number in range(len(damages))]
    measured = {number: torch.tensor(values, dtype=torch.float32) for number, values in enumerate(damages)}
    kept = worst(iter(tries), lambda x_adv: measured[int(x_adv[0, 0, 0])])
    for image in range(4):
        of_image = [values[image] for values in damages]
        assert kept[image].eq(of_image.index(max(of_image))).all()


def test_a_single_try_is_not_measured() -> None:
    only = torch.zeros(2, 3)
    assert worst([only], lambda x_adv: pytest.fail("measured")) is only


@pytest.mark.parametrize("ball", [BALL, Ball("l2", 0.5)], ids=lambda ball: ball.norm)
def test_noise_keeps_the_worst_of_its_draws(ball, x, y) -> None:
    net, generator = Net(), seeded(3)
    x_adv = Noise(ball, draws=20)(net, x, y, generator=seeded(3))
    draws = [ball.random_point(x, generator) for _ in range(20)]
    net.eval().requires_grad_(False)
    for image, label in enumerate(y.tolist()):
        logits = [net(draw[image : image + 1])[0] for draw in draws]
        leads = [max(z[k] - z[label] for k in range(4) if k != label).item() for z in logits]
        first_wrong = next((place for place, lead in enumerate(leads) if lead > 0), leads.index(max(leads)))
        torch.testing.assert_close(x_adv[image], draws[first_wrong][image], rtol=0, atol=1e-6)


def test_noise_states_its_draws_and_refuses_none() -> None:
    stated = {"norm": "linf", "eps": 0.1, "steps": None, "step_size": None}
    assert Noise(BALL, 7).describe() == {**stated, "restarts": 7, "start": "uniform", "loss": "margin"}
    for draws in (0, 1.5):
        with pytest.raises(Refusal, match=f"^draws {draws} given"):
            Noise(BALL, draws)


def test_transfer_searches_on_its_source_alone_and_restores_it(x, y) -> None:
    source, attack = Net(seed=1), PGD(BALL, steps=3)
    before = flags(source)
    transferred = Transfer(source, attack)(lambda x: pytest.fail("the target was asked"), x, y, generator=seeded(5))
    assert flags(source) == before
    assert transferred.equal(attack(source, x, y, generator=seeded(5)))
    assert Transfer(source, attack).describe() == attack.describe()
    assert Transfer(source, attack).ball == BALL


def test_transfer_restores_its_source_after_a_failure(x, y) -> None:
    source = Net(seed=1)
    before = flags(source)
    with pytest.raises(Refusal, match="label 4"):
        Transfer(source, PGD(BALL, steps=1))(Net(width=5), x, y + 1)
    assert flags(source) == before


def embedding_attack(net: Net, loss: str, references: Tensor, labels: Tensor) -> EmbeddingAttack:
    return EmbeddingAttack(PGD(BALL, 15, 0.02), net.embed, references, labels, loss=loss)


def test_embedding_leaves_its_centroid(x, y) -> None:
    """On two angles: the reference lies at 45 degrees, so away from it is towards the nearer axis."""
    x = torch.tensor([[0.5, 0.45], [0.45, 0.5]])
    references = torch.tensor([[0.3, 0.5], [0.5, 0.3], [0.9, 0.1]])
    attack = EmbeddingAttack(
        PGD(BALL, 10, 0.02, start="none"), lambda x: F.normalize(x, dim=1), references, torch.tensor([0, 0, 1])
    )
    x_adv = attack(lambda x: x, x, torch.tensor([0, 0]))
    torch.testing.assert_close(x_adv, torch.tensor([[0.6, 0.35], [0.35, 0.6]]))


@pytest.mark.parametrize("loss", ["centroid", "contrast"])
def test_embedding_attacks_raise_their_loss_and_restore_the_network(loss, x, y) -> None:
    net, other = Net(), Net(seed=2)
    before = flags(net)
    references, labels = torch.rand(8, 12, generator=seeded(1)), torch.arange(8) % 4
    attack = embedding_attack(net, loss, references, labels)
    x_adv = attack(other, x, y)
    assert flags(net) == before
    assert BALL.contains(x_adv, x).all()
    net.eval().requires_grad_(False)
    known = net.embed(references)

    def height(images: Tensor) -> Tensor:
        if loss == "contrast":
            return hard_supcon(torch.cat([net.embed(images), known]), torch.cat([y, labels])).view(1)
        centroids = [F.normalize(known[labels == label].mean(0), dim=0) for label in y]
        return torch.stack([-z @ c for z, c in zip(net.embed(images), centroids, strict=True)])

    assert (height(x_adv) > height(x) + 0.01).all()
    assert attack.describe() == {**attack.pgd.describe(), "loss": loss}


def test_a_step_of_contrast_follows_the_gradient_of_the_whole_batch(x, y) -> None:
    net, references, labels = (
        Net().eval().requires_grad_(False),
        torch.rand(8, 12, generator=seeded(1)),
        torch.arange(8) % 4,
    )
    images = x.clone().requires_grad_()
    together = torch.cat([net.embed(images), net.embed(references)])
    (gradient,) = torch.autograd.grad(hard_supcon(together, torch.cat([y, labels])), images)
    attack = EmbeddingAttack(PGD(BALL, 1, 0.02, start="none"), net.embed, references, labels, loss="contrast")
    torch.testing.assert_close(attack(net, x, y), x + 0.02 * gradient.sign())


def test_embedding_restarts_keep_what_harms_the_logits_most(x, y) -> None:
    net, target = Net(), Net(seed=2)
    references, labels = torch.rand(8, 12, generator=seeded(1)), torch.arange(8) % 4
    pgd = PGD(BALL, 0, restarts=10)
    x_adv = EmbeddingAttack(pgd, net.embed, references, labels)(target, x, y, generator=seeded(9))
    assert x_adv.equal(Noise(BALL, 10)(target, x, y, generator=seeded(9)))


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"loss": "triplet"}, "loss 'triplet' given; allowed: centroid, contrast"),
        ({"labels": torch.zeros(3).long()}, r"labels \[3\] torch.int64 given for 4 references"),
        ({"labels": torch.zeros(4)}, "float32"),
        ({"labels": torch.tensor([0, 1, 2, 2])}, "label 3 has no reference image"),
    ],
)
def test_wrong_references_are_refused(change, hint, x, y) -> None:
    arguments = {"labels": torch.arange(4), "loss": "centroid", **change}
    with pytest.raises(Refusal, match=hint):
        EmbeddingAttack(PGD(BALL), Net().embed, x[:4], arguments["labels"], loss=arguments["loss"])(Net(), x, y)
