"""AffinityNet: its branch, its loss without a list of paths, its labels."""

import itertools

import pytest
import torch

from camguide_fast import ops
from camguide_fast.checkpoint import ModelCard, load_model, save_model
from camguide_fast.config import Affinity, Crf
from camguide_fast.errors import UserError
from camguide_fast.losses import PathAffinityLoss
from camguide_fast.models import AffinityNet, build_resnet
from camguide_fast.reference.affinity_walk import segment_cells
from camguide_fast.stages import AffinityStage
from camguide_fast.targets import affinity_labels, refine_labels, refine_scores


def brute_force(edge, target, radius):
    """The loss pair by pair; differentiable."""
    b, _, h, w = edge.shape
    parts = {"bg": [], "fg": [], "neg": []}
    for i, y, x, dy, dx in itertools.product(range(b), range(h), range(w), range(radius), range(1 - radius, radius)):
        inside = y + dy < h and 0 <= x + dx < w
        if not inside or dy * dy + dx * dx >= radius * radius or (dy == 0 and dx <= 0):
            continue
        here, there = target[i, y, x].item(), target[i, y + dy, x + dx].item()
        if 255 in (here, there):
            continue
        a = 1 - torch.stack([edge[i, 0, y + py, x + px] for py, px in segment_cells(dy, dx)]).max()
        if here == there:
            parts["fg" if here else "bg"].append(-(a + 1e-5).log())
        else:
            parts["neg"].append(-(1 + 1e-5 - a).log())
    mean = {name: torch.stack(p).mean() if p else edge.new_zeros(()) for name, p in parts.items()}
    return {"loss": mean["bg"] / 4 + mean["fg"] / 4 + mean["neg"] / 2, **mean}


@pytest.mark.parametrize("size, radius", [((6, 7), 4), ((1, 1), 5), ((3, 9), 10), ((8, 2), 3)], ids=str)
def test_loss_pair_by_pair(size, radius):
    edge = torch.rand(2, 1, *size, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, *size))
    target[0, 0, 0] = 255
    parts, expected = PathAffinityLoss(radius)(edge, target), brute_force(edge, target, radius)
    for name in expected:
        torch.testing.assert_close(parts[name], expected[name])
    if min(size) > 1:
        (grad,) = torch.autograd.grad(3 * parts["loss"], edge)
        torch.testing.assert_close(grad, torch.autograd.grad(3 * expected["loss"], edge)[0])
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("label", [0, 2, 255])
def test_loss_of_one_label_alone(label):
    edge = torch.rand(1, 1, 5, 6, requires_grad=True)
    parts = PathAffinityLoss(3)(edge, torch.full((1, 5, 6), label))
    assert (parts["bg"] > 0, parts["fg"] > 0, parts["neg"] > 0) == (label == 0, label == 2, False)
    parts["loss"].backward()
    assert edge.grad.isfinite().all() and (edge.grad != 0).any() == (label != 255)


def test_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"target \[B, h, w\], got \(1, 1, 4, 4\) and \(1, 4, 5\)"):
        PathAffinityLoss()(torch.rand(1, 1, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))


@pytest.mark.parametrize("arch, parameters", [("resnet18", 33_249), ("resnet50", 125_409)])
def test_branch_has_the_parameters_of_irn(arch, parameters):
    with torch.device("meta"):
        net = AffinityNet(build_resnet(arch))
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == parameters
    assert not any(p.requires_grad for p in net.backbone.parameters())


@pytest.mark.parametrize("size", [(1, 1), (17, 40), (64, 48), (50, 3)], ids=str)
def test_any_size(size):
    net = AffinityNet(build_resnet("resnet18")).eval()
    logits = net(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, -(-size[0] // 4), -(-size[1] // 4))


def test_trunk_is_frozen_and_the_branch_learns():
    net = AffinityNet(build_resnet("resnet18")).train()
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
    card = ModelCard("affinity", "resnet18", "edges", 16, 2, 1e-2, ("cat", "dog"))
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
