"""`python -m camguide_fast.info`: versions, what the machine has, and which implementation serves each op, and why."""

import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import torch

from . import __version__
from .config import precision
from .data.threads import usable_cores
from .ops import COST, backends, build_error, load_native


def found() -> list[tuple[str, str]]:
    """(what, found) lines."""
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else "not installed"
    if interpreted := os.environ.get("TRITON_INTERPRET"):
        triton += f" (TRITON_INTERPRET={interpreted})"
    backend = os.environ.get("CAMGUIDE_FAST_BACKEND", "")
    return [
        ("camguide_fast", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("triton", triton),
        ("cores", f"{usable_cores()} of {os.cpu_count()} for this process, {torch.get_num_threads()} threads of torch"),
        ("vectors", torch.backends.cpu.get_cpu_capability()),
        ("bf16", _bf16()),
        *(("GPU", gpu) for gpu in _gpus()),
        *_cupy(),
        ("/dev/shm", _shared_memory()),
        ("C++ extension", f"{why}{build_error()}; {COST}" if (why := load_native()) else "loaded"),
        *([("backend", f"CAMGUIDE_FAST_BACKEND={backend}")] if backend else []),
    ]


def _bf16() -> str:
    cpu = torch.device("cpu")
    return f"amp auto is {'on' if precision.is_fast(cpu) else 'off'} on the CPU: {precision.reason(cpu)}"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["none that torch can use; the column cuda tells what one would run"]
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB" for d in devices]


def _cupy() -> list[tuple[str, str]]:
    """What the CUDA kernels are compiled by and with, as CuPy itself finds it. Nothing here starts CUDA."""
    packages = _installed("cupy-cuda13x", "cupy-cuda12x", "cupy")
    nvrtc = _installed("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
    listed = ", ".join(nvrtc) or ctypes.util.find_library("nvrtc") or "not found"
    if not packages and not importlib.util.find_spec("cupy"):
        return [("CuPy", "not installed"), ("NVRTC", listed)]
    version = ", ".join(packages)
    if len(packages) > 1:  # they write over each other's files
        version += ": one too many; uninstall all of them, then install the one for torch's CUDA"
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # why stands in the table
        return [("CuPy", f"{version}, does not load: {type(error).__name__}"), ("NVRTC", listed), *_folders()]
    try:
        listed = f"{'.'.join(map(str, cupy.cuda.nvrtc.getVersion()))}, loaded by CuPy; installed: {listed}"
    except Exception as error:
        listed += f"; CuPy does not load it: {type(error).__name__}"
    return [("CuPy", version or cupy.__version__), ("NVRTC", listed), *_folders()]


def _folders() -> list[tuple[str, str]]:
    """Of CuPy: CUDA's headers, and what it has compiled."""
    try:
        headers = importlib.import_module("cuda.pathfinder").find_nvidia_header_directory("cudart")
    except Exception as error:
        headers = f"{type(error).__name__}: {error}"
    cache = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy/kernel_cache")
    made = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    writable = os.access(made, os.W_OK)
    return [
        ("CUDA headers", headers or "not found"),
        ("CuPy cache", f"{cache}{'' if writable else ': cannot be written; CUPY_CACHE_DIR may name another folder'}"),
    ]


def _installed(*packages: str) -> list[str]:
    """Those of the packages that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{importlib.metadata.version(package)} ({package})")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _shared_memory() -> str:
    if not Path("/dev/shm").exists():
        return "none"
    usage = shutil.disk_usage("/dev/shm")
    return f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"


def table(header: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """Columns aligned to the left, a line under the header."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [header, tuple("-" * width for width in widths), *body]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def report() -> str:
    facts = found()
    width = max(len(what) for what, _ in facts)
    ops = [
        (op, cpu.backend, cpu.why, cuda.backend, cuda.why)
        for op, (cpu, cuda) in sorted((op, (row["cpu"], row["cuda"])) for op, row in backends().items())
    ]
    lines = [f"{what.ljust(width)}  {value}" for what, value in facts]
    return "\n".join([*lines, "", table(("op", "cpu", "why", "cuda", "why"), ops)])


if __name__ == "__main__":
    print(report())
