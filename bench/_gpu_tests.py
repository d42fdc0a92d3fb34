"""A plugin of pytest for gpu.py: keeps the tests that run on the GPU, and writes a line of JSON as each one starts and
ends into the file that GPU_TESTS names, so that a run that is killed leaves what it knew."""

import json
import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of xdist's processes the first hears of all tests
        config.pluginmanager.register(Lines(os.environ["GPU_TESTS"]))


class Lines:
    def __init__(self, file: str):
        self.file = file

    def write(self, **line) -> None:
        with open(self.file, "a") as out:
            out.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(test=nodeid, outcome="started", seconds=0.0, message="")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._ended(report, report.duration)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._ended(report, 0.0)

    def _ended(self, report, seconds: float) -> None:
        text = report.longreprtext.strip().splitlines() if report.failed else []
        errors = [line[1:].strip() for line in text if line.startswith("E ")] or text[-1:]
        self.write(test=report.nodeid, outcome=report.outcome, seconds=seconds, message=" ".join(errors[:3])[:500])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU: those marked `cuda`, and those whose tensors lie there wherever there is one; not what compiles for
    other GPUs. Without one: all the others, which emulate."""
    gpu = torch.cuda.is_available()
    kept = [item for item in items if on_gpu(item) == gpu]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def on_gpu(item: pytest.Item) -> bool:
    if item.get_closest_marker("cuda"):
        return True
    compiles = "compile_launches" in item.function.__code__.co_names
    return getattr(item.module, "DEVICE", "cpu") == "cuda" and not compiles
