"""Schedule, weight decay and averaged weights follow their formulas."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from anchor_robust.errors import Refusal
from anchor_robust.optimise import Average, Optimise, learning_rate, perturbed, sgd

both_schedules = pytest.mark.parametrize("schedule", ("one-cycle", "cosine"))


def rates(settings: Optimise, steps: int) -> list[float]:
    return [learning_rate(settings, step, steps) for step in range(steps)]


# --- learning rate ---------------------------------------------------------------------------------------------------


def test_one_cycle_rises_and_falls_in_straight_lines() -> None:
    settings = Optimise(lr=0.6, warmup=0.2, schedule="one-cycle")
    assert rates(settings, 10) == pytest.approx(
        [0.2, 0.4, 0.6, 0.6 * 7 / 8, 0.6 * 6 / 8, 0.6 * 5 / 8, 0.6 * 4 / 8, 0.6 * 3 / 8, 0.6 * 2 / 8, 0.6 / 8]
    )


def test_cosine_falls_along_half_a_wave() -> None:
    settings = Optimise(lr=0.6, warmup=0.2, schedule="cosine")
    falling = [0.3 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates(settings, 10) == pytest.approx([0.2, 0.4, *falling])
    assert falling[4] == pytest.approx(0.3), "half way down at half of the way"


@both_schedules
@pytest.mark.parametrize("warmup", (0.0, 0.1, 0.25, 0.5))
def test_the_peak_is_the_learning_rate_and_the_end_is_next_to_nothing(schedule: str, warmup: float) -> None:
    found = rates(Optimise(lr=0.3, warmup=warmup, schedule=schedule), 1000)
    assert max(found) == pytest.approx(0.3)
    assert found.index(max(found)) == round(1000 * warmup)
    assert 0 < found[-1] <= 0.3 * 0.0021
    assert 0 < found[0] <= (0.3 if warmup == 0 else 0.3 * 0.01)


@both_schedules
@given(
    warmup=st.floats(0, 1),
    steps=st.integers(1, 200),
    lr=st.floats(1e-4, 10),
)
def test_the_rate_rises_to_one_peak_then_falls(schedule: str, warmup: float, steps: int, lr: float) -> None:
    found = rates(Optimise(lr=lr, warmup=warmup, schedule=schedule), steps)
    assert all(0 < rate <= lr * (1 + 1e-12) for rate in found)
    rising = math.ceil(warmup * steps)
    up, down = found[:rising], found[rising:]
    assert all(a < b for a, b in itertools.pairwise(up))
    assert all(a > b for a, b in itertools.pairwise(down))


# --- SGD -------------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))


def test_norms_and_biases_do_not_decay() -> None:
    net = network()
    optimizer = sgd(net, Optimise(lr=0.1, weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: decay[id(parameter)] for name, parameter in net.named_parameters()}
    assert named == {
        "0.weight": 0.01,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "3.weight": 0.0,
        "3.bias": 0.0,
        "4.weight": 0.01,
        "4.bias": 0.0,
    }


def test_a_step_is_nesterovs_with_decay() -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    holder = nn.Module()
    holder.weight = weight
    optimizer = sgd(holder, Optimise(lr=0.1, momentum=0.5, weight_decay=0.1))
    velocity, by_hand = 0.0, 2.0
    for gradient in (1.0, -3.0):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        decayed = gradient + 0.1 * by_hand
        velocity = 0.5 * velocity + decayed
        by_hand -= 0.1 * (decayed + 0.5 * velocity)
        assert weight.item() == pytest.approx(by_hand)


def test_without_momentum_there_is_no_nesterov() -> None:
    assert sgd(network(), Optimise(momentum=0.0)).defaults["nesterov"] is False


# --- averaged weights ------------------------------------------------------------------------------------------------


def filled(net: nn.Sequential, value: float) -> nn.Sequential:
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(value)
    return net


@pytest.mark.parametrize("decay", (0.3, 0.99))
def test_the_average_follows_its_formula_buffers_included(decay: float) -> None:
    net = filled(network(), 0.0)
    average = Average(net, decay)
    by_hand = 0.0
    for step, value in enumerate((3.0, -1.0, 7.0, 7.0, 2.0, 5.0)):
        average.update(filled(net, value), step)
        kept = min(decay, (1 + step) / (10 + step))
        by_hand = kept * by_hand + (1 - kept) * value
    for name, tensor in average.network.state_dict().items():
        expected = 5.0 if name.endswith("num_batches_tracked") else by_hand  # a count is not averaged
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected), msg=name)


def test_the_average_is_a_frozen_copy_and_leaves_the_network_alone() -> None:
    net = filled(network(), 1.0)
    average = Average(net, 0.9)
    average.update(filled(net, 2.0), 100)
    assert all((tensor == 2).all() for tensor in net.state_dict().values())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert {tensor.data_ptr() for tensor in net.state_dict().values()}.isdisjoint(
        tensor.data_ptr() for tensor in average.network.state_dict().values()
    )


def test_with_decay_0_the_average_is_the_network() -> None:
    net = network()
    average = Average(net, 0.0)
    average.update(network(), 0)
    assert average.network is net
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_count_below_0_replaces_the_average() -> None:
    average = Average(filled(network(), 1.0), 0.9)
    average.update(filled(network(), 5.0), -1)
    assert all((tensor == 5).all() for tensor in average.network.state_dict().values())


def test_weights_that_go_by_two_names_are_averaged_once() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    average = Average(filled(net, 0.0), 0.9)
    average.update(filled(net, 1.0), 1000)
    torch.testing.assert_close(average.network[0].weight, torch.full((2, 2), 0.1))


# --- adversarial weight perturbation ---------------------------------------------------------------------------------


def gradients_of(net: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(parameter) for name, parameter in net.named_parameters()}


def test_perturbed_weights_follow_the_formula_and_come_back_bit_equal() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = gradients_of(net)
    with perturbed(net, gradients, 0.01):
        for name, parameter in net.named_parameters():
            moved = (parameter.detach() - before[name]).double()
            if parameter.ndim == 1:
                assert (moved == 0).all(), f"{name} is a bias or a norm"
                continue
            g = gradients[name].double()
            expected = 0.01 * before[name].double().square().sum().sqrt() * g / g.square().sum().sqrt()
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_perturbed_weights_come_back_after_an_exception() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(KeyError), perturbed(net, gradients_of(net), 0.5):
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_weight_without_gradient_is_not_perturbed() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with perturbed(net, {name: torch.zeros_like(p) for name, p in net.named_parameters()}, 0.5):
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting, value",
    (
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", math.inf),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-9),
        ("weight_decay", math.inf),
        ("warmup", 1.1),
        ("warmup", -0.1),
        ("clip", -1.0),
        ("clip", math.inf),
        ("ema", 1.0),
        ("ema", -0.5),
        ("ema_from", 1.0),
        ("awp", -0.1),
        ("awp", 1.0),
        ("awp_from", -0.1),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
    ),
)
def test_settings_out_of_range_are_refused_by_name(setting: str, value: float) -> None:
    with pytest.raises(Refusal, match=rf"optimise\.{setting} {value} given; allowed"):
        Optimise(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "setting, value",
    (("epochs", 1), ("batch_size", 2), ("momentum", 0.0), ("weight_decay", 0.0), ("warmup", 0.0), ("warmup", 1.0)),
)
def test_the_ends_of_the_ranges_are_allowed(setting: str, value: float) -> None:
    assert getattr(Optimise(**{setting: value}), setting) == value  # type: ignore[arg-type]
