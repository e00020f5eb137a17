"""Our AutoAttack against its authors' package, image by image and second by second, on one model and its test images.

    python benchmarks/autoattack.py RUN [--norm l2 --eps 0.5] [--classes 3] [--search bf16] [--images 500] [--json FILE]

Chunks of images go through both in turn, who is first alternating. Theirs is pyautoattack's own
`run_standard_evaluation`, on the model as it is, in a process of its own; ours is `anchor_robust.evaluate`'s path:
stages over standing images, searched on the folded twin (in float32, or with `--search bf16`) and judged by the model
in float32. Seconds are the processes' own, on one thread, compilation included.

With `--classes k` only the first k logits and the images of those classes are used. Below four classes the targeted
DLR loss is undefined; the authors' APGD-T then climbs the plain margin, as ours does.

Their Square never puts a window into the last row or column of an image, ours puts it anywhere, as the paper says. That
matters where images are small: `--everywhere` lets theirs do it too.

`--again` puts theirs with another seed in the place of ours: two random searches agree no better than one does with
itself.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from anchor_robust import data
from anchor_robust.data import Given
from anchor_robust.evaluation import measure
from anchor_robust.evaluation.reference import NORMS, authors_code
from anchor_robust.evaluation.searching import Precision
from anchor_robust.models import Classifier, LogitsOnly
from anchor_robust.settings import fraction
from anchor_robust.subject import Named, Subject, under_test
from anchor_robust.threat import Ball
from apart import apart
from timing import count, parser, record, run, summary, write

Verdicts = Callable[[Tensor, Tensor], Tensor]


class FirstLogits(nn.Module):
    """The model of a problem with fewer classes."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, : self.classes]


def with_first_logits(model: nn.Module, classes: int) -> nn.Module:
    """One of ours keeps its form, so that the folded twin serves it; any other is wrapped."""
    if not isinstance(model, LogitsOnly):
        return FirstLogits(model, classes)
    classifier: Classifier = model.classifier  # type: ignore[assignment] # torch types every child as a Module
    head = classifier.backbone.linear
    fewer = nn.Linear(head.in_features, classes)
    fewer.load_state_dict({"weight": head.weight[:classes], "bias": head.bias[:classes]})
    classifier.backbone.linear = fewer
    return model


def theirs(model: nn.Module, ball: Ball, classes: int, everywhere: bool, seed: int, x: Tensor, y: Tensor) -> Tensor:
    """Which images [n] the model holds after the authors' package."""
    warnings.simplefilter("ignore")
    trace = sys.gettrace()
    attack = authors_code().AutoAttack(model, norm=NORMS[ball.norm], eps=ball.eps, version="standard", device="cpu")
    attack.seed = seed
    attack.fab.n_target_classes = attack.apgd_targeted.n_target_classes = min(9, classes - 1)
    if classes < 4:
        climber, each = attack.apgd_targeted, torch.arange(len(x))
        climber.dlr_loss_targeted = lambda z, y: z[each[: len(y)], climber.y_target] - z[each[: len(y)], y]
    if everywhere:
        below = attack.square.random_int
        attack.square.random_int = lambda low=0, high=1, shape=(1,): below(low, high + 1, list(shape))
    x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    sys.settrace(trace)
    with torch.no_grad():
        return model(x_adv).argmax(1) == y


def ours(model: nn.Module, ball: Ball, search: Precision, x: Tensor, y: Tensor) -> Tensor:
    found = measure(model, Given(x, y), ("autoattack",), ball=ball, batch_size=len(x), search=search)
    return torch.from_numpy(found.outcomes["held_autoattack"])


