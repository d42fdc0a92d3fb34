import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from camguide_fast.models import CamGuideNet, CamNet, build_model, logits, param_groups


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def guided():
    torch.manual_seed(0)
    return build_model("resnet18", 3, head="lean", width=8, radius=2)


def views(size=(64, 64), batch=2):
    gen = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 3, *size, generator=gen)
    return (image - 0.45) / 0.25, image


def wake(head):
    """psi and the residual away from their zero start, so that the head does something."""
    with torch.no_grad():
        for last in (head.psi, head.residual[-1]):
            last.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "arch, head, parameters",
    [
        ("resnet18", "none", 11_186_752),
        ("resnet26", "none", 13_987_136),
        ("resnet50", "none", 23_548_992),
        ("resnet26", "parity", 15_398_780),
    ],
)
def test_parameter_counts_of_the_paper(arch, head, parameters):
    with torch.device("meta"):
        net = build_model(arch, 20, head)
    assert count(net) == parameters


def test_parity_head():
    with torch.device("meta"):
        head = build_model("resnet18", 20, "parity").head
    assert count(head) == 1_411_644 and head.gate is not None


def test_class_maps_and_logits():
    net = build_model("resnet18", 5).eval()
    x, _ = views((50, 67))
    maps = net(x)
    assert maps.shape == (2, 5, 4, 5)
    assert maps.min() < 0 < maps.max()  # raw: neither ReLU nor normalisation
    features = net.backbone(x)[1].mean((2, 3))
    torch.testing.assert_close(logits(maps), features @ net.classifier.weight[:, :, 0, 0].T, rtol=1e-4, atol=1e-5)
    assert torch.equal(net.features(x)[1], maps)


def test_refined_maps_start_as_the_upsampled_coarse_map(guided):
    guided.eval()
    x, image = views((50, 67))
    z1 = guided(x, image)
    assert z1.shape == (2, 3, 13, 17)
    coarse = CamNet.forward(guided, x)
    assert torch.equal(z1, F.interpolate(coarse, size=(13, 17), mode="bilinear", align_corners=False))


def test_guide_is_the_area_average_of_the_image(guided):
    seen = []
    guided.head.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    x, image = views((64, 48))
    guided(x, image.requires_grad_())
    torch.testing.assert_close(seen[0], image.detach().reshape(2, 3, 16, 4, 12, 4).mean((3, 5)))
    assert not seen[0].requires_grad


def test_dropout_is_elementwise_on_the_coarse_map_and_in_training_only(guided):
    seen = []
    guided.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, image = views((128, 128))
    guided.freeze_bn([""])
    guided.train()(x, image)
    guided.eval()(x, image)
    dropped, coarse = seen
    zero = dropped == 0
    torch.testing.assert_close(dropped[~zero], 2 * coarse[~zero])
    share = zero.float().mean((2, 3))  # per image and class: a whole channel is neither kept nor dropped
    assert zero.float().mean() == pytest.approx(0.5, abs=0.1) and share.min() > 0.2 and share.max() < 0.8


def test_pair_leaves_statistics_flags_and_the_first_map_alone(guided):
    wake(guided.head)
    guided.train()
    guided.head.phi[4].eval()  # a flag of one's own must survive
    x, image = views()
    before = {k: v.clone() for k, v in guided.state_dict().items()}
    flags = [m.training for m in guided.modules()]

    torch.manual_seed(3)
    single = guided(x, image)
    after_single = {k: v.clone() for k, v in guided.state_dict().items()}
    guided.load_state_dict(before)
    torch.manual_seed(3)
    z1, target = guided.forward_pair(x, image)

    assert torch.equal(z1, single)
    for name, value in guided.state_dict().items():
        assert torch.equal(value, after_single[name]), name
    assert guided.head.phi[1].num_batches_tracked == 1 and guided.head.phi[4].num_batches_tracked == 0
    assert [m.training for m in guided.modules()] == flags
    assert z1.requires_grad and not target.requires_grad and target.shape == z1.shape


def test_pair_target_is_the_head_in_eval_on_the_same_features(guided):
    wake(guided.head)
    guided.train()
    guided.freeze_bn(["backbone"])
    x, image = views()
    _, target = guided.forward_pair(x, image)
    expected = guided.eval()(x, image)  # the trunk's BatchNorm is frozen, so eval has the same features
    torch.testing.assert_close(target, expected)


