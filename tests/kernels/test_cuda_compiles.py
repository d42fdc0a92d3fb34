"""What the launchers have compiled compiles for the GPUs that are served, by nvcc and by NVRTC where they are: without
spilling registers, and within the shared memory that a block has."""

import ctypes
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from camguide_fast.kernels import _cuda
from support.cuda_launches import Variant, recorded
from support.nvcc import NVCC

CAPABILITIES = (80, 89, 90, 120)
SHARED = 99 * 1024  # bytes that a block has on sm_89 and sm_120; the others have more
SPILLED = {("edge_support", "edge_cells"): 8}  # bytes, of uint8 that is not pooled: two of 168 registers too many
FTZ = "-ftz=true"  # CuPy adds it to the options of `_cuda`, and this to NVRTC's, where nvcc knows no such thing:
NVRTC_OPTIONS = ["-std=c++17", FTZ, "--device-as-default-execution-space"]

VARIANTS = recorded()


def capabilities(variant: Variant) -> tuple[int, ...]:
    """Minutes of compiling: the variants of a source for one GPU each, in turn; the last for all that are left."""
    others = [v for v in VARIANTS if v.op == variant.op]
    i, n = others.index(variant), len(CAPABILITIES)
    return CAPABILITIES[i:] if i == len(others) - 1 and i < n else (CAPABILITIES[i % n],)


def test_every_source_is_compiled_for_every_gpu():
    made = {(variant.op, capability) for variant in VARIANTS for capability in capabilities(variant)}
    assert len(made) == len({variant.op for variant in VARIANTS}) * len(CAPABILITIES)


every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def test_every_kernel_is_launched():
    launched = {(variant.op, kernel) for variant in VARIANTS for kernel in variant.kernels}
    written = set()
    for path in _cuda.SOURCES.rglob("*.cu"):
        op = path.relative_to(_cuda.SOURCES).with_suffix("").as_posix()
        names = re.findall(r"__global__ void\s+(?:__launch_bounds__\(.*\)\s+)?(\w+)\(", _cuda.source(op, {}))
        written |= {(op, kernel) for kernel in names}
    assert launched == written and len(written) > 30


def compiled(source: str, targets: tuple[int, ...], folder: Path) -> dict[tuple[str, int], tuple[int, int]]:
    """{(kernel, capability): (bytes of local memory, of static shared memory)}; prints the registers."""
    file = folder / "source.cu"
    file.write_text(source)
    architectures = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in targets]
    command = [NVCC, "-std=c++17", FTZ, "-fatbin", "--threads=0", *architectures, "-Xptxas", "-v", file]
    process = subprocess.run([*command, "-o", folder / "out"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    kernels = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores,"
        r" (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        process.stderr,
        flags=re.DOTALL,
    )
    found = {}
    for kernel, capability, *local, registers, rest in kernels:
        print(f"{kernel} sm_{capability}: {registers} registers")
        static = re.search(r"(\d+) bytes smem", rest)
        found[kernel, int(capability)] = max(map(int, local)), int(static[1]) if static else 0
    return found


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
@every_variant
def test_compiles_without_spills(variant, tmp_path):
    targets = capabilities(variant)
    found = compiled(variant.source, targets, tmp_path)
    assert {capability for _, capability in found} == set(targets)
    may_spill = "double" in variant.defines.values()  # fp64 is served, not meant to be fast
    for (kernel, capability), (local, static) in found.items():
        spilled = SPILLED.get((variant.op, kernel), 0)
        assert may_spill or local <= spilled, f"{kernel} on sm_{capability}: {local} bytes of local memory"
        assert static <= 48 * 1024 and static + variant.kernels.get(kernel, 0) <= SHARED
    assert variant.kernels.keys() <= {kernel for kernel, _ in found}


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
def test_local_and_shared_memory_are_seen(tmp_path):
    array = """extern "C" __global__ void f(int* x, int i) {
      __shared__ int b[33];
      int a[64];
      for (int j = 0; j < i; ++j) a[x[j]] = j;
      b[threadIdx.x] = a[x[i]];
      __syncthreads();
      *x = b[threadIdx.x ^ 1];
    }"""
    assert compiled(array, (89,), tmp_path) == {("f", 89): (256, 132)}


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
    for capability in capabilities(variant):
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), variant.source.encode(), None, 0, None, None)
        options = [option.encode() for option in (*NVRTC_OPTIONS, f"-arch=sm_{capability}")]
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        assert not failed, log.value.decode()
