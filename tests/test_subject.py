"""From what the user names to a model under test: every route gives its logits, every wrong word its one line."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from anchor_robust import audit, checkpoint, data, runs
from anchor_robust.cli import main
from anchor_robust.errors import Refusal
from anchor_robust.formats.normalise import normalisation
from anchor_robust.settings import keywords
from anchor_robust.subject import Named, Subject, ball_asked, digest, digest_of, under_test
from anchor_robust.threat import Ball

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
HERE = __name__


class Net(nn.Module):
    """A user's classifier of digits."""

    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.conv(x).relu().mean((2, 3))))

    @classmethod
    def seeded(cls, seed: int) -> "Net":
        torch.manual_seed(seed)
        return cls()


def function(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: scale * x.flatten(1)[:, :10]


def nonsense() -> str:
    return "no network"


def raising(width: int) -> nn.Module:
    raise RuntimeError("out of\nideas")


def wide() -> nn.Module:
    return nn.Flatten()


@pytest.fixture
def net() -> Net:
    return Net.seeded(0).eval()


@pytest.fixture(scope="module")
def digits() -> data.ImageSet:
    return data.load("digits", "test")


def subject(source: object = None, **words: Any) -> Subject:
    words = {"data": "digits", "normalize": "none"} | words
    return under_test(Named(None if source is None else str(source), **words), torch.device("cpu"))


def same_logits(found: Subject, expected: nn.Module, images: data.ImageSet) -> None:
    x = images.first(20).pixels(slice(None))
    assert not any(module.training for module in found.model.modules())
    torch.testing.assert_close(found.model(x), expected(x))


def test_weights_that_change_while_they_are_read_are_refused(net: Net, tmp_path: Path, monkeypatch) -> None:
    """Or the record would name weights that were never measured."""
    path = tmp_path / "net.pt"
    torch.save(net.state_dict(), path)
    fill = checkpoint.fill

    def overtaken(*given: Any) -> None:
        fill(*given)
        torch.save(Net.seeded(1).state_dict(), path)

    monkeypatch.setattr(checkpoint, "fill", overtaken)
    with pytest.raises(Refusal, match=r"net.pt was written anew while it was read"):
        subject(path, model=f"{HERE}:Net")


# --- the routes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize("name", ["Net", "seeded"])
def test_a_state_dict_fills_a_class_or_what_a_factory_builds(
    net: Net, digits: data.ImageSet, tmp_path: Path, suffix: str, name: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = {f"module.{key}": tensor for key, tensor in net.state_dict().items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path)
    words = {"Net": {"model": f"{HERE}.Net"}, "seeded": {"model": f"{HERE}:Net.seeded", "model_args": "seed=7"}}[name]
    found = subject(path, **words)
    same_logits(found, net, digits)
    assert found.about["format"] == "state dict"
    assert found.about["settings"] == ({} if name == "Net" else {"seed": 7})
    assert len(found.about["sha256"]) == 64
    assert (found.ball.norm, found.ball.eps, found.run) == ("linf", 0.031, None)


def test_a_built_in_architecture_takes_arguments(digits: data.ImageSet, tmp_path: Path) -> None:
    from anchor_robust.models import resnet8

    network = resnet8(channels=1, width=4).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    same_logits(subject(tmp_path / "weights.pt", model="resnet8", model_args="width=4"), network, digits)


def test_a_factory_that_loads_itself_needs_no_file(net: Net, digits: data.ImageSet) -> None:
    found = subject(model=f"{HERE}:Net.seeded", model_args="seed=0")
    same_logits(found, net, digits)
    assert found.about["source"] == f"{HERE}:Net.seeded"
    other = subject(model=f"{HERE}:Net.seeded", model_args="seed=1")
    assert found.about["sha256"] != other.about["sha256"], "a stopped evaluation would go on with other weights"
    assert found.about["sha256"] == subject(model=f"{HERE}:Net.seeded", model_args="seed=0").about["sha256"]


def test_a_class_without_weights_is_said_to_be_untrained(digits: data.ImageSet) -> None:
    assert "as its constructor leaves it" in subject(model=f"{HERE}.Net").note
    assert not subject(model=f"{HERE}:Net.seeded", model_args="seed=0").note


def test_a_function_will_do(digits: data.ImageSet) -> None:
    found = subject(model=f"{HERE}:function", model_args="scale=1e1", normalize="0.5:0.25")
    x = digits.first(4).pixels(slice(None))
    torch.testing.assert_close(found.model(x), 10 * ((x - 0.5) / 0.25).flatten(1)[:, :10])
    assert (found.about["mean"], found.about["std"]) == ([0.5], [0.25])
    assert "sha256" not in found.about


def test_torchscript(net: Net, digits: data.ImageSet, tmp_path: Path) -> None:
    torch.jit.script(net.train()).save(tmp_path / "model.pt")
    found = subject(tmp_path / "model.pt", normalize="0.5:0.25")
    x = digits.first(4).pixels(slice(None))
    torch.testing.assert_close(found.model(x), net.eval()((x - 0.5) / 0.25))


@pytest.mark.parametrize("batch", [1, 3])
def test_an_exported_program_that_is_trusted(net: Net, digits: data.ImageSet, tmp_path: Path, batch: int) -> None:
    torch.export.save(torch.export.export(net, (torch.rand(batch, 1, 8, 8),)), tmp_path / "model.pt2")
    found = subject(tmp_path / "model.pt2", model="torch.export")
    same_logits(found, net, digits)
    assert found.about["exported_batch"] == batch


def test_a_hugging_face_folder_brings_its_normalisation(
    net: Net, digits: data.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixel_values: Tensor) -> Any:
            return SimpleNamespace(logits=self.net(pixel_values))

    auto = SimpleNamespace(from_pretrained=lambda path, **asked: (Wrapped(), {"missing_keys": []}))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModelForImageClassification=auto))
    (tmp_path / "config.json").write_text('{"architectures": ["Wrapped"]}')
    with pytest.raises(Refusal, match=r"holds no normalisation.*--normalize: none"):
        subject(tmp_path, normalize=None)
    same_logits(subject(tmp_path), net, digits)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 8, "image_mean": [0.5], "image_std": [0.25]}')
    found = subject(tmp_path, normalize=None)
    x = digits.first(4).pixels(slice(None))
    torch.testing.assert_close(found.model(x), net((x - 0.5) / 0.25))
    assert found.about["mean"] == [0.5]
    assert "preprocessor_config.json" in found.note
    assert "0.25" in found.note
    with pytest.raises(Refusal, match="leave it out"):
        subject(tmp_path, normalize="none")


