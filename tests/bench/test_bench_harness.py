"""The bench harness: what is wrong is not timed, what is slower is shown, and the JSON holds all of it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from _check import close, equal
from _measure import copy_bandwidth, laps, peak_memory

ROOT = Path(__file__).resolve().parents[2]

CPU = torch.device("cpu")
BENCH = """
import time

import pytest
import torch
from _check import close
from _harness import Row

from camguide_fast import ops


def slowly(seconds, f=torch.relu):
    def call(x):
        time.sleep(seconds)
        return f(x)
    return call


def compare(bench, **rows):
    x = torch.randn(4, 64, 64)
    return bench.compare(
        "cam_normalize", "tiny", inputs=(x,), grad=0, oracle=torch.relu, check=close(1e-6), rows=rows
    )


def bench_right(bench):
    compare(
        bench,
        ours=slowly(0.02),
        fast=torch.relu,
        slow=slowly(0.2),
        numpy=Row(lambda x: x.clip(0), inputs=(torch.randn(4, 64, 64).numpy(),), check=lambda *_: (True, "as it is"),
                  gradient=False, on_cpu=True, note="another border"),
        absent=Row(torch.relu, needs="no_such_package.relu"),
        absent_part=Row(torch.relu, needs="torch.no_such_part.relu"),
    )


def bench_wrong_value(bench):
    compare(bench, ours=torch.relu, peer=lambda x: torch.relu(x) + 1e-3, broken=lambda x: x.no_such_method())


def bench_wrong_gradient(bench):
    compare(bench, ours=lambda x: torch.relu(x).detach() + 0 * x, peer=torch.relu)


def bench_not_a_number(bench):
    compare(bench, ours=lambda x: torch.relu(x) * float("nan"))
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The harness on a bench of its own: (outcome, JSON)."""
    folder = tmp_path_factory.mktemp("bench")
    for file in [ROOT / "bench/conftest.py", *(ROOT / "bench").glob("_*.py")]:
        shutil.copy(file, folder)
    (folder / "bench_tiny.py").write_text(BENCH)
    (folder / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\npython_functions = bench_*\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        folder,
        "--threads",
        "1",
        "--budget",
        "0.2",
        "--bench-json",
        "out/b.json",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return process, json.loads((folder / "out/b.json").read_text())


def lines(session, number: int) -> dict[tuple[str, str], dict]:
    return {(line["row"], line["mode"]): line for line in session[1]["tables"][number]["lines"]}


def test_a_wrong_row_fails_and_is_not_timed(session):
    process, _ = session
    assert process.returncode == 1 and "3 failed, 1 passed" in process.stdout, process.stdout + process.stderr
    for number, row, found in [
        (1, "peer", "> 1e-06"),
        (1, "broken", "no_such_method"),
        (2, "ours", "gradient "),
        (3, "ours", "nan > 1e-06"),
    ]:
        wrong = [line for line in session[1]["tables"][number]["lines"] if line["row"] == row]
        assert [line["status"] for line in wrong] == ["FAILED"]
        assert found in wrong[0]["found"]
        assert all(wrong[0][key] is None for key in ("median", "p20", "p80", "peak", "bandwidth", "ratio"))
    assert lines(session, 1)["ours", "full"]["median"] > 0  # the right rows beside it are
    assert lines(session, 2)["peer", "full"]["ratio"] is None  # with nothing to compare with


def test_times_and_ratios(session):
    table = lines(session, 0)
    for mode in ("forward", "full"):
        assert table["ours", mode]["median"] > 0.02 and table["slow", mode]["median"] > 0.2
        ratio = table["slow", mode]["median"] / table["ours", mode]["median"]
        assert table["slow", mode]["ratio"] == pytest.approx(ratio) and ratio > 1
        assert table["fast", mode]["ratio"] < 1
    assert table["slow", "backward"]["p20"] < 0.2  # the call of autograd alone
    line = table["fast", "forward"]
    assert line["p20"] <= line["median"] <= line["p80"] and line["runs"] >= 5
    assert line["bandwidth"] == pytest.approx(2 * 4 * 64 * 64 * 4 / line["median"])
    assert table["fast", "full"]["bandwidth"] == pytest.approx(4 * 4 * 64 * 64 * 4 / table["fast", "full"]["median"])
    assert {mode for row, mode in table if row == "numpy"} == {"forward"}


def test_losing_rows_and_absent_peers_are_shown(session):
    text = session[0].stdout
    losing = next(line for line in text.splitlines() if line.startswith("**Slower than**"))
    assert "fast (forward, 0." in losing  # the two backward calls, without their sleep, are as fast as one another
    assert "slow (forward" not in losing and "slow (full" not in losing
    assert "- numpy: another border." in text
    for row, missing in [("absent", "no_such_package"), ("absent_part", "no_such_part")]:
        line = lines(session, 0)[row, ""]
        assert line["status"] == "not installed" and missing in line["found"]
        assert any(row in shown and "not installed" in shown for shown in text.splitlines())


def test_json_is_complete(session):
    machine, tables = session[1]["machine"], session[1]["tables"]
    assert machine["threads"] == 1 and machine["budget"] == 0.2 and machine["device"] == "cpu"
    assert machine["copy_bandwidth"] > 1e8
    assert all(machine[key] for key in ("date", "cpu", "vectors", "python", "torch", "camguide_fast"))
    assert {"commit", "gpu"} <= machine.keys()
    assert [table["op"] for table in tables] == ["cam_normalize"] * 4
    assert all(table["served"]["cam_normalize"] in ("native", "reference") for table in tables)
    full = [line for line in tables[0]["lines"] if line["mode"] in ("forward", "full")]
    assert len(full) == 7 and all(line["status"] == "ok" and line["runs"] and line["found"] for line in full)


def test_peak_memory_of_known_calls():
    def both():  # 64 + 32 MiB live at once, 64 KiB stay
        a = torch.ones(16 * 2**20)
        return a[: 8 * 2**20].clone()[: 2**14].clone()

    kept = [torch.ones(2**20) for _ in range(20)]  # freed small blocks must not serve the call unseen
    del kept
    peak, result = peak_memory(both, CPU)
    if peak is None:
        pytest.skip("no high-water mark of memory on this system")
    assert len(result) == 2**14
    assert 90 * 2**20 < peak < 112 * 2**20


def test_laps_and_bandwidth():
    start = time.perf_counter()
    marks = laps(lambda mark: [mark(), time.sleep(0.05), mark(), mark()], CPU)
    assert len(marks) == 2 and marks[0] >= 0.05 and marks[1] >= 0
    assert sum(marks) <= time.perf_counter() - start
    assert 1e8 < copy_bandwidth(CPU) < 1e13


def test_checks():
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    edge, middle, half = x.clone(), x.clone(), x[..., :4]
    edge[..., 0], middle[..., 4, 4] = 5, 5
    assert close(1e-6)(x, x.double())[0]
    assert not close(1e-6)(edge, x)[0] and close(1e-6, border=1)(edge, x)[0]
    assert not close(1e-6, border=1)(middle, x)[0] and not close(1e-6)(half, x)[0]
    assert close(1e-6, outliers=1 / 64)(middle, x)[0] and not close(1e-6, outliers=1 / 65)(middle, x)[0]
    assert not close(1e-6, outliers=0.01)(x * float("nan"), x)[0]
    assert equal()(x, x)[0] and not equal()(middle, x)[0] and equal(63 / 64)(middle, x)[0] and not equal(0)(half, x)[0]
