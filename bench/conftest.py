"""What all benches share: the options, the fixture `bench`, what pytest-benchmark is told, the closing tables."""

import os
from contextlib import suppress

import pytest
import torch
from _harness import Bench
from _measure import copy_bandwidth
from _table import markdown

import camguide_fast

BENCH = pytest.StashKey[Bench]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where ours and the PyTorch peers run")
    group.addoption("--threads", type=int, help="CPU threads of every row (default: as torch chooses)")
    group.addoption("--budget", type=float, default=1.0, help="seconds for each row and mode (default: 1)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") != "no":
        raise pytest.UsageError("benches run one at a time: leave out -n")
    if config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda, but torch sees no GPU")
    if threads := config.option.threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries not loaded yet
    device = torch.empty(0, device=config.option.device).device  # with its index, as tensors have it
    config.stash[BENCH] = Bench(device, config.option.budget)
    config.option.benchmark_columns = config.option.benchmark_columns or ["median", "iqr", "min", "max", "rounds"]
    config.option.reportchars += "s"  # peers that are missing


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> Bench:
    with suppress(ImportError):
        import cv2

        cv2.setNumThreads(torch.get_num_threads())
    return pytestconfig.stash[BENCH]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    device = config.stash[BENCH].device
    machine_info |= {
        "cpu": machine_info["cpu"].get("brand_raw"),  # of the rest, the clock changes from run to run
        "device": device.type,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "camguide_fast": camguide_fast.__version__,
        "budget": config.option.budget,
        "copy_bandwidth": copy_bandwidth(device),
    }


def pytest_benchmark_compare_machine_info(machine_info: dict, compared_benchmark: dict) -> None:
    for info in (machine_info, compared_benchmark["machine_info"]):
        info.pop("copy_bandwidth", None)  # differs from run to run, on the same machine too


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's own
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not (entries := config.stash[BENCH].entries):
        return
    found = config.hook.pytest_benchmark_generate_machine_info(config=config)
    config.hook.pytest_benchmark_update_machine_info(config=config, machine_info=found)
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    terminalreporter.section("benches")
    threads = f"CPU threads: {found['threads']} ({found['vectors']})"
    version = f"camguide_fast {found['camguide_fast']} {commit['id'][:11]}{'+' if commit['dirty'] else ''}"
    terminalreporter.write_line(
        f"{found['gpu'] or found['cpu']}, {threads}, torch {found['torch']}, {version}\n"
        f"A plain copy moves {found['copy_bandwidth'] / 1e9:.3g} GB/s, read and written.\n\n{markdown(entries)}"
    )
