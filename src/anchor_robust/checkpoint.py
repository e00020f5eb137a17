"""Weights that load anywhere, and the state from which training resumes."""

import io
import json
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import runs
from .errors import Refusal, one_line
from .lookup import nearest
from .models import BUILT_IN, Classifier, LogitsOnly, backbone, factory
from .settings import arguments

HEADER = "anchor"
HEADER_KEYS = {"model", "classes", "shape", "projection_width", "data", "recipe"}
SHIPPED = Path(__file__).with_name("weights")
NESTED = ("state_dict", "model_state_dict", "model", "net")


@dataclass
class State:
    """What changes while training, beside the weights: all that a resumed run needs to go on.

    `sums` adds up what the `count` steps of the present epoch reported.
    """

    step: int = 0
    best: float = -1.0
    seconds: float = 0.0
    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, reported: dict[str, Tensor]) -> None:
        self.step, self.count = self.step + 1, self.count + 1
        for name, value in reported.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().double()

    def means(self) -> dict[str, float]:
        """What the epoch's steps have reported on average so far; reading it waits for the device."""
        return {name: total.item() / self.count for name, total in self.sums.items()}

    def turn(self) -> None:
        """The next epoch starts from nothing."""
        self.sums, self.count = {}, 0


def build(header: Mapping[str, Any], trusted: str | None = None) -> Classifier:
    """An untrained classifier of the architecture that a header states (mean and std are in the weights).

    A header can name any importable thing, so that somebody else's file would run code of its choice: only built-in
    backbones are built unless the user has named the same class as `trusted`.
    """
    model = dict(header["model"])
    shape = tuple(header["shape"])
    name = model.pop("name")
    if name not in BUILT_IN and name != trusted:
        raise Refusal(f"the weights are of the class {name!r}; if you trust its code, name it: --model {name}")
    settings = arguments(factory(name), model, "model", skip=("classes", "channels"))  # JSON has no tuples
    network = backbone(name, len(header["classes"]), shape, settings)
    return Classifier(network, [0.0] * shape[0], [1.0] * shape[0], header["projection_width"])


def save_weights(path: Path, network: nn.Module, header: Mapping[str, Any]) -> None:
    """Write a classifier as safetensors with its architecture and recipe in the header."""
    # Copies, as a layer may have two names, and the format no memory that is shared.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    runs.write_bytes(path, safetensors.torch.save(tensors, {HEADER: json.dumps(header)}))


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that `save_weights` wrote."""
    try:
        path.open("rb").close()  # says why a file cannot be opened, which safe_open takes for missing
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise Refusal(f"weights {path} cannot be read ({error}); is the file complete?") from error
    return header if isinstance(header, dict) else {}, tensors


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint, unwrapped from the usual nestings; code in the file is never run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refusal(
            f"{path} holds {more_than_tensors(error)}, which could run code when loaded; if you trust it, read it with "
            "torch.load(FILE, weights_only=False), torch.save the state_dict() of its model alone, and give that"
        ) from error
    except Exception as error:  # a broken file can fail anywhere in the reader
        raise Refusal(f"checkpoint {path} cannot be read ({one_line(error)}); is the file complete?") from error
    while isinstance(content, Mapping):
        key = next((key for key in NESTED if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        taken = tensor_names(content[key])
        if others := [name for name, entry in content.items() if name != key and tensor_names(entry) & taken]:
            raise Refusal(
                f"{path} holds weights twice, as {key} and as {others[0]}, perhaps their average; "
                "torch.save the one that is meant alone, and give that"
            )
        content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise Refusal(f"{path} is no state dict; it must hold tensors by parameter name")
    return dict(content)


def tensor_names(entry: object) -> set[str]:
    """Of the tensors that a part of a checkpoint holds, without what DataParallel puts before them."""
    held = entry.items() if isinstance(entry, Mapping) else ()
    return {str(name).removeprefix("module.") for name, value in held if isinstance(value, Tensor)}


def more_than_tensors(error: pickle.UnpicklingError) -> str:
    """What PyTorch's safe reader would not build, such as a whole model or the arguments of a script."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named[1] if named else "more than tensors"


