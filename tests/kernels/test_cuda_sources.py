"""The CUDA sources: each compiles for the GPUs that are served, without spilling registers, by nvcc and by NVRTC where
they are; and what is launched is what was asked for (a stand-in for CuPy records it)."""

import ctypes
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from camguide_fast.kernels import _cuda, affinity_walk
from support.nvcc import NVCC

CAPABILITIES = (80, 89, 90, 120)


# The macros of each source, as its launcher may set them: what takes the most registers, and each form.
_GUIDED_FILTER = dict(GUIDE_TYPE="float", VECTOR=1, WARPS=4, GUIDE_ROWS=8)
_EDGE_SUPPORT = dict(IMAGE_TYPE="float", VECTOR=1, COLUMNS=4, WHOLE=1, GROUP=128, POOL=4)
_BYTES = _EDGE_SUPPORT | dict(IMAGE_TYPE="unsigned char", COLUMNS=8, GROUP=64)
_DENSE_CRF = dict(INPUT=0, INPUT_TYPE="float", VALUE="float", QUADS=8, CORNERS_0=3, CORNERS_1=6)


def _affinity_walk(radius: int, **macros) -> dict:
    offsets = affinity_walk._offsets(radius, 94, 125)
    text = ",".join(f"{{{dy},{dx}}}" for dy, dx in offsets)
    reach = dict(REACH_Y=radius - 1, REACH_X=radius - 1)
    steps = ",".join(map(repr, affinity_walk._coefficients(8, torch.float32)))
    macros |= dict(EDGE_TYPE="float", COEFFICIENTS=steps)
    return dict(**macros, COUNT=len(offsets), **reach, OFFSETS=text)


VARIANTS = {
    "affinity_walk": [
        _affinity_walk(5, CAM_TYPE="float", CLASSES=3),
        _affinity_walk(5, CAM_TYPE="double", CLASSES=4),
        _affinity_walk(6, CAM_TYPE="half_t", CLASSES=4),
        _affinity_walk(9, CAM_TYPE="double", CLASSES=4),
    ],
    "dense_crf": [
        _DENSE_CRF,
        _DENSE_CRF | dict(INPUT=1, INPUT_TYPE="double", VALUE="double"),
        _DENSE_CRF | dict(INPUT=2, INPUT_TYPE="long long", QUADS=1, CORNERS_1=0),
    ],
    "crf/lattice": [dict(CORNERS=6, VALUE="float", QUADS=8), dict(CORNERS=3, VALUE="double", QUADS=1)],
    "crf/lattice_build": [
        dict(CORNERS=3, VALUE="double", IMAGE_TYPE="half_t"),
        dict(CORNERS=6, VALUE="float", IMAGE_TYPE="unsigned char"),
    ],
    "edge_support": [
        _BYTES,
        _BYTES | dict(WHOLE=0, POOL=1),
        _EDGE_SUPPORT,
        _EDGE_SUPPORT | dict(IMAGE_TYPE="unsigned char", VECTOR=0, WHOLE=0, POOL=1),
        _EDGE_SUPPORT | dict(IMAGE_TYPE="half_t", VECTOR=0, WHOLE=0, POOL=2),
        _EDGE_SUPPORT | dict(IMAGE_TYPE="double", VECTOR=0, WHOLE=0, GROUP=64, POOL=1),
    ],
    "guided_filter": [
        _GUIDED_FILTER | dict(Z_TYPE="float", RADIUS=4),
        _GUIDED_FILTER | dict(Z_TYPE="half_t", GUIDE_TYPE="unsigned char", RADIUS=16, VECTOR=0, WARPS=1),
        _GUIDED_FILTER | dict(Z_TYPE="bfloat_t", RADIUS=0),
    ],
    "label_closing": [
        dict(LABEL_TYPE="unsigned char", PACK=16, GROWS=1, IN_SHARED=1),
        dict(LABEL_TYPE="unsigned char", PACK=1, GROWS=0, IN_SHARED=1),
        dict(LABEL_TYPE="long long", PACK=2, GROWS=1, IN_SHARED=0),
    ],
    "slic": [dict(IMAGE_TYPE="unsigned char"), dict(IMAGE_TYPE="half_t"), dict(IMAGE_TYPE="double")],
    "superpixel_walk": [
        dict(IMAGE_TYPE="unsigned char"),
        dict(IMAGE_TYPE="double"),
        dict(TARGET_TYPE="float", TRANSITION_TYPE="float"),
        dict(TARGET_TYPE="bfloat_t", TRANSITION_TYPE="double"),
        dict(TARGET_TYPE="double", TRANSITION_TYPE="double"),
    ],
}


