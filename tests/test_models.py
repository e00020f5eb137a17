"""Networks compute what their papers say, load the usual checkpoints, and their folded twins are the same function."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anchor_robust.errors import Refusal
from anchor_robust.models import BUILT_IN, Classifier, Folded, LogitsOnly, WithHead, backbone
from anchor_robust.models.preact_resnet import preact_resnet18
from anchor_robust.models.resnet import resnet8, resnet18

SHAPE = (3, 16, 16)
MEAN, STD = (0.5, 0.3, 0.1), (0.2, 0.5, 2.0)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def pictures(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def shaken(network: nn.Module, seed: int = 0) -> Any:
    """The network with every weight and BatchNorm statistic moved, so that no default hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high, generator=generator)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(torch.empty_like(module.weight).uniform_(0.5, 1.5, generator=generator))
    return network


def classifier(network: nn.Module, projection_width: int = 0) -> Classifier:
    return shaken(Classifier(network, MEAN, STD, projection_width))


# --- architectures ---------------------------------------------------------------------------------------------------


def checkpoint_shapes() -> dict[str, tuple[int, ...]]:
    """The state dict of the CIFAR ResNet-18 of kuangliu/pytorch-cifar, TRADES, MART and AWP, written out."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, 3, 3, 3)
    norm("bn1", 64)
    width_in = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            shapes[f"layer{stage}.{block}.conv1.weight"] = (width, width_in, 3, 3)
            norm(f"layer{stage}.{block}.bn1", width)
            shapes[f"layer{stage}.{block}.conv2.weight"] = (width, width, 3, 3)
            norm(f"layer{stage}.{block}.bn2", width)
            if stage > 1 and block == 0:
                shapes[f"layer{stage}.0.shortcut.0.weight"] = (width, width_in, 1, 1)
                norm(f"layer{stage}.0.shortcut.1", width)
            width_in = width
    shapes["linear.weight"] = (10, 512)
    shapes["linear.bias"] = (10,)
    return shapes


def test_resnet18_has_the_names_and_shapes_of_the_usual_checkpoints() -> None:
    network = resnet18()
    state = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert list(state.items()) == list(checkpoint_shapes().items())
    assert len(state) == 122
    assert parameters(network) == 11_173_962


def test_preact_resnet18_has_as_many_parameters_as_the_published_one() -> None:
    assert parameters(preact_resnet18()) == 11_172_170


@pytest.mark.parametrize("width", (4, 16))
def test_resnet8_has_three_stages_of_one_block(width: int) -> None:
    def block(a: int, b: int) -> int:
        shortcut = 0 if a == b else a * b + 2 * b
        return 9 * a * b + 9 * b * b + 4 * b + shortcut

    stem, head = 27 * width + 2 * width, 4 * width * 10 + 10
    stages = block(width, width) + block(width, 2 * width) + block(2 * width, 4 * width)
    assert parameters(resnet8(width=width)) == stem + stages + head


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("shape", ((3, 32, 32), (1, 8, 8)), ids=("colour", "grey"))
def test_built_in_networks_give_features_and_logits(name: str, shape: tuple[int, int, int]) -> None:
    network: Any = backbone(name, 7, shape, {"width": 4})
    features = network.features(torch.rand(2, *shape))
    assert features.shape == (2, network.linear.in_features)
    assert features.min() >= 0, "the average of an activated map"
    assert network(torch.rand(2, *shape)).shape == (2, 7)


def normed(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])


def by_hand_resnet18(state: dict[str, Tensor], x: Tensor, activated: Callable[[Tensor], Tensor] = F.relu) -> Tensor:
    """He et al., arXiv 1512.03385, from the weights alone."""
    x = activated(normed(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)))
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = activated(normed(state, f"{at}.bn1", F.conv2d(x, state[f"{at}.conv1.weight"], None, stride, 1)))
            out = normed(state, f"{at}.bn2", F.conv2d(out, state[f"{at}.conv2.weight"], padding=1))
            if stride == 2:
                x = normed(state, f"{at}.shortcut.1", F.conv2d(x, state[f"{at}.shortcut.0.weight"], stride=2))
            x = activated(out + x)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def by_hand_preact(state: dict[str, Tensor], x: Tensor, activated: Callable[[Tensor], Tensor] = F.relu) -> Tensor:
    """He et al., arXiv 1603.05027: activation first, and shared with a shortcut that changes the shape."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            active = activated(normed(state, f"{at}.bn1", x))
            out = F.conv2d(active, state[f"{at}.conv1.weight"], None, stride, 1)
            out = F.conv2d(activated(normed(state, f"{at}.bn2", out)), state[f"{at}.conv2.weight"], padding=1)
            x = out + (F.conv2d(active, state[f"{at}.shortcut.0.weight"], stride=2) if stride == 2 else x)
    x = activated(normed(state, "bn", x)).mean((2, 3))
    return F.linear(x, state["linear.weight"], state["linear.bias"])


