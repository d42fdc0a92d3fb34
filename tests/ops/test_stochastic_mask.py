"""stochastic_mask: Eq. 6-8."""

import pytest
import torch

from camguide_fast import ops, reference


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def brute_force(cam, label, tau):
    b, k, h, w = cam.shape
    mask = torch.zeros(b, 1, h, w, dtype=torch.bool)
    for i in range(b):
        for c in range(k):
            if label[i, c] > 0:
                mask[i, 0] |= cam[i, c] > tau[i, c]
        if not mask[i].any():
            mask[i] = True
    return mask


def test_by_hand():
    cam = torch.tensor([[[[0.2, 0.5]], [[0.9, 0.1]], [[0.9, 0.9]]]]).expand(4, 3, 1, 2)
    label = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    mask = ops.stochastic_mask(cam, label, 0.3, 0.3)
    expected = torch.tensor([[0, 1], [1, 0], [1, 1], [1, 1]]).bool()  # without a class: empty, hence all ones
    assert torch.equal(mask, expected.view(4, 1, 1, 2))
    assert ops.stochastic_mask(cam, label, 0.95, 0.99).all()  # above every value: empty, hence all ones


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 4, 5, 7), (2, 20, 33, 31)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label_dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_equals_the_loop(shape, dtype, label_dtype):
    cam, label = torch.rand(shape).to(dtype), torch.randint(0, 2, shape[:2]).to(label_dtype)
    mask = ops.stochastic_mask(cam, label, 0.2, 0.9, seeded())
    tau = 0.2 + 0.7 * torch.rand(shape[:2], generator=seeded())
    assert mask.dtype == torch.bool
    assert torch.equal(mask, brute_force(cam.double(), label, tau.double()))
    strided = cam.to(memory_format=torch.channels_last)
    assert torch.equal(ops.stochastic_mask(strided, label, 0.2, 0.9, seeded()), mask)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_twin(dtype):
    """Images of more than one block, some shown in the last pixel alone; thresholds that are values of the cam."""
    cam, label = torch.rand(5, 6, 97, 211).to(dtype), torch.randint(0, 2, (5, 6))
    cam[0, :, :-1], cam[0, :, -1, :-1] = 0, 0
    cam[1], cam[2, :, 50:60] = 0, float("nan")
    label[0], label[3] = 1, 0
    tau = cam[:, :, -1, -1].double() * torch.tensor([1, 1, 1 - 1e-12, 1 + 1e-12, 0.5, 0.0], dtype=torch.float64)
    for thresholds in (tau, tau.float()):  # the first are between the numbers of a narrower cam
        mask = torch.ops.camguide_fast.stochastic_mask(cam, label, thresholds)
        assert torch.equal(mask, reference.stochastic_mask(cam, label, thresholds))
    assert mask[0].sum() == 1 and mask[1].all() and mask[3].all()


def test_absent_classes_are_not_looked_at():
    cam = torch.full((2, 3, 9, 9), float("inf"))
    cam[:, 1] = torch.linspace(0, 1, 81).view(9, 9)
    mask = ops.stochastic_mask(cam, torch.tensor([[0, 1, 0]] * 2), 0.5, 0.5)
    assert torch.equal(mask[:, 0], cam[:, 1] > 0.5)


def test_draws():
    cam = torch.linspace(0, 1, 1001).view(1, 1, 1, -1).expand(2000, 1, 1, -1)
    fraction = ops.stochastic_mask(cam, torch.ones(2000, 1), 0.25, 0.75, seeded()).float().mean((1, 2, 3))
    assert 0.25 <= fraction.min() < 0.26 and 0.74 < fraction.max() <= 0.75  # one threshold per image, over the range
    torch.testing.assert_close(fraction.mean(), torch.tensor(0.5), atol=0.02, rtol=0)


def test_generator():
    cam = torch.rand(2, 3, 9, 9)
    generators, states = (seeded(), seeded()), []
    for generator, label in zip(generators, (torch.zeros(2, 3), torch.ones(2, 3)), strict=True):
        ops.stochastic_mask(cam, label, 0.1, 0.9, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)  # the stream does not depend on the labels
    torch.manual_seed(3)
    first = ops.stochastic_mask(cam, torch.ones(2, 3), 0.1, 0.9)
    torch.manual_seed(3)
    assert torch.equal(first, ops.stochastic_mask(cam, torch.ones(2, 3), 0.1, 0.9))
    assert torch.equal(first, ops.stochastic_mask(cam, torch.ones(2, 3), 0.1, 0.9, seeded(3)))


def test_opcheck_and_compile():
    cam, label = torch.rand(2, 3, 6, 7), torch.tensor([[1, 0, 1], [0, 0, 0]])
    torch.library.opcheck(torch.ops.camguide_fast.stochastic_mask.default, (cam, label, torch.rand(2, 3)))

    def masked(cam):
        return cam * ops.stochastic_mask(cam, label, 0.5, 0.5)

    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(cam), masked(cam))


@pytest.mark.cuda
def test_cuda():
    cam, label = torch.rand(4, 20, 32, 32), torch.randint(0, 2, (4, 20))
    expected = ops.stochastic_mask(cam, label, 0.1, 0.9, seeded())
    assert torch.equal(ops.stochastic_mask(cam.cuda(), label.cuda(), 0.1, 0.9, seeded()).cpu(), expected)
    ops.stochastic_mask(cam.cuda(), label.cuda(), 0.1, 0.9, torch.Generator("cuda"))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(cam=torch.zeros(3, 4, 4)), "cam must have 4"),
        (dict(cam=torch.zeros(1, 2, 4, 4, dtype=torch.int32)), "cam must be one of"),
        (dict(label=torch.zeros(1, 3)), "label must be real and have shape"),
        (dict(label=None), "label must be a tensor"),
        (dict(low=-0.1), "low"),
        (dict(high=0.1), "high must be a number >= 0.2"),
    ],
)
def test_errors(change, message):
    arguments = dict(cam=torch.zeros(1, 2, 4, 4), label=torch.ones(1, 2), low=0.2, high=0.5)
    with pytest.raises((ValueError, TypeError), match=message):
        ops.stochastic_mask(**arguments | change)
