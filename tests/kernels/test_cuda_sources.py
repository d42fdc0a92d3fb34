"""The CUDA sources as texts, and their launches: what is launched is what was asked for (a stand-in for CuPy records
it)."""

import ctypes
import re
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from camguide_fast.kernels import _cuda


@pytest.mark.parametrize("path", sorted(_cuda.SOURCES.rglob("*.cu*")), ids=lambda path: path.name)
def test_no_lambda_with_auto(path):
    """Found without NVRTC too."""
    assert not re.search(r"\[[&=\w, ]*\]\s*\([^)]*\bauto\b", path.read_text())


def test_a_source_is_one_text():
    text = _cuda.source("guided_filter", {"RADIUS": 4})
    assert text.startswith("#define RADIUS 4\n") and "#include" not in text
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("typedef Z_TYPE"))
    marker = max(i for i in range(at) if lines[i].startswith("#line"))
    number = int(lines[marker].split()[1]) + at - marker - 1  # where the compiler will say that it is
    assert (_cuda.SOURCES / "guided_filter.cu").read_text().splitlines()[number - 1] == lines[at]


class FakeCupy:
    """Records what reaches CuPy and the CUDA driver."""

    def __init__(self):
        self.modules, self.launches, self.current, self.static = [], [], None, 0
        self.cuda = SimpleNamespace(
            Device=lambda i: SimpleNamespace(use=lambda: setattr(self, "current", i)),
            driver=SimpleNamespace(launchKernel=self._launch, launchCooperativeKernel=self._launch_together),
        )

    def RawModule(self, code, options):
        self.modules.append((self.current, code))
        return SimpleNamespace(get_function=self._function)

    def _function(self, name):
        kernel = SimpleNamespace(ptr=name)
        return SimpleNamespace(kernel=kernel, max_dynamic_shared_size_bytes=48 * 1024 - self.static)

    def _launch_together(self, *args):
        assert len(args) == 10
        self._launch(*args)
        self.launches[-1] = ("together", *self.launches[-1])

    def _launch(self, *args):
        pointers = (ctypes.c_void_p * 3).from_address(args[9])
        types = (ctypes.c_void_p, ctypes.c_int, ctypes.c_double)
        self.launches.append((*args[:9], [t.from_address(p).value for t, p in zip(types, pointers, strict=True)]))


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    for cached in (_cuda._function, _cuda._module):
        cached.cache_clear()
    yield fake
    for cached in (_cuda._function, _cuda._module):
        cached.cache_clear()


def test_launch(cupy):
    x = torch.zeros(3)
    _cuda.launch("guided_filter", "f", 5, 64, (x, -7, 0.25), defines={"RADIUS": 4}, shared=1024)
    assert cupy.current == 1
    assert cupy.launches == [("f", 5, 1, 1, 64, 1, 1, 1024, 77, [x.data_ptr(), -7, 0.25])]
    assert cupy.modules == [(1, _cuda.source("guided_filter", {"RADIUS": 4}))]


def test_a_prepared_launch_is_repeated(cupy):
    prepared = _cuda.prepare("guided_filter", "f", 5, 64, (torch.zeros(3), 2, 0.5), defines={})
    assert not cupy.launches
    for _ in range(3):
        prepared()
    assert len(cupy.launches) == 3 and cupy.launches[0] == cupy.launches[2]
    assert cupy.launches[0][-1][1:] == [2, 0.5]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_an_int_that_does_not_fit_is_not_wrapped(cupy, value):
    with pytest.raises(ValueError, match=f"count in 32 bits.*{value}"):
        _cuda.launch("guided_filter", "f", 5, 64, (torch.zeros(3), value), defines={})
    assert not cupy.launches


def test_cooperative_launch(cupy):
    x = torch.zeros(3)
    _cuda.launch("guided_filter", "f", 5, 64, (x, -7, 0.25), defines={}, shared=8, cooperative=True)
    assert cupy.launches == [("together", "f", 5, 1, 1, 64, 1, 1, 8, 77, [x.data_ptr(), -7, 0.25])]


def test_a_module_is_compiled_once_per_device_and_macros(cupy):
    def launch(kernel, radius, device):
        with mock.patch.object(torch.cuda, "current_device", lambda: device):
            args = (torch.zeros(3), 1, 1.0)
            _cuda.launch("guided_filter", kernel, 1, 32, args, defines={"RADIUS": radius})

    for kernel, radius, device in [("f", 4, 0), ("f", 4, 0), ("g", 4, 0), ("f", 5, 0), ("f", 4, 1)]:
        launch(kernel, radius, device)
    assert [(device, code[:16]) for device, code in cupy.modules] == [
        (0, "#define RADIUS 4"),
        (0, "#define RADIUS 5"),
        (1, "#define RADIUS 4"),
    ]


@pytest.mark.parametrize("static", [0, 16])
@pytest.mark.parametrize("shared", [0, 48 * 1024 - 16, 48 * 1024 - 15, 48 * 1024, 90 * 1024])
def test_shared_memory_beyond_what_static_memory_leaves_is_asked_for(cupy, static, shared):
    cupy.static = static
    function = _cuda._function("label_closing", "morphology", (), shared, 0)
    assert function.max_dynamic_shared_size_bytes == max(shared, 48 * 1024 - static)
