"""A run's embeddings: the numbers of the right images in the right space, and a sentence only where one collapsed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchor_robust import checkpoint, data, geometry, load, runs, train
from anchor_robust.cli import main
from anchor_robust.display import Display
from anchor_robust.evaluation.protocols import pgd20
from anchor_robust.recipe import settle
from anchor_robust.threat import Ball

LIMIT, EPS = 120, 0.1
SMALL = (
    "--optimise.epochs=3",
    "--optimise.batch_size=128",
    "--model.width=4",
    "--attack.steps=1",
    f"--threat.eps={EPS}",
    "--validation.steps=1",
    "--validation.every=3",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train.start(settle("digits-anchor", SMALL), tmp_path_factory.mktemp("embedding") / "run", None, Display())


@pytest.fixture(scope="module")
def record(run: Path) -> dict[str, Any]:
    assert main(["embedding", str(run), "--limit", str(LIMIT), "--batch-size", "50"]) == 0
    return json.loads((run / runs.EMBEDDING).read_text())


def embedded(run: Path, space: str, x: torch.Tensor) -> torch.Tensor:
    """Unit embeddings, straight from the layers."""
    network = load(run).classifier
    with torch.no_grad():
        features = network.backbone.features((x - network.mean) / network.std)
        z = features if space == "features" else network.projection(features)
    return z / z.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("space", ["features", "projection"])
def test_the_numbers_are_those_of_the_test_images_in_each_space(space: str, run: Path, record: dict[str, Any]) -> None:
    images, bank = data.load("digits", "test").first(LIMIT), data.sample(data.load("digits", "train"), LIMIT)
    x, y = images.pixels(slice(None)), images.labels
    z, of_bank = embedded(run, space, x), embedded(run, space, bank.pixels(slice(None)))
    found = record["spaces"][space]
    assert found["dimensions"] == z.shape[1]
    assert found["alignment"] == pytest.approx(geometry.alignment(z, y), rel=1e-4)
    assert found["uniformity"] == pytest.approx(geometry.uniformity(z), rel=1e-4)
    assert found["mean_cosine"] == pytest.approx(geometry.mean_cosine(z), rel=1e-4)
    assert found["min_cosine"] == pytest.approx(geometry.min_cosine(z), abs=1e-4)
    assert found["effective_rank"] == pytest.approx(geometry.effective_rank(z), rel=1e-4)
    for reader in (geometry.linear_probe, geometry.nearest_neighbours):
        right = (reader(z, of_bank, bank.labels) == y).double().mean().item()
        accuracy = found[reader.__name__]["accuracy"]
        assert accuracy == pytest.approx(right, abs=1.5 / LIMIT)
        low, high = found[reader.__name__]["interval"]
        assert low < accuracy < high


@pytest.mark.parametrize("space", ["features", "projection"])
def test_the_attack_moves_each_class_by_its_own_distance(space: str, run: Path, record: dict[str, Any]) -> None:
    images = data.load("digits", "test").first(LIMIT)
    x, y, generator = images.pixels(slice(None)), images.labels, torch.Generator().manual_seed(0)
    attack, model = pgd20(Ball("linf", EPS)), load(run)
    parts = [attack(model, a, b, generator=generator) for a, b in zip(x.split(50), y.split(50), strict=True)]
    moved = (embedded(run, space, x) - embedded(run, space, torch.cat(parts))).square().sum(1).sqrt()
    found = record["spaces"][space]
    assert found["moved_by_attack"] == pytest.approx(moved.mean().item(), rel=1e-3)
    for row in found["per_class"]:
        members = moved[y == int(row["class"])]
        assert row["images"] == len(members)
        assert row["moved_by_attack"] == pytest.approx(members.mean().item(), rel=1e-3)
    assert sum(row["images"] for row in found["per_class"]) == LIMIT


def test_the_seed_is_that_of_the_attack(run: Path, tmp_path: Path) -> None:
    out, images, ball = tmp_path / "seed3.json", data.load("digits", "test").first(40), Ball("linf", EPS)
    assert main(["embedding", str(run), "--limit", "40", "--seed", "3", "--json", str(out)]) == 0
    record = runs.read_json(out)
    assert record["attack"]["seed"] == 3
    x, y = images.pixels(slice(None)), images.labels

    def moved(seed: int) -> float:
        x_adv = pgd20(ball)(load(run), x, y, generator=torch.Generator().manual_seed(seed))
        return (embedded(run, "features", x) - embedded(run, "features", x_adv)).norm(dim=1).mean().item()

    found = record["spaces"]["features"]["moved_by_attack"]
    assert found == pytest.approx(moved(3), rel=1e-5)
    assert abs(moved(0) - moved(3)) > 1e-4 * found


def test_the_record_states_what_it_depends_on(record: dict[str, Any]) -> None:
    assert (record["data"]["split"], record["data"]["images"]) == ("test", LIMIT)
    assert (record["fitted_to"]["split"], record["fitted_to"]["images"]) == ("train", LIMIT)
    assert (record["attack"]["label"], record["attack"]["eps"], record["attack"]["steps"]) == ("PGD-20", EPS, 20)
    assert record["nearest_neighbours"] == {"neighbours": LIMIT, "temperature": 0.07}
    assert record["warnings"] == []


def collapsed_copy(run: Path, to: Path) -> Path:
    """The same run with a projection head that maps everything to one point."""
    shutil.copytree(run, to)
    header, tensors = checkpoint.read_weights(run / runs.WEIGHTS)
    tensors["projection.2.weight"] *= 1e-4
    tensors["projection.2.bias"] += 1
    save_file(tensors, to / runs.WEIGHTS, {checkpoint.HEADER: json.dumps(header)})
    return to


def test_only_a_collapsed_space_is_called_so(
    run: Path, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--limit", "50", "--json"]
    assert main(["embedding", str(run), *words, str(tmp_path / "healthy.json")]) == 0
    assert "collapsed" not in capsys.readouterr().out
    broken = collapsed_copy(run, tmp_path / "broken")
    assert main(["embedding", str(broken), *words, str(tmp_path / "broken.json")]) == 0
    assert "warning: the projection space has collapsed" in " ".join(capsys.readouterr().out.split())
    (warning,) = runs.read_json(tmp_path / "broken.json")["warnings"]
    assert "one point" in warning


def test_without_a_projection_head_there_is_one_space(run: Path, tmp_path: Path) -> None:
    header, tensors = checkpoint.read_weights(run / runs.WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("projection.")}
    bare, out = tmp_path / "bare.safetensors", tmp_path / "bare.json"
    save_file(kept, bare, {checkpoint.HEADER: json.dumps(header | {"projection_width": 0})})
    assert main(["embedding", str(bare), "--limit", "50", "--json", str(out)]) == 0
    assert list(runs.read_json(out)["spaces"]) == ["features"]


def test_a_record_of_more_images_is_kept(run: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embedding", str(run), "--limit", "40"]) == 0
    assert "--json" in capsys.readouterr().err
    assert runs.read_json(run / runs.EMBEDDING) == record


def test_a_record_of_weights_that_are_gone_is_replaced(run: Path, record: dict[str, Any], tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    gone = record | {"model": record["model"] | {"sha256": "another"}}
    runs.write_json(copied / runs.EMBEDDING, gone)
    assert main(["embedding", str(copied), "--limit", "40"]) == 0
    assert runs.read_json(copied / runs.EMBEDDING)["data"]["images"] == 40


def test_measuring_changes_no_weights(run: Path, record: dict[str, Any], tmp_path: Path) -> None:
    before = load_file(run / runs.WEIGHTS)
    assert main(["embedding", str(run), "--limit", "40", "--json", str(tmp_path / "once.json")]) == 0
    after = load_file(run / runs.WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


# What is typed, and what the one line of the answer must name.
WRONG: dict[str, tuple[str, ...]] = {
    "{tmp}/nowhere": ("nowhere", "does not exist"),
    "{tmp}": ("weights.safetensors",),
    "{tmp}/foreign.safetensors": ("architecture", "anchor train"),
    "{run} --limit 0": ("--limit 0", "1 or more"),
    "{run} --limit 1 --json {tmp}/one.json": ("share a class", "more images"),
    "{run} --batch-size 0": ("--batch-size 0",),
    "{run} --json {tmp}/nowhere/numbers.json": ("cannot write",),
    "{run} --model resnet18": ("resnet18", "resnet8"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_cannot_be_done_is_said_in_one_line(
    typed: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    assert main(["embedding", *typed.format(tmp=tmp_path, run=run).split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("anchor: ")
    for word in WRONG[typed]:
        assert word in line


@pytest.mark.parametrize("taken", (runs.RECIPE, runs.ENVIRONMENT))
def test_no_other_file_is_written_over(taken: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / taken).read_bytes()
    assert main(["embedding", str(run), "--limit", "40", "--json", str(run / taken)]) == 2
    told = capsys.readouterr().err
    assert str(run / taken) in told
    assert "--json" in told
    assert (run / taken).read_bytes() == before
