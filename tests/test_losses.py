"""hard_supcon against a slow, obvious re-derivation, closed forms, and what makes NaN elsewhere."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anchor_robust.errors import Refusal
from anchor_robust.losses import blockwise, contrastive, hard_supcon, selective_supcon


@pytest.fixture(autouse=True, params=["at once", "in blocks"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here is of both computations; blocks are of one anchor or a few."""
    if request.param == "in blocks":
        monkeypatch.setattr(contrastive, "AT_ONCE", 0)
        monkeypatch.setattr(blockwise, "ENTRIES", 50)


def kept_positives(z: Tensor, labels: list[int], i: int, percent: int) -> list[int]:
    positives = [p for p in range(len(labels)) if p != i and labels[p] == labels[i]]
    quota = -(-percent * len(positives) // 100)  # the ceiling, in whole numbers
    return sorted(sorted(positives, key=lambda p: float(z[i] @ z[p]))[:quota])


def weights(z: Tensor, i: int, kept: list[int], h: float) -> list[float]:
    hardness = [math.exp(h * (1 - float(z[i] @ z[q]))) for q in kept]
    return [len(kept) * value / sum(hardness) for value in hardness]


def by_the_book(z: Tensor, labels: Tensor, t: float, h: float, percent: int = 100, frozen: Tensor | None = None):
    """design.md section 2, letter by letter; mining and weights are taken at `frozen`, without gradient."""
    names, frozen = labels.tolist(), z.detach() if frozen is None else frozen
    anchors = []
    for i in range(len(names)):
        kept = kept_positives(frozen, names, i, percent)
        if not kept:
            continue
        others = [z[i] @ z[a] / t for a in range(len(names)) if a != i]
        largest = max(value.item() for value in others)
        log_denominator = largest + torch.log(sum(torch.exp(value - largest) for value in others))
        total = 0.0
        for p, w in zip(kept, weights(frozen, i, kept, h), strict=True):
            total = total + w * (log_denominator - z[i] @ z[p] / t)
        anchors.append(total / len(kept))
    return sum(anchors) / len(anchors) if anchors else 0.0 * z.sum()


def batch(m: int, d: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(m, d, generator=generator, dtype=torch.float64), dim=1)
    return z.to(dtype), torch.randint(classes, (m,), generator=generator)


CASES = [
    (seed, m, classes, t, h, percent)
    for seed, (m, classes) in enumerate([(2, 1), (5, 5), (9, 2), (14, 3), (24, 4)])
    for t in (0.01, 0.1, 1.0)
    for h in (0.0, 1.0, 8.0)
    for percent in (100, 50, 15)
]


@pytest.mark.parametrize(("seed", "m", "classes", "t", "h", "percent"), CASES)
def test_equals_the_formulas(seed, m, classes, t, h, percent) -> None:
    z, labels = batch(m, 4, classes, seed)
    z[m // 2] = z[0]  # duplicate embeddings
    labels[-1] = classes  # a class of one
    loss = hard_supcon(z, labels, t, h, percent / 100)
    assert loss.dtype == torch.float64
    assert loss.ndim == 0
    torch.testing.assert_close(loss, torch.as_tensor(by_the_book(z, labels, t, h, percent)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("h", "percent"), [(0.0, 100), (3.0, 100), (3.0, 40)])
def test_gradient_equals_that_of_the_formulas_with_fixed_weights(h, percent) -> None:
    z, labels = batch(12, 5, 3)
    z.requires_grad_()
    (ours,) = torch.autograd.grad(hard_supcon(z, labels, 0.2, h, percent / 100), z)
    fixed = functools.partial(by_the_book, labels=labels, t=0.2, h=h, percent=percent, frozen=z.detach().clone())
    (theirs,) = torch.autograd.grad(fixed(z), z)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert torch.autograd.gradcheck(fixed, (z,))  # so the fixed-weight formula's gradient is right, and ours with it


@pytest.mark.parametrize("t", [0.05, 0.5])
def test_gradcheck_without_weights(t) -> None:
    z, labels = batch(10, 4, 3)
    assert torch.autograd.gradcheck(lambda z: hard_supcon(z, labels, t, hardness=0.0), (z.requires_grad_(),))


def test_hardness_zero_is_supcon_l_out() -> None:
    """Khosla et al., equation 2, from a softmax with the anchor's own column deleted."""
    z, labels = batch(20, 6, 4)
    rows = []
    for i in range(20):
        others = [a for a in range(20) if a != i]
        log_p = (z[others] @ z[i] / 0.07).log_softmax(0)
        same = labels[others] == labels[i]
        if same.any():
            rows.append(-log_p[same].mean())
    torch.testing.assert_close(hard_supcon(z, labels, 0.07, hardness=0.0), torch.stack(rows).mean())


@pytest.mark.parametrize("h", [0.0, 8.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_embeddings_cost_log_of_the_others(h, dtype) -> None:
    z = F.normalize(torch.ones(7, 3, dtype=dtype), dim=1).requires_grad_()
    loss = hard_supcon(z, torch.zeros(7, dtype=torch.long), 0.01, h)
    torch.testing.assert_close(loss, torch.tensor(math.log(6), dtype=dtype))
    loss.backward()
    assert z.grad.isfinite().all()


def test_two_opposite_classes_have_a_closed_form() -> None:
    z = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
    expected = math.log(1 + 2 * math.exp(-2 / 0.5))
    loss = hard_supcon(z, torch.tensor([0, 0, 1, 1]), temperature=0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_those_of_the_design() -> None:
    z, labels = batch(16, 4, 3)
    assert hard_supcon(z, labels).equal(hard_supcon(z, labels, 0.1, 1.0, 1.0))
    torch.testing.assert_close(hard_supcon(z, labels), torch.as_tensor(by_the_book(z, labels, 0.1, 1.0)))


@pytest.mark.parametrize("percent", [100, 28])
def test_ceiling_is_not_fooled_by_float_noise(percent) -> None:
    """0.28 * 25 is above 7 in floating point."""
    z, _ = batch(26, 4, 1)
    labels = torch.zeros(26, dtype=torch.long)
    torch.testing.assert_close(
        hard_supcon(z, labels, 0.1, 1.0, percent / 100), by_the_book(z, labels, 0.1, 1.0, percent)
    )


def test_ties_and_tiny_fractions_keep_the_first_positive() -> None:
    """All similarities equal: anchor 0 keeps positive 1, all others keep 0; each z_i's gradient shows it."""
    z = torch.eye(4, dtype=torch.float64).requires_grad_()
    hard_supcon(z, torch.zeros(4, dtype=torch.long), 1.0, 1.0, 1e-12).backward()
    pull = torch.zeros(4, 4, dtype=torch.float64)
    for i, p in [(0, 1), (1, 0), (2, 0), (3, 0)]:
        pull[i, p] -= 0.25
        pull[p, i] -= 0.25
    push = (1 - torch.eye(4, dtype=torch.float64)) * 2 / 12
    torch.testing.assert_close(z.grad, pull + push)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_order_does_not_matter(fraction) -> None:
    z, labels = batch(18, 4, 3)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        hard_supcon(z[order], labels[order], hard_fraction=fraction),
        hard_supcon(z, labels, hard_fraction=fraction),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_computes_in_float32_under_autocast_and_from_half(dtype) -> None:
    z, labels = batch(32, 8, 4, dtype=dtype)
    z.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = hard_supcon(z, labels, 0.05)
    loss.backward()
    assert loss.dtype == torch.float32
    full = z.detach().float().requires_grad_()
    expected = hard_supcon(full, labels, 0.05)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(z.grad, full.grad.to(dtype))


@pytest.mark.parametrize("m", [0, 1, 6])
@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_positives_the_loss_is_zero_and_backward_works(m, fraction, dtype) -> None:
    z, _ = batch(m, 4, 2, dtype=dtype)
    z.requires_grad_()
    loss = hard_supcon(z, torch.arange(m), hard_fraction=fraction)
    loss.backward()
    assert loss.item() == 0
    assert z.grad.eq(0).all()


@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("h", [0.0, 8.0, 100.0])
def test_no_nan_at_the_extremes(h, fraction) -> None:
    z, labels = batch(64, 2, 3, dtype=torch.float32)
    z[32:] = z[:32]  # duplicates, opposite points and, below, classes of one
    z[0], labels[1] = -z[1], 7
    z.requires_grad_()
    loss = hard_supcon(z, labels, 0.01, h, fraction)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert z.grad.any()


@pytest.mark.parametrize("percent", [100, 30])
@pytest.mark.parametrize("classes", [1, 7, 1000])
def test_many_embeddings_cost_the_same_in_blocks(classes, percent, monkeypatch) -> None:
    """Blocks that cut classes apart and blocks of many classes; to 1e-6 of the loss and of the largest gradient."""
    z, labels = batch(1500, 16, classes, dtype=torch.float32)
    found = []
    for at_once in (1500, 1499):
        monkeypatch.setattr(contrastive, "AT_ONCE", at_once)
        monkeypatch.setattr(blockwise, "ENTRIES", 400 * 1500)
        own = z.clone().requires_grad_()
        loss = hard_supcon(own, labels, 0.1, 2.0, percent / 100)
        (3 * loss).backward()
        found.append((loss.detach(), own.grad))
    (loss, gradient), (blockwise_loss, blockwise_gradient) = found
    torch.testing.assert_close(blockwise_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(blockwise_gradient, gradient, rtol=0, atol=1e-6 * gradient.abs().max().item())
    assert not torch.equal(blockwise_gradient, gradient), "both were computed at once"


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that anything computes."""

    entries = 0

    def __torch_dispatch__(self, function, types, given=(), named=None):
        made = function(*given, **(named or {}))
        self.entries = max(self.entries, *(each.numel() for each in tree_leaves(made) if isinstance(each, Tensor)), 0)
        return made


def test_no_tensor_of_a_blockwise_loss_grows_with_the_square(monkeypatch) -> None:
    monkeypatch.setattr(contrastive, "AT_ONCE", 1000)
    monkeypatch.setattr(blockwise, "ENTRIES", 2**15)
    z, labels = batch(2048, 4, 2, dtype=torch.float32)
    with Largest() as largest:
        hard_supcon(z.requires_grad_(), labels, hard_fraction=0.5).backward()
    assert largest.entries == 2**15


GOOD = {"embeddings": torch.eye(4), "labels": torch.tensor([0, 0, 1, 1])}


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"temperature": 0}, "temperature 0 "),
        ({"temperature": math.nan}, "temperature nan"),
        ({"hardness": -1}, "hardness -1"),
        ({"hardness": math.inf}, "hardness inf"),
        ({"hard_fraction": 0}, "hard_fraction 0 "),
        ({"hard_fraction": 1.5}, "hard_fraction 1.5"),
        ({"embeddings": torch.ones(4)}, r"embeddings \[4\]"),
        ({"embeddings": torch.ones(4, 4, dtype=torch.long)}, "int64"),
        ({"labels": torch.tensor([0, 1])}, r"labels \[2\]"),
        ({"labels": torch.ones(4)}, "float32"),
        ({"labels": torch.ones(4, dtype=torch.bool)}, "bool"),
        ({"embeddings": torch.eye(4).tolist()}, "^embeddings given as list; allowed: a tensor"),
        ({"embeddings": torch.eye(4).numpy()}, "^embeddings given as ndarray; allowed: a tensor"),
        ({"labels": [0, 0, 1, 1]}, "^labels given as list; allowed: a tensor"),
        ({"labels": torch.tensor([0, 0, 1, 1]).numpy()}, "^labels given as ndarray; allowed: a tensor"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(wrong, hint) -> None:
    with pytest.raises(Refusal, match=hint) as refusal:
        hard_supcon(**{**GOOD, **wrong})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("selection", ("all", "hard", "soft", "leaked"))
def test_selective_supcon_equals_its_formulas(selection: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(20, 5, generator=generator, dtype=torch.float64), dim=1)
    y, p = (torch.randint(3, (20,), generator=generator) for _ in range(2))
    losses = []
    for i in range(20):
        rival = {"all": p == p, "hard": p == y[i], "soft": p == p[i], "leaked": p == p[i]}[selection]
        own = [j for j in range(20) if j != i and y[j] == y[i] and (selection != "leaked" or p[j] == p[i])]
        others = [j for j in range(20) if y[j] != y[i] and rival[j]]
        if own:
            scores = z @ z[i] / 0.4
            losses.append(-(scores[own] - scores[own + others].logsumexp(0)).mean())
    assert selective_supcon(z, y, p, selection, 0.4).item() == pytest.approx(torch.stack(losses).mean().item())
