"""Other people's formats: the model that was saved is the one that answers, and no file runs code unasked."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anchor_robust.errors import Refusal
from anchor_robust.formats import exported, huggingface, recognise, torchscript, trial

# The format is deprecated, the files that users have are not gone for that.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


class Writer(nn.Module):
    """A TorchScript program that writes a file when it is loaded."""

    path: str

    def __init__(self, path: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, str, bool]:
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.weight, self.path, self.training = state[0], state[1], state[2]
        torch.save(state[0], state[1])


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    network = Tiny()
    network(torch.rand(16, 3, 8, 8))  # statistics unlike those of the test batch
    return network.eval()


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def export(network: nn.Module, path: Path, batch: int, dynamic: bool) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(network, (images(batch),), dynamic_shapes=shapes), path)
    return path


# --- TorchScript -----------------------------------------------------------------------------------------------------


def test_torchscript_saved_while_training_is_put_into_evaluation_mode(tiny: Tiny, tmp_path: Path) -> None:
    expected = tiny(images())
    torch.jit.script(tiny.train()).save(tmp_path / "model.pt")
    assert recognise(tmp_path / "model.pt") == "TorchScript"
    loaded = torchscript.load(tmp_path / "model.pt", CPU)
    torch.testing.assert_close(loaded(images()), expected)
    trial.check_logits(loaded, images(), 3, "model.pt")
    trial.check_steady(loaded, images(), "model.pt")


def test_a_trace_of_training_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    tiny.drop.p = 0.0  # leaves BatchNorm, with which an image's logits depend on its batch
    torch.jit.trace(tiny.train(), images(), check_trace=False).save(tmp_path / "model.pt")
    loaded = torchscript.load(tmp_path / "model.pt", CPU)
    with pytest.raises(Refusal, match=r"in another batch.*model\.eval\(\)"):
        trial.check_steady(loaded, images(), "model.pt")


def test_torchscript_that_touches_files_is_refused_before_it_does(tmp_path: Path) -> None:
    written = tmp_path / "written"
    torch.jit.script(Writer(str(written))).save(tmp_path / "model.pt")
    written.unlink(missing_ok=True)
    with pytest.raises(Refusal, match="calls save"):
        torchscript.load(tmp_path / "model.pt", CPU)
    assert not written.exists()


@pytest.mark.parametrize(
    "source, found",
    [
        ("torch.save(x, name)", True),
        ("torch . \\\n save(x, name)", True),
        ("ops.aten.from_file(name)", True),
        ("torch.from_file(name)", True),
        ("ops.c10d.broadcast(x)", True),
        ("ops . \\\n c10d.broadcast(x)", True),
        ("rpc_sync(there, f)", True),
        ("__torch__.torch.classes.rpc.Thing", True),
        ("torch.conv2d(x, self.weight)", False),
        ("ops.prim.NumToTensor(n)", False),
        ("ops.quantized.linear(x)", False),
        ("__torch__.torch.classes.quantized.LinearPackedParamsBase", False),
        ("saved = torch.add(x, unsave)", False),
    ],
)
def test_what_is_beyond_arithmetic(source: str, found: bool) -> None:
    assert bool(torchscript.BEYOND_ARITHMETIC.search(source.encode())) == found


def test_a_torchscript_file_cut_short_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    torch.jit.script(tiny).save(tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(Refusal, match="cannot be read"):
        torchscript.load(tmp_path / "model.pt", CPU)


# --- torch.export ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch, dynamic, stated", [(2, True, {}), (2, False, {"exported_batch": 2}), (1, False, {"exported_batch": 1})]
)
def test_an_exported_program_answers_any_number_of_images(
    tiny: Tiny, tmp_path: Path, batch: int, dynamic: bool, stated: dict[str, int]
) -> None:
    path = export(tiny, tmp_path / "model.pt2", batch, dynamic)
    assert recognise(path) == "torch.export"
    loaded, about = exported.load(path, CPU, "torch.export")
    assert about == stated
    torch.testing.assert_close(loaded.eval()(images()), tiny(images()))
    trial.check_logits(loaded, images(), 3, "model.pt2")
    trial.check_steady(loaded, images(), "model.pt2")
    x, y = images().requires_grad_(), images().requires_grad_()
    (gradient,) = torch.autograd.grad(loaded(x).square().sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(tiny(y).square().sum(), y)[0])


def test_an_exported_program_is_loaded_only_when_it_is_trusted(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(tiny, tmp_path / "model.pt2", 2, True)
    monkeypatch.setattr(torch.export, "load", lambda file: pytest.fail("loaded"))
    for trusted in (None, "resnet8"):
        with pytest.raises(Refusal, match=r"can run code.*--model torch\.export"):
            exported.load(path, CPU, trusted)


def test_a_program_exported_while_training_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    loaded, _ = exported.load(export(tiny.train(), tmp_path / "model.pt2", 2, True), CPU, "torch.export")
    with pytest.raises(Refusal, match=r"each time.*model\.eval\(\)"):
        trial.check_steady(loaded, images(), "model.pt2")


def test_a_broken_program_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    path = export(tiny, tmp_path / "model.pt2", 2, True)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(Refusal, match="cannot be read"):
        exported.load(path, CPU, "torch.export")


# --- Hugging Face ----------------------------------------------------------------------------------------------------

PROCESSOR = {
    "do_resize": True,
    "size": {"height": 12, "width": 10},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}


class Stub(nn.Module):
    """Takes and gives what a transformers model does."""

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=pixel_values)


def folder(path: Path, processor: dict[str, Any] | None = None, **config: Any) -> Path:
    (path / "config.json").write_text(json.dumps({"architectures": ["StubForImageClassification"], **config}))
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the library; what it was asked for, and what it says that it loaded."""
    seen: dict[str, Any] = {"missing_keys": []}

    def from_pretrained(path: Path, **asked: Any) -> tuple[nn.Module, dict[str, Any]]:
        seen["asked"] = asked
        return Stub(), {"missing_keys": seen["missing_keys"]}

    stub = SimpleNamespace(AutoModelForImageClassification=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", stub)
    return seen


@pytest.mark.parametrize("resample, pil", [(2, Image.Resampling.BILINEAR), (3, Image.Resampling.BICUBIC)])
@pytest.mark.parametrize("size", [(12, 10), (5, 6), (16, 16)])
def test_images_are_resized_and_normalised_as_pil_would(
    tmp_path: Path, transformers: dict[str, Any], resample: int, pil: Any, size: tuple[int, int]
) -> None:
    processor = PROCESSOR | {"resample": resample, "size": dict(zip(("height", "width"), size, strict=True))}
    network, about = huggingface.load(folder(tmp_path, processor), CLASSES, (3, 8, 8))
    assert (about["name"], about["mean"], about["resize"]) == ("StubForImageClassification", [0.4, 0.5, 0.6], size)
    assert transformers["asked"]["trust_remote_code"] is False
    assert transformers["asked"]["local_files_only"] is transformers["asked"]["weights_only"] is True
    levels = (images(1)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    resized = np.asarray(Image.fromarray(levels).resize((size[1], size[0]), pil), dtype=np.float64) / 255
    expected = ((resized - PROCESSOR["image_mean"]) / PROCESSOR["image_std"]).transpose(2, 0, 1)
    given = network(torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255)[0].double().numpy()
    grey_level = 1 / 255 / min(PROCESSOR["image_std"])
    np.testing.assert_allclose(given, expected, atol=1.3 * grey_level)  # PIL rounds after each of its two passes


@pytest.mark.parametrize(
    "settings, resize, crop",
    [
        ({"size": 12}, (12, 12), None),
        ({"size": {"shortest_edge": 12}}, (12, 12), None),
        ({"size": {"shortest_edge": 7}, "crop_pct": 0.875}, (8, 8), (7, 7)),  # as ConvNeXt's
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384), None),
        ({"size": 12, "do_center_crop": True, "crop_size": {"height": 6, "width": 4}}, (12, 12), (6, 4)),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 6}, None, (6, 6)),
        ({"size": 8}, None, None),
    ],
)
def test_sizes_are_read_as_the_processors_mean_them(settings: dict[str, Any], resize: Any, crop: Any) -> None:
    steps = huggingface.understood(PROCESSOR | settings, (3, 8, 8))
    assert (None if steps.resize == (8, 8) else steps.resize, steps.crop) == (
        None if resize == (8, 8) else resize,
        crop,
    )


