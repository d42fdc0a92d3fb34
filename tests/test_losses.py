"""The loss modules."""

import pytest
import torch
from torch import nn

from camguide_fast import losses, ops


def maps(b=2, k=3, h=8, w=7):
    label = torch.zeros(b, k)
    label[:, 0], label[0, 1] = 1, 1
    return torch.rand(b, k, h, w), label


def test_modules_are_their_ops():
    cam, label = maps()
    support, valid = torch.rand(2, 1, 8, 7) * 0.2, torch.rand(2, 1, 8, 7) > 0.05
    target = torch.randint(0, 4, (2, 8, 7))
    for args in ((cam,), (cam, valid)):
        assert torch.equal(
            losses.LocalConsistencyLoss()(*args), ops.local_consistency_loss(cam, valid=(*args, None)[1])
        )
    assert torch.equal(losses.LocalConsistencyLoss(5, 0.1)(cam), ops.local_consistency_loss(cam, window=5, eps=0.1))
    for extra in ((), (valid,)):
        options = dict(valid=valid) if extra else {}
        expected = ops.edge_consistency_loss(cam, support, label, **options)
        assert torch.equal(losses.EdgeConsistencyLoss()(cam, support, label, *extra), expected)
    numbers = dict(tau=0.15, delta=0.01, gamma=1.5, tau_hard=0.5, lambda_hard=1.0)
    assert torch.equal(
        losses.EdgeConsistencyLoss(**numbers)(cam, support, label),
        ops.edge_consistency_loss(cam, support, label, **numbers),
    )
    assert torch.equal(losses.TargetNLL()(cam, target, label), ops.target_nll(cam, target, label))
    options = dict(ignore=1, smooth=0.1, balance=True)
    assert torch.equal(losses.TargetNLL(**options)(cam, target, label), ops.target_nll(cam, target, label, **options))
    assert "gamma=1.5" in repr(losses.EdgeConsistencyLoss(gamma=1.5)) and "window=7" in repr(
        losses.LocalConsistencyLoss()
    )


def test_hinge_by_hand():
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], requires_grad=True)
    label = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1]])
    # pairs (0, 2): 1 - 3 < 0; (1, 2): 1 - 1.5 < 0. Pairs of equal logits: 1 each, two in either image
    assert losses.MultiLabelHingeLoss()(logits, label).item() == pytest.approx(4 / 9)
    loss = losses.MultiLabelHingeLoss()(logits, torch.tensor([[0, 1, 0], [1, 0, 0], [0, 1, 1]]))
    # pairs (1, 0): 1 - (.5 - 2) = 2.5; (1, 2): 0. Divided by K = 3 and B = 3
    assert loss.item() == pytest.approx(6.5 / 9)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, torch.tensor([[1.0, -1.0, 0.0], [-2, 1, 1], [2, -1, -1]]) / 9)


def test_hinge_of_images_without_a_pair():
    """No tag, all tags, a single class: the soft margin, so that something is learned of them."""
    logits = torch.randn(3, 4, dtype=torch.float64)
    label = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    hinge, soft = losses.MultiLabelHingeLoss(), nn.MultiLabelSoftMarginLoss()
    torch.testing.assert_close(hinge(logits[:2], label[:2]), soft(logits[:2], label[:2].double()))
    apart = (2 * hinge(logits[:2], label[:2]) + hinge(logits[2:], label[2:])) / 3
    torch.testing.assert_close(hinge(logits, label), apart)
    one, tag = logits[:, :1].clone().requires_grad_(), label[:, 1:2]
    torch.testing.assert_close(hinge(one, tag), soft(one, tag.double()))
    assert torch.autograd.grad(hinge(one, tag), one)[0].abs().min() > 0


def test_hinge_equals_torch_on_index_lists():
    logits, label = torch.randn(16, 20, dtype=torch.float64), torch.rand(16, 20) < 0.2
    indices = torch.full((16, 20), -1)
    for i, row in enumerate(label):
        indices[i, : row.sum()] = row.nonzero()[:, 0]
    expected = nn.MultiLabelMarginLoss()(logits, indices)
    torch.testing.assert_close(losses.MultiLabelHingeLoss()(logits, label), expected)
    assert torch.autograd.gradcheck(losses.MultiLabelHingeLoss(), (logits[:3].requires_grad_(), label[:3]))
    half = losses.MultiLabelHingeLoss()(logits.half(), label.float())
    assert half.dtype == torch.float32 and half.item() == pytest.approx(expected.item(), rel=1e-3)
    with pytest.raises(ValueError, match="logits and label"):
        losses.MultiLabelHingeLoss()(logits, label[:, :3])


def test_map_regularization_by_hand():
    teacher = torch.tensor([4.0, -2.0, 0.0, 2.0]).view(1, 1, 2, 2).requires_grad_()
    student = torch.tensor([3.0, 0.0, 0.0, 3.0]).view(1, 1, 2, 2).requires_grad_()
    raw = losses.MapRegularization(raw=True)(student, teacher)
    assert raw.item() == pytest.approx(1.0)  # (1 + 2 + 0 + 1) / 4
    loss = losses.MapRegularization()(student, teacher)
    assert loss.item() == pytest.approx(0.5)  # mean |F_T| = 2
    grads = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    torch.testing.assert_close(grads[0].flatten(), torch.tensor([-1.0, 1.0, 0.0, 1.0]) / 8)
    assert grads[1] is None
    valid = torch.tensor([True, False, False, False]).view(1, 1, 2, 2)
    assert losses.MapRegularization()(student, teacher, valid).item() == pytest.approx(0.25)
    assert losses.MapRegularization()(student, teacher, ~valid & False) == 0
    padded = torch.where(valid, student, torch.nan)
    assert losses.MapRegularization(raw=True)(padded, teacher, valid).item() == pytest.approx(1.0)
    assert losses.MapRegularization()(teacher * 3, teacher * 0).isfinite()  # a dead teacher


def test_map_regularization_scale_dtype_and_errors():
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    one, everything = losses.MapRegularization(), torch.ones(2, 1, 4, 5, dtype=torch.bool)
    torch.testing.assert_close(one(student * 9, teacher * 9), one(student, teacher))
    torch.testing.assert_close(one(student, teacher, everything), one(student, teacher))
    assert one(student.half(), teacher.half()).dtype == torch.float32
    with pytest.raises(ValueError, match="student and teacher"):
        one(student, teacher[:, :1])
    with pytest.raises(ValueError, match="valid must be bool"):
        one(student, teacher, everything[:, :, :2])