def unwrapped(tensors: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """The tensors by the names of the network itself.

    DataParallel puts `module.` before all of them, a Lightning module the name of its field, torch.compile `_orig_mod.`
    before those that it compiled. A part is dropped only while no name is as expected and all of them begin with it.
    """
    bare = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    while bare and not any(name in expected for name in bare):
        first = next(iter(bare)).partition(".")[0] + "."
        if not all(name.startswith(first) for name in bare):
            break
        bare = {name.removeprefix(first): tensor for name, tensor in bare.items()}
    return bare


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Load tensors into a network, or name what differs."""
    expected = network.state_dict()
    tensors = unwrapped(tensors, expected)
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {formed(tensors[name])}, not {formed(tensor)}"
        for name, tensor in expected.items()
        if name in tensors and formed(tensors[name]) != formed(tensor)
    ]
    if missing or unexpected or shapes:
        differences = {"missing": missing, "unexpected": unexpected, "of another form": shapes}
        told = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in differences.items() if names)
        raise Refusal(
            f"{source} is of another architecture than {type(network).__name__} ({told}); "
            "build the one it was saved from"
        )
    try:
        network.load_state_dict(tensors, strict=False)
    except (RuntimeError, NotImplementedError) as error:  # such as tensors that are sparse, or have no numbers
        raise Refusal(f"{source} cannot be loaded ({one_line(error)}); save dense tensors on the processor") from error


def formed(tensor: Tensor) -> str:
    """Shape and kind of numbers; half precision is as good as double, but whole numbers are no weights."""
    kind = "" if tensor.is_floating_point() else " complex" if tensor.is_complex() else " whole numbers"
    return f"{list(tensor.shape)}{kind}"


def some(names: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def shipped() -> dict[str, Path]:
    """The weights that come with the package: name -> file. Each has its card, a .md, beside it."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}


def weights_file(source: str | Path) -> Path:
    """The weights of a run directory, the file itself, or those shipped under that name."""
    path = Path(source)
    if not path.exists():
        path = shipped().get(str(source), path)
    if path.is_dir():
        path = path / runs.WEIGHTS
        if not path.is_file():
            raise Refusal(f"{source} holds no {runs.WEIGHTS}; give a run that anchor train has written")
    if not path.is_file():
        kinds = "a run directory, a .safetensors file, a state dict, or the weights shipped with the package"
        raise Refusal(f"{source} does not exist; give {kinds}{nearest(str(source), shipped())}")
    return path


def load(source: str | Path, model: str | None = None) -> LogitsOnly:
    """The trained classifier of a run directory, a weights file or a shipped name: pixels [n c h w] to logits [n k].

    It is in evaluation mode and on the CPU. A backbone that is not built in is imported only if `model` names the same
    `package.module.Class`. Raises Refusal when the file is missing, broken or has no ANCHOR header.
    """
    return load_with_header(source, model)[0]


def has_header(source: str | Path) -> bool:
    """Whether the file says its own architecture."""
    path = weights_file(source)
    return is_safetensors(path) and read_weights(path)[0].keys() >= HEADER_KEYS


def is_safetensors(path: Path) -> bool:
    """By its name, or by what is in it."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return path.suffix == ".safetensors"


def load_with_header(source: str | Path, model: str | None = None) -> tuple[LogitsOnly, dict[str, Any]]:
    path = weights_file(source)
    if not has_header(path):
        raise Refusal(
            f"{path} does not say its architecture, as what anchor train writes does; to measure other weights: "
            f"anchor evaluate {path} --model, --data and --normalize"
        )
    header, tensors = read_weights(path)
    network = build(header, model)
    fill(network, tensors, path)
    return LogitsOnly(network).eval(), header


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, in safetensors or in PyTorch's own format."""
    return read_weights(path)[1] if is_safetensors(path) else read_state_dict(path)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    # Through memory, because on a full disk torch.save fails with an error of its own.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    runs.write_bytes(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote; loaded without running code."""
    if not path.is_file():
        raise Refusal(f"{path} does not exist; give the directory of a run that was started with anchor train")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can fail anywhere in the reader
        raise Refusal(f"{path} cannot be read ({one_line(error)}); start the run anew") from error
