"""From what the user names to a model under test, its images and its ball; nothing about a model is guessed."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from . import checkpoint, data, formats, models, runs
from .data import ImageSet
from .errors import Refusal
from .evaluation import PAPER_EPS
from .formats import exported, huggingface, normalise, torchscript, trial
from .models import LogitsOnly
from .recipe import built_in
from .settings import keywords
from .threat import Ball, Norm

TRIED = 8  # images that a foreign model is tried on before it is measured


@dataclass(frozen=True)
class Named:
    """The user's words: where the model is, and what it does not say of itself; None where nothing is said.

    The options of `anchor evaluate` go by the same names.
    """

    source: str | None
    model: str | None = None
    model_args: str | None = None
    data: str | None = None
    normalize: str | None = None
    data_dir: str | None = None

    def __str__(self) -> str:
        return str(self.source or self.model)


@dataclass(frozen=True)
class Subject:
    """The model under test, from pixels in [0, 1] to logits, what is known of it, and the test images it belongs to.

    `run` is the run directory that the model comes from, if it comes from one; `note` is what its user should know;
    `trained_on` names the data set of a model of ours; `answers` is the digest of what any other says of a few
    images, by which a change of its code is seen.
    """

    model: nn.Module
    about: dict[str, Any]
    images: ImageSet
    ball: Ball
    run: Path | None = None
    note: str = ""
    trained_on: str = ""
    answers: str = ""


@dataclass(frozen=True)
class Target:
    """A model under attack, from pixels in [0, 1] to logits, its classes, and the shape [c h w] of its images."""

    model: nn.Module
    classes: Sequence[str]
    shape: tuple[int, int, int]
    ball: Ball
    note: str = ""


def under_test(named: Named, device: torch.device) -> Subject:
    """The subject that `named` means, with its model in evaluation mode and on `device`.

    A foreign model is tried on a few images first. Raises Refusal where something is missing, where things do not fit
    together, and where code would be run that the user has not named.
    """
    return own(named, device) if carries_all(named) else foreign(named, device)


def under_attack(named: Named, device: torch.device) -> Target:
    """The model that `named` means, in evaluation mode and on `device`.

    A model of ours needs no data set at hand; for any other, --data tells classes and shape.
    """
    if carries_all(named):
        if named.data is not None:
            raise Refusal(f"--data {named.data} given, but {named} carries its classes with it; leave it out")
        model, header, recipe = carried(named)
        channels, height, width = header["shape"]
        ball = Ball(recipe["threat"]["norm"], recipe["threat"]["eps"])
        return Target(model.to(device), header["classes"], (channels, height, width), ball)
    subject = foreign(named, device)
    return Target(subject.model, subject.images.classes, subject.images.shape, subject.ball, subject.note)


def ball_asked(own: Ball, norm: Norm | None, eps: float | None) -> Ball:
    """The ball of --norm and --eps; what is not said is the model's own."""
    if norm not in (None, own.norm) and eps is None:
        raise Refusal(f"--norm {norm} needs --eps: {own.eps:g} is a radius in {own.norm}")
    if eps == 0:
        raise Refusal("--eps 0 given; allowed: above 0; at 0 nothing is attacked")
    if eps is None and own.eps == 0:
        raise Refusal("the model was trained at eps 0, where nothing is attacked; give --eps")
    return Ball(norm or own.norm, own.eps if eps is None else eps)


def says_all(named: Named) -> bool:
    """Whether a model can be tested without further words, one of ours or a Hugging Face folder."""
    return carries_all(named) or huggingface.is_folder(Path(str(named.source)))


def carries_all(named: Named) -> bool:
    """Whether the model is of ours and says of itself what it is; Refusal where there is none."""
    if named.source is None and named.model is None:
        raise Refusal("no model given; allowed: a run, a file or folder of weights, or --model your.module:factory")
    if named.source is None or huggingface.is_folder(Path(named.source)):
        return False
    if Path(named.source).is_dir() and not (Path(named.source) / runs.WEIGHTS).is_file():
        told = f"{runs.WEIGHTS} of a run, nor {huggingface.CONFIG} of a Hugging Face model"
        raise Refusal(f"{named.source} holds neither {told}; give the folder of one of them, or a file")
    if not Path(named.source).exists() and named.source in built_in().keys() - checkpoint.shipped().keys():
        raise Refusal(f"{named.source} is a recipe; train it first: anchor train {named.source} --out RUN")
    if named.source.endswith(".npz"):
        raise Refusal(f"{named.source} given as a model; it holds arrays; did you mean --data {named.source}?")
    return checkpoint.has_header(named.source)


def carried(named: Named) -> tuple[LogitsOnly, dict[str, Any], dict[str, Any]]:
    """A model that carries all with it, its header and the recipe in that."""
    source = str(named.source)
    for option, value in (("--normalize", named.normalize), ("--model-args", named.model_args)):
        if value is not None:
            raise Refusal(f"{option} {value} given, but {source} carries that with it; leave it out")
    model, header = checkpoint.load_with_header(source, named.model)
    if named.model not in (None, header["model"]["name"]):
        raise Refusal(
            f"--model {named.model} given, but {source} says that it is {header['model']['name']}; leave it out"
        )
    return model, header, yaml.safe_load(header["recipe"])


