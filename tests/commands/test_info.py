"""python -m camguide_fast.info."""

import os
import shutil
import subprocess
import sys

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
        _, cpu_cell, *_ = line.split()
        assert cpu_cell == ("native" if native else "reference")
        assert cuda == ("triton" in line or "kernels/" in line)
    assert torch.__version__ in info.report()


def test_says_what_the_machine_has(monkeypatch):
    facts = dict(info.found())
    assert list(facts)[4:11] == ["cores", "vectors", "bf16", "GPU", "CuPy", "NVRTC", "/dev/shm"]
    assert facts["vectors"] == torch.backends.cpu.get_cpu_capability()
    for fast, choice in [(True, "on"), (False, "off")]:
        monkeypatch.setattr(precision, "bf16_is_fast", lambda fast=fast: fast)
        assert dict(info.found())["bf16"].startswith(f"amp auto is {choice} on the CPU: ")


def test_the_machine_of_somebody_else(monkeypatch):
    """64 MiB of shared memory, two of eight cores, CuPy and NVRTC."""
    versions = {"cupy-cuda13x": "14.0", "nvidia-cuda-nvrtc": "13.1"}

    def version(package):
        if package not in versions:
            raise info.importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(info.importlib.metadata, "version", version)
    monkeypatch.setattr(info, "usable_cores", lambda: 2)
    monkeypatch.setattr(info.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(info.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64 << 20, 1 << 20, 63 << 20))
    facts = dict(info.found())
    assert facts["cores"].startswith("2 of 8 for this process")
    assert facts["CuPy"] == "14.0 (cupy-cuda13x)"
    assert facts["NVRTC"] == "13.1 (nvidia-cuda-nvrtc)"
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
