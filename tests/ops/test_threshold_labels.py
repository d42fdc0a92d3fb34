"""threshold_labels: Eq. 6-7 as labels, at the size of the image."""

import pytest
import torch

from camguide_fast import ops, reference

OP = ops.threshold_labels
# up by a whole number and by another, the same, down; one pixel; a side of one, more classes than a byte has bits
SHAPES = [
    ((2, 5, 4, 6), (16, 24)),
    ((3, 2, 7, 5), (20, 33)),
    ((2, 3, 6, 7), (6, 7)),
    ((2, 4, 13, 11), (5, 4)),
    ((1, 1, 1, 1), (1, 1)),
    ((1, 1, 1, 9), (3, 4)),
    ((2, 254, 2, 3), (5, 1)),
]


def case(shape, size, dtype=torch.float64):
    """Classes absent from images, an image without any, thresholds of either sign, padding."""
    b, k = shape[:2]
    label = torch.rand(b, k) < 0.5
    label[0, 0], label[-1] = True, label[-1] & (b == 1)
    tau = torch.linspace(0.3, -0.1, b, dtype=torch.promote_types(dtype, torch.float32))
    return torch.rand(shape, dtype=torch.float64).sub(0.2).to(dtype), label, tau, torch.rand(b, 1, *size) > 0.2


def brute_force(cam, label, tau, size, valid):
    b, k, h, w = cam.shape
    labels = torch.zeros(b, *size, dtype=torch.uint8)

    def mixed(i, n, out):
        at = max((i + 0.5) * n / out - 0.5, 0)
        low = min(int(at), n - 1)
        return [(low, 1 - (at - low)), (min(low + 1, n - 1), at - low)]

    for i in range(b):
        for y in range(size[0]):
            for x in range(size[1]):
                best = tau[i].item()
                for c in range(k):
                    corners = [(p, q, u * v) for p, u in mixed(y, h, size[0]) for q, v in mixed(x, w, size[1])]
                    value = sum(share * cam[i, c, p, q].item() for p, q, share in corners) if label[i, c] > 0 else 0
                    if value > best:
                        best, labels[i, y, x] = value, c + 1
    return labels if valid is None else torch.where(valid[:, 0], labels, 255)


def test_by_hand():
    cam = torch.tensor([[[[0.1, 0.5]], [[0.4, 0.2]], [[0.9, 0.9]]]])  # [1, 3, 1, 2]
    label = torch.tensor([[1.0, 1.0, 0.0]])  # the third class is absent
    labels = OP(cam, label, torch.tensor([0.3]), (1, 2))
    assert labels.dtype == torch.uint8 and labels.tolist() == [[[2, 1]]]
    assert OP(cam, label, 0.45, (1, 2)).tolist() == [[[0, 1]]]
    assert OP(cam, label, 0.3, (1, 4)).tolist() == [[[2, 2, 1, 1]]]  # .1 .2 .4 .5 against .4 .35 .25 .2
    valid = torch.tensor([[[[True, False]]]])
    assert OP(cam, label, 0.3, (1, 2), valid).tolist() == [[[2, 255]]]
    assert OP(cam, label * 0, 0.3, (1, 2), valid).tolist() == [[[0, 255]]]  # no class is present
    assert OP(cam, label, -1, (1, 2)).tolist() == [[[2, 1]]]  # an absent class is 0 and not the largest


@pytest.mark.parametrize("shape, size", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_loop_and_the_twin(shape, size, masked):
    cam, label, tau, valid = case(shape, size)
    mask = valid if masked else None
    labels = OP(cam, label, tau, size, mask)
    assert torch.equal(labels, reference.threshold_labels(cam, label, tau, size, mask))
    assert torch.equal(labels, brute_force(cam, label, tau, size, mask))


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(320, 320), (211, 333), (17, 29)], ids=str)
def test_differs_where_rounding_decides_alone(dtype, size):
    cam, label, tau, valid = case((3, 5, 40, 37), size, dtype)
    labels = OP(cam, label, tau, size, valid)
    exact = reference.threshold_labels(cam.double(), label, tau.double(), size, valid)
    maps = torch.nn.functional.interpolate(cam.double(), size, mode="bilinear") * label[:, :, None, None]
    largest = torch.cat([tau.double()[:, None, None, None].expand_as(maps[:, :1]), maps], 1).topk(2, 1).values
    wrong = labels != exact
    assert wrong.double().mean() <= 1e-3 and (largest[:, 0] - largest[:, 1])[wrong].le(1e-5).all()
    twin = reference.threshold_labels(cam, label, tau, size, valid)
    assert (labels != twin).double().mean() <= 1e-3


def test_ties_go_to_the_first_and_equal_is_not_above():
    cam = torch.full((1, 3, 5, 5), 0.5)
    for present, expected in [([1, 1, 1], 1), ([0, 1, 1], 2), ([0, 0, 1], 3), ([0, 0, 0], 0)]:
        label = torch.tensor([present])
        assert (OP(cam, label, 0.25, (9, 8)) == expected).all()
        assert not OP(cam, label, 0.5, (9, 8)).any()


def test_a_negative_threshold_lets_absent_classes_win():
    """They count as 0; of two such the first."""
    cam = torch.full((1, 4, 2, 2), -0.1)
    assert (OP(cam, torch.tensor([[1, 0, 0, 1]]), -0.2, (3, 3)) == 2).all()
    assert (OP(cam, torch.tensor([[1, 1, 1, 1]]), -0.2, (3, 3)) == 1).all()
    assert (OP(cam * 0, torch.tensor([[1, 0, 0, 1]]), -0.2, (3, 3)) == 1).all()


