"""The moving average of weights: torch's own, bit for bit, without its waits."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from camguide_fast.training.average import MovingAverage


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def move(net: nn.Module) -> None:
    net(torch.rand(2, 3, 8, 8))  # BatchNorm's statistics
    with torch.no_grad():
        for weight in net.parameters():
            weight += torch.randn_like(weight)


def test_equals_torchs():
    net = network().train()
    ours, theirs = MovingAverage(net, 0.9), AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(4):
        move(net)
        ours.update(net)
        theirs.update_parameters(net)
        for name, value in theirs.module.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(ours.module.state_dict()[name], value), name
    assert torch.equal(ours.module[1].num_batches_tracked, net[1].num_batches_tracked)  # counted, not averaged


def test_the_state_goes_on_and_fits_torchs():
    net = network().train()
    whole = MovingAverage(net, 0.5)
    move(net)
    whole.update(net)
    resumed = MovingAverage(network(), 0.5)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    AveragedModel(net, use_buffers=True).load_state_dict(whole.state_dict())
    move(net)
    for average in (whole, resumed):
        average.update(net)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value), name


def test_no_gradient_and_no_share_in_the_weights():
    net = network()
    average = MovingAverage(net, 0.5)
    before = [weight.clone() for weight in average.module.parameters()]
    move(net)
    assert all(torch.equal(a, b) for a, b in zip(before, average.module.parameters(), strict=True))
    average.update(net)
    assert all(weight.grad_fn is None for weight in average.module.parameters())
