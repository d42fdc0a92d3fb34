"""confusion_matrix: counts of (target, prediction) pairs."""

import pytest
import torch

from camguide_fast import ops, reference

LABELS = [torch.uint8, torch.int32, torch.int64]
IMPLEMENTATIONS = {  # the row that the dispatcher chooses (C++ if it was built), and the twin
    "op": torch.ops.camguide_fast.confusion_matrix,
    "reference": reference.confusion_matrix,
}


def runs(n: int, high: int) -> torch.Tensor:
    """Labels in runs, as a segmentation has them."""
    return torch.randint(0, high, (n,)).repeat_interleave(torch.randint(1, 9, (n,)))[:n]


def brute_force(pred, target, num_classes, ignore):
    table, outside = torch.zeros(num_classes, num_classes, dtype=torch.int64), 0
    for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t == ignore:
            continue
        if 0 <= t < num_classes and 0 <= p < num_classes:
            table[t, p] += 1
        else:
            outside += 1
    return table, outside


def test_by_hand():
    pred = torch.tensor([[0, 1, 1], [2, 2, 0]])
    target = torch.tensor([[0, 1, 2], [2, 255, 1]])
    expected = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]])
    result = ops.confusion_matrix(pred, target, 3)
    assert result.dtype == torch.int64
    assert torch.equal(result, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape, classes", [((1,), 1), ((7, 5), 3), ((2, 1, 33, 31), 21)], ids=str)
@pytest.mark.parametrize("pred_dtype", LABELS, ids=str)
@pytest.mark.parametrize("target_dtype", LABELS, ids=str)
def test_equals_the_loop(implementation, shape, classes, pred_dtype, target_dtype):
    n = torch.Size(shape).numel()
    target = runs(n, classes + 1)  # the label `classes` is out of range, or ignored where it is drawn
    target = torch.where((target == classes) & (torch.arange(n) % 2 == 0), 255, target)
    pred, target = runs(n, classes + 1).to(pred_dtype).view(shape), target.to(target_dtype).view(shape)
    table, outside = IMPLEMENTATIONS[implementation](pred, target, classes, 255)
    expected, expected_outside = brute_force(pred, target, classes, 255)
    assert torch.equal(table, expected)
    assert outside == expected_outside


@pytest.mark.usefixtures("several_threads")
def test_many_pixels_on_several_threads():
    pred, target = runs(1_000_003, 21), runs(1_000_003, 21)
    cells = torch.bincount(target * 21 + pred, minlength=21 * 21).view(21, 21)
    assert torch.equal(ops.confusion_matrix(pred, target, 21), cells)
    noise = torch.randint(0, 21, (300_000,))
    assert torch.equal(ops.confusion_matrix(noise, noise, 21), torch.diag(torch.bincount(noise, minlength=21)))


def test_ignored_targets_hide_the_prediction():
    pred, target = torch.tensor([0, 200, 1]), torch.tensor([0, 7, 1])
    assert torch.equal(ops.confusion_matrix(pred, target, 2, ignore=7), torch.eye(2, dtype=torch.int64))
    target = torch.tensor([0, -1, 1])
    assert torch.equal(ops.confusion_matrix(pred, target, 2, ignore=-1), torch.eye(2, dtype=torch.int64))
    assert ops.confusion_matrix(pred, torch.full((3,), 255), 2).sum() == 0


def test_strides():
    pred, target = torch.randint(0, 5, (2, 40, 30)), torch.randint(0, 5, (2, 30, 40)).transpose(1, 2)
    expected = ops.confusion_matrix(pred, target.contiguous(), 5)
    assert torch.equal(ops.confusion_matrix(pred, target, 5), expected)
    even, odd = (ops.confusion_matrix(pred[:, i::2], target[:, i::2], 5) for i in (0, 1))
    assert torch.equal(even + odd, expected)


def test_opcheck_and_compile():
    pred, target = torch.randint(0, 3, (2, 8, 9)), torch.randint(0, 3, (2, 8, 9), dtype=torch.uint8)
    torch.library.opcheck(torch.ops.camguide_fast.confusion_matrix.default, (pred, target, 3, 255))
    compiled = torch.compile(lambda p, t: ops.confusion_matrix(p, t, 3) + 1, fullgraph=True)
    assert torch.equal(compiled(pred, target), ops.confusion_matrix(pred, target, 3) + 1)


@pytest.mark.cuda
def test_cuda():
    pred, target = runs(100_000, 21), runs(100_000, 21).byte()
    assert torch.equal(
        ops.confusion_matrix(pred.cuda(), target.cuda(), 21).cpu(), ops.confusion_matrix(pred, target, 21)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(pred=None), "pred must be a tensor"),
        (dict(pred=torch.zeros(2, 3)), "pred must be one of uint8"),
        (dict(pred=torch.zeros(0, 3, dtype=torch.int64)), "pred must have 2 non-empty"),
        (dict(target=torch.zeros(3, 2, dtype=torch.int64)), r"target must have shape \(2, 3\)"),
        (dict(target=torch.zeros(6, dtype=torch.int64)), "target must have 2"),
        (dict(target=torch.zeros(2, 3, dtype=torch.int16)), "target must be one of"),
        (dict(num_classes=0), "num_classes"),
        (dict(ignore=None), "ignore"),
        (dict(pred=torch.full((2, 3), 4)), r"outside \[0, 4\) at 6 pixels"),
        (dict(target=torch.full((2, 3), -1)), r"outside \[0, 4\) at 6 pixels"),
        (dict(pred=torch.full((2, 3), 255)), "outside"),
    ],
)
def test_errors(change, message):
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises((ValueError, TypeError), match=message):
        ops.confusion_matrix(**dict(pred=zeros, target=zeros, num_classes=4) | change)
