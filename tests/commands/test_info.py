"""python -m camguide_fast.info."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch

from camguide_fast import info
from camguide_fast.config import precision
from camguide_fast.ops import _backends


def test_lists_every_op_with_the_row_the_dispatcher_has():
    lines = info.report().split("\n")
    table = {line.split()[0]: line for line in lines[lines.index("") + 3 :]}
    assert set(table) == set(_backends.kernels)
    for op, line in table.items():
        native = torch._C._dispatch_has_kernel_for_dispatch_key(f"camguide_fast::{op}", "CPU")
        cuda = torch._C._dispatch_has_kernel_for_dispatch_key(f"camguide_fast::{op}", "CUDA")
        cuda &= "cupy does not load" not in line
        _, cpu_cell, *_ = line.split()
        assert cpu_cell == ("native" if native else "reference")
        assert cuda == ("triton" in line or "kernels/" in line)
    assert torch.__version__ in info.report()


def test_says_what_the_machine_has(monkeypatch):
    facts = dict(info.found())
    assert list(facts)[4:10] == ["cores", "vectors", "bf16", "GPU", "CuPy", "NVRTC"] and "/dev/shm" in facts
    assert facts["vectors"] == torch.backends.cpu.get_cpu_capability()
    for fast, choice in [(True, "on"), (False, "off")]:
        monkeypatch.setattr(precision, "bf16_is_fast", lambda fast=fast: fast)
        assert dict(info.found())["bf16"].startswith(f"amp auto is {choice} on the CPU: ")


@pytest.fixture
def cupy(monkeypatch):
    """CuPy 14 with NVRTC 13.1 and headers; `.versions` of packages may be changed."""
    versions = {"cupy-cuda13x": "14.0", "nvidia-cuda-nvrtc": "13.1"}

    def version(package):
        if package not in versions:
            raise info.importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(info.importlib.metadata, "version", version)
    fake = SimpleNamespace(__spec__=ModuleSpec("cupy", None), __version__="14.0", versions=versions)
    fake.cuda = SimpleNamespace(nvrtc=SimpleNamespace(getVersion=lambda: (13, 1)))
    pathfinder = SimpleNamespace(find_nvidia_header_directory={"cudart": "/headers"}.get)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    return fake


def gpu_facts():
    facts = dict(info.found())
    return [facts.get(what, "") for what in ("CuPy", "NVRTC", "CUDA headers", "CuPy cache")]


def test_what_cupy_compiles_with(cupy, monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache/of/cupy"))
    nvrtc = "13.1, loaded by CuPy; installed: 13.1 (nvidia-cuda-nvrtc)"
    assert gpu_facts() == ["14.0 (cupy-cuda13x)", nvrtc, "/headers", str(tmp_path / "cache/of/cupy")]
    monkeypatch.delenv("CUPY_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gpu_facts()[3] == str(tmp_path / ".cupy/kernel_cache")


def test_what_may_be_wrong_with_cupy(cupy, monkeypatch, tmp_path):
    cupy.versions["cupy-cuda12x"] = "13.6"
    assert gpu_facts()[0].startswith("14.0 (cupy-cuda13x), 13.6 (cupy-cuda12x): one too many; uninstall all of them")
    del cupy.cuda.nvrtc.getVersion  # whatever it raises
    del sys.modules["cuda.pathfinder"].find_nvidia_header_directory
    monkeypatch.setattr(info.os, "access", lambda folder, mode: False)
    _, nvrtc, headers, cache = gpu_facts()
    assert nvrtc == "13.1 (nvidia-cuda-nvrtc); CuPy does not load it: AttributeError"
    assert headers.startswith("AttributeError: ") and cache.endswith(
        ": cannot be written; CUPY_CACHE_DIR may name another folder"
    )


def test_cupy_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise OSError('no home')")
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{REPORT}"],
        env=os.environ | {"CAMGUIDE_FAST_BACKEND": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "does not load: OSError" in process.stdout.split("\n\n")[0]
    assert "cupy does not load: OSError: no home" in process.stdout.split("\n\n")[1]


REPORT = "from camguide_fast import info; print(info.report())"


def test_the_machine_of_somebody_else(cupy, monkeypatch):
    """64 MiB of shared memory, two of eight cores."""
    monkeypatch.setattr(info, "usable_cores", lambda: 2)
    monkeypatch.setattr(info.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(info.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64 << 20, 1 << 20, 63 << 20))
    facts = dict(info.found())
    assert facts["cores"].startswith("2 of 8 for this process")
    assert facts["/dev/shm"] == "63 of 64 MiB free"


def test_columns_are_aligned():
    lines = info.table(("op", "cpu"), [("a", "native"), ("a_long_name", "reference")]).split("\n")
    assert lines == ["op           cpu", "-----------  ---------", "a            native", "a_long_name  reference"]


@pytest.mark.parametrize("backend", ["reference", "fastest"])
def test_backend_variable(backend):
    process = subprocess.run(
        [sys.executable, "-m", "camguide_fast.info"],
        env=os.environ | {"CAMGUIDE_FAST_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    if backend == "reference":
        assert process.returncode == 0
        body = process.stdout.split("\n\n")[1]
        assert "native" not in body and "triton" not in body
        assert body.count("CAMGUIDE_FAST_BACKEND=reference") >= len(_backends.kernels)
    else:
        assert process.returncode != 0 and "expected 'reference' or nothing" in process.stderr
