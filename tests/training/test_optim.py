"""Optimisers, schedules, and which layers count as new."""

import pytest
import torch

from camguide_fast.config import Optimizer
from camguide_fast.models import CamNet, build_trunk
from camguide_fast.training.optim import Schedule, build_optimizer, fresh_layers


@pytest.fixture
def net():
    return CamNet(build_trunk("resnet18"), 3)


def test_a_block_with_missing_weights_is_new_as_a_whole(net):
    new = fresh_layers(["classifier.weight", "backbone.layer4.0.conv1.weight"])
    groups = {g["name"]: g for g in build_optimizer(net, new, Optimizer(lr=0.1)).param_groups}
    assert groups["loaded.weight"]["lr"] == 0.1 and groups["new.weight"]["lr"] == 1.0
    fresh = {id(p) for name in ("new.weight", "new.bias") for p in groups[name]["params"]}
    expected = {name for name, p in net.named_parameters() if id(p) in fresh}
    assert expected == {n for n, _ in net.named_parameters() if n.startswith(("classifier", "backbone.layer4.0."))}


def test_biases_do_not_decay_and_may_learn_faster(net):
    groups = build_optimizer(net, [], Optimizer(lr=0.1, bias_scale=2, weight_decay=1e-4)).param_groups
    by_name = {g["name"]: (g["lr"], g["weight_decay"]) for g in groups}
    assert by_name == {"loaded.weight": (0.1, 1e-4), "loaded.bias": (0.2, 0.0)}


@pytest.mark.parametrize("momentum, nesterov", [(0.9, True), (0.0, False)])
def test_momentum_is_nesterovs(net, momentum, nesterov):
    group = build_optimizer(net, [], Optimizer(momentum=momentum)).param_groups[0]
    assert group["momentum"] == momentum and group["nesterov"] is nesterov


def test_poly_and_plateau_by_hand(net):
    poly = build_optimizer(net, [], Optimizer(lr=1.0))
    schedule = Schedule(poly, Optimizer(lr=1.0), total=4)
    rates = []
    for _ in range(4):
        rates.append(poly.param_groups[0]["lr"])
        poly.step()
        schedule.step(torch.tensor(1.0))
    assert rates == pytest.approx([(1 - t / 4) ** 0.9 for t in range(4)])

    settings = Optimizer("adam", lr=1.0, schedule="plateau", patience=3, factor=0.5)
    adam = build_optimizer(net, [], settings)
    schedule = Schedule(adam, settings, total=4)
    rates = []
    for _ in range(10):  # the loss never falls: after the first and three of patience the rate is halved, then again
        schedule.step(torch.tensor(1.0))
        rates.append(adam.param_groups[0]["lr"])
    assert rates == [1.0] * 9 + [0.25]  # losses are read ten at a time


def test_plateau_goes_on_between_two_readings(net):
    settings = Optimizer("adam", lr=1.0, schedule="plateau", patience=3, factor=0.5)
    adam = build_optimizer(net, [], settings)
    schedule = Schedule(adam, settings, total=4)
    for _ in range(7):
        schedule.step(torch.tensor(1.0))
    resumed = Schedule(adam, settings, total=4)
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(3):
        resumed.step(torch.tensor(1.0))
    assert adam.param_groups[0]["lr"] == 0.25
