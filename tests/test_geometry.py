"""Where embeddings lie: against slow float64 loops and against spaces whose numbers are known."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anchor_robust import geometry
from anchor_robust.errors import Refusal
from anchor_robust.losses import hard_supcon


def unit(n: int, d: int, seed: int = 0) -> Tensor:
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z / z.norm(dim=1, keepdim=True)


def labels(n: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def squared_distance(one: Tensor, other: Tensor) -> float:
    return sum((a - b) ** 2 for a, b in zip(one.tolist(), other.tolist(), strict=True))


@given(st.integers(4, 12), st.integers(1, 5), st.integers(1, 3), st.integers(0, 10_000))
def test_every_measure_is_its_formula_taken_pair_by_pair(n: int, d: int, classes: int, seed: int) -> None:
    z, y = unit(n, d, seed), labels(n, classes, seed)
    pairs = list(permutations(range(n), 2))
    squares = [squared_distance(z[i], z[j]) for i, j in pairs]
    cosines = [sum((z[i] * z[j]).tolist()) for i, j in pairs]
    of_one_class = [square for square, (i, j) in zip(squares, pairs, strict=True) if y[i] == y[j]]
    singular = torch.linalg.eigvalsh(z.T @ z).clamp(min=0).sqrt()
    shares = [share for share in (singular / singular.sum()).tolist() if share > 0]
    assert geometry.alignment(z, y) == pytest.approx(sum(of_one_class) / len(of_one_class))
    assert geometry.uniformity(z) == pytest.approx(math.log(sum(math.exp(-2 * s) for s in squares) / len(pairs)))
    assert geometry.mean_cosine(z) == pytest.approx(sum(cosines) / len(pairs))
    assert geometry.min_cosine(z) == pytest.approx(min(cosines))
    assert geometry.effective_rank(z) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


def test_one_point_is_aligned_covers_nothing_and_has_rank_one() -> None:
    z, y = unit(1, 7).expand(20, 7), labels(20, 3)
    assert geometry.alignment(z, y) == pytest.approx(0, abs=1e-12)
    assert geometry.uniformity(z) == pytest.approx(0, abs=1e-12)
    assert geometry.mean_cosine(z) == pytest.approx(1)
    assert geometry.min_cosine(z) == pytest.approx(1)
    assert geometry.effective_rank(z) == pytest.approx(1)


def test_two_antipodal_points_of_ten_images_each() -> None:
    z = torch.tensor([[1.0, 0.0]] * 10 + [[-1.0, 0.0]] * 10)
    apart, together = torch.tensor([0] * 10 + [1] * 10), torch.zeros(20, dtype=torch.long)
    assert geometry.alignment(z, apart) == pytest.approx(0, abs=1e-12)
    assert geometry.alignment(z, together) == pytest.approx(4 * 10 / 19)  # 10 of an image's 19 others lie opposite
    assert geometry.uniformity(z) == pytest.approx(math.log((9 + 10 * math.exp(-8)) / 19))
    assert geometry.mean_cosine(z) == pytest.approx(-1 / 19)
    assert geometry.min_cosine(z) == -1
    assert geometry.effective_rank(z) == pytest.approx(1)


def test_two_opposite_images_reach_the_least_uniformity() -> None:
    assert geometry.uniformity(torch.tensor([[1.0], [-1.0]])) == pytest.approx(-8)


def test_orthogonal_axes_have_full_rank() -> None:
    assert geometry.effective_rank(torch.eye(6)) == pytest.approx(6)
    assert geometry.uniformity(torch.eye(6)) == pytest.approx(-4)


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    z, bank, of_bank = unit(50, 4), unit(30, 4, seed=1), labels(30, 3)
    whole = geometry.uniformity(z), geometry.min_cosine(z)
    voted = geometry.nearest_neighbours(z, bank, of_bank)
    monkeypatch.setattr(geometry, "BLOCK", 7)
    assert (geometry.uniformity(z), geometry.min_cosine(z)) == pytest.approx(whole)
    assert torch.equal(geometry.nearest_neighbours(z, bank, of_bank), voted)


@given(st.integers(1, 20), st.integers(0, 10_000))
def test_neighbours_vote_with_their_cosine(neighbours: int, seed: int) -> None:
    z, bank, y = unit(6, 3, seed), unit(15, 3, seed + 1), labels(15, 4, seed)
    for image, predicted in zip(z, geometry.nearest_neighbours(z, bank, y, neighbours, 0.5).tolist(), strict=True):
        cosines = sorted(((float(image @ other), int(of)) for other, of in zip(bank, y, strict=True)), reverse=True)
        votes = dict.fromkeys(range(4), 0.0)
        for cosine, of in cosines[:neighbours]:
            votes[of] += math.exp(cosine / 0.5)
        assert votes[predicted] == pytest.approx(max(votes.values()), rel=1e-5)


def test_the_temperature_weighs_a_near_neighbour_against_many_far_ones() -> None:
    bank, y = torch.tensor([[1.0, 0.0]] + [[0.6, 0.8]] * 5), torch.tensor([1] + [0] * 5)
    near = torch.tensor([[1.0, 0.0]])
    assert geometry.nearest_neighbours(near, bank, y, temperature=0.1).tolist() == [1]
    assert geometry.nearest_neighbours(near, bank, y, temperature=10).tolist() == [0]
    assert geometry.nearest_neighbours(near, bank, y, neighbours=1, temperature=10).tolist() == [1]


def test_the_probe_reads_what_lies_on_a_line_however_small() -> None:
    bank, z = unit(400, 5), unit(200, 5, seed=1)
    direction = unit(1, 5, seed=2)[0]
    tiny = torch.tensor(1e-3)  # two coordinates in ten thousandths still separate the classes
    predicted = geometry.linear_probe(z * tiny, bank * tiny, (bank @ direction > 0).long())
    assert (predicted == (z @ direction > 0)).double().mean() > 0.95


@pytest.mark.parametrize("hardness, hard_fraction, temperature", [(0.0, 1.0, 0.1), (4.0, 0.25, 0.5)])
def test_the_loss_of_equal_embeddings_is_called_collapsed(
    hardness: float, hard_fraction: float, temperature: float
) -> None:
    m = 64
    one_point, y = unit(1, 8).expand(m, 8), labels(m, 5)
    loss = hard_supcon(one_point, y, temperature=temperature, hardness=hardness, hard_fraction=hard_fraction)
    assert loss.item() == pytest.approx(math.log(m - 1))
    assert f"{m} equal embeddings" in geometry.collapsed(loss.item(), m)
    assert not geometry.collapsed(hard_supcon(unit(m, 8), y).item(), m)


def test_collapse_is_close_to_the_value_and_not_at_another_batch_size() -> None:
    value = math.log(511)
    assert geometry.collapsed(value + 0.004, 512)
    assert geometry.collapsed(value - 0.004, 512)
    for healthy in (value + 0.006, value - 0.006, 5.98):
        assert geometry.collapsed(healthy, 512) == ""
    assert geometry.collapsed(value, 256) == ""


def test_too_few_images_are_refused_in_words() -> None:
    for measure in (geometry.mean_cosine, geometry.uniformity):
        with pytest.raises(Refusal, match=r"1 image given; a pair of images needs 2"):
            measure(unit(1, 3))
    with pytest.raises(Refusal, match=r"no two of the 3 images share a class"):
        geometry.alignment(unit(3, 3), torch.arange(3))
    with pytest.raises(Refusal, match=r"the 3 images .* are all of one class"):
        geometry.linear_probe(unit(3, 3), unit(3, 3), torch.ones(3, dtype=torch.long))