@pytest.mark.parametrize(
    "make, by_hand", ((resnet18, by_hand_resnet18), (preact_resnet18, by_hand_preact)), ids=("resnet18", "preact")
)
@pytest.mark.parametrize(
    "activation, activated", (("relu", lambda x: x * (x > 0)), ("silu", lambda x: x / (1 + torch.exp(-x))))
)
def test_networks_compute_what_their_papers_say(
    make: Callable[..., nn.Module],
    by_hand: Callable[..., Tensor],
    activation: str,
    activated: Callable[[Tensor], Tensor],
) -> None:
    network, x = shaken(make(width=4, activation=activation)).eval(), pictures()
    torch.testing.assert_close(network(x), by_hand(network.state_dict(), x, activated), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", (resnet8, resnet18, preact_resnet18))
def test_the_activation_is_the_one_that_is_asked_for(make: Callable[..., nn.Module]) -> None:
    relu, silu = (shaken(make(width=4, activation=name)).eval() for name in ("relu", "silu"))
    silu.load_state_dict(relu.state_dict())
    assert not torch.allclose(relu(pictures()), silu(pictures()), atol=1e-3)


# --- classifier ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection_width", (0, 5))
def test_embeddings_have_unit_length(projection_width: int) -> None:
    logits, embedding = classifier(resnet8(width=4), projection_width)(pictures())
    assert logits.shape == (4, 10)
    assert embedding.shape == (4, projection_width or 16)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))


def test_embeddings_stay_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, embedding = classifier(resnet8(width=4), 5)(pictures())
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))


def test_the_classifier_normalises_channel_by_channel() -> None:
    network = classifier(resnet8(width=4)).eval()
    x = pictures()
    by_hand = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(network(x)[0], network.backbone(by_hand))
    torch.testing.assert_close(LogitsOnly(network)(x), network.backbone(by_hand))


def test_the_normalisation_is_stored_with_the_weights_and_is_not_trained() -> None:
    network = classifier(resnet8(width=4))
    assert {"mean", "std"} <= network.state_dict().keys()
    assert not {"mean", "std"} & dict(network.named_parameters()).keys()


def test_logits_do_not_depend_on_the_projection_head() -> None:
    with_head = classifier(resnet8(width=4), 5).eval()
    without = Classifier(with_head.backbone, MEAN, STD).eval()
    logits, embedding = with_head(pictures())
    for parameter in with_head.projection.parameters():
        nn.init.normal_(parameter)
    assert not torch.allclose(with_head(pictures())[1], embedding)
    assert torch.equal(with_head(pictures())[0], logits)
    assert torch.equal(without(pictures())[0], logits)


def test_without_a_head_the_embedding_is_the_direction_of_the_features() -> None:
    network = classifier(resnet8(width=4)).eval()
    x = pictures()
    features = network.backbone.features((x - network.mean) / network.std)
    torch.testing.assert_close(network(x)[1], features / features.norm(dim=1, keepdim=True))


# --- a user's own network --------------------------------------------------------------------------------------------


class FeaturesOnly(nn.Module):
    """Maps images to features; knows nothing of classes."""

    def __init__(self, channels: int, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.body(x)).mean((2, 3))


class PartlyFrozen(FeaturesOnly):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.body.eval()


class OwnLinear(FeaturesOnly):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(channels)
        self.linear = nn.Linear(6, classes)

    def features(self, x: Tensor) -> Tensor:
        return super().forward(x)


class TenClassesOnly(OwnLinear):
    def __init__(self, channels: int) -> None:
        super().__init__(10, channels)