def own(named: Named, device: torch.device) -> Subject:
    """A model that carries its architecture, its data set and its threat model with it."""
    source = str(named.source)
    with unchanged(str(checkpoint.weights_file(source))) as weights:
        model, header, recipe = carried(named)
    images = data.load(named.data or header["data"], "test", named.data_dir)
    channels = images.shape[0]
    if channels != header["shape"][0]:
        raise Refusal(
            f"{images.name} has images of {channels} channels, and {source} was trained on {header['shape'][0]}; "
            "convert the images"
        )
    if list(images.classes) != header["classes"]:
        raise Refusal(
            f"{images.name} has {listed(images.classes)}, and {source} knows {listed(header['classes'])}; "
            "name the classes of the images as the model does, in its order: in classes.txt, or `classes` in an .npz"
        )
    ball = Ball(recipe["threat"]["norm"], recipe["threat"]["eps"])
    about = {"source": source, "recipe": recipe["name"], **header["model"], **weights}
    shape, trained = list(images.shape[1:]), header["shape"][1:]
    run = Path(source) if Path(source).is_dir() else None
    note = "" if shape == trained else f"images are {shape}, and {source} was trained on {trained}"
    return Subject(model.to(device), about, images, ball, run, note, header["data"])


def foreign(named: Named, device: torch.device) -> Subject:
    """A model of any other origin, of which the user has to say what its file does not."""
    form = formats.recognise(Path(named.source)) if named.source else "factory"
    check_said(named, form)
    images = data.load(str(named.data), "test", named.data_dir)
    shape = images.shape
    given = None if named.normalize is None else normalise.normalisation(named.normalize, shape[0])
    with unchanged(named.source) as weights:
        network, about = read(named, form, images, shape, device)
    if given and "mean" in about:
        raise Refusal(f"--normalize {named.normalize} given, but {named} carries that with it; leave it out")
    if not given and "mean" not in about:
        raise Refusal(f"{named} holds no normalisation; give it with --normalize: {normalise.allowed(shape[0])}")
    note = f"pixels are prepared as {huggingface.PREPROCESSOR} says: {steps(about)}" if "mean" in about else ""
    if form == "factory" and inspect.isclass(models.factory(str(named.model))):
        note = f"no weights given: {named} is measured as its constructor leaves it"
    if given:
        about |= {"mean": list(given[0]), "std": list(given[1])}
    # Where the network applies what its files told, nothing is left to do before it.
    model = normalise.Normalised(network, *(given or normalise.IDENTITY)).to(device).eval()
    x = images.first(TRIED).to(device).pixels(slice(None))
    trial.check_logits(model, x, len(images.classes), str(named))
    if form in formats.PROGRAMS:
        trial.check_steady(model, x, str(named))
    about = {"source": str(named), "format": form, **about, **(weights or digest_of(network))}
    with torch.no_grad():
        answers = hashlib.sha256(model(x).float().cpu().numpy().tobytes()).hexdigest()
    return Subject(model, about, images, Ball("linf", PAPER_EPS), note=note, answers=answers)


def listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join([*classes[:3], *(['...'] if len(classes) > 3 else [])])})"


def steps(about: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items() if key != "name" and value is not None)


def check_said(named: Named, form: str) -> None:
    """Refuse, all at once, what the user has left out though a model of this form does not say it."""
    needed = {"--data": named.data}
    if form in ("state dict", "factory"):
        needed = {"--model": named.model} | needed
    elif named.model_args or (named.model and form != "torch.export"):
        word = "--model-args" if named.model_args else f"--model {named.model}"
        raise Refusal(f"{word} given, but {named} is a whole {form} model; leave it out")
    if named.source is None and named.model in models.BUILT_IN:
        raise Refusal(
            f"--model {named.model} given without weights, and it would be measured untrained; give them too: "
            f"anchor evaluate FILE --model {named.model}"
        )
    if form != "Hugging Face":
        needed["--normalize"] = named.normalize
    lacking = [option for option, value in needed.items() if value is None]
    if lacking:
        raise Refusal(f"{named} ({form}) does not say all; give {' and '.join(lacking)}: nothing is guessed")


def read(
    named: Named, form: str, images: ImageSet, shape: tuple[int, int, int], device: torch.device
) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """The network, and what is known of it; with mean and std if its files told them and the network applies them."""
    path = Path(str(named.source))
    if form == "TorchScript":
        return torchscript.load(path, device), {}
    if form == "torch.export":
        return exported.load(path, device, named.model)
    if form == "Hugging Face":
        return huggingface.load(path, images.classes, shape)
    settings = keywords(named.model_args or "")
    network = models.made(str(named.model), len(images.classes), shape[0], settings)
    if not callable(network) or (form == "state dict" and not isinstance(network, nn.Module)):
        needed = (
            "a torch.nn.Module" if form == "state dict" else "a torch.nn.Module, or a function from pixels to logits"
        )
        raise Refusal(f"model {named.model!r} built a {type(network).__name__}; it must build {needed}")
    if form == "state dict":
        checkpoint.fill(network, checkpoint.read_tensors(path), path)
    return network, {"name": named.model, "settings": settings}


def digest_of(network: Any) -> dict[str, str]:
    """SHA-256 of a module's tensors, by name; nothing where not all its numbers can be seen.

    So of a function, and of a module that keeps other things than tensors, or sparse or quantised ones.
    """
    if not isinstance(network, nn.Module):
        return {}
    total = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
            return {}
        total.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {"sha256": total.hexdigest()}


@contextmanager
def unchanged(source: str | None) -> Iterator[dict[str, str]]:
    """The digest of weights that are read meanwhile, if any; Refusal where another process writes them anew."""
    before = digest(source) if source else {}
    yield before
    if source and digest(source) != before:
        raise Refusal(f"{source} was written anew while it was read; run the same command again")


def digest(source: str) -> dict[str, str]:
    """SHA-256 of the weights: of a file as it is, of a folder's weight files one after the other."""
    path = Path(source)
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                total.update(block)
    return {"sha256": total.hexdigest()}
