"""What the tests of weight files ask of a network: it holds the weights, or is as before."""

import pytest
import torch

from camguide_fast.errors import UserError
from camguide_fast.models import build_model
from camguide_fast.models.weights import load_weights


def assert_same_trunk(net, trunk):
    got = getattr(net, "backbone", net).state_dict()
    for name, value in trunk.state_dict().items():
        assert torch.equal(got[name], value), name


def refused(path, message, net=None):
    net = net or build_model("resnet18", 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_weights(net, path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was written although the file was refused"
