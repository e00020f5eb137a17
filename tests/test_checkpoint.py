"""Weights that load anywhere, and one line about those that do not."""

import errno
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import anchor_robust
from anchor_robust import checkpoint, runs
from anchor_robust.cli import main
from anchor_robust.errors import Refusal
from anchor_robust.models import Classifier, LogitsOnly, backbone

HEADER = {
    "model": {"name": "resnet8", "width": 4},
    "classes": ["a", "b", "c"],
    "shape": [1, 8, 8],
    "projection_width": 5,
    "data": "digits",
    "recipe": "",
}


def classifier() -> Classifier:
    torch.manual_seed(0)
    network = Classifier(backbone("resnet8", 3, (1, 8, 8), {"width": 4}), [0.3], [0.2], 5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn_like(module.running_mean)
    return network.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    x = torch.linspace(0, 1, 2 * 64).view(2, 1, 8, 8)
    with torch.no_grad():
        return model(x)


def test_weights_read_back_to_the_same_model(tmp_path: Path) -> None:
    network = classifier()
    checkpoint.save_weights(tmp_path / runs.WEIGHTS, network, HEADER)
    for source in (tmp_path, tmp_path / runs.WEIGHTS, str(tmp_path)):
        loaded = checkpoint.load(source)
        assert not loaded.training
        assert torch.equal(logits(loaded), logits(LogitsOnly(network)))


@pytest.mark.parametrize("keys", (("model", "model_ema"), ("state_dict", "state_dict_ema"), ("net", "ema")))
def test_a_file_with_two_sets_of_weights_is_refused_with_both_names(tmp_path: Path, keys: tuple[str, str]) -> None:
    raw = classifier().backbone.state_dict()
    averaged = {f"module.{name}": tensor / 2 for name, tensor in raw.items()}
    torch.save({keys[0]: raw, keys[1]: averaged, "optimizer": {"state": {}}}, tmp_path / "two.pt")
    with pytest.raises(Refusal, match=f"twice, as {keys[0]} and as {keys[1]}"):
        checkpoint.read_state_dict(tmp_path / "two.pt")


def test_a_layer_of_two_names_is_saved_under_both(tmp_path: Path) -> None:
    network = torch.nn.Module()
    network.a = network.b = torch.nn.Linear(2, 2)
    checkpoint.save_weights(tmp_path / runs.WEIGHTS, network, HEADER)
    _, tensors = checkpoint.read_weights(tmp_path / runs.WEIGHTS)
    assert torch.equal(tensors["a.weight"], network.a.weight)
    assert torch.equal(tensors["b.weight"], network.a.weight)


@pytest.mark.parametrize("nesting", [None, "state_dict", "model", "net"])
def test_plain_state_dicts_load(tmp_path: Path, nesting: str | None) -> None:
    network = classifier()
    tensors = {f"module.{name}": tensor for name, tensor in network.backbone.state_dict().items()}
    torch.save({nesting: tensors, "epoch": 3} if nesting else tensors, tmp_path / "plain.pt")
    wide = backbone("resnet8", 3, (1, 8, 8))  # width 16, the default
    with pytest.raises(Refusal, match="another architecture"):
        checkpoint.fill(wide, checkpoint.read_tensors(tmp_path / "plain.pt"), "plain.pt")
    narrow = backbone("resnet8", 3, (1, 8, 8), {"width": 4})
    checkpoint.fill(narrow, checkpoint.read_state_dict(tmp_path / "plain.pt"), "plain.pt")
    assert torch.equal(logits(LogitsOnly(Classifier(narrow, [0.3], [0.2]).eval())), logits(LogitsOnly(network)))


@pytest.mark.parametrize(
    "wrapped", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "net.model.{}", "{}"]
)
def test_what_wrappers_put_before_names_is_dropped(wrapped: str) -> None:
    plain = classifier().backbone.state_dict()
    given = {wrapped.format(name): tensor for name, tensor in plain.items()}
    unwrapped = checkpoint.unwrapped(given, plain)
    assert unwrapped.keys() == plain.keys()
    assert all(torch.equal(unwrapped[name], plain[name]) for name in plain)


def test_only_what_stands_before_all_names_is_dropped() -> None:
    one = torch.zeros(1)
    module = {"module.weight": one, "module.bias": one}
    assert checkpoint.unwrapped(module, {"module.weight", "module.bias"}) == module, "a part may bear that name"
    assert checkpoint.unwrapped({"a.weight": one, "b.weight": one}, {"weight"}).keys() == {"a.weight", "b.weight"}
    assert checkpoint.unwrapped({"block.0._orig_mod.weight": one}, {"block.0.weight"}).keys() == {"block.0.weight"}
    assert checkpoint.unwrapped({"alone": one}, {"weight"}).keys() == {"alone"}


