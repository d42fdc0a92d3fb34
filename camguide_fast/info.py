"""`python -m camguide_fast.info`: versions, and which implementation serves each op on each device, and why."""

import importlib
import importlib.util
import os
import platform

import torch

from . import __version__
from .ops._register import load_native, rows


def versions() -> list[tuple[str, str]]:
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
        ("CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
        *(("GPU", gpu) for gpu in _gpus()),
        ("C++ extension", load_native() or "loaded"),
        *([("backend", f"CAMGUIDE_FAST_BACKEND={backend}")] if backend else []),
    ]


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["none that torch can use; the column cuda tells what one would run"]
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB" for d in devices]


def table(header: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """Columns aligned to the left, a line under the header."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [header, tuple("-" * width for width in widths), *body]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def report() -> str:
    found = versions()
    width = max(len(what) for what, _ in found)
    ops = [
        (op, cpu.backend, cpu.why, cuda.backend, cuda.why)
        for op, (cpu, cuda) in sorted((op, (row["cpu"], row["cuda"])) for op, row in rows().items())
    ]
    lines = [f"{what.ljust(width)}  {value}" for what, value in found]
    return "\n".join([*lines, "", table(("op", "cpu", "why", "cuda", "why"), ops)])


if __name__ == "__main__":
    print(report())