def test_the_middle_is_cropped() -> None:
    steps = huggingface.Preparation(None, None, (4, 6), [0.0] * 3, [1.0] * 3)
    given = huggingface.Prepared(Stub(), steps)(images())
    assert torch.equal(given, images()[:, :, 2:6, 1:7])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_pad": True}, "do_pad"),
        ({"include_top": True}, "include_top"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"image_processor_type": "LevitImageProcessor"}, "image_processor_type"),
        ({"resample": 1}, "resample"),
        ({"resample": None}, "resample"),
        ({"size": {"longest_edge": 9}}, "size"),
        ({"size": 8, "do_center_crop": True, "crop_size": 9}, "crop_size"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": None}, "image_std"),
        ({"image_std": [0.1, 0.0, 0.1]}, "image_std"),
    ],
)
def test_a_processor_that_is_not_understood_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=rf"preprocessor_config\.json sets .*{said}.*allowed"):
        huggingface.understood(PROCESSOR | settings, (3, 8, 8))


def test_without_a_processor_nothing_is_prepared(tmp_path: Path, transformers: dict[str, Any]) -> None:
    network, about = huggingface.load(folder(tmp_path), CLASSES, (3, 8, 8))
    assert about == {"name": "StubForImageClassification"}
    assert torch.equal(network(images()), images())


