"""Every CUDA source compiles for the GPUs that are served, without spilling registers; nvcc stands in for NVRTC."""

import re
import shutil
import subprocess

import pytest

from camguide_fast.kernels import _cuda

CAPABILITIES = (80, 89, 90, 120)
NVCC = shutil.which("nvcc")

# The macros of each source, as its launcher may set them: what takes the most registers, and each form.
_GUIDED_FILTER = dict(GUIDE_TYPE="float", VECTOR=1, WARPS=4, ROWS=32, GUIDE_ROWS=8)
VARIANTS = {
    "guided_filter": [
        _GUIDED_FILTER | dict(Z_TYPE="float", RADIUS=4),
        _GUIDED_FILTER | dict(Z_TYPE="half_t", GUIDE_TYPE="unsigned char", RADIUS=16, VECTOR=0),
        _GUIDED_FILTER | dict(Z_TYPE="bfloat_t", RADIUS=0),
    ],
}


def name(variant: tuple[str, dict]) -> str:
    return "-".join([variant[0], *(f"{value}" for value in variant[1].values())])


def test_every_source_is_compiled():
    assert VARIANTS.keys() == {path.stem for path in _cuda.SOURCES.glob("*.cu")}


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
@pytest.mark.parametrize("variant", [(op, v) for op, variants in VARIANTS.items() for v in variants], ids=name)
def test_compiles_without_spills(variant, tmp_path):
    source = tmp_path / "source.cu"
    source.write_text(_cuda.source(*variant))
    targets = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in CAPABILITIES]
    command = [NVCC, "-std=c++17", "-fatbin", *targets, "-Xptxas", "-v", source, "-o", tmp_path / "out"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    kernels = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores,"
        r" (\d+) bytes spill loads.*?Used (\d+) registers",
        process.stderr,
        flags=re.DOTALL,
    )
    assert {int(capability) for _, capability, *_ in kernels} == set(CAPABILITIES)
    for kernel, capability, *local, registers in kernels:
        print(f"{kernel} sm_{capability}: {registers} registers")
        assert local == ["0", "0", "0"], f"{kernel} for sm_{capability} uses local memory: {local}"


def test_a_source_is_one_text():
    text = _cuda.source("guided_filter", {"RADIUS": 4})
    assert text.startswith("#define RADIUS 4\n") and "#include" not in text
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("typedef Z_TYPE"))
    marker = max(i for i in range(at) if lines[i].startswith("#line"))
    number = int(lines[marker].split()[1]) + at - marker - 1  # where the compiler will say that it is
    assert (_cuda.SOURCES / "guided_filter.cu").read_text().splitlines()[number - 1] == lines[at]
