"""What every attack promises: the model comes back as it was, and the result lies in the ball."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from ..errors import Refusal
from ..losses import check_tensor
from ..threat import Ball

Model = Callable[[Tensor], Tensor]


class Local(Protocol):
    """Logits of images that differ from remembered ones in one window, which a model may offer as `model.locally(x)`.

    A search that changes little at a time asks it, where there is one, in place of the model.
    """

    def look(self, new: Tensor, window: tuple[slice, slice]) -> Tensor:
        """Logits [n k] of the images remembered with `new` [n c r s] in the window, rows and columns."""

    def accept(self, better: Tensor, left: Tensor | None) -> None:
        """Remember the images last looked at where `better`, bool [n]; go on with those `left`, by place, or all."""


class Attack(ABC):
    """A search for adversarial images inside `ball`. A new attack is a file here with a `search` of its own.

    The call around the search is sealed, so that no attack can forget it:

    * While the search runs, every submodule is in evaluation mode and every parameter frozen; afterwards, also after
      an exception, each has its own mode and `requires_grad` again. `model` has to be an nn.Module for this, a bound
      method of one, or a functools.partial of either: what is inside a lambda cannot be seen.
    * Gradients flow whatever the surrounding no_grad or inference_mode; the global generator stays as it is.
    * The result is projected into the ball and [0, 1], detached, of x's dtype and device.

    Attributes:
        ball: Where the attacker may go.
        searches_the_model: Whether the search runs on the model of the call. One that runs on a model of its own takes
            no faster form of it.
    """

    ball: Ball
    searches_the_model: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__:
            raise TypeError(f"{cls.__name__} overrides the sealed Attack.__call__; put the attack into search")

    @final
    def __call__(
        self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None, trusted: bool = False
    ) -> Tensor:
        """Adversarial images [n ...] for images x [n ...] in [0, 1], float32 or float64, with labels y [n].

        `model` maps images to logits [n k]. Without a generator a fresh one, seeded with 0, is used. Raises
        Refusal where an argument is not as above, where a label has no logit, and where the ball is too small for x's
        dtype. What pixels and labels hold is taken on trust if so said: asking an accelerator makes the processor wait
        until all that was queued is done.
        """
        check_ball(self.ball)
        check_tensor("images", x)
        check_tensor("labels", y)
        _check_images(x)
        _check_room(self.ball, x)
        _check_labels(y, len(x))
        _check_generator(generator)
        classes_needed = 0
        if not trusted:
            _check_pixels(x)
            classes_needed = _classes_needed(y)
        generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
        with torch.inference_mode(False), torch.enable_grad(), frozen(model):
            # Copies: tensors made under inference_mode have no gradients, and a search may write to its own.
            x_own, y_own = x.detach().clone(), y.to(x.device, torch.long, copy=True)
            x_adv = self.search(Checked(model, classes_needed), x_own, y_own, generator)
            return self.ball.project(x_adv.detach().to(x), x.detach())

    @abstractmethod
    def search(self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Candidates [n ...] for x [n ...], y [n] (int64); the call has checked both and frozen the model."""

    def describe(self) -> dict[str, Any]:
        """The settings that `evaluation.json` states beside every number; None where one has no meaning."""
        settings = dict.fromkeys(("steps", "step_size", "restarts", "start", "loss"))
        return {"norm": self.ball.norm, "eps": self.ball.eps, **settings}


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Every submodule in evaluation mode, every parameter without gradient; afterwards each as it was.

    Raises Refusal for weights made under torch.inference_mode, through which no gradient can flow.
    """
    module = module_behind(model)
    trainable = [(parameter, parameter.requires_grad) for parameter in module.parameters()] if module else []
    if any(parameter.is_inference() for parameter, _ in trainable):
        raise Refusal("weights made under torch.inference_mode given; allowed: any others; make or load them outside")
    with in_evaluation_mode(model):
        try:
            for parameter, _ in trainable:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)


@contextmanager
def in_evaluation_mode(model: Model) -> Iterator[None]:
    """The module behind `model` and all in it; afterwards each has its own mode again."""
    module = module_behind(model)
    # Flags are set one by one: train() on the parent would wake children kept in evaluation mode.
    modes = {child: child.training for child in module.modules()} if module else {}
    try:
        for child in modes:
            child.training = False
        yield
    finally:
        for child, training in modes.items():
            child.training = training


def module_behind(model: Any) -> nn.Module | None:
    """The module that is `model`, or whose method it is, also within a functools.partial; None if there is none."""
    if isinstance(model, functools.partial):  # never of a partial: those are flattened
        model = model.func
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


@dataclass(frozen=True)
class Checked:
    """The model, its output checked on every call: shapes only, so it costs no wait for the device."""

    model: Model
    classes_needed: int

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise Refusal(f"the model returned {given} for {len(x)} images; allowed: logits [n k]; wrap it so")
        if logits.shape[1] < self.classes_needed:
            raise Refusal(
                f"label {self.classes_needed - 1} given; allowed: 0 to {logits.shape[1] - 1}, the model's logits; "
                "check that model and data have the same classes"
            )
        return logits

    def locally(self, x: Tensor) -> Local | None:
        return local_of(self.model, x)


def local_of(model: Model, x: Tensor) -> Local | None:
    """What `model` offers for images near x, if anything."""
    offered = getattr(model, "locally", None)
    return offered(x) if offered else None


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse a setting that is not a whole number of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise Refusal(f"{name} {value!r} given; allowed: a whole number, {least} or more")


def check_ball(ball: object) -> None:
    """Refuse what is no Ball, such as its radius alone."""
    if not isinstance(ball, Ball):
        raise Refusal(f'ball {ball!r:.60} given; allowed: a Ball, such as Ball("linf", 8/255)')


def _check_generator(generator: object) -> None:
    if not isinstance(generator, torch.Generator | None):
        raise Refusal(
            f"generator {generator!r:.60} given; allowed: a torch.Generator or None; "
            "torch.Generator().manual_seed(1) makes one of a seed"
        )


def _check_images(x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64) or x.ndim < 2 or not x.numel():
        raise Refusal(
            f"images {list(x.shape)} {x.dtype} given; allowed: float32 or float64 [n ...], n at least 1; "
            "for a faster model use autocast, as half precision cannot resolve the ball"
        )


def _check_room(ball: Ball, x: Tensor) -> None:
    if ball.norm == "l2" and not ball.radius_in(x):
        raise Refusal(
            f"l2 eps {ball.eps:g} given; in {str(x.dtype).removeprefix('torch.')} nothing of that ball is left on "
            f"{x[0].numel():,} pixels; give a larger eps"
        )


def _check_pixels(x: Tensor) -> None:
    low, high = torch.stack(torch.aminmax(x.detach())).tolist()
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise Refusal(
            f"pixels from {low:.4g} to {high:.4g} given; allowed: 0 to 1; "
            "divide by 255, and move any normalisation into the model"
        )


def _check_labels(y: Tensor, images: int) -> None:
    if y.shape != (images,) or y.is_floating_point() or y.dtype == torch.bool:
        raise Refusal(f"labels {list(y.shape)} {y.dtype} given for {images} images; allowed: an integer for each")


def _classes_needed(y: Tensor) -> int:
    low, high = torch.stack(torch.aminmax(y)).tolist()
    if low < 0:
        raise Refusal(f"label {low} given; allowed: 0 or more; leave out images without a label")
    return high + 1
