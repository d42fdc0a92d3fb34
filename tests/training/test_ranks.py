"""Processes that work apart: a failure of one ends all of them, instead of leaving the others to wait."""

import subprocess
import sys

import pytest
import torch

from camguide_fast.errors import UserError
from camguide_fast.training.ranks import Where

CPU = torch.device("cpu")

RANK = """
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from camguide_fast.cli import run_cli
from camguide_fast.errors import UserError
from camguide_fast.training.ranks import Where

rank = int(sys.argv[1])
dist.init_process_group("gloo", f"file://{sys.argv[2]}", timedelta(hours=1), world_size=2, rank=rank)
where = Where(torch.device("cpu"), rank, 2)


def work():
    try:
        assert where.gather(f"of {rank}") == ["of 0", "of 1"]
        with where.apart():
            print("first", flush=True)
        with where.apart():
            if rank == 1:
                raise UserError("no such image")
        print("never", flush=True)
        where.gather(rank)
    finally:  # or the threads of gloo end with the process, sometimes with an abort
        dist.destroy_process_group()


run_cli(work)
"""


def test_all_fail_together(tmp_path):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), tmp_path / "meet"], stdout=-1, stderr=-1, text=True) for rank in (0, 1)
    ]
    # In time: nobody waited for the hour that the group allows.
    ends = [(*rank.communicate(timeout=600), rank.returncode) for rank in ranks]
    assert [(out, code) for out, _, code in ends] == [("first\n", 2)] * 2, ends
    assert "error: process 1 of 2 failed: no such image\n" in ends[0][1]
    assert "error: no such image\n" in ends[1][1]


def test_alone():
    where = Where(CPU)
    assert where.first and where.gather(3) == [3]
    with where.apart():
        pass
    with pytest.raises(UserError, match="^as it was$"), where.apart():
        raise UserError("as it was")
    with pytest.raises(KeyError), where.apart():
        raise KeyError("")
