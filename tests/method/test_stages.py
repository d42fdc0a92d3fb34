"""The stages: what is fed where, and which loss sees which view."""

import pytest
import torch

from camguide_fast import ops
from camguide_fast.config import Classification, Distillation, Refinement
from camguide_fast.method.stages import (
    ClassificationStage,
    DistillationStage,
    PuzzleStage,
    RefinementStage,
    merge_tiles,
    network_input,
    split_tiles,
    teacher_maps,
    teacher_mask,
)
from camguide_fast.models import CamNet, build_model, build_trunk, logits

K = 3


@pytest.fixture
def batch():
    valid = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    valid[1, :, 48:] = False
    label = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    return {"image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), "valid": valid, "label": label}


def coarse() -> CamNet:
    return CamNet(build_trunk("resnet18"), K)


def test_the_input_is_imagenets_and_padding_is_the_mean_colour(batch):
    x = network_input(coarse(), batch)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[:, :, None, None]  # torchvision's
    torch.testing.assert_close(x[0].double(), (batch["image"][0].double() / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    assert (x[1, :, 48:] == 0).all()


def test_teacher_and_student_each_see_their_own_normalisation(batch):
    teacher, seen = CamNet(build_trunk("efficientnet_lite0"), K), []
    teacher.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    DistillationStage(coarse(), teacher, Distillation())(batch, 0, 0.0)
    torch.testing.assert_close(seen[0][0], (batch["image"][0].float() - 127) / 128)


def test_tiles_come_back_where_they_were():
    x = torch.arange(2 * 3 * 8 * 6.0).reshape(2, 3, 8, 6)
    assert torch.equal(merge_tiles(split_tiles(x)), x)
    assert torch.equal(split_tiles(x)[2:4], x[:, :, :4, 3:])  # second tile: upper right


def test_classification_and_puzzle(batch):
    net = coarse()
    parts = ClassificationStage(net, Classification())(batch, 0, 0.0)
    scores = logits(net.train()(network_input(net, batch)))
    expected = torch.nn.functional.multilabel_soft_margin_loss(scores, batch["label"])
    torch.testing.assert_close(parts["loss"], expected)
    stage = PuzzleStage(coarse().eval(), Classification(method="puzzle"))
    start, half, end = (stage(batch, 0, p) for p in (0.0, 0.25, 1.0))
    torch.testing.assert_close(start["loss"], start["cls"] + start["tiles"])  # alpha ramps from 0 ...
    torch.testing.assert_close(half["loss"], half["cls"] + half["tiles"] + 2 * half["reconstruction"])
    torch.testing.assert_close(end["loss"], end["cls"] + end["tiles"] + 4 * end["reconstruction"])  # ... to 4


def test_stage_1_tags_the_masked_view_and_follows_the_teacher_on_the_whole(batch):
    net, teacher = coarse().eval(), coarse()
    settings = Distillation(cls_loss="softmargin")
    stage = DistillationStage(net, teacher, settings)
    torch.manual_seed(5)
    parts = stage(batch, 0, 0.0)
    torch.manual_seed(5)
    x = network_input(net, batch)
    with torch.no_grad():
        maps = teacher(x)
        mask = teacher_mask(maps, batch["label"], settings.low, settings.high, x.shape[2:])
        masked, student = net(x * mask), net(x)
    assert 0 < mask.float().mean() < 1
    torch.testing.assert_close(
        parts["cls"], torch.nn.functional.multilabel_soft_margin_loss(logits(masked), batch["label"])
    )
    torch.testing.assert_close(parts["reg"], (maps - student).abs().mean() / maps.abs().mean())  # Eq. 24
    torch.testing.assert_close(parts["loss"].detach(), 0.35 * parts["cls"] + 0.65 * parts["reg"])  # Eq. 40
    parts["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training  # Eq. 5
    assert not any("teacher" in name for name in stage.state_dict())


def test_stage_2_sees_the_masked_view_alone_and_has_no_tag_loss(batch):
    net, teacher = coarse().eval(), coarse()
    seen = []
    net.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    stage = DistillationStage(net, teacher, Distillation(lambda_cls=0.0, lambda_reg=1.0))
    parts = stage(batch, 0, 0.0)
    assert len(seen) == 1 and len(seen[0]) == 2  # one view of each image
    x = network_input(net, batch)
    assert not torch.equal(seen[0], x) and "cls" not in parts
    with torch.no_grad():
        maps = teacher(x)
    torch.testing.assert_close(parts["loss"].detach(), (maps - net(seen[0])).abs().mean().detach() / maps.abs().mean())


def test_a_teacher_of_several_scales_is_their_mean(batch):
    teacher = coarse().eval()
    with torch.no_grad():
        alone, two, tiny = (teacher_maps(teacher, batch, scales) for scales in ((1.0,), (1.0, 1.5), (0.1,)))
        x = network_input(teacher, batch)
        large = teacher(torch.nn.functional.interpolate(x, (96, 96), mode="bilinear", antialias=True))  # [B, K, 6, 6]
        down = torch.nn.functional.interpolate(large, (4, 4), mode="bilinear", antialias=True)
        assert torch.equal(alone, teacher(x))
    torch.testing.assert_close(two, (alone + down) / 2)
    assert tiny.shape == alone.shape  # a view has at least one cell


@pytest.mark.parametrize("lambda_cls", [0.35, 0.0], ids=["stage 1", "stage 2"])
def test_distillation_follows_the_teacher_of_its_scales(batch, lambda_cls):
    net, teacher = coarse().eval(), coarse()
    stage = DistillationStage(net, teacher, Distillation(lambda_cls=lambda_cls, teacher_scales=(0.5, 1.0)))
    seen = []
    net.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    parts = stage(batch, 0, 0.0)
    maps = teacher_maps(teacher, batch, (0.5, 1.0))
    student = net(seen[0][: len(batch["label"])])  # stage 1: the whole image comes first
    torch.testing.assert_close(parts["reg"], ((maps - student).abs().mean() / maps.abs().mean()).detach())


def test_stage_3_has_five_losses_and_the_crf_every_fourth_iteration(batch):
    net = build_model("resnet18", K, "lean", width=16)
    settings = Refinement(batch_size=2)
    stage = RefinementStage(net, settings, crop=64)
    first, second = stage(batch, 0, 0.0), stage(batch, 1, 0.0)
    assert {"cls", "edge", "loc", "rw", "crf"} < set(first) and "crf" not in second
    weights = {"cls": 1.0, "edge": 0.7, "loc": 0.45, "rw": 0.4, "crf": 0.8}  # table III
    torch.testing.assert_close(first["loss"].detach(), sum(w * first[n] for n, w in weights.items()))  # Eq. 42
    first["loss"].backward()
    trained = {
        name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert trained == {"backbone", "classifier", "head"}


def test_stage_3_targets_ignore_padding_and_absent_classes(batch):
    stage = RefinementStage(build_model("resnet18", K, "lean", width=16), Refinement(), crop=64)
    z1 = torch.randn(2, K, 16, 16)
    labels = stage.labels(z1, batch)
    assert (labels[1, 48:] == 255).all() and (labels[0] != 255).all()
    assert set(labels[0].unique().tolist()) <= {0, 1} and set(labels[1].unique().tolist()) <= {0, 2, 3, 255}
    for target in (stage.targets.walk(labels, batch["image"], K), stage.targets.crf(labels, batch["image"], K)):
        assert ((target == 255) == ~batch["valid"][:, 0]).all()
        assert set(target[0].unique().tolist()) <= {0, 1}


def test_local_consistency_compares_background_too(batch):
    stage = RefinementStage(build_model("resnet18", K, "lean", width=16), Refinement(), crop=64)
    cam = ops.cam_normalize(torch.randn(2, K, 8, 8))
    vector = stage._distribution(cam, batch["label"])
    assert vector.shape[1] == K + 1
    torch.testing.assert_close(vector[0, 0], 1 - cam[0, 0])  # one class present: the rest is background
    assert (vector[0, 2:] == 0).all()