def name(variant: tuple[str, dict]) -> str:
    return "-".join([variant[0], *(f"{value}" for value in variant[1].values() if len(f"{value}") < 20)])


every_variant = pytest.mark.parametrize(
    "variant", [(op, v) for op, variants in VARIANTS.items() for v in variants], ids=name
)


def test_every_source_is_compiled():
    assert VARIANTS.keys() == {
        path.relative_to(_cuda.SOURCES).with_suffix("").as_posix() for path in _cuda.SOURCES.rglob("*.cu")
    }


def local_memory(source: str, capabilities: tuple[int, ...], folder) -> dict[tuple[str, int], bool]:
    """{(kernel, capability): whether it uses local memory}; prints the registers."""
    file = folder / "source.cu"
    file.write_text(source)
    targets = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in capabilities]
    command = [NVCC, "-std=c++17", "-fatbin", "--threads=0", *targets, "-Xptxas", "-v", file, "-o", folder / "out"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    kernels = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores,"
        r" (\d+) bytes spill loads.*?Used (\d+) registers",
        process.stderr,
        flags=re.DOTALL,
    )
    for kernel, capability, *_, registers in kernels:
        print(f"{kernel} sm_{capability}: {registers} registers")
    return {(kernel, int(capability)): local != ["0"] * 3 for kernel, capability, *local, _ in kernels}


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    """NVRTC as CUDA builds of torch and CuPy bring it along."""
    spec = importlib.util.find_spec("nvidia")
    found = [f for p in (spec.submodule_search_locations if spec else []) for f in Path(p).glob("*/lib/libnvrtc.so.*")]
    if not found:
        pytest.skip("needs NVRTC")
    return ctypes.CDLL(str(found[0]))


@every_variant
def test_nvrtc_compiles_it(nvrtc, variant):
    """It refuses some of what nvcc accepts."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), _cuda.source(*variant).encode(), None, 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, 2, (ctypes.c_char_p * 2)(b"-std=c++17", b"-arch=sm_89"))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    assert not failed, log.value.decode()


@pytest.mark.parametrize("path", sorted(_cuda.SOURCES.rglob("*.cu*")), ids=lambda path: path.name)
def test_no_lambda_with_auto(path):
    """Found without NVRTC too."""
    assert not re.search(r"\[[&=\w, ]*\]\s*\([^)]*\bauto\b", path.read_text())


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
@every_variant
def test_compiles_without_spills(variant, tmp_path):
    op, macros = variant
    # minutes of compiling: a source's other variants for one GPU alone
    capabilities = CAPABILITIES if macros is VARIANTS[op][0] else (90,)
    found = local_memory(_cuda.source(op, macros), capabilities, tmp_path)
    assert {capability for _, capability in found} == set(capabilities)
    assert not any(found.values()), found


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
def test_local_memory_is_seen(tmp_path):
    array = """extern "C" __global__ void f(int* x, int i) {
      int a[64];
      for (int j = 0; j < i; ++j) a[x[j]] = j;
      *x = a[x[i]];
    }"""
    assert local_memory(array, (89,), tmp_path) == {("f", 89): True}


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
