"""The bench harness: what is wrong is not timed, what is slower is shown, and pytest-benchmark gets all of it."""

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import _measure
import pytest
import torch
from _check import close, equal
from _measure import FLUSHES, ROUNDS, Sampler, copy_bandwidth, laps, peak_memory, sample_in_turn

ROOT = Path(__file__).resolve().parents[2]

CPU = torch.device("cpu")
BENCH = """
import time

import torch
from _check import close
from _harness import compare
from _rows import Row

MADE = []


def slowly(seconds, f=torch.relu):
    def call(x):
        time.sleep(seconds)
        return f(x)
    return call


def of(case, **rows):
    def inputs():
        assert case not in MADE, "made again"
        MADE.append(case)
        return (torch.randn(4, 64, 64),)

    return compare("cam_normalize", case, inputs=inputs, grad=0, oracle=torch.relu, check=close(1e-6), rows=rows)


bench_right = of(
    "right",
    ours=slowly(0.02),
    fast=torch.relu,
    slow=slowly(0.2),
    numpy=Row(lambda x: x.clip(0), lambda x: (x.numpy(),), check=lambda *_: (True, "as it is"), gradient=False,
              on_cpu=True, note="another border"),
    absent=Row(torch.relu, needs="no_such_package.relu"),
    absent_part=Row(torch.relu, needs="torch.no_such_part.relu"),
)
bench_wrong_value = of(
    "value", ours=torch.relu, peer=lambda x: torch.relu(x) + 1e-3, broken=lambda x: x.no_such_method()
)
bench_wrong_gradient = of("gradient", ours=lambda x: torch.relu(x).detach() + 0 * x, peer=torch.relu)
bench_not_a_number = of("nan", ours=lambda x: torch.relu(x) * float("nan"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    for file in [ROOT / "bench/conftest.py", *(ROOT / "bench").glob("_*.py")]:
        shutil.copy(file, folder)
    (folder / "bench_tiny.py").write_text(BENCH)
    (folder / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\npython_functions = bench_*\n")
    return folder


def run(folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", folder, "--threads", "1", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def session(folder):
    """The harness on a bench of its own: (outcome, JSON)."""
    process = run(folder, "--budget", "0.2", "--benchmark-autosave", "--benchmark-json", "out.json")
    return process, json.loads((folder / "out.json").read_text())


def test_a_wrong_row_fails_and_is_not_timed(session):
    process, found = session
    assert process.returncode == 1, process.stdout + process.stderr
    assert "12 failed, 16 passed, 6 skipped" in process.stdout  # a wrong row in every mode
    for test, said in [
        ("bench_wrong_value[peer-full]", "> 1e-06"),
        ("bench_wrong_value[broken-forward]", "no_such_method"),
        ("bench_wrong_gradient[ours-forward]", "gradient "),
        ("bench_not_a_number[ours-backward]", "nan > 1e-06"),
    ]:
        assert any(line.startswith("FAILED") and test in line for line in process.stdout.splitlines())
        assert said in process.stdout
        assert test not in {entry["name"] for entry in found["benchmarks"]}
    assert "fixture was not used" not in process.stdout


def infos(session) -> dict[tuple[str, str], dict]:
    """Of the bench without a wrong row."""
    right = [entry for entry in session[1]["benchmarks"] if entry["extra_info"]["case"] == "right"]
    return {(x["extra_info"]["row"], x["extra_info"]["mode"]): x["extra_info"] | x["stats"] | x for x in right}


def test_json_holds_all_of_it(session):
    found = infos(session)
    rows = ("ours", "fast", "slow")
    assert found.keys() == {(r, m) for r in rows for m in ("forward", "backward", "full")} | {("numpy", "forward")}
    for (row, mode), x in found.items():
        assert x["group"] == f"cam_normalize, right | {mode}" and x["name"] == f"bench_right[{row}-{mode}]"
        assert x["op"] == "cam_normalize" and x["error"] and (x["peak_bytes"] is None) == (mode == "backward")
        assert (x["backend"] in ("native", "reference")) == (row == "ours")
        assert x["bytes"] == {"forward": 2, "backward": 2, "full": 4}[mode] * 4 * 64 * 64 * 4
        assert x["gbps"] == pytest.approx(x["bytes"] / x["median"] / 1e9)
        assert x["copy_share"] == pytest.approx(x["gbps"] * 1e9 / session[1]["machine_info"]["copy_bandwidth"])
        assert len(x["data"]) == x["rounds"] and x["q1"] <= x["median"] <= x["q3"]
    for mode in ("forward", "full"):
        ours, slow = found["ours", mode], found["slow", mode]
        assert ours["median"] > 0.02 and slow["median"] > 0.2
        assert slow["ratio"] == pytest.approx(slow["median"] / ours["median"])
        assert found["fast", mode]["ratio"] < 1 and ours["ratio"] is None
    assert found["slow", "backward"]["q1"] < 0.2  # the call of autograd alone
    without_ours = [x["extra_info"] for x in session[1]["benchmarks"] if x["extra_info"]["case"] == "gradient"]
    assert [x["ratio"] for x in without_ours] == [None] * 3
    machine = session[1]["machine_info"]
    assert machine["threads"] == 1 and machine["budget"] == 0.2 and machine["device"] == "cpu" and machine["torch"]


def test_losing_rows_and_absent_peers_are_shown(session):
    text = session[0].stdout
    losing = next(line for line in text.splitlines() if line.startswith("**Slower than** fast"))
    assert "fast (forward, 0." in losing  # the two backward calls, without their sleep, are as fast as one another
    assert "slow (forward" not in losing and "slow (full" not in losing
    assert "- numpy: another border." in text
    for row, missing in [("absent", "'no_such_package'"), ("absent_part", "'no_such_part'")]:
        assert any("SKIPPED" in line and f"no {row}: " in line and missing in line for line in text.splitlines())


def test_two_runs_are_compared(session, folder):
    again = run(folder, "--budget", "0", "--benchmark-compare", "-k", "right and forward and (ours or fast)")
    assert again.returncode == 0 and "2 passed" in again.stdout, again.stdout + again.stderr
    table = again.stdout[: again.stdout.index("### ")]
    for row in ("ours", "fast"):
        assert all(f"bench_right[{row}-forward] ({which}" in table for which in ("NOW)", "0001_"))
    assert "machine_info is different" not in again.stdout


def test_benches_run_one_at_a_time(folder):
    process = run(folder, "-n", "2")
    assert process.returncode == pytest.ExitCode.USAGE_ERROR and "leave out -n" in process.stderr


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


def test_rows_alternate():
    log = []

    def call(name):
        return lambda mark: [mark(), log.append(name), time.sleep(0.001), mark()]

    sample_in_turn([Sampler(call(name), CPU, 0.5) for name in "ab"])
    assert [name for name, _ in groupby(log)][:4] == ["a", "b"] * 2 and log.count("a") > ROUNDS


def test_cuda_is_timed_by_events_behind_a_flush(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = 2.0 ** len(log)
            log.append("mark")

        def elapsed_time(self, other):
            return other.at - self.at

    device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    flush = SimpleNamespace(zero_=lambda: log.append("flush"))
    monkeypatch.setattr(_measure, "_flush_buffer", lambda device: flush)
    found = laps(lambda mark: [mark(), log.append("run"), mark()], device)
    assert log == ["flush"] * FLUSHES + ["mark", "run", "mark", "wait"]
    assert found == [(4 - 1) * 2.0**FLUSHES / 1e3]


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