def timed(run: Verdicts) -> Callable[[Tensor, Tensor], tuple[Tensor, float]]:
    """`run` with the seconds that this process spent on it."""

    def clocked(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
        started = time.process_time()
        held = run(x, y)
        return held, time.process_time() - started

    return clocked


def theirs_of(given: argparse.Namespace) -> Callable[[Tensor, Tensor], tuple[Tensor, float]]:
    model, ball = chosen(named(given).model, given.classes), Ball(given.norm, given.eps)
    return timed(lambda x, y: theirs(model, ball, given.classes, given.everywhere, 0, x, y))


def named(given: argparse.Namespace) -> Subject:
    return under_test(Named(given.run, data_dir=given.data_dir), torch.device("cpu"))


def chosen(model: nn.Module, classes: int) -> nn.Module:
    return with_first_logits(model, classes).eval().requires_grad_(False)


def pictures(given: argparse.Namespace, name: str) -> tuple[Tensor, Tensor]:
    splits = ("test", "train") if given.split == "all" else (given.split,)
    sets = [data.load(name, split, given.data_dir) for split in splits]
    x, y = torch.cat([each.pixels(slice(None)) for each in sets]), torch.cat([each.labels for each in sets])
    among = y < given.classes
    return x[among][: given.images], y[among][: given.images]


def main(words: Sequence[str] | None = None) -> None:
    asked = parser(__doc__)
    asked.set_defaults(threads=1)
    asked.add_argument("run")
    asked.add_argument("--norm", default="linf", choices=tuple(NORMS))
    asked.add_argument("--eps", type=lambda text: float(fraction(text)), default=0.031)
    asked.add_argument("--classes", type=count, default=10)
    asked.add_argument("--images", type=count, default=500)
    asked.add_argument("--chunk", type=count, default=250, help="a twin is compiled for each")
    asked.add_argument("--split", default="test", choices=("test", "train", "all"), help="digits has 360 test images")
    asked.add_argument("--search", default="float32", choices=get_args(Precision), help="what ours searches in")
    asked.add_argument("--everywhere", action="store_true", help="their Square reaches the last row and column")
    asked.add_argument("--again", action="store_true", help="theirs with seed 1 in the place of ours")
    asked.add_argument("--data-dir")
    given = asked.parse_args(words)
    torch.set_num_threads(given.threads)
    write(record("autoattack", given, torch.device("cpu"), measured(given)), given.json)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    subject = named(given)
    model, ball = chosen(subject.model, given.classes), Ball(given.norm, given.eps)
    x, y = pictures(given, subject.images.name)
    second = "again" if given.again else "ours"
    held: dict[str, list[Tensor]] = {"theirs": [], second: []}
    samples: dict[str, list[float]] = {"theirs": [], second: []}

    def beside(x: Tensor, y: Tensor) -> Tensor:
        if given.again:
            return theirs(model, ball, given.classes, given.everywhere, 1, x, y)
        return ours(model, ball, given.search, x, y)

    with apart(theirs_of, given) as reference:
        jobs = [("theirs", reference), (second, timed(beside))]
        for number, (images, labels) in enumerate(zip(x.split(given.chunk), y.split(given.chunk), strict=True)):
            for name, run in jobs if number % 2 == 0 else jobs[::-1]:
                outcome, spent = run(images, labels)
                held[name].append(outcome)
                samples[name].append(spent)
            seconds = {name: sum(each) for name, each in samples.items()}
            done = {name: int(torch.cat(outcomes).sum()) for name, outcomes in held.items()}
            print(f"{sum(map(len, held[second]))} images: {done} held, {seconds} s", file=sys.stderr, flush=True)
    verdicts = {name: torch.cat(outcomes) for name, outcomes in held.items()}
    differ = (verdicts[second] != verdicts["theirs"]).nonzero().flatten().tolist()
    return {
        "model": subject.about,
        "data": {"name": subject.images.name, "split": given.split, "images": len(x), "classes": given.classes},
        "norm": ball.norm,
        "eps": ball.eps,
        "search": given.search,
        "everywhere": given.everywhere,
        "theirs": "pyautoattack standard" + ("" if given.classes >= 4 else ", apgd-t on the margin"),
        "accuracy": {name: verdict.double().mean().item() for name, verdict in verdicts.items()},
        "agreement": 1 - len(differ) / len(x),
        "differ": differ,
        "seconds": seconds,
        "plain_images_per_s": len(x) / seconds["theirs"],
        f"{'anchor' if second == 'ours' else second}_images_per_s": len(x) / seconds[second],
        "ratio": seconds["theirs"] / seconds[second],
        "ratio_quartiles": summary([a / b for a, b in zip(*samples.values(), strict=True)])["quartiles_s"],
        "chunks": {name: summary(each) for name, each in samples.items()},
    }


if __name__ == "__main__":
    run(main)
