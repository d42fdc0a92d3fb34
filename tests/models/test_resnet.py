import pytest
import torch
from torch import nn

from camguide_fast.models import build_trunk
from camguide_fast.models.resnet import RESNETS


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# torchvision's published totals less its classifier fc (513,000 with 512 channels, 2,049,000 with 2048); the
# lengths of its state_dicts less the classifier's 2.
@pytest.mark.parametrize(
    "arch, channels, parameters, entries",
    [
        ("resnet18", 512, 11_689_512 - 513_000, 122 - 2),
        ("resnet34", 512, 21_797_672 - 513_000, 218 - 2),
        ("resnet50", 2048, 25_557_032 - 2_049_000, 320 - 2),
        ("resnet26", 2048, 13_987_136 - 20 * 2048, None),
    ],
)
def test_size_matches_the_published_models(arch, channels, parameters, entries):
    with torch.device("meta"):
        net = build_trunk(arch)
    assert net.channels == channels
    assert count(net) == parameters
    assert entries is None or len(net.state_dict()) == entries


def test_names_and_shapes_are_torchvisions():
    with torch.device("meta"):
        basic, bottle = build_trunk("resnet18").state_dict(), build_trunk("resnet50").state_dict()
    assert basic["conv1.weight"].shape == (64, 3, 7, 7)
    assert basic["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert basic["layer2.0.downsample.1.running_var"].shape == (128,)
    assert basic["layer4.1.bn2.bias"].shape == (512,)
    assert "layer1.0.downsample.0.weight" not in basic
    assert bottle["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert bottle["layer3.5.conv3.weight"].shape == (1024, 256, 1, 1)
    assert bottle["layer4.2.bn3.num_batches_tracked"].shape == ()


@pytest.mark.parametrize("size", [(64, 64), (65, 47), (16, 33), (31, 18)], ids=str)
@pytest.mark.parametrize("arch", ["resnet18", "resnet26"])
def test_map_sizes(arch, size):
    net = build_trunk(arch).eval()
    with torch.no_grad():
        stage1, last = net(torch.randn(2, 3, *size))
    assert stage1.shape == (2, 64, -(-size[0] // 4), -(-size[1] // 4))
    assert last.shape == (2, net.channels, -(-size[0] // 16), -(-size[1] // 16))
    assert stage1.min() >= 0 and last.min() >= 0


@pytest.mark.parametrize("arch, part", [("resnet18", "layer1"), ("resnet26", "stem")])
def test_stage1_is_layer1_of_basic_and_stem_of_bottleneck(arch, part):
    net = build_trunk(arch).eval()
    x = torch.randn(1, 3, 48, 48)
    stem = nn.functional.max_pool2d(net.bn1(net.conv1(x)).relu(), 3, 2, 1)
    expected = stem if part == "stem" else net.layer1(stem)
    torch.testing.assert_close(net(x)[0], expected)


def test_one_block_by_hand():
    """A bottleneck with its stride on the 3x3 convolution, against the layers called one by one."""
    block = build_trunk("resnet26").eval().layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))
    x = torch.randn(2, 256, 9, 7)
    out = block.bn3(block.conv3(block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()))
    torch.testing.assert_close(block(x), (out + block.downsample(x)).relu())


def test_layer4_has_no_stride_and_no_dilation():
    for arch in RESNETS:
        with torch.device("meta"):
            convs = [m for m in build_trunk(arch).layer4.modules() if isinstance(m, nn.Conv2d)]
        assert {(m.stride, m.dilation) for m in convs} == {((1, 1), (1, 1))}


def test_initialisation_is_kaiming_fan_out():
    torch.manual_seed(0)
    weight = build_trunk("resnet18").layer2[0].conv1.weight  # [128, 64, 3, 3]: fan out 128 * 9
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_channels_last_is_kept_and_changes_nothing():
    net = build_trunk("resnet18").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        got = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for a, b in zip(got, expected, strict=True):
        assert a.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 15, 64), (1, 1, 64, 64), (3, 64, 64)], ids=str)
def test_bad_input(shape):
    with pytest.raises(ValueError, match=r"x must be \[B, 3, H, W\]"):
        build_trunk("resnet18")(torch.zeros(shape))


def test_unknown_arch():
    with pytest.raises(ValueError, match="arch: 'resnet19' is not one of resnet18, resnet26"):
        build_trunk("resnet19")
