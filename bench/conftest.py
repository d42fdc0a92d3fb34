"""What all benches share: the options, the fixture `bench`, the closing tables. `pytest bench/` runs them."""

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from _harness import Bench
from _measure import copy_bandwidth
from _table import as_json, markdown

import camguide_fast
from camguide_fast import ops

TABLES, MACHINE = pytest.StashKey[list](), pytest.StashKey[dict]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where ours and the PyTorch peers run")
    group.addoption("--threads", type=int, help="CPU threads of every row (default: as torch chooses)")
    group.addoption("--budget", type=float, default=1.0, help="seconds for each row and mode (default: 1)")
    group.addoption("--bench-json", type=Path, metavar="FILE", help="also write what was measured as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        raise pytest.UsageError("benches run one at a time: leave out -n")
    if config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda, but torch sees no GPU")
    if threads := config.option.threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries not loaded yet
    config.stash[TABLES] = []


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> dict:
    """What the figures depend on, the bandwidth of a plain copy included."""
    _set_opencv_threads()
    device = torch.device(pytestconfig.option.device)
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device.type,
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "camguide_fast": camguide_fast.__version__,
        "commit": _commit(),
        "budget": pytestconfig.option.budget,
        "copy_bandwidth": copy_bandwidth(device),
    }
    pytestconfig.stash[MACHINE] = found
    return found


@pytest.fixture
def bench(pytestconfig: pytest.Config, machine: dict) -> Bench:
    def served(op: str) -> str:
        return ops.backends()[op][machine["device"]].backend

    device = torch.empty(0, device=machine["device"]).device  # with its index, as tensors have it
    return Bench(device, machine["budget"], pytestconfig.stash[TABLES], served)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.stash[TABLES]:
        return
    found = config.stash[MACHINE]
    terminalreporter.section("benches")
    threads = f"CPU threads: {found['threads']} ({found['vectors']})"
    version = " ".join(filter(None, ("camguide_fast", found["camguide_fast"], found["commit"])))
    terminalreporter.write_line(
        f"{found['gpu'] or found['cpu']}, {threads}, torch {found['torch']}, {version}, {found['date']}\n"
        f"A plain copy moves {found['copy_bandwidth'] / 1e9:.3g} GB/s, read and written."
    )
    for table in config.stash[TABLES]:
        terminalreporter.write_line("\n" + markdown(table, found["copy_bandwidth"]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    file, tables = session.config.option.bench_json, session.config.stash[TABLES]
    if file and tables:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(as_json(tables, session.config.stash[MACHINE]), indent=1) + "\n")


def _set_opencv_threads() -> None:
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(torch.get_num_threads())


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout, "+" where the tree differs from it; None outside a checkout."""
    try:
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