class MapsOnly(FeaturesOnly):
    """Gives feature maps [n d h w], not features."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class MapsBeforeItsLinear(OwnLinear):
    def features(self, x: Tensor) -> Tensor:
        return self.body(x)


class OtherWidthThanItsLinear(OwnLinear):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x)[:, :5]


class OtherChannels(FeaturesOnly):
    def __init__(self, channels: int) -> None:
        super().__init__(channels + 2)


class OneImageOnly(FeaturesOnly):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(1, -1)


class GivesTuple(FeaturesOnly):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def no_network(classes: int) -> str:
    return "a string"


NOT_CALLABLE = 3


def own(name: str, classes: int = 7, **settings: Any) -> Any:
    return backbone(f"{__name__}.{name}", classes, SHAPE, settings)


def test_features_of_a_users_network_get_a_linear_head() -> None:
    network = own("FeaturesOnly", width=9)
    assert isinstance(network, WithHead)
    assert isinstance(network.features, FeaturesOnly)
    assert (network.linear.in_features, network.linear.out_features) == (9, 7)
    assert all(module.training for module in network.modules()), "finding the width leaves the modes"
    network.eval()
    torch.testing.assert_close(network(pictures()), network.linear(network.features(pictures())))


def test_finding_the_width_leaves_frozen_children_and_statistics_alone() -> None:
    network = own("PartlyFrozen").features
    assert network.training
    assert not network.body.training
    assert network.body[1].num_batches_tracked == 0


def test_a_users_network_with_its_own_linear_is_taken_as_it_is() -> None:
    network = own("OwnLinear")
    assert isinstance(network, OwnLinear)
    assert network.linear.out_features == 7


@pytest.mark.parametrize(
    "name, said",
    (
        ("MapsOnly", r"\[2, 6, 14, 14\]"),
        ("MapsBeforeItsLinear", r"\[2, 6, 14, 14\]"),
        ("OtherWidthThanItsLinear", r"\.linear of 6 features and 7 logits, but there are 5 features and 7 classes"),
        ("OtherChannels", r"OtherChannels' fails on two images \[3, 16, 16\] \(RuntimeError: "),
        ("OneImageOnly", r"\[1, 12\]"),
        ("GivesTuple", "tuple"),
        ("no_network", "built a str"),
        ("TenClassesOnly", "10"),  # the data has 7 classes
        ("NOT_CALLABLE", "NOT_CALLABLE"),
    ),
)
def test_a_network_that_cannot_serve_is_refused(name: str, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        own(name)


@pytest.mark.parametrize("name", ("no_such_package.Net", f"{__name__}.NoSuchClass", "./net.py", "torch.nn."))
def test_a_class_that_cannot_be_imported_is_refused(name: str) -> None:
    with pytest.raises(Refusal, match=r"imported|unknown"):
        backbone(name, 10, SHAPE)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refusal, match=r"'resnet19'.*" + ".*".join(BUILT_IN)):
        backbone("resnet19", 10, SHAPE)


# --- the folded twin -------------------------------------------------------------------------------------------------


class Constant(FeaturesOnly):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.full((1, 1, 1, 1), 2.0))


class Untraceable(FeaturesOnly):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Twice(nn.Module):
    """One convolution before two norms: its weights cannot carry either."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.conv(F.relu(self.first(self.conv(x)))))).mean((2, 3))


class Tied(nn.Module):
    """Two convolutions that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.two.weight = self.one.weight
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.two(F.relu(self.first(self.one(x)))))).mean((2, 3))


class Branching(nn.Module):
    """The convolution's own output is wanted too, beside the normed one; a bias, groups, and no affine weights."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted, self.wanted_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.grouped, self.grouped_norm = nn.Conv2d(6, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False, eps=0.1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.wanted(x)
        return F.relu(self.grouped_norm(self.grouped(self.wanted_norm(maps) + maps))).mean((2, 3))


class KeywordNorm(FeaturesOnly):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body[1](input=self.body[0](x))).mean((2, 3))


class FunctionalDropout(FeaturesOnly):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=self.training)


