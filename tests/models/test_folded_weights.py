"""Weights with BatchNorm folded into convolutions: loaded, converted, and the statistics calibrated."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.weights import assert_same_trunk, refused
from torch import nn

from camguide_fast.errors import UserError
from camguide_fast.models import build_model, build_trunk
from camguide_fast.models.weights import calibrate_batchnorm, convert_folded, fold_to_state, load_weights


def write_folded(folder, without=()):
    """Random convolutions with biases under torchvision's names, as .npy; returned as tensors."""
    gen = torch.Generator().manual_seed(7)
    folder.mkdir()
    arrays = {}
    for name, module in build_trunk("resnet18").named_modules():
        if isinstance(module, nn.Conv2d):
            arrays[f"{name}.weight"] = module.weight.detach() * 0.7
            arrays[f"{name}.bias"] = torch.randn(module.out_channels, generator=gen) * 0.1
    for name, value in arrays.items():
        if name not in without:
            np.save(folder / f"{name}.npy", value.numpy())
    np.save(folder / "fc.weight.npy", np.zeros((10, 512), np.float32))
    np.save(folder / "fc.bias.npy", np.zeros(10, np.float32))
    return arrays


def plain_network(a, x):
    """The folded network as it was exported: convolutions with bias, no BatchNorm (ResNet-18, stride 16)."""

    def conv(t, name, stride=1):
        weight = a[f"{name}.weight"]
        return F.conv2d(t, weight, a[f"{name}.bias"], stride, weight.shape[-1] // 2)

    x = F.max_pool2d(conv(x, "conv1", 2).relu(), 3, 2, 1)
    for layer, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        for block, s in ((0, stride), (1, 1)):
            name = f"layer{layer}.{block}"
            shortcut = conv(x, f"{name}.downsample.0", s) if f"{name}.downsample.0.weight" in a else x
            x = (conv(conv(x, f"{name}.conv1", s).relu(), f"{name}.conv2") + shortcut).relu()
    return x


def test_folded_weights_are_the_plain_network(tmp_path):
    arrays = write_folded(tmp_path / "folded")
    net = build_trunk("resnet18").eval()
    report = load_weights(net, tmp_path / "folded")
    assert report.missing == [] and report.unexpected == []
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1], plain_network(arrays, x), rtol=1e-5, atol=1e-5)


