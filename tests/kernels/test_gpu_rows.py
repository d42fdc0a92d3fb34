"""The CUDA row of an op: its kernel where the GPU and CuPy allow it, else the reference, with the reason. The rows
stand on CPU tensors here, and a stand-in for CuPy does what CuPy may do."""

import contextlib
import os
import subprocess
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch

from camguide_fast.ops import _backends, _register, backends

CALLS = []  # "kernel" or "reference", in the order of the calls


def double(x):
    CALLS.append("reference")
    return x * 2


def square(x):
    CALLS.append("reference")
    return (x.float() ** 2).mean()


def square_in_a_kernel(x, need_grad):
    CALLS.append("kernel")
    n = torch.tensor(float(x.numel()))
    return (x**2).mean(), 2 * x if need_grad else x.new_empty(0), 1 / n


class OnCpu(torch.library.Library):
    def impl(self, op_name, fn, dispatch_key="", **options):
        super().impl(op_name, fn, dispatch_key.replace("CUDA", "CPU"), **options)


@pytest.fixture
def gpu(monkeypatch):
    """One of sm_86; `.capability` may be another."""
    found = SimpleNamespace(capability=(8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: found.capability)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(_backends, "BACKEND", "")
    monkeypatch.setitem(_backends.NEEDED, "triton", "torch")  # there or not
    CALLS.clear()
    caches = (_backends.why_not_on, _backends.why_no_cupy, _backends._warn_once)
    for cached in caches:
        cached.cache_clear()
    yield found
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def cupy(monkeypatch):
    """Installed, and at work."""
    cuda = SimpleNamespace(Device=lambda index: SimpleNamespace(use=lambda: None))
    fake = SimpleNamespace(
        __spec__=ModuleSpec("cupy", None),
        cuda=cuda,
        RawModule=lambda code, options: SimpleNamespace(compile=lambda: None),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@pytest.fixture
def ops(monkeypatch, gpu, cupy):
    """Two ops with a kernel: `double`, in CUDA C++, and the loss `square`, in Triton."""

    def kernel(x):
        CALLS.append("kernel")
        return x * 2

    library = OnCpu("camguide_gpu_rows", "DEF")
    monkeypatch.setattr(_register, "NAMESPACE", "camguide_gpu_rows")
    monkeypatch.setattr(_register, "library", library)
    monkeypatch.setattr(_register, "kernels", {})
    modules = SimpleNamespace(double=kernel, square=square_in_a_kernel)
    monkeypatch.setitem(sys.modules, "camguide_fast.kernels.gpu_rows", modules)
    _register.define("double(Tensor x) -> Tensor", reference=double, fake=torch.empty_like, kernel=("gpu_rows", "cuda"))
    _register.define_loss(
        "square(Tensor x, bool need_grad) -> (Tensor, Tensor, Tensor)",
        reference=square,
        count=lambda x: torch.tensor(float(x.numel())),
        kernel=("gpu_rows", "triton"),
    )
    yield torch.ops.camguide_gpu_rows
    library._destroy()


def check(ops, served):
    """Results, gradient and tracing are those of the op, whoever serves it."""
    x = torch.arange(3.0, requires_grad=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(ops.double(x.detach()), torch.tensor([0.0, 2.0, 4.0]))
        loss = ops.square(x, True)[0]
        loss.backward()
        for _ in range(2):
            assert torch.equal(torch.compile(ops.double, fullgraph=True, backend="aot_eager")(x.detach()), x * 2)
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 2.0, 4.0]) / 3)
    torch.library.opcheck(ops.square, (torch.rand(4), True), test_utils=("test_schema", "test_faketensor"))
    assert CALLS and set(CALLS) == served
    return [str(w.message) for w in caught if "camguide_fast" in str(w.message)]


def test_a_gpu_that_the_kernels_are_made_for(ops, gpu):
    assert not check(ops, {"kernel"})


@pytest.mark.parametrize("capability", [(7, 5), (6, 1)])
def test_an_older_gpu_gets_the_reference(ops, gpu, capability):
    gpu.capability = capability
    (message,) = check(ops, {"reference"})
    assert f"the GPU is of sm_{capability[0]}{capability[1]}, and the kernels need sm_80" in message


def raising(error):
    def fail(*args, **options):
        raise error

    return fail


def test_cupy_that_does_not_load(ops, monkeypatch):
    error = ImportError("\n" + "=" * 64 + "\nFailed to import CuPy.\n\nOriginal error:\n  libnvrtc.so\n" + "=" * 64)
    load = _backends.importlib.import_module
    monkeypatch.setattr(
        _backends.importlib, "import_module", lambda name: raising(error)() if name == "cupy" else load(name)
    )
    (message,) = check(ops, {"reference", "kernel"})  # Triton still serves the loss
    assert CALLS[0] == "reference"
    assert "cupy does not load: ImportError: Failed to import CuPy. Original error: libnvrtc.so; the ops" in message


def test_cupy_that_does_not_compile(ops, cupy):
    """No headers, no NVRTC, no room for its cache: what the first of the kernels would find out."""
    cupy.RawModule = lambda code, options: SimpleNamespace(
        compile=raising(RuntimeError("Failed to find headers " * 20))
    )
    (message,) = check(ops, {"reference", "kernel"})
    assert CALLS[0] == "reference"
    assert "cupy does not compile: RuntimeError: Failed to find headers" in message and len(message) < 400


def why(op="slic"):
    row = backends()[op]["cuda"]
    return row.backend, row.why


def test_what_info_says_of_it(gpu, cupy, monkeypatch):
    served = "cuda", "kernels/slic.py"
    assert why() == served  # without a GPU: what one would get
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    _backends.why_not_on.cache_clear()
    assert why() == served
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8 - device.index, 9))
    _backends.why_not_on.cache_clear()
    assert why() == ("cuda", "kernels/slic.py; not on cuda:1: the GPU is of sm_79, and the kernels need sm_80")
    gpu.capability = (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    _backends.why_not_on.cache_clear()
    for op in ("slic", "cam_normalize"):
        assert why(op) == ("reference", "the GPU is of sm_75, and the kernels need sm_80")


def test_the_import_starts_neither_cuda_nor_cupy(tmp_path):
    """Nor does it break where CuPy does: the op says so, when it is called on a GPU."""
    (tmp_path / "cupy.py").write_text("raise OSError('no home')")
    code = f"""import sys; sys.path.insert(0, {str(tmp_path)!r})
import torch, camguide_fast.ops as ops
assert 'cupy' not in sys.modules and 'triton' not in sys.modules and not torch.cuda.is_initialized()
row = ops.backends()['slic']['cuda']
assert (row.backend, row.why) == ('reference', 'cupy does not load: OSError: no home'), row"""
    environment = os.environ | {"CAMGUIDE_FAST_BACKEND": ""}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