def test_pair_trains_every_parameter_under_autocast(guided):
    """The gradient-free pass must not leave its half copies of the weights in autocast's cache."""
    wake(guided.head)
    x, image = views()
    with torch.autocast("cpu", torch.bfloat16):
        z1, _ = guided.train().forward_pair(x, image)
    z1.float().square().mean().backward()
    assert [n for n, p in guided.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("bad", ["size", "uint8"])
def test_bad_guide(guided, bad):
    x, image = views()
    if bad == "size":
        with pytest.raises(
            ValueError, match=r"image01 must have the shape of x, \[2, 3, 64, 64\], got \[2, 3, 32, 64\]"
        ):
            guided(x, image[:, :, ::2])
    else:
        with pytest.raises(TypeError, match="image01 must be floating point"):
            guided(x, (image * 255).byte())


def test_stage_2_network_loads_into_stage_3(guided):
    student = build_model("resnet18", 3)
    result = guided.load_state_dict(student.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert {k.split(".")[0] for k in result.missing_keys} == {"head"}
    x, image = views()
    coarse = F.interpolate(student.eval()(x), size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(guided.eval()(x, image), coarse)


def test_safetensors_round_trip(guided, tmp_path):
    save_file(guided.state_dict(), tmp_path / "net.safetensors")
    other = build_model("resnet18", 3, head="lean", width=8, radius=2)
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x, image = views()
    assert torch.equal(other.eval()(x, image), guided.eval()(x, image))


def batchnorms(net, training):
    return {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training is training}


def test_frozen_batchnorm_stays_in_eval(guided):
    everything = batchnorms(guided, True)
    guided.freeze_bn(["backbone.bn1", "backbone.layer1", "backbone.layer4.0.bn1.weight", "classifier.weight"])
    expected = {"backbone.bn1", "backbone.layer4.0.bn1"} | {
        f"backbone.layer1.{i}.bn{j}" for i in (0, 1) for j in (1, 2)
    }
    assert batchnorms(guided, False) == expected
    guided.eval()
    nn.Sequential(guided).train()  # as part of something larger
    assert batchnorms(guided, False) == expected and guided.dropout.training

    x, image = views()
    before = guided.backbone.layer1[0].bn1.running_mean.clone()
    guided(x, image)
    assert torch.equal(guided.backbone.layer1[0].bn1.running_mean, before)
    assert guided.backbone.layer2[0].bn1.num_batches_tracked == 1

    guided.freeze_bn([""])
    assert batchnorms(guided, False) == everything
    guided.freeze_bn([])
    assert batchnorms(guided, True) == everything


def test_freezing_something_unknown(guided):
    with pytest.raises(ValueError, match="names: 'backbone.layer5' is neither a module nor a parameter"):
        guided.freeze_bn(["backbone.layer5"])


def test_groups_partition_the_parameters_in_order(guided):
    new = ["classifier", "head", "backbone.layer4.0.conv1.weight", "backbone.layer4.0.bn1.running_mean"]
    groups = param_groups(guided, 0.1, 1e-4, new=new, bias_scale=2.0)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("loaded.weight", 0.1, 1e-4),
        ("loaded.bias", 0.2, 0.0),
        ("new.weight", 1.0, 1e-4),
        ("new.bias", 2.0, 0.0),
    ]
    names = {id(p): n for n, p in guided.named_parameters()}
    members = {g["name"]: [names[id(p)] for p in g["params"]] for g in groups}
    assert sorted(sum(members.values(), [])) == sorted(names.values())
    assert members["loaded.weight"][:2] == ["backbone.conv1.weight", "backbone.bn1.weight"]
    assert members["new.weight"][:2] == ["backbone.layer4.0.conv1.weight", "classifier.weight"]
    assert "backbone.layer4.0.bn1.bias" in members["loaded.bias"] and "head.psi.bias" in members["new.bias"]
    assert members == {
        g["name"]: [names[id(p)] for p in g["params"]]
        for g in param_groups(guided, 0.1, 1e-4, new=reversed(new), bias_scale=2.0)
    }
    torch.optim.SGD(groups)


def test_groups_leave_out_what_is_empty_or_fixed():
    net = build_model("resnet18", 3)
    net.backbone.requires_grad_(False)
    (group,) = param_groups(net, 0.1, 1e-4, new=["classifier"])
    assert group["name"] == "new.weight" and group["params"] == [net.classifier.weight]
    with pytest.raises(ValueError, match="new: 'clasifier' is neither"):
        param_groups(net, 0.1, 1e-4, new=["clasifier"])


def test_bad_settings():
    for arguments, message in [
        (("vgg16", 3), "arch: 'vgg16'"),
        (("resnet18", 0), "num_classes must be at least 1, got 0"),
        (("resnet18", 3, "fat"), "head: 'fat' is not one of none, lean, parity"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_model(*arguments)


def test_types():
    assert type(build_model("resnet18", 2)) is CamNet
    assert isinstance(build_model("resnet18", 2, "lean", width=4), CamGuideNet)