def test_missing_weights_and_other_orders_of_classes_are_refused(tmp_path: Path, transformers: dict[str, Any]) -> None:
    transformers["missing_keys"] = ["head.weight", "head.bias"]
    with pytest.raises(Refusal, match=r"lacks 2 of its weights \(head\.bias"):
        huggingface.load(folder(tmp_path), CLASSES, (3, 8, 8))
    transformers["missing_keys"] = []
    huggingface.load(folder(tmp_path, id2label={"0": "A", "1": "b", "2": "C"}), CLASSES, (3, 8, 8))
    huggingface.load(folder(tmp_path, id2label={"0": "LABEL_0"}), CLASSES, (3, 8, 8))
    with pytest.raises(Refusal, match="orders its classes b, a, c"):
        huggingface.load(folder(tmp_path, id2label={"0": "b", "1": "a", "2": "c"}), CLASSES, (3, 8, 8))
    with pytest.raises(Refusal, match="orders its classes b, a, other"):
        huggingface.load(folder(tmp_path, id2label={"0": "b", "1": "a", "2": "other"}), CLASSES, (3, 8, 8))
    for labels, told in (({"cat": 0}, "of cat"), (["a", "b"], "of list")):
        with pytest.raises(Refusal, match=f"has id2label {told}; allowed: names by the numbers"):
            huggingface.load(folder(tmp_path, id2label=labels), CLASSES, (3, 8, 8))
    huggingface.load(folder(tmp_path, id2label=None), CLASSES, (3, 8, 8))


def test_a_hugging_face_folder_without_the_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Refusal, match=r"pip install 'anchor-robust\[huggingface\]'"):
        huggingface.load(folder(tmp_path), CLASSES, (3, 8, 8))
    (tmp_path / "config.json").write_text("[broken")
    with pytest.raises(Refusal, match=r"config\.json cannot be read"):
        huggingface.load(tmp_path, CLASSES, (3, 8, 8))


def test_a_real_transformers_model(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    config = library.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=12,
        patch_size=6,
        num_labels=3,
    )
    torch.manual_seed(0)
    network = library.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    processor = PROCESSOR | {"size": {"height": 12, "width": 12}}
    loaded, about = huggingface.load(folder_of(tmp_path, processor), CLASSES, (3, 8, 8))
    assert about["name"] == "ViTForImageClassification"
    x = torch.nn.functional.interpolate(images(), (12, 12), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(PROCESSOR[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    torch.testing.assert_close(loaded(images()), network((x - mean) / std).logits)
    trial.check_logits(loaded, images(), 3, "vit")


def folder_of(path: Path, processor: dict[str, Any]) -> Path:
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


# --- the trial -------------------------------------------------------------------------------------------------------


def broken(x: Tensor) -> Tensor:
    raise KeyError("no such\nthing")


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda x: x.flatten(1), "gives 192 logits, but the images have 3 classes"),
        (lambda x: x.mean((2, 3)).detach(), "without a gradient"),
        (lambda x: x.mean((2, 3)).round().detach().requires_grad_(), "without a gradient"),
        (lambda x: x.mean((2, 3)) / 0, "not finite"),
        (lambda x: x, r"returned \[5, 3, 8, 8\] for 5 images; allowed: logits"),
        (lambda x: x.mean((2, 3))[:1], r"returned \[1, 3\]"),
        (lambda x: (x.mean((2, 3)), x), "returned a tuple"),
        (broken, r"fails on 5 images \[3, 8, 8\] \(KeyError 'no such.*thing'\)"),
    ],
)
def test_what_gives_no_logits_is_refused_in_one_line(answer: Any, said: str) -> None:
    with pytest.raises(Refusal, match=said) as told:
        trial.check_logits(answer, images(), 3, "model")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("turns", [(0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])  # the same batch again, then half of it
def test_logits_that_change_are_refused(turns: tuple[float, ...]) -> None:
    shift = iter(turns)
    with pytest.raises(Refusal, match=r"model\.eval\(\)"):
        trial.check_steady(lambda x: x.mean((2, 3)) + next(shift), images(), "model")


def test_a_torchscript_failure_is_told_by_its_end(tiny: Tiny, tmp_path: Path) -> None:
    torch.jit.script(tiny).save(tmp_path / "model.pt")
    with pytest.raises(Refusal, match=r"\[1, 8, 8\] \([^)]*expected input") as told:
        trial.check_logits(torchscript.load(tmp_path / "model.pt", CPU), images()[:, :1], 3, "model.pt")
    assert "Traceback" not in str(told.value)


def test_half_precision_is_widened_on_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = nn.Linear(2, 2).half()
    auto = SimpleNamespace(from_pretrained=lambda path, **asked: (half, {"missing_keys": []}))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModelForImageClassification=auto))
    assert huggingface.classifier(tmp_path).weight.dtype == torch.float32
