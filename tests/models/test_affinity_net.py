"""AffinityNet: its branch, its training, its labels."""

import pytest
import torch

from camguide_fast import ops
from camguide_fast.config import Affinity, Crf
from camguide_fast.errors import UserError
from camguide_fast.method.stages import AffinityStage
from camguide_fast.method.targets import affinity_labels, refine_labels, refine_scores
from camguide_fast.models import AffinityNet, build_trunk
from camguide_fast.models.checkpoint import ModelCard, load_model, save_model


@pytest.mark.parametrize("arch, parameters", [("resnet18", 33_249), ("resnet50", 125_409)])
def test_branch_has_the_parameters_of_irn(arch, parameters):
    with torch.device("meta"):
        net = AffinityNet(build_trunk(arch))
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == parameters
    assert not any(p.requires_grad for p in net.backbone.parameters())


@pytest.mark.parametrize("size", [(1, 1), (17, 40), (64, 48), (50, 3)], ids=str)
def test_any_size(size):
    net = AffinityNet(build_trunk("resnet18")).eval()
    logits = net(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, -(-size[0] // 4), -(-size[1] // 4))


def test_trunk_is_frozen_and_the_branch_learns():
    net = AffinityNet(build_trunk("resnet18")).train()
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    batch = {
        "image": torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8),
        "valid": torch.ones(2, 1, 48, 48, dtype=torch.bool),
        "mask": (torch.arange(48) >= 24).to(torch.uint8).expand(2, 48, 48).contiguous(),
    }
    stage = AffinityStage(net, Affinity(radius=4))
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(12):
        parts = stage(batch, step, 0.0)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["loss"].item())
    assert losses[-1] < losses[0] and set(parts) == {"loss", "bg", "fg", "neg"}
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())


def test_checkpoints_of_the_two_kinds_are_told_apart(tmp_path):
    card = ModelCard("affinity", "resnet18", "edges", 16, 2, 1e-2, ("cat", "dog"), input_norm=((1.0,) * 3, (2.0,) * 3))
    save_model(tmp_path / "affinity.safetensors", card.build(), card)
    net, again = load_model(tmp_path / "affinity.safetensors", affinity=True)
    assert isinstance(net, AffinityNet) and again == card and not net.training
    with pytest.raises(UserError, match="is an AffinityNet .affinity., expected a network of CAMs"):
        load_model(tmp_path / "affinity.safetensors")


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of two halves, and a CAM that falls off slowly across their border."""
    image = torch.full((3, 24, 40), 40, dtype=torch.uint8)
    image[:, :, :20] = 200
    return image, torch.linspace(1, 0, 40).expand(1, 24, 40)


def test_labels_are_certain_or_unknown():
    image, cam = halves()
    settings = Affinity(crf=Crf(iterations=0))  # the thresholds alone
    labels = affinity_labels(cam, torch.tensor([2]), image, 4, settings)
    top = cam[0]
    assert torch.equal(labels, torch.where(top > 0.4, 3, torch.where(top > 0.1, 255, 0)))
    refined = affinity_labels(cam, torch.tensor([2]), image, 4, Affinity())
    assert (refined[:, :20] == 3).all()
    assert (refined == 3).sum() < (labels == 3).sum()  # the CRF draws the border towards the picture's
    assert (affinity_labels(cam[:0], torch.zeros(0, dtype=torch.int64), image, 4, settings) == 0).all()


def test_scores_are_those_behind_the_labels():
    image, cam = halves()
    crf = Crf(iterations=3)
    labels = torch.where(cam[0] > 0.7, 3, torch.where(cam[0] > 0.2, 1, 0))
    present, scores = refine_scores(labels, image, crf)
    assert present.tolist() == [0, 1, 3]
    torch.testing.assert_close(scores.sum(0), torch.ones(24, 40))
    assert torch.equal(present[scores.argmax(0)], refine_labels(labels, image, 5, crf))
    present, scores = refine_scores(torch.zeros(4, 5, dtype=torch.uint8), image[:, :4, :5], crf)
    assert present.tolist() == [0] and (scores == 1).all()


def test_edges_hold_the_walk_back():
    """What AffinityNet is for: a CAM fills its object up to the edge."""
    edge = torch.zeros(1, 1, 12, 20)
    edge[..., 10] = 1
    cam = torch.zeros(1, 1, 12, 20)
    cam[..., 4:7, 3:5] = 1
    walk = ops.affinity_random_walk(cam, edge)
    assert (walk[..., :9] > 0.2 * walk.max()).all() and (walk[..., 11:] < 1e-3 * walk.max()).all()
