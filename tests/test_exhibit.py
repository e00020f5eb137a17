"""Pictures and maps that go with an evaluation: against closed forms and slow derivations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anchor_robust import audit, exhibit, geometry, load, runs
from anchor_robust.attacks import PGD
from anchor_robust.data import ImageSet
from anchor_robust.display import Display
from anchor_robust.evaluation.curves import SHARES
from anchor_robust.exhibit import GALLERY, SIDE, THUMBNAIL, small
from anchor_robust.models import Classifier, LogitsOnly, backbone
from anchor_robust.report.record import arrays
from anchor_robust.subject import Named
from anchor_robust.threat import Ball

EPS = 8 / 255


def grey(levels: Tensor, side: int = 4) -> ImageSet:
    """Plain images of these grey levels; bright ones, from 128 on, are of class 1."""
    images = levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, side, side).contiguous()
    return ImageSet(images, (levels >= 128).long(), ("dark", "bright"), "greys", "test")


class Brightness(nn.Module):
    """Class 1 where the mean is above 127.5 levels: an image falls as soon as the ball reaches over that."""

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - 127.5 / 255
        return 40 * torch.stack([-over, over], dim=1)


def test_every_gallery_picture_is_an_attack_inside_its_ball_with_the_answer_to_it() -> None:
    levels = torch.arange(100, 156, 2)
    found = exhibit.exhibit(Brightness(), grey(levels), Ball("linf", EPS))
    kept, facts = found.arrays, found.facts["gallery"]
    assert facts["eps"] == pytest.approx([share * EPS for share in SHARES])
    assert facts["inside"]
    assert len(kept["gallery_index"]) == len(levels) == facts["images"] < GALLERY
    assert kept["gallery_prediction"].shape == (1 + len(SHARES), len(levels))
    assert (kept["gallery_prediction"][0] == kept["gallery_label"]).all()
    grid = zip(facts["eps"], kept["gallery_move"], kept["gallery_prediction"][1:], strict=True)
    for card, index in enumerate(kept["gallery_index"]):
        assert (kept["gallery_clean"][card] == int(levels[index])).all()
    distance = np.abs(levels.numpy()[kept["gallery_index"]] - 127.5) / 255
    for eps, moves, said in grid:
        assert np.abs(moves).max() <= round(255 * eps + 1e-6) + 0.5
        clear = np.abs(distance - eps) > 1e-3
        assert ((said == kept["gallery_label"]) == (distance > eps))[clear].all()
    assert (kept["gallery_confidence"] >= 0.5).all()


def test_pictures_that_rounding_undoes_are_counted() -> None:
    # 128 falls to every ball beyond 0.25 levels; those of 0.3 and 0.4 leave it at what rounds to 128 again.
    found = exhibit.exhibit(EdgeAt(127.75), grey(torch.tensor([120, 128])), Ball("linf", 0.4 / 255))
    right = found.arrays["gallery_prediction"][1:] == found.arrays["gallery_label"]
    assert right.tolist() == [[True, 0.4 * share < 0.25] for share in SHARES]
    assert found.facts["gallery"]["other_in_8_bits"] == 2


def test_pictures_outside_their_ball_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhibit, "pgd20", lambda ball: PGD(Ball(ball.norm, 2 * ball.eps), step_size=ball.eps))
    found = exhibit.exhibit(Brightness(), grey(torch.arange(100, 110)), Ball("linf", EPS))
    assert not found.facts["gallery"]["inside"]


class EdgeAt(Brightness):
    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + (127.5 - self.edge) / 255)


def classifier(projection: int = 5) -> LogitsOnly:
    torch.manual_seed(0)
    return LogitsOnly(Classifier(backbone("resnet8", 2, (1, 8, 8), {"width": 4}), [0.5], [0.25], projection))


@pytest.mark.parametrize("projection", [0, 5])
def test_the_map_has_every_space_of_the_model_for_both_twins(projection: int) -> None:
    images, model = grey(torch.arange(60, 190, 5), side=8), classifier(projection).eval()
    found = exhibit.exhibit(model, images, Ball("linf", EPS))
    kept, facts = found.arrays, found.facts["map"]
    spaces = ["features", "projection"] if projection else ["features"]
    assert list(facts["spaces"]) == spaces
    clean = torch.from_numpy(kept["map_clean"]).float() / 255
    assert kept["map_clean"].tolist() == images.images[kept["map_index"]].tolist()
    assert kept["map_prediction"][0].tolist() == model(clean).argmax(1).tolist()
    for name in spaces:
        assert kept[f"map_{name}_pca"].shape == kept[f"map_{name}_tsne"].shape == (2, len(images), 2)
        # Distances in the plane are those of the embeddings, less what the other directions hold.
        z = model.classifier.spaces(clean)[name].detach()
        plane = kept[f"map_{name}_pca"][0]
        flat = np.linalg.norm(plane[3] - plane[20])
        assert flat <= (z[3] - z[20]).norm() + 1e-5
        assert 0 < sum(facts["spaces"][name]["pca_shares"]) <= 1 + 1e-9


def test_a_model_without_embeddings_has_a_gallery_and_no_map() -> None:
    found = exhibit.exhibit(Brightness(), grey(torch.arange(100, 150)), Ball("l2", 0.5))
    assert "logits alone" in found.facts["map"]["why_not"]
    assert not [name for name in found.arrays if name.startswith("map_")]
    assert len(found.arrays["gallery_clean"]) == GALLERY


def test_the_bar_ends_where_the_work_does() -> None:
    for model in (Brightness(), classifier().eval()):
        told: list[int] = []

        @contextmanager
        def bar(label: str, images: int, told: list[int] = told) -> Iterator[Callable[[int], None]]:
            told.append(images)
            yield told.append

        exhibit.exhibit(model, grey(torch.arange(100, 150), side=8), Ball("linf", EPS), bar=bar)
        total, *steps = told
        assert sum(steps) == total > 0


def test_no_answer_is_shown_as_none() -> None:
    def blind(x: Tensor) -> Tensor:
        return Brightness()(x) + torch.where(x.flatten(1).mean(1, keepdim=True) > 0.5, torch.nan, 0.0)

    found = exhibit.exhibit(blind, grey(torch.arange(100, 150)), Ball("linf", EPS))
    bright = found.arrays["gallery_label"] == 1
    assert (found.arrays["gallery_prediction"][0][bright] == -1).all()
    assert (found.arrays["gallery_prediction"][0][~bright] == 0).all()
    assert (found.arrays["gallery_confidence"][0][bright] == 0).all()


def test_embeddings_that_are_not_finite_have_no_map() -> None:
    model = classifier().eval()
    assert model.classifier.projection is not None
    model.classifier.projection[2].bias.data.fill_(torch.nan)
    found = exhibit.exhibit(model, grey(torch.arange(100, 150), side=8), Ball("linf", EPS))
    assert "not finite" in found.facts["map"]["why_not"]


def test_the_model_comes_back_as_it_was_and_pictures_are_drawn_again_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhibit, "MAP", 40)
    monkeypatch.setattr(exhibit, "GALLERY", 4)
    images, model = grey(torch.arange(50, 250), side=8), classifier()
    model.classifier.backbone.eval()
    modes = [module.training for module in model.modules()]
    first, second = (exhibit.exhibit(model, images, Ball("linf", EPS), batch_size=size) for size in (30, 30))
    assert [module.training for module in model.modules()] == modes
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)
    assert len(first.arrays["map_index"]) == 40
    shares = np.bincount(first.arrays["map_label"]) / 40
    assert shares == pytest.approx(images.labels.bincount().numpy() / len(images), abs=1 / 40)


def test_one_image_is_enough() -> None:
    found = exhibit.exhibit(classifier().eval(), grey(torch.tensor([200]), side=8), Ball("linf", EPS))
    assert np.isfinite(found.arrays["map_features_tsne"]).all()


@pytest.mark.parametrize("height, width", [(8, 8), (64, 64), (100, 150), (300, 2)])
def test_large_pictures_are_reduced_by_averaging(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    shown = small(x, SIDE)
    assert max(shown.shape[2:]) == min(SIDE, max(height, width))
    assert min(shown.shape[2:]) >= 1
    assert (shown.double().mean((2, 3)) / 255 - x.double().mean((2, 3))).abs().max() < 0.02
    if max(height, width) <= SIDE:
        assert torch.equal(shown, (x * 255).round().to(torch.int16))
    assert max(small(x, THUMBNAIL).shape[2:]) <= THUMBNAIL


# --- what an evaluation keeps -----------------------------------------------------------------------------------------


def test_an_evaluation_keeps_pictures_that_the_model_answers_as_they_say(evaluated_run: Path) -> None:
    record = runs.read_json(evaluated_run / runs.EVALUATION)
    kept = arrays(evaluated_run / runs.EVALUATION, record["pictures"])
    assert record["pictures"]["file"] == runs.PICTURES
    assert record["classes"] == list("0123456789")
    outcomes = np.load(evaluated_run / runs.OUTCOMES)
    for kind in ("gallery", "map"):
        index = kept[f"{kind}_index"]
        assert (outcomes["label"][index] == kept[f"{kind}_label"]).all()
        assert (outcomes["clean_prediction"][index] == kept[f"{kind}_prediction"][0]).all()
    model, eps = load(evaluated_run), np.array(record["pictures"]["gallery"]["eps"])
    attacked = torch.from_numpy(kept["gallery_clean"].astype(np.int16) + kept["gallery_move"]).float() / 255
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    said = torch.stack([model(images).argmax(1) for images in attacked]).numpy()
    other = int((said != kept["gallery_prediction"][1:]).sum())
    assert other == record["pictures"]["gallery"]["other_in_8_bits"] <= 5
    reach = np.abs(kept["gallery_move"]).max((1, 2, 3, 4))
    assert (reach <= 255 * eps + 0.5 + 1e-4).all()
    assert (reach >= 0.8 * np.minimum(255 * eps, 255)).all()


def test_without_an_attack_or_a_place_nothing_is_kept(evaluated_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    record = audit.audit(Named(str(evaluated_run)), ["clean"], limit=8, out=out, display=Display())
    assert "pictures" not in record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numbers.json", "numbers.md", "numbers.npz"]
    record = audit.audit(Named(str(evaluated_run)), ["fgsm"], limit=8, out=out, display=Display())
    assert record["pictures"]["file"] == "numbers-pictures.npz"
    assert (tmp_path / "numbers-pictures.npz").is_file()


# --- the planes -------------------------------------------------------------------------------------------------------


def test_the_principal_plane_is_that_of_the_largest_eigenvalues() -> None:
    z = torch.randn(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.tensor(
        [3, 2, 1, 1, 1, 1]
    )
    plane, shares = geometry.principal_plane(z)
    centred = z - z.mean(0)
    values, vectors = np.linalg.eigh((centred.T @ centred).numpy())
    assert shares == pytest.approx((values[::-1] / values.sum())[:2])
    expected = np.abs(centred.numpy() @ vectors[:, ::-1][:, :2])
    assert np.abs(plane.numpy()) == pytest.approx(expected)


def test_one_point_and_one_dimension_lie_in_a_plane_too() -> None:
    alike = torch.full((9, 4), 0.5)
    plane, shares = geometry.principal_plane(alike)
    assert not plane.any()
    assert shares == [0, 0]
    assert geometry.neighbour_plane(alike).isfinite().all()
    line = torch.tensor([[1.0], [-1.0], [1.0]])
    plane, shares = geometry.principal_plane(line)
    assert plane.shape == (3, 2)
    assert shares == pytest.approx([1, 0])


def test_neighbours_stay_neighbours_in_their_plane() -> None:
    groups = torch.eye(4)[torch.arange(60) % 4] + 0.05 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    plane = geometry.neighbour_plane(torch.nn.functional.normalize(groups, dim=1))
    apart = torch.cdist(plane, plane).fill_diagonal_(torch.inf)
    assert (apart.argmin(1) % 4 == torch.arange(60) % 4).all()
    assert torch.equal(plane, geometry.neighbour_plane(torch.nn.functional.normalize(groups, dim=1)))
    assert geometry.perplexity(200) == 30
    assert geometry.perplexity(4) == 1


def test_the_map_shows_attacked_images_and_the_seed_matters() -> None:
    images, model = grey(torch.arange(60, 190, 5), side=8), classifier().eval()
    kept, other = (exhibit.exhibit(model, images, Ball("linf", EPS), seed=seed).arrays for seed in (0, 1))
    moved = np.abs(kept["map_move"]).max((1, 2, 3))
    assert (moved >= 0.8 * 255 * EPS).all()
    assert (moved <= 255 * EPS + 0.5).all()
    assert not np.array_equal(kept["gallery_move"], other["gallery_move"])
