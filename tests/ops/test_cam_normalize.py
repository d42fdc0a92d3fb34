"""cam_normalize: Eq. 1-3, and the Triton kernels (interpreted where there is no GPU)."""

import numpy as np
import pytest
import torch
from support.capture import captured
from support.triton_row import compile_launches

from camguide_fast import ops, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 2, 61, 67),
    (3, 1, 2, 1024),
]  # the third takes two blocks, the last exactly one
HALF = [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)]


@pytest.fixture(params=["op", "reference", "triton"])
def rows(request):
    """What holds the cam_normalize and cam_normalize_backward that are tested; op: the dispatcher's choice."""
    if request.param == "op":
        return torch.ops.camguide_fast
    if request.param == "reference":
        return reference
    pytest.importorskip("triton")
    from camguide_fast.kernels import cam_normalize

    return cam_normalize


def eager(f, eps=1e-5):
    """Eq. 1-3 as autograd differentiates them."""
    return (f - eps).relu() / (f.relu().amax((2, 3), keepdim=True) + eps)


def maps(shape, dtype=torch.float64):
    """Features with a tie for the maximum in the first map, and no positive feature in the last."""
    f = torch.randn(shape, dtype=dtype, device=DEVICE)
    f[0, 0, 0, 0] = f[0, 0, -1, -1] = 4.0
    f[-1, -1] = -f[-1, -1].abs()
    return f