def test_what_differs_is_named(tmp_path: Path) -> None:
    tensors = classifier().backbone.state_dict()
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["bn1.weight"]
    tensors["linear.bias"] = torch.zeros(7)
    torch.save(tensors, tmp_path / "plain.pt")
    with pytest.raises(Refusal) as told:
        checkpoint.fill(backbone("resnet8", 3, (1, 8, 8), {"width": 4}), tensors, "plain.pt")
    for name in ("missing: bn1.weight", "unexpected: extra.weight", "linear.bias is [7], not [3]"):
        assert name in str(told.value)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "run",)  # type: ignore[return-value] # it returns a path

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    torch.save({"state_dict": Evil()}, tmp_path / "evil-zip.pt")
    for name in ("evil.pt", "evil-zip.pt"):
        with pytest.raises(Refusal, match=r"state_dict|cannot be read"):
            checkpoint.read_tensors(tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_a_pickled_model_is_refused_with_its_class_and_the_way_out(tmp_path: Path) -> None:
    torch.save(classifier(), tmp_path / "whole.pt")
    with pytest.raises(
        Refusal, match=r"holds anchor_robust\.models\.classifier\.Classifier.*torch\.save the state_dict"
    ) as told:
        checkpoint.read_tensors(tmp_path / "whole.pt")
    assert "\n" not in str(told.value)


def test_a_weights_header_cannot_run_code(tmp_path: Path) -> None:
    command = {"name": "os.system", "command": f"touch {tmp_path / 'run'}"}
    checkpoint.save_weights(tmp_path / "evil.safetensors", classifier(), HEADER | {"model": command})
    with pytest.raises(Refusal, match=r"os\.system.*if you trust its code"):
        checkpoint.load(tmp_path / "evil.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_class_of_the_users_loads_when_it_is_named(tmp_path: Path) -> None:
    name = "anchor_robust.models.resnet.resnet8"  # as good as a user's: it is not among the built-in names
    checkpoint.save_weights(tmp_path / "own.safetensors", classifier(), HEADER | {"model": {"name": name, "width": 4}})
    with pytest.raises(Refusal, match="--model"):
        checkpoint.load(tmp_path / "own.safetensors")
    loaded = checkpoint.load(tmp_path / "own.safetensors", model=name)
    assert torch.equal(logits(loaded), logits(LogitsOnly(classifier())))


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(classifier().backbone.state_dict(), path)
    else:
        checkpoint.save_weights(path, classifier(), HEADER)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Refusal, match="cannot be read"):
        checkpoint.read_tensors(path)


def test_a_state_without_resumable_content_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="does not exist"):
        checkpoint.read_state(tmp_path / runs.LAST)
    (tmp_path / runs.LAST).write_bytes(b"half")
    with pytest.raises(Refusal, match="cannot be read"):
        checkpoint.read_state(tmp_path / runs.LAST)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    runs.write_json(target, {"old": 1})

    def fill(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Refusal, match="No space left on device; free some space"):
        runs.write(target, fill)
    assert runs.read_json(target) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_no_space_for_weights_or_state_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Refusal, match="No space left on device"):
        checkpoint.save_weights(tmp_path / runs.WEIGHTS, classifier(), HEADER)
    with pytest.raises(Refusal, match="No space left on device"):
        checkpoint.save_state(tmp_path / runs.LAST, classifier().state_dict())
    assert not list(tmp_path.iterdir())


def test_a_directory_in_use_or_not_writable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="not empty"):
        runs.create(tmp_path)
    with pytest.raises(Refusal, match="is a file"):
        runs.create(tmp_path / "file")
    with pytest.raises(Refusal, match="cannot write"):
        runs.create(tmp_path / "file" / "below")


def test_a_metrics_line_cut_short_is_left_out(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        runs.append_metrics(tmp_path, {"step": step})
    with (tmp_path / runs.METRICS).open("a") as handle:
        handle.write('{"step": 4')
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 2, 3]
    runs.keep_metrics(tmp_path, 2)
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 2]


# --- weights that come with the package -------------------------------------------------------------------------------


def test_shipped_weights_load_by_their_name_and_are_small() -> None:
    assert "cifar10-resnet8-anchor" in checkpoint.shipped()
    for name, path in checkpoint.shipped().items():
        assert path.stat().st_size < 1_000_000
        assert path.with_suffix(".md").read_text(encoding="utf-8").startswith("# ")
        logits = anchor_robust.load(name)(torch.rand(2, 3, 32, 32))
        assert logits.shape == (2, 10)


def test_shipped_weights_are_evaluated_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    classes = np.array(checkpoint.load_with_header("cifar10-resnet8-anchor")[1]["classes"])
    np.savez("pictures.npz", x=pixels, y=np.arange(20) % 10, classes=classes)
    words = ("--data", "pictures.npz", "--out", "record.json", "--quiet")
    assert main(["evaluate", "cifar10-resnet8-anchor", *words]) == 0
    record = runs.read_json(tmp_path / "record.json")
    assert [result["attack"] for result in record["results"]] == ["clean", "pgd20"]
    with torch.no_grad():
        logits = anchor_robust.load("cifar10-resnet8-anchor")(torch.tensor(pixels).permute(0, 3, 1, 2) / 255)
    rightly = (logits.argmax(1) == torch.arange(20) % 10).double().mean().item()
    assert record["results"][0]["accuracy"] == pytest.approx(rightly)


def test_a_directory_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10-resnet8-anchor").mkdir()
    with pytest.raises(Refusal, match="holds no weights"):
        checkpoint.load("cifar10-resnet8-anchor")


def test_an_unknown_name_is_answered_with_the_shipped_ones() -> None:
    with pytest.raises(Refusal, match="cifar10-resnet8-anchor"):
        checkpoint.load("cifar10-resnet8-anker")
