"""The losses of TRADES and MART and ASCL's selection, against float64 derivations from the formulas, image by image."""

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from anchor_robust.errors import Refusal
from anchor_robust.losses import boosted_cross_entropy, doubted_divergence, hard_supcon, kl_divergence, selective_supcon


def logits(n: int = 7, k: int = 5, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, k, generator=generator, dtype=torch.float64)


def probabilities(row: Tensor) -> list[float]:
    exponentials = [math.exp(value) for value in row.tolist()]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize("classes", (2, 3, 10))
def test_kl_is_the_sum_over_the_classes(classes: int) -> None:
    clean, adversarial = logits(k=classes), logits(k=classes, seed=1)
    for row, value in enumerate(kl_divergence(clean, adversarial).tolist()):
        p, q = probabilities(clean[row]), probabilities(adversarial[row])
        assert value == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), rel=1e-12)


def test_kl_of_a_prediction_with_itself_is_0_and_of_opposites_is_known() -> None:
    assert kl_divergence(logits(), logits() + 5).abs().max() < 1e-15, "a constant on all logits changes nothing"
    sure = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # 3/4, 1/4 against 1/4, 3/4
    assert kl_divergence(sure, sure.flip(1)).item() == pytest.approx(0.5 * math.log(3))


def test_kl_sends_gradient_to_both_sides() -> None:
    clean, adversarial = logits().requires_grad_(), logits(seed=1).requires_grad_()
    kl_divergence(clean, adversarial).sum().backward()
    p, q = clean.detach().softmax(1), adversarial.detach().softmax(1)
    torch.testing.assert_close(adversarial.grad, q - p)
    ratio = p.log() - q.log()
    torch.testing.assert_close(clean.grad, p * (ratio - (p * ratio).sum(1, keepdim=True)))


def test_doubted_divergence_weighs_kl_by_what_is_missing_from_the_clean_class() -> None:
    clean, adversarial = logits(), logits(seed=1)
    found = doubted_divergence(clean, adversarial)
    for row, (values, kl) in enumerate(zip(found.tolist(), kl_divergence(clean, adversarial).tolist(), strict=True)):
        assert values == pytest.approx([kl * (1 - p) for p in probabilities(clean[row])], rel=1e-12)


@pytest.mark.parametrize("classes", (2, 3, 10))
def test_boosted_cross_entropy_follows_its_formula_for_every_class(classes: int) -> None:
    given_logits = logits(k=classes)
    found = boosted_cross_entropy(given_logits)
    assert found.shape == given_logits.shape
    for row, values in enumerate(found.tolist()):
        p = probabilities(given_logits[row])
        for y, value in enumerate(values):
            strongest = max(p[j] for j in range(classes) if j != y)
            assert value == pytest.approx(-math.log(p[y]) - math.log(1 - strongest), rel=1e-9)


def test_boosted_cross_entropy_of_even_logits_is_known() -> None:
    found = boosted_cross_entropy(torch.zeros(2, 4))
    torch.testing.assert_close(found, torch.full((2, 4), math.log(4) - math.log(3 / 4)))


def test_boosted_cross_entropy_stays_finite_where_a_probability_is_1() -> None:
    sure = torch.tensor([[200.0, 0.0, 0.0]]).requires_grad_()
    found = boosted_cross_entropy(sure)
    torch.testing.assert_close(found[0, 1].item(), 400.0 - math.log(2), rtol=1e-6, atol=0)
    found.sum().backward()
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize("loss", (lambda x: kl_divergence(x, x.flip(0)), boosted_cross_entropy))
def test_half_precision_is_computed_in_float32(loss) -> None:
    half = logits().bfloat16()
    assert loss(half).dtype == torch.float32
    torch.testing.assert_close(loss(half), loss(half.float()))


# --- ASCL ------------------------------------------------------------------------------------------------------------


def by_the_paper(z: Tensor, y: list[int], p: list[int], selection: str, t: float) -> float:
    anchors = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        positives = [j for j in others if y[j] == y[i] and (selection != "leaked" or p[j] == p[i])]
        confused = {
            "all": lambda j: True,
            "hard": lambda j: p[j] == y[i],  # noqa: B023 - called before i changes
            "soft": lambda j: p[j] == p[i],  # noqa: B023
            "leaked": lambda j: p[j] == p[i],  # noqa: B023
        }[selection]
        compared = positives + [j for j in others if y[j] != y[i] and confused(j)]
        if positives:
            whole = math.log(sum(math.exp(float(z[i] @ z[a]) / t) for a in compared))
            anchors.append(sum(whole - float(z[i] @ z[j]) / t for j in positives) / len(positives))
    return sum(anchors) / len(anchors) if anchors else 0.0


def embedded(m: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(m, 4, generator=generator, dtype=torch.float64), dim=1)
    y, p = torch.randint(classes, (2, m), generator=generator)
    return z, y, p


@given(st.integers(1, 12), st.integers(0, 1000), st.sampled_from(("all", "hard", "soft", "leaked")))
def test_selective_supcon_follows_the_paper(m: int, seed: int, selection: str) -> None:
    z, y, p = embedded(m, seed)
    found = selective_supcon(z, y, p, selection, 0.3)
    assert found.item() == pytest.approx(by_the_paper(z, y.tolist(), p.tolist(), selection, 0.3), abs=1e-12)


def test_what_cannot_be_selected_by_is_refused() -> None:
    z, y, p = embedded(6, 0)
    with pytest.raises(Refusal, match="selection 'some' given; allowed: all, hard, soft, leaked"):
        selective_supcon(z, y, p, "some")
    with pytest.raises(Refusal, match=r"predictions \[1\] given for 6 labels"):
        selective_supcon(z, y, p[:1])
    with pytest.raises(Refusal, match=r"^predictions given as list; allowed: a tensor"):
        selective_supcon(z, y, p.tolist())


def test_comparing_with_all_is_supcon() -> None:
    z, y, p = embedded(11, 0)
    torch.testing.assert_close(selective_supcon(z, y, p, "all", 0.2), hard_supcon(z, y, 0.2, hardness=0.0))


def test_selective_supcon_without_a_positive_is_0_with_gradient() -> None:
    z, _, _ = embedded(4, 0)
    z.requires_grad_()
    loss = selective_supcon(z, torch.arange(4), torch.zeros(4, dtype=torch.long), "leaked")
    loss.backward()
    assert loss.item() == 0
    assert (z.grad == 0).all()