def test_by_hand():
    f = torch.tensor([[[[1.0, 3.0], [-2.0, 0.25]]]], requires_grad=True)
    cam = ops.cam_normalize(f, eps=0.5)
    torch.testing.assert_close(cam, torch.tensor([[[[0.5, 2.5], [0, 0]]]]) / 3.5)
    cam[0, 0, 0, 0].backward()  # y = (f0 - .5) / (f1 + .5)
    torch.testing.assert_close(f.grad, torch.tensor([[[[1 / 3.5, -0.5 / 3.5**2], [0, 0]]]]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_equals_autograd(rows, shape, dtype, tolerance):
    f = maps(shape, dtype)
    g = torch.randn_like(f)
    exact_f = f.double().requires_grad_()
    exact = eager(exact_f)
    (exact_df,) = torch.autograd.grad(exact, exact_f, g.double())
    cam, peak = rows.cam_normalize(f, 1e-5)
    df = rows.cam_normalize_backward(g, f, peak, 1e-5)
    assert cam.dtype == df.dtype == dtype
    for result, expected in [(cam, exact), (df, exact_df)]:
        assert (result - expected).abs().max() <= tolerance * expected.abs().max()
    torch.testing.assert_close(peak.double(), f.double().relu().amax((2, 3)))


@pytest.mark.parametrize("dtype, tolerance", HALF, ids=str)
def test_half_precision(rows, dtype, tolerance):
    f = maps((2, 3, 23, 31)).to(dtype)
    g = torch.randn_like(f)
    exact_f = f.double().requires_grad_()
    exact = eager(exact_f)
    (exact_df,) = torch.autograd.grad(exact, exact_f, g.double())
    cam, peak = rows.cam_normalize(f, 1e-5)
    df = rows.cam_normalize_backward(g, f, peak, 1e-5)
    assert cam.dtype == df.dtype == dtype and peak.dtype == torch.float32
    assert (cam - exact).abs().max() <= tolerance * exact.abs().max()
    assert (df - exact_df).abs().max() <= tolerance * exact_df.abs().max()


def test_a_nan_spoils_its_own_map_alone(rows):
    f = maps((2, 2, 5, 7), torch.float32)
    f[0, 1, 2, 3] = float("nan")
    cam, peak = rows.cam_normalize(f, 1e-5)
    df = rows.cam_normalize_backward(torch.ones_like(f), f, peak, 1e-5)
    for result in (cam, df):
        assert result[0, 1].isnan().all()
        assert result.isnan().sum() == 35


def test_strides(rows):
    f = maps((2, 3, 23, 31), torch.float32)
    cam, peak = rows.cam_normalize(f, 1e-5)
    df = rows.cam_normalize_backward(torch.ones_like(f), f, peak, 1e-5)
    strided = f.to(memory_format=torch.channels_last)
    torch.testing.assert_close(rows.cam_normalize(strided, 1e-5)[0], cam)
    ones = f.new_ones(()).expand(f.shape)  # what sum().backward() sends
    torch.testing.assert_close(rows.cam_normalize_backward(ones, strided, peak, 1e-5), df)


def test_gradient():
    f = maps((2, 2, 4, 5)).cpu()
    f[0, 0, 0, 0] += 1  # finite differences want a maximum without ties
    assert torch.autograd.gradcheck(ops.cam_normalize, f.requires_grad_())


def test_same_bits(same_bits_on_any_threads):
    f, g = maps((2, 3, 61, 67), torch.float32).cpu(), torch.randn(2, 3, 61, 67)

    def both():
        cam, peak = torch.ops.camguide_fast.cam_normalize(f, 1e-5)
        return cam, peak, torch.ops.camguide_fast.cam_normalize_backward(g, f, peak, 1e-5)

    same_bits_on_any_threads(both)
    twin, peak = reference.cam_normalize(f, 1e-5)
    assert torch.equal(both()[0], twin) and torch.equal(both()[1], peak)


def test_ties_share_the_gradient():
    f = torch.tensor([[[[2.0, 1.0, 2.0]]]], dtype=torch.float64, requires_grad=True)
    ops.cam_normalize(f)[..., 1].sum().backward()
    assert f.grad[0, 0, 0, 0] == f.grad[0, 0, 0, 2] < 0


def test_opcheck_and_compile():
    f = maps((1, 2, 6, 7), torch.float32).cpu().requires_grad_()
    torch.library.opcheck(torch.ops.camguide_fast.cam_normalize.default, (f, 1e-5))
    cam, peak = torch.ops.camguide_fast.cam_normalize(f.detach(), 1e-5)
    torch.library.opcheck(torch.ops.camguide_fast.cam_normalize_backward.default, (cam, f.detach(), peak, 1e-5))
    compiled = torch.compile(lambda f: ops.cam_normalize(f).square().sum(), fullgraph=True)
    (ours,) = torch.autograd.grad(compiled(f), f)
    (expected,) = torch.autograd.grad(eager(f).square().sum(), f)
    torch.testing.assert_close(ours, expected)


def test_kernels_compile_without_a_gpu():
    pytest.importorskip("triton")
    compile_launches("""
import torch
from camguide_fast.kernels import cam_normalize as kernels
f = torch.zeros(2, 3, 8, 9, dtype=torch.float16)
cam, peak = kernels.cam_normalize(f, 1e-5)
kernels.cam_normalize_backward(cam, f, peak, 1e-5)
""")


def test_never_above_one(monkeypatch):
    """However a GPU divides: here two ulp too much."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    from camguide_fast.kernels import cam_normalize as kernels

    if DEVICE == "cuda":
        pytest.skip("not interpreted")
    exact = interpreter.InterpreterBuilder.create_fdiv

    def too_much(self, a, b):
        result = exact(self, a, b)
        result.data = result.data * (1 + 2 * np.finfo(result.data.dtype).eps)
        return result

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fdiv", too_much)
    f = torch.rand(1, 2, 5, 7) * 1000
    f[0, 0, 2, 3] = torch.nan
    cam, _ = kernels.cam_normalize(f, 1e-5)
    assert cam[0, 1].max() == 1 and cam[0, 0].isnan().all()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_cuda_on_a_side_stream(dtype):
    f = maps((4, 20, 128, 128), dtype)
    exact = eager(f.double())
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        result = ops.cam_normalize(f * 1)
    torch.cuda.synchronize()
    bound = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert (result - exact).abs().max() <= bound


@pytest.mark.cuda
def test_cuda_graph():
    f = maps((2, 3, 61, 67), torch.float32).requires_grad_()

    def step():
        (df,) = torch.autograd.grad(ops.cam_normalize(f).square().sum(), f)
        return df

    graph, df = captured(step)
    with torch.no_grad():
        f.copy_(maps(f.shape, f.dtype))
    graph.replay()
    (expected,) = torch.autograd.grad(eager(f).square().sum(), f)
    torch.testing.assert_close(df, expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(features=torch.zeros(3, 4, 4)), "features must have 4"),
        (dict(features=torch.zeros(1, 2, 0, 4)), "features must have 4 non-empty"),
        (dict(features=torch.zeros(1, 2, 4, 4, dtype=torch.int32)), "features must be one of"),
        (dict(eps=0.0), "eps"),
    ],
)
def test_errors(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.cam_normalize(**dict(features=torch.zeros(1, 2, 4, 4)) | change)
