"""Looking at a window alone gives what a pass of the whole image gives, whatever the network is made of."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from anchor_robust.attacks import Square
from anchor_robust.models import Classifier, Folded, LogitsOnly, backbone
from anchor_robust.models.local import Local
from anchor_robust.models.spans import reached, seen
from anchor_robust.threat import Ball

SIDE = 13


class Everything(nn.Module):
    """Convolutions of many forms, pointwise operations, and others that look at whole maps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5]).view(1, 2, 1, 1))
        self.register_buffer("window", torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, (5, 3), padding=(2, 1), groups=2)
        self.dilated = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.circular = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")
        self.narrow = nn.Conv2d(6, 5, 2, stride=3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem((x - self.mean) / 0.25)
        x = F.silu(self.norm(x)) * self.window  # not alike at every place
        x = F.relu(self.grouped(x)) + 2 * x
        # Rows are cut off until the strided paths agree in size.
        x = F.silu(self.dilated(x)) + self.shortcut(x)[..., :6, :6]
        x = self.circular(x) * x.mean((2, 3), keepdim=True).sigmoid()
        features = F.max_pool2d(self.narrow(x), 2).flatten(1)
        return self.head(features), features


class Plain(Everything):
    """The part of it in which a change stays local, until the maps are averaged."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.norm(self.stem((x - self.mean) / 0.25)))
        x = F.relu(self.grouped(x)) + x
        x = torch.relu(self.shortcut(x))
        features = self.narrow(x).mean((2, 3))
        return self.head(features), features


def network(make: type[nn.Module]) -> fx.GraphModule:
    torch.manual_seed(0)
    made = make()
    with torch.no_grad():
        made.norm.running_mean.normal_()
        made.norm.running_var.uniform_(0.5, 2)
    return fx.symbolic_trace(made.double().eval().requires_grad_(False))


NETWORKS = {make.__name__: network(make) for make in (Everything, Plain)}
spans = st.tuples(st.integers(0, SIDE - 1), st.integers(1, SIDE)).map(lambda pair: slice(pair[0], sum(pair)))
windows = st.tuples(spans, spans).map(lambda pair: tuple(slice(s.start, min(s.stop, SIDE)) for s in pair))


@pytest.mark.parametrize("name", NETWORKS)
@given(steps=st.lists(st.tuples(windows, st.lists(st.booleans(), min_size=5, max_size=5)), min_size=1, max_size=4))
def test_a_look_is_a_whole_pass(name, steps) -> None:
    """Step by step: images change in a window, some changes are accepted, and the last image leaves."""
    generator = torch.Generator().manual_seed(0)
    whole = NETWORKS[name]
    x = torch.rand(5, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
    local = Local(whole, x)
    for (rows, columns), chosen in steps:
        changed = x.clone()
        new = torch.rand(changed[..., rows, columns].shape, generator=generator).double()
        changed[..., rows, columns] = new
        torch.testing.assert_close(local.look(new, (rows, columns)), whole(changed)[0])
        better = torch.tensor(chosen[: len(x)])
        x = torch.where(better.view(-1, 1, 1, 1), changed, x)
        left = torch.arange(len(x) - 1) if len(x) > 2 else None
        local.accept(better, left)
        x = x if left is None else x[left]


def test_only_what_is_reached_is_computed(monkeypatch) -> None:
    computed: list[tuple[int, ...]] = []
    convolution = F.conv2d

    def counted(x: Tensor, *rest) -> Tensor:
        out = convolution(x, *rest)
        computed.append(tuple(out.shape[2:]))
        return out

    x = torch.rand(2, 2, SIDE, SIDE, dtype=torch.float64)
    local = Local(NETWORKS["Plain"], x)
    monkeypatch.setattr(F, "conv2d", counted)
    local.look(x[..., 5:6, 0:2], (slice(5, 6), slice(0, 2)))
    # stem and grouped reach 1 and then 2 rows further, 1 and 1 columns; the shortcut takes every second place.
    assert computed == [(3, 3), (7, 4), (4, 2), (2, 1)]


def test_a_stride_may_step_over_a_change() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.every_second = nn.Conv2d(1, 2, 1, stride=2)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return ((self.every_second(x) * 2).mean((2, 3)),)

    x, whole = torch.rand(3, 1, 6, 6), fx.symbolic_trace(Strided().requires_grad_(False))
    local, changed = Local(whole, x), x.clone()
    changed[..., 3, 3] += 1
    assert local.look(changed[..., 3:4, 3:4], (slice(3, 4), slice(3, 4))).equal(whole(x)[0])
    local.accept(torch.ones(3, dtype=torch.bool), None)
    changed[..., 2, 3:5] += 1
    torch.testing.assert_close(local.look(changed[..., 2:3, 3:5], (slice(2, 3), slice(3, 5))), whole(changed)[0])


@given(
    span=st.tuples(st.integers(0, 9), st.integers(1, 10)),
    form=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 2)),
)
def test_reach_is_what_a_loop_finds(span, form) -> None:
    kernel, stride, padding, dilation = form
    size, (first, length) = 12, span
    last = min(first + length, size)
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    sees = {o: [o * stride - padding + dilation * k for k in range(kernel)] for o in range(out)}
    hit = [o for o in sees if any(first <= place < last for place in sees[o])]
    found = reached((first, last), out, kernel, stride, padding, dilation)
    assert set(hit) <= set(range(*found))
    if dilation == 1 and hit:
        assert (hit[0], hit[-1] + 1) == found
    if found[0] < found[1]:
        places = [place for o in range(*found) for place in sees[o]]
        assert seen(found, kernel, stride, padding, dilation) == (min(places), max(places) + 1)


def test_what_writes_to_its_input_is_not_looked_at_locally() -> None:
    class Writes(Everything):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = F.relu(self.stem(x), inplace=True)
            return x.mean((2, 3)), x

    with pytest.raises(ValueError, match="writes to what it is given"):
        Local(network(Writes), torch.rand(1, 2, SIDE, SIDE, dtype=torch.float64))


@pytest.mark.parametrize("name", ["resnet8", "preact-resnet18"])
def test_square_finds_the_same_with_fewer_passes(name) -> None:
    torch.manual_seed(0)
    classifier = Classifier(backbone(name, 4, (3, 16, 16), {"width": 4}), [0.5] * 3, [0.25] * 3).eval()
    twin = Folded(classifier)
    asked: list[int] = []

    def whole(x: Tensor) -> Tensor:
        asked.append(len(x))
        return twin(x)

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 16, 16, generator=generator)
    y = LogitsOnly(classifier)(x).argmax(1)
    attack = Square(Ball("linf", 0.02), queries=320)
    expected = attack(whole, x, y, generator=torch.Generator().manual_seed(1))
    passed = len(asked)
    looks: list[int] = []
    twin.register_forward_hook(lambda *_: looks.append(1))
    found = attack(twin, x, y, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, expected)
    assert passed == 320
    assert len(looks) < 210, "squares below a ninth of the pixels, from query 202 on, are looked at locally"


def test_a_network_that_lies_about_a_window_is_not_trusted(monkeypatch) -> None:
    twin = Folded(Classifier(backbone("resnet8", 4, (3, 16, 16), {"width": 4}), [0.5] * 3, [0.25] * 3).eval())
    x = torch.rand(2, 3, 16, 16)
    assert twin.locally(x) is not None
    look = Local.look
    monkeypatch.setattr(Local, "look", lambda *given: look(*given) + 0.1)
    assert twin.locally(x) is None