def test_nan():
    """Of absent classes it is not seen; elsewhere its pixels are background."""
    cam, label = torch.full((2, 3, 6, 6), 0.5), torch.tensor([[1, 0, 1], [1, 0, 1]])
    cam[:, 1] = torch.nan
    for c in (0, 2):
        broken = cam.clone()
        broken[0, c, 2, 3] = torch.nan
        labels = OP(broken, label, 0.25, (12, 12))
        assert torch.equal(labels, reference.threshold_labels(broken, label, torch.full((2,), 0.25), (12, 12), None))
        assert not labels[0, 4:6, 6:8].any() and (labels[0, :2] == 1).all() and (labels[1] == 1).all()
    assert not OP(cam, label, torch.full((2,), torch.nan), (5, 5)).any()
    endless = cam.masked_fill(cam == 0.5, torch.inf)
    expected = reference.threshold_labels(endless, label, torch.full((2,), 0.25), (6, 6), None)
    assert torch.equal(OP(endless, label, 0.25, (6, 6)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_strides_dtypes_and_batch(dtype):
    cam, label, tau, valid = case((3, 4, 9, 7), (20, 31), dtype)
    labels = OP(cam, label, tau, (20, 31), valid)
    for x in (cam.to(memory_format=torch.channels_last), cam.mT.contiguous().mT):
        assert torch.equal(OP(x, label.T.contiguous().T, tau, [20, 31], valid.mT.contiguous().mT), labels)
    for kind in (torch.int64, torch.float32, torch.float16):
        assert torch.equal(OP(cam, label.to(kind), tau, torch.Size((20, 31)), valid), labels)
    one_by_one = [OP(cam[i, None], label[i, None], tau[i].item(), (20, 31), valid[i, None]) for i in range(3)]
    assert torch.equal(torch.cat(one_by_one), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OP(cam, label, tau, (20, 31), valid), labels)


def test_a_threshold_is_rounded_to_the_type_of_the_maps():
    cam, label = torch.full((1, 1, 2, 2), 0.3), torch.ones(1, 1)
    assert not OP(cam, label, torch.tensor([0.3], dtype=torch.float64), (3, 3)).any()
    assert not OP(cam, label, 0.3, (3, 3)).any()


def test_same_bits(same_bits_on_any_threads):
    cam, label, tau, valid = case((3, 6, 40, 30), (200, 170), torch.float32)
    same_bits_on_any_threads(lambda: [OP(cam, label, tau, (200, 170), valid)])


def test_opcheck_and_compile():
    cam, label, tau, valid = case((2, 3, 4, 5), (9, 8), torch.float32)
    op = torch.ops.camguide_fast.threshold_labels.default
    for mask in (None, valid):
        torch.library.opcheck(op, (cam, label, tau, [9, 8], mask))

    def labels(cam, image):
        return OP(cam, label, 0.1, image.shape[2:]).long() + 1

    image = torch.zeros(2, 3, 9, 8)
    for dynamic in (False, True):
        compiled = torch.compile(labels, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        assert torch.equal(compiled(cam, image), labels(cam, image))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cuda(dtype):
    cam, label, tau, valid = case((4, 20, 32, 32), (128, 128), dtype)
    labels = OP(cam.cuda(), label.cuda(), tau.cuda(), (128, 128), valid.cuda()).cpu()
    assert (labels != OP(cam, label, tau, (128, 128), valid)).double().mean() <= 1e-3


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(cam=torch.zeros(3, 4, 4)), "cam must have 4"),
        (dict(cam=torch.zeros(1, 2, 4, 4, dtype=torch.int32)), "cam must be one of"),
        (dict(cam=torch.zeros(1, 255, 1, 1), label=torch.ones(1, 255)), "cam must have at most 254 classes"),
        (dict(cam=torch.zeros(1, 2, 4, 4, requires_grad=True)), "cam requires grad"),
        (dict(label=torch.zeros(1, 3)), "label must be real and have shape"),
        (dict(label=None), "label must be a tensor"),
        (dict(tau=torch.zeros(2)), "tau must have shape"),
        (dict(tau=torch.zeros(1, 1)), "tau must have 1"),
        (dict(tau=torch.zeros(1, dtype=torch.int64)), "tau must be one of"),
        (dict(tau=torch.zeros(1, requires_grad=True)), "tau requires grad"),
        (dict(tau="high"), "tau must be a number"),
        (dict(tau=float("nan")), "tau must be a number"),
        (dict(size=(4,)), "size must be"),
        (dict(size=(0, 4)), r"size\[0\]"),
        (dict(size=(4, 2.0)), r"size\[1\]"),
        (dict(valid=torch.ones(1, 1, 4, 4, dtype=torch.bool)), "valid must have shape"),
        (dict(valid=torch.ones(1, 1, 8, 8)), "valid must be one of bool"),
        (dict(label=torch.zeros(1, 2, device="meta")), "all tensors must be on one device"),
    ],
)
def test_errors(change, message):
    arguments = dict(cam=torch.zeros(1, 2, 4, 4), label=torch.ones(1, 2), tau=torch.zeros(1), size=(8, 8), valid=None)
    with pytest.raises((ValueError, TypeError), match=message):
        OP(**arguments | change)


def test_no_gradient_is_asked_for_where_none_is_recorded():
    cam = torch.rand(1, 2, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert OP(cam, torch.ones(1, 2), 0.5, (8, 8)).shape == (1, 8, 8)
