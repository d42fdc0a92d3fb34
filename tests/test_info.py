"""python -m camguide_fast.info."""

import os
import subprocess
import sys

import pytest
import torch

from camguide_fast import info
from camguide_fast.ops import _register


def test_lists_every_op_with_the_row_the_dispatcher_has():
    lines = info.report().split("\n")
    table = {line.split()[0]: line for line in lines[lines.index("") + 3 :]}
    assert set(table) == set(_register._kernels)
    for op, line in table.items():
        native = torch._C._dispatch_has_kernel_for_dispatch_key(f"camguide_fast::{op}", "CPU")
        cuda = torch._C._dispatch_has_kernel_for_dispatch_key(f"camguide_fast::{op}", "CUDA")
        _, cpu_cell, *_ = line.split()
        assert cpu_cell == ("native" if native else "reference")
        assert cuda == ("triton" in line or "kernels/" in line)
    assert torch.__version__ in info.report()


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
        assert body.count("CAMGUIDE_FAST_BACKEND=reference") >= len(_register._kernels)
    else:
        assert process.returncode != 0 and "expected 'reference' or nothing" in process.stderr
