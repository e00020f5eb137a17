"""Attacking single pictures: search, end on the grey levels that a file can hold, save, read back, and tell.

The verdict is that of the file as it lies there. PNG loses nothing, so whoever opens it has the very pixels that were
judged here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import environment, runs
from .attacks import GreyLevels
from .attacks.grey_levels import LEVELS
from .data import pictures
from .errors import Refusal
from .evaluation import PROTOCOLS, evaluating
from .evaluation.protocols import Planned, plan
from .lookup import named
from .report.attacked import spelled
from .subject import Named, Target, ball_asked, under_attack
from .threat import Ball, Norm

TOP = 3  # classes whose probabilities are told
Answer = list[tuple[str, float]]  # the likeliest classes with their probabilities


def attack_pictures(
    files: Sequence[Path],
    model: Named,
    *,
    attack: str = "pgd20",
    label: str | None = None,
    norm: Norm | None = None,
    eps: float | None = None,
    seed: int = 0,
    out: Path,
) -> dict[str, Any]:
    """Attack the pictures in `files` one by one, and write two files for each into `out`.

    `attack` names a protocol. The attack leads away from the class `label`, or from the model's own answer to each
    picture. Returns what was done and what became of each: its verdict is `fooled`, `held`, `rounded` (fooled in
    floating point alone) or `wrong` (before any attack).
    """
    named("attack", attack, PROTOCOLS)
    device = environment.accelerator()
    target = under_attack(model, device)
    ball = ball_asked(target.ball, norm, eps)
    if LEVELS * ball.eps < 1 - 1e-9:
        raise Refusal(f"eps {ball.eps:g} given; allowed: 1/255 = 0.0039 or more, as no file of 8 bits holds less")
    if label is not None:
        named("class", label, dict.fromkeys(target.classes))
        if (namesakes := list(target.classes).count(label)) > 1:
            raise Refusal(f"--label {label} given; {namesakes} classes have that name; leave it out")
    planned = plan([attack], ball, len(target.classes))[0]
    read = [pictures.read(file, target.shape) for file in files]
    stems = [out / stem for stem in distinct(files)]
    given = {file.resolve() for file in files}
    if taken := [path for stem in stems for path in written(stem) if path.resolve() in given]:
        raise Refusal(f"{taken[0]} would be written over, which is one of the pictures; give another --out")
    with runs.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    gallery = Gallery(target, planned, ball, label, seed, device)
    with evaluating(target.model, device):
        told = [
            {"picture": str(file), "note": note, **gallery.attack(picture, stem)}
            for file, (picture, note), stem in zip(files, read, stems, strict=True)
        ]
    stages = [{"stage": stage.name} for stage in planned.stages] if len(planned.stages) > 1 else None
    return {
        "model": str(model),
        "note": target.note,
        "attack": {"attack": attack, **planned.conventions(), "norm": ball.norm, "eps": ball.eps, "stages": stages},
        "label": label,
        "pictures": told,
    }


def distinct(files: Sequence[Path]) -> list[str]:
    """The files' names without their suffixes; with a number where an earlier one has the same."""
    plain, names = {file.stem for file in files}, list[str]()
    for file in files:
        numbered = (f"{file.stem}-{number}" for number in count(2))
        free = (name for name in numbered if name not in plain and name not in names)
        names.append(file.stem if file.stem not in names else next(free))
    return names


def written(stem: Path) -> tuple[Path, Path]:
    """The files of one picture: attacked, and compared with what it was."""
    return Path(f"{stem}-attacked.png"), Path(f"{stem}-compared.png")


@dataclass(frozen=True)
class Gallery:
    """What all pictures of one call have in common; a `label` of None stands for the model's own answers."""

    target: Target
    planned: Planned
    ball: Ball
    label: str | None
    seed: int
    device: torch.device

    def attack(self, picture: Tensor, stem: Path) -> dict[str, Any]:
        """Attack one picture, uint8 [c h w], and write its files, whose names begin with `stem`."""
        x, before = self.batch(picture), self.answer(picture)
        # By its place: two classes may have one name.
        said = int(self.probabilities(x).argmax())
        place = said if self.label is None else self.target.classes.index(self.label)
        told = {"label": self.target.classes[place], "before": before}
        if said != place:
            return told | {"verdict": "wrong"}
        y = torch.tensor([place], device=self.device)
        found, fooled = self.search(x, y)
        on_levels = GreyLevels(self.ball, found)(self.target.model, x, y)
        adversarial, comparison = written(stem)
        runs.write_bytes(adversarial, pictures.png((on_levels[0] * LEVELS).round().byte()))
        saved, _ = pictures.read(adversarial, self.target.shape)
        if not self.ball.contains(self.batch(saved), x):
            raise RuntimeError(f"{adversarial} lies outside the ball")
        after, fools = self.answer(saved), int(self.probabilities(self.batch(saved)).argmax()) != place
        captions = (spelled(before[:1]), f"change x {pictures.times(picture, saved)}", spelled(after[:1]))
        runs.write_bytes(comparison, pictures.side_by_side(picture, saved, captions))
        return told | {
            "after": after,
            "verdict": "fooled" if fools else "rounded" if fooled else "held",
            "levels": int((saved.short() - picture.short()).abs().max()),
            "distance": float(self.ball.distance(self.batch(saved), x)),
            "adversarial": str(adversarial),
            "comparison": str(comparison),
        }

    def search(self, x: Tensor, y: Tensor) -> tuple[Tensor, bool]:
        """The first adversarial image [1 c h w] that a stage finds, or where the last one ended; was it found?"""
        generator, found = torch.Generator(self.device).manual_seed(self.seed), x
        for attack in (attack for stage in self.planned.stages for attack in stage.attacks):
            found = attack(self.target.model, x, y, generator=generator)
            if self.probabilities(found).argmax() != y:
                return found, True
        return found, False

    def answer(self, picture: Tensor) -> Answer:
        likeliest = self.probabilities(self.batch(picture)).topk(min(TOP, len(self.target.classes)))
        names = [self.target.classes[place] for place in likeliest.indices.tolist()]
        return list(zip(names, likeliest.values.tolist(), strict=True))

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Of the classes, [k], for one image [1 c h w]."""
        return self.target.model(x).float().softmax(1)[0]

    def batch(self, picture: Tensor) -> Tensor:
        """A picture, uint8 [c h w], as the model takes it: [1 c h w] in [0, 1]."""
        return picture[None].to(self.device).float() / LEVELS