def headed(network: nn.Module, width: int = 6) -> WithHead:
    return WithHead(network, width, 10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: resnet8(width=4),
    "resnet18": lambda: resnet18(width=4),
    "preact-resnet18": lambda: preact_resnet18(width=4),
    "user's": lambda: headed(FeaturesOnly(3)),
    "untraceable": lambda: headed(Untraceable(3)),
    "constant": lambda: headed(Constant(3)),
    "used twice": lambda: headed(Twice(), 3),
    "tied weights": lambda: headed(Tied(), 3),
    "branching": lambda: headed(Branching()),
    "keyword": lambda: headed(KeywordNorm(3)),
    "functional dropout": lambda: headed(FunctionalDropout(3)),
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def logits_in_evaluation(network: Classifier, x: Tensor) -> Tensor:
    return LogitsOnly(copy.deepcopy(network)).eval()(x)


def assert_same(folded: Folded, network: Classifier) -> None:
    x = pictures(8, seed=1)
    ours, theirs = folded(x), logits_in_evaluation(network, x)
    assert theirs.std(0).max() > 1e-4, "a twin that ignored the images would be no twin"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@every_network
def test_the_twin_equals_the_classifier_in_evaluation_mode(make: Callable[[], nn.Module]) -> None:
    network = classifier(make()).train()
    assert_same(Folded(network), network)


@every_network
def test_the_twin_follows_refresh(make: Callable[[], nn.Module]) -> None:
    network = classifier(make())
    folded = Folded(network)
    before = folded(pictures())
    shaken(network, seed=1)
    with torch.no_grad():
        network.mean.add_(0.1)
    assert torch.equal(folded(pictures()), before), "only refresh takes over new weights"
    folded.refresh()
    assert not torch.allclose(folded(pictures()), before, rtol=0.01)
    assert_same(folded, network)


@every_network
def test_the_twin_gives_the_gradient_of_the_classifier(make: Callable[[], nn.Module]) -> None:
    network = classifier(make())
    folded, y = Folded(network), torch.arange(4)

    def gradient(logits: Callable[[Tensor], Tensor]) -> Tensor:
        x = pictures().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(logits(x), y, reduction="sum"), x)[0]

    ours, theirs = gradient(folded), gradient(lambda x: logits_in_evaluation(network, x))
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@every_network
def test_the_twin_leaves_the_classifier_alone(make: Callable[[], nn.Module]) -> None:
    network = classifier(make()).train()
    network.backbone.linear.requires_grad_(False)
    next(child for child in network.modules() if isinstance(child, nn.BatchNorm2d)).eval()
    names = [name for name, _ in network.named_modules()]
    modes = [module.training for module in network.modules()]
    trainable = [parameter.requires_grad for parameter in network.parameters()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    folded = Folded(network)
    folded.train()
    folded(pictures())
    folded.refresh()

    assert [name for name, _ in network.named_modules()] == names
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == trainable
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_the_twin_owns_frozen_copies() -> None:
    network = classifier(resnet8(width=4))
    folded = Folded(network).train()
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    theirs = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in folded.state_dict().values()}


@pytest.mark.parametrize("make", (resnet8, resnet18), ids=("resnet8", "resnet18"))
def test_every_norm_of_a_resnet_is_merged(make: Callable[..., nn.Module]) -> None:
    network = classifier(make(width=4))
    folded = Folded(network)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(folded.pairs) == len(norms)


def test_second_norms_of_a_preact_block_are_merged() -> None:
    pairs = Folded(classifier(preact_resnet18(width=4))).pairs
    second = {f"backbone.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)}
    assert {f"{at}.conv1": f"{at}.bn2" for at in second}.items() <= pairs.items()


@pytest.mark.parametrize(
    "network, merged",
    (
        (headed(Untraceable(3)), {}),
        (headed(Twice(), 3), {}),
        (headed(Branching()), {"backbone.features.grouped": "backbone.features.grouped_norm"}),
    ),
    ids=("untraceable", "used twice", "branching"),
)
def test_only_norms_that_can_be_merged_are(network: nn.Module, merged: dict[str, str]) -> None:
    assert Folded(classifier(network)).pairs == merged


def test_a_twin_in_bfloat16_is_nearly_the_classifier() -> None:
    network = classifier(resnet8(width=4))
    folded, x = Folded(network, torch.bfloat16), pictures(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = folded(x).float()
    theirs = logits_in_evaluation(network, x)
    assert {folded.twin.get_submodule(name).weight.dtype for name in folded.pairs} == {torch.bfloat16}
    assert 0 < (ours - theirs).norm() < 0.05 * theirs.norm()