def test_arrays_of_the_users_are_test_images(net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x=images, y=np.arange(30) % 10)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    words = f"evaluate {tmp_path}/weights.pt --model {HERE}.Net --normalize none --data {tmp_path}/mine.npz"
    assert main([*words.split(), "--out", str(tmp_path / "record.json"), "--batch-size", "7"]) == 0
    record = runs.read_json(tmp_path / "record.json")
    assert record["data"] | {"sha256": ""} == {"name": "mine", "split": "test", "images": 30, "sha256": ""}
    assert record["model"]["format"] == "state dict"
    assert "mine" in capsys.readouterr().out


# --- wrong words -----------------------------------------------------------------------------------------------------

FACTORY = f"evaluate --data digits --normalize none --model {HERE}:"
FILE = "evaluate {tmp}/%s --data digits --normalize none"

WRONG: dict[str, tuple[str, ...]] = {
    "evaluate": ("no model given", "--model"),
    "evaluate --model-args width=3": ("no model given",),
    f"evaluate --model {HERE}.Net": (f"{HERE}.Net (factory)", "--data and --normalize"),
    "evaluate --data digits --normalize none --model resnet8": ("without weights", "evaluate FILE --model resnet8"),
    FILE % "weights.pt --model resnet8 --model-args width=0": ("width 0 given; allowed: 1 or more channels",),
    "evaluate digits-anchor": ("digits-anchor is a recipe", "anchor train digits-anchor --out RUN"),
    "evaluate {tmp}/mine.npz --model resnet8": ("holds arrays", "did you mean --data"),
    FACTORY + "nonsense": ("built a str", "must build a torch.nn.Module"),
    FACTORY + "raising --model-args width=3": ("cannot be built with {'width': 3}", "RuntimeError: out of ideas"),
    FACTORY + "raising": ("cannot be built", "width"),
    FACTORY + "absent": ("absent", "PYTHONPATH"),
    FACTORY + "Net --model-args depth=3": ("depth", "change its settings"),
    FACTORY + "Net --model-args width": ("'width' given", "name=value"),
    FACTORY + "Net --model-args width=3,width=4": ("each name once",),
    FACTORY + "Net --model-args width=[": ("width=[",),
    FACTORY + "Net --model-args classes=7": ("gives 7 logits", "10 classes"),
    FACTORY + "wide": ("gives 64 logits", "10 classes"),
    FACTORY + "Net --normalize 0.5,0.5:1,1": ("1 means:1 deviations",),
    FACTORY + "Net --normalize 0.5:0": ("--normalize 0.5:0",),
    FACTORY + "Net --data {tmp}/absent.npz": ("absent.npz cannot be read",),
    FILE % "absent.pt": ("absent.pt does not exist",),
    FILE % "absent.pt" + " --model resnet8": ("absent.pt does not exist",),
    FILE % "weights.pt": ("state dict", "--model"),
    FILE % "weights.pt --model resnet8": ("another architecture", "conv.weight"),
    FILE % f"weights.pt --model {HERE}:function --model-args scale=1": ("built a function", "torch.nn.Module"),
    FILE % f"whole.pt --model {HERE}.Net": (f"{HERE}.Net", "could run code", "state_dict()"),
    FILE % "script.pt --model resnet8": ("whole TorchScript model", "leave it out"),
    FILE % "script.pt --model-args width=4": ("--model-args", "leave it out"),
    FILE % "static.pt2 --model torch.export --model-args width=4": ("--model-args", "leave it out"),
    "evaluate {tmp}/script.pt": ("(TorchScript)", "--data and --normalize"),
    FILE % "training.pt": ("in another batch", "model.eval()"),
    FILE % "script7.pt": ("gives 7 logits", "10 classes"),
    FILE % "static.pt2": ("torch.export program", "can run code"),
    "evaluate {tmp}/static.pt2 --model torch.export": ("--data and --normalize",),
    "evaluate {tmp}/static.pt2 --model torch.export --normalize none --data {tmp}/mine.npz": (
        "fails on 8 images [1, 6, 6]",
    ),
    FILE % "empty": ("weights.safetensors", "config.json"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, net = tmp_path_factory.mktemp("files"), Net.seeded(0).eval()
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(net, folder / "whole.pt")
    torch.jit.script(net).save(folder / "script.pt")
    torch.jit.trace(Net().train(), torch.rand(2, 1, 8, 8), check_trace=False).save(folder / "training.pt")
    torch.jit.script(Net(classes=7)).save(folder / "script7.pt")
    torch.export.save(torch.export.export(net, (torch.rand(2, 1, 8, 8),)), folder / "static.pt2")
    np.savez(folder / "mine.npz", x=np.zeros((20, 6, 6, 1), np.uint8), y=np.arange(20) % 10)
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("typed", WRONG)
def test_what_cannot_be_evaluated_is_said_in_one_line(
    typed: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.replace("{tmp}", str(files)).split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.strip().splitlines()
    for word in WRONG[typed]:
        assert word in line


def test_weights_that_say_all_take_no_other_word(net: Net, tmp_path: Path) -> None:
    header = {
        "model": {"name": "resnet8", "width": 4},
        "classes": list("0123456789"),
        "shape": [1, 8, 8],
        "projection_width": 0,
        "data": "digits",
        "recipe": "{name: mine, threat: {norm: l2, eps: 0.5}}",
    }
    network = checkpoint.build(header)
    checkpoint.save_weights(tmp_path / runs.WEIGHTS, network, header)
    found = under_test(Named(str(tmp_path)), torch.device("cpu"))
    assert (found.ball.norm, found.ball.eps, found.run) == ("l2", 0.5, tmp_path)
    assert under_test(Named(str(tmp_path / runs.WEIGHTS)), torch.device("cpu")).run is None
    for words in ({"normalize": "none"}, {"model": "resnet8", "model_args": "width=4"}, {"model": "resnet18"}):
        with pytest.raises(Refusal, match="leave it out"):
            under_test(Named(str(tmp_path), **words), torch.device("cpu"))
    np.savez(tmp_path / "two.npz", x=np.zeros((2, 8, 8, 1), np.uint8), y=[0, 1])
    with pytest.raises(Refusal, match=r"knows 10 classes \(0, 1, 2, \.\.\.\)"):
        under_test(Named(str(tmp_path), data=str(tmp_path / "two.npz")), torch.device("cpu"))


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("width=32,depth=4", {"width": 32, "depth": 4}),
        (
            "blocks=[2, 2],rate=1e-3,name=a b,flag=true, none=null",
            {"blocks": [2, 2], "rate": 1e-3, "name": "a b", "flag": True, "none": None},
        ),
        ("eq=a=b", {"eq": "a=b"}),
        ("quoted='12'", {"quoted": "12"}),
    ],
)
def test_arguments_have_types(text: str, expected: dict[str, Any]) -> None:
    found = keywords(text)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


def test_normalisations() -> None:
    assert normalisation("none", 2) == ([0.0, 0.0], [1.0, 1.0])
    assert normalisation("1,2:3,4", 2) == ([1.0, 2.0], [3.0, 4.0])
    assert normalisation("cifar10", 3)[1] == (0.2471, 0.2435, 0.2616)
    for wrong in ("cifar10", "1:2:3", "1:nan", "1:-1", "1,2:1", "1:1,2", "inf:1", "half", ""):
        with pytest.raises(Refusal, match="--normalize"):
            normalisation(wrong, 1)


def test_the_digest_of_a_folder_sees_pickled_weights(tmp_path: Path) -> None:
    told = []
    for content in (b"1", b"2"):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        told.append(digest(str(tmp_path)))
    assert told[0] != told[1]


class Hides(nn.Flatten):
    """Keeps beside its weights what has no bytes of its own."""

    def __init__(self, hidden: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("kept", hidden if isinstance(hidden, Tensor) else None)

    def get_extra_state(self) -> Any:
        return self.hidden

    def set_extra_state(self, state: Any) -> None:
        self.hidden = state


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    "made",
    (
        lambda: {"a": 1},
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    ),
    ids=("words", "sparse", "quantised"),
)
def test_a_state_that_is_more_than_tensors_cannot_be_seen(made: Callable[[], Any]) -> None:
    assert digest_of(Hides(made())) == {}
    assert digest_of(nn.Flatten()).keys() == digest_of(Hides(torch.ones(2))).keys() == {"sha256"}


@pytest.mark.parametrize("body", ("x", "1 - x"))
def test_a_change_of_a_models_code_is_another_identity(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    template = """
import torch

class Net(torch.nn.Linear):
    def forward(self, x):
        return super().forward((BODY).flatten(1))

def net():
    torch.manual_seed(0)
    return Net(64, 10)
"""
    identities = []
    for text in ("x", body):
        (tmp_path / "edited.py").write_text(template.replace("BODY", text))
        monkeypatch.delitem(sys.modules, "edited", raising=False)
        importlib.invalidate_caches()
        named = Named(None, "edited:net", data="digits", normalize="none")
        identities.append(audit.identity(under_test(named, torch.device("cpu"))))
    assert (identities[0] == identities[1]) == (body == "x")


def test_the_ball_is_the_models_own_where_nothing_else_is_said() -> None:
    own = Ball("linf", 0.1)
    assert ball_asked(own, None, None) == own
    assert ball_asked(own, None, 0.2) == Ball("linf", 0.2)
    assert ball_asked(Ball("linf", 0), "l2", 0.5) == Ball("l2", 0.5)
    with pytest.raises(Refusal, match="trained at eps 0, where nothing is attacked; give --eps"):
        ball_asked(Ball("linf", 0), None, None)