def test_converted_file_loads_the_same(tmp_path):
    write_folded(tmp_path / "folded")
    quiet = ["-W", "ignore:camguide_fast"]  # not built yet: says so, and is no matter here
    program = [sys.executable, *quiet, "-m", "camguide_fast.models.weights"]
    command = [*program, str(tmp_path / "folded"), str(tmp_path / "r18.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folded", "r18.safetensors"]
    a, b = build_trunk("resnet18"), build_trunk("resnet18")
    assert load_weights(a, tmp_path / "folded") == load_weights(b, tmp_path / "r18.safetensors")
    assert_same_trunk(a, b)

    command[-2] = str(tmp_path / "nothing")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/nothing: no such folder\n"
    assert load_file(tmp_path / "r18.safetensors")  # what was there stays


def test_layers_without_their_convolution_start_fresh(tmp_path):
    write_folded(tmp_path / "folded", without=["layer4.0.conv1.weight", "layer4.1.conv2.weight"])
    torch.manual_seed(1)
    net = build_model("resnet18", 3)
    fresh = net.backbone.layer4[1].conv2.weight.clone()
    report = load_weights(net, tmp_path / "folded")
    keys = ("weight", "bias", "running_mean", "running_var")
    assert sorted(report.missing) == sorted(
        ["classifier.weight", "backbone.layer4.0.conv1.weight", "backbone.layer4.1.conv2.weight"]
        + [f"backbone.layer4.{bn}.{key}" for bn in ("0.bn1", "1.bn2") for key in keys]
    )
    bn = net.backbone.layer4[1].bn2
    assert torch.equal(net.backbone.layer4[1].conv2.weight, fresh)
    assert (bn.weight == 1).all() and (bn.bias == 0).all() and (bn.running_var == 1).all()

    net.freeze_bn(report.loaded)
    net.train()
    training = {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    assert training == {"backbone.layer4.0.bn1", "backbone.layer4.1.bn2"}


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no folded layer")
    folder = tmp_path / "folded"
    folder.mkdir()
    np.save(folder / "conv1.weight.npy", np.zeros((64, 3, 7, 7), np.float32))
    refused(folder, "conv1.bias.npy: missing; a folded layer is a weight and a bias")
    np.save(folder / "conv1.bias.npy", np.zeros(32, np.float32))
    refused(folder, r"conv1.weight.npy: weight \[64, 3, 7, 7\] and bias \[32\]")
    (folder / "conv1.bias.npy").write_bytes(b"x" * 300)
    refused(folder, "conv1.bias.npy: not a readable .npy array")
    np.save(folder / "conv1.bias.npy", np.array([None] * 64, dtype=object), allow_pickle=True)
    refused(folder, "conv1.bias.npy: not a readable .npy array")
    np.save(folder / "conv1.bias.npy", np.zeros(64, np.float32))
    np.save(folder / "head.weight.npy", np.zeros((2, 2, 1, 1), np.float32))
    refused(folder, "head.weight.npy: no convolution of a ResNet has this name")


def test_converter_refuses_other_names(tmp_path):
    with pytest.raises(UserError, match="must end in .safetensors"):
        convert_folded(tmp_path, tmp_path / "out.pth")


def test_calibration_keeps_the_output_and_sets_the_statistics(tmp_path):
    write_folded(tmp_path / "folded", without=["layer4.1.conv1.weight"])
    torch.manual_seed(2)
    net = build_model("resnet18", 3).eval()
    load_weights(net, tmp_path / "folded")
    x = torch.randn(6, 3, 64, 64)
    entering = {}
    watched = ["bn1", "layer2.0.downsample.1", "layer3.1.bn2"]
    for name in watched:
        bn = net.backbone.get_submodule(name)
        bn.register_forward_pre_hook(lambda _, args, name=name: entering.__setitem__(name, args[0].double()))
    with torch.no_grad():
        before = net(x)
    net.train()
    calibrate_batchnorm(net, [x[:4], x[4:]])
    assert all(m.training for m in net.modules())
    fresh = net.backbone.layer4[1].bn1
    assert (fresh.running_var == 1).all() and (fresh.weight == 1).all()

    with torch.no_grad():
        after = net.eval()(x)
    assert (after - before).norm() / before.norm() < 1e-5
    for name in watched:  # entering now holds the inputs of the last pass, over all six images at once
        bn, seen = net.backbone.get_submodule(name), entering[name]
        mean, var = seen.mean((0, 2, 3)), seen.var((0, 2, 3), correction=0)
        torch.testing.assert_close(bn.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bn.running_var.double(), var, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bn.weight.double(), (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-6)
    bias = torch.from_numpy(np.load(tmp_path / "folded" / "conv1.bias.npy"))
    torch.testing.assert_close(net.backbone.bn1.bias - net.backbone.bn1.running_mean, bias)


def test_calibrated_network_in_training_is_near_the_folded_one(tmp_path):
    """Uncalibrated, batch statistics replace the identity and change the function wholesale."""
    write_folded(tmp_path / "folded")
    net = build_trunk("resnet18")
    load_weights(net, tmp_path / "folded")
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        folded = net.eval()(x)[1]
        calibrate_batchnorm(net, [x])
        trained = net.train()(x)[1]
    assert (trained - folded).norm() / folded.norm() < 1e-3


def test_nothing_to_calibrate(tmp_path):
    with pytest.raises(ValueError, match="model has no folded BatchNorm"):
        calibrate_batchnorm(build_trunk("resnet18"), [torch.zeros(1, 3, 32, 32)])
    write_folded(tmp_path / "folded")
    net = build_trunk("resnet18")
    load_weights(net, tmp_path / "folded")
    with pytest.raises(ValueError, match="batches is empty"):
        calibrate_batchnorm(net, [])


def test_real_partial_weights(weights):
    net = build_model("resnet18", 5)
    report = load_weights(net, weights)
    absent = [f"layer4.{block}" for block in ("0.conv1", "0.conv2", "1.conv1", "1.conv2")]
    expected = {"classifier.weight"} | {f"backbone.{conv}.weight" for conv in absent}
    for conv in absent:
        expected |= {
            f"backbone.{conv.replace('conv', 'bn')}.{key}" for key in ("weight", "bias", "running_mean", "running_var")
        }
    assert set(report.missing) == expected and report.unexpected == []
    arrays = {f.name.removesuffix(".npy"): torch.from_numpy(np.load(f)) for f in weights.glob("*.npy")}
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trunk = net.eval().backbone
        stage1, _ = trunk(x)
        stem = F.max_pool2d(F.conv2d(x, arrays["conv1.weight"], arrays["conv1.bias"], 2, 3).relu(), 3, 2, 1)
        for block in ("layer1.0", "layer1.1"):
            mid = F.conv2d(stem, arrays[f"{block}.conv1.weight"], arrays[f"{block}.conv1.bias"], padding=1).relu()
            stem = (
                F.conv2d(mid, arrays[f"{block}.conv2.weight"], arrays[f"{block}.conv2.bias"], padding=1) + stem
            ).relu()
    torch.testing.assert_close(stage1, stem, rtol=1e-4, atol=1e-5)
    assert fold_to_state(weights).keys() <= trunk.state_dict().keys()
