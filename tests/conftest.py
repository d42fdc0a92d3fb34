"""What all tests share: the real data beside the checkout; the GPU, or else the interpreter of Triton; the cores."""

import os
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the import of triton: kernels run on CPU tensors

# Inductor's cache does not know the vectors that its code was made for: under ATEN_CPU_CAPABILITY=avx2, say, and then
# without, stores of 8 floats would be compiled as stores of 16, past the end of their memory.
CACHE = f"camguide_fast-{os.getuid()}-{torch.backends.cpu.get_cpu_capability()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / CACHE))

SHARES_CORES = "PYTEST_XDIST_WORKER" in os.environ  # as one of several processes
if SHARES_CORES:  # a process on each core: threads would only wait for those of the others
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # for what the tests start, too

# derandomized: a test that fails does so again. No deadline: the machine may be busy.
hypothesis.settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("nightly", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile("ci")

_SHARED = Path(__file__).resolve().parents[2] / "shared"
VOC = _SHARED / "data" / "voc_animals"  # VOC layout, 5 classes, labels.json
IMAGES = _SHARED / "data" / "images"  # example pictures of other projects
WEIGHTS = _SHARED / "weights" / "resnet18_partial"  # .npy, BatchNorm folded, layer4's 3x3 weights missing


def _existing(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f"needs {path.name}, expected at {path}")
    return path


@pytest.fixture(scope="session")
def voc() -> Path:
    return _existing(VOC)


@pytest.fixture(scope="session")
def images() -> Path:
    return _existing(IMAGES)


@pytest.fixture(scope="session")
def weights() -> Path:
    return _existing(WEIGHTS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def several_threads():
    """Three of them inside the ops, on any machine and beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def same_bits_on_any_threads():
    """check(f): the tensors that f() returns are the same bits with one thread, with two, once more, and with three."""

    def check(f) -> None:
        before, results = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 2, 3):
                torch.set_num_threads(threads)
                results.append(f())
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    return check


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """`pytest` by itself runs all tests on all cores. What the command line names starts at once, in one process."""
    if SHARES_CORES or not config.pluginmanager.hasplugin("xdist"):  # or each process would start as many again
        return
    named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword
    if config.option.numprocesses is None and not named:
        # A file stays in one process, with what its tests share, until another process has nothing left to do.
        config.option.numprocesses, config.option.dist = "auto", "worksteal"
        config.option.maxprocesses = config.option.maxprocesses or 8  # a gigabyte each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
