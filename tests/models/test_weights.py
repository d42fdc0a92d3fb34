"""Weight files of torchvision, timm and our own, loaded into a network or refused."""

import pytest
import torch
from safetensors.torch import save_file
from support.weights import assert_same_trunk, refused

from camguide_fast.models import build_model, build_trunk
from camguide_fast.models.weights import load_weights


def lively(net):
    """Parameters and statistics that no fresh network has, so that a load which forgets one is seen."""
    gen = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=gen) * 0.1 + 0.5 * (value.ndim == 1))
    return net


@pytest.fixture(scope="module")
def trunk():
    return lively(build_trunk("resnet18"))


def torchvision_file(trunk):
    return {**trunk.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("form", ["plain.pth", "state_dict.pth", "model.pt", "module.pth", "plain.safetensors"])
def test_torchvision_and_timm_files(form, trunk, tmp_path):
    state, path = torchvision_file(trunk), tmp_path / form
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.stem == "module":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state if path.stem == "plain" else {path.stem: state}, path)
    net = build_model("resnet18", 5)
    report = load_weights(net, path)
    assert_same_trunk(net, trunk)
    assert report.missing == ["classifier.weight"] and report.unexpected == []
    assert len(report.loaded) == 100  # 20 convolutions, 20 x (weight, bias, mean, var)
    assert report.loaded[0] == "backbone.conv1.weight"


def test_old_files_without_counters(trunk, tmp_path):
    state = {k: v for k, v in torchvision_file(trunk).items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    report = load_weights(build_trunk("resnet18"), tmp_path / "old.pth")
    assert report.missing == [] and report.unexpected == [] and len(report.loaded) == 100


def test_half_precision_file_fills_fp32_and_keeps_channels_last(trunk, tmp_path):
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in trunk.state_dict().items()},
        tmp_path / "half.pth",
    )
    net = build_trunk("resnet18").to(memory_format=torch.channels_last)
    load_weights(net, tmp_path / "half.pth")
    weight = net.layer2[0].conv1.weight
    assert weight.dtype == torch.float32 and weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, trunk.layer2[0].conv1.weight.half().float())


def test_own_networks_load_into_each_other(tmp_path):
    student = lively(build_model("resnet18", 3))
    save_file(student.state_dict(), tmp_path / "stage2.safetensors")
    guided = build_model("resnet18", 3, head="lean", width=8)
    report = load_weights(guided, tmp_path / "stage2.safetensors")
    assert {name.split(".")[0] for name in report.missing} == {"head"} and report.unexpected == []
    assert torch.equal(guided.classifier.weight, student.classifier.weight)
    trunk = build_trunk("resnet18")
    report = load_weights(trunk, tmp_path / "stage2.safetensors")
    assert_same_trunk(trunk, student.backbone)
    assert report.missing == [] and report.unexpected == ["classifier.weight"]


def test_another_architecture_is_named(trunk, tmp_path):
    torch.save(torchvision_file(trunk), tmp_path / "r18.pth")
    message = r"layer1.0.conv1.weight has shape \[64, 64, 3, 3\], the network has \[64, 64, 1, 1\]"
    refused(tmp_path / "r18.pth", message, build_model("resnet50", 3))


def test_deeper_architecture_is_refused_although_its_shapes_fit(tmp_path):
    torch.save(build_trunk("resnet34").state_dict(), tmp_path / "r34.pth")
    refused(
        tmp_path / "r34.pth",
        "layer1.2.conv1.weight has no place in this network: weights of a deeper architecture",
    )


def test_another_class_count_is_named(tmp_path):
    save_file(build_model("resnet18", 20).state_dict(), tmp_path / "voc.safetensors")
    message = r"classifier.weight has shape \[20, 512, 1, 1\], the network has \[3, 512, 1, 1\]"
    refused(tmp_path / "voc.safetensors", message)


class Code:
    """Unpickling this runs a program."""

    def __reduce__(self):
        return print, ("executed",)


def test_unusable_files(tmp_path, capfd):
    refused(tmp_path / "absent.pth", "no such weight file")
    for name in ("garbage.pth", "garbage.safetensors", "garbage.pt"):
        (tmp_path / name).write_bytes(b"not weights at all" * 20)
        refused(tmp_path / name, "not a readable weight file")
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", "not a readable weight file")
    torch.save(build_trunk("resnet18").state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    refused(tmp_path / "cut.pth", "not a readable weight file")
    torch.save({"conv1.weight": Code()}, tmp_path / "code.pth")
    refused(tmp_path / "code.pth", "not a readable weight file")
    assert "executed" not in capfd.readouterr().out
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds no state_dict")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg.pth")
    refused(tmp_path / "vgg.pth", "none of its 1 entries fits this network")
    torch.save({"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}, tmp_path / "nan.pth")
    refused(tmp_path / "nan.pth", "conv1.weight holds values that are not finite")
