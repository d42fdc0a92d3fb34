"""Which implementation serves an op on a device, and why: what is installed, and what the user has asked for."""

import functools
import importlib
import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

NAMESPACE = "camguide_fast"
BACKEND = os.environ.get("CAMGUIDE_FAST_BACKEND", "")
if BACKEND not in ("", "reference"):
    raise ValueError(f"CAMGUIDE_FAST_BACKEND is {BACKEND!r}; expected 'reference' or nothing")

# What it means that the extension is missing. Measured at 256 x 256: guided filter 120 times, SLIC more than 300.
COST = "on CPU every op runs its PyTorch reference, up to hundreds of times slower"


@dataclass(frozen=True)
class Row:
    """Which implementation serves an op on a device, and why."""

    backend: str  # "native" | "triton" | "cuda" | "reference"
    why: str


kernels: dict[str, tuple[str, str] | None] = {}  # op -> (module of camguide_fast.kernels, "triton" | "cuda")


def why_no_kernels(language: str) -> str:
    if BACKEND == "reference":
        return "CAMGUIDE_FAST_BACKEND=reference"
    needed = {"triton": "triton", "cuda": "cupy"}[language]
    return "" if importlib.util.find_spec(needed) else f"{needed} is not installed"


@functools.cache
def load_native() -> str:
    """Imports the C++ extension, which fills the CPU rows; returns "" or the reason why there is none, after one
    warning."""
    if BACKEND == "reference":
        return "CAMGUIDE_FAST_BACKEND=reference"
    try:
        importlib.import_module("camguide_fast._C")
    except ImportError as error:
        why = (
            "the extension was not built"
            if isinstance(error, ModuleNotFoundError)
            else f"the extension does not load: {error}"
        )
        warnings.warn(
            f"camguide_fast: {why}{build_error()}; {COST} (see python -m camguide_fast.info)",
            stacklevel=2,
        )
        return why
    return ""


def build_error() -> str:
    """ " (why)" where the installation tried to build the extension and could not, else ""."""
    note = Path(__file__).parents[1] / "_build_error.txt"  # written by setup.py
    return f" ({note.read_text().strip()})" if note.exists() else ""


def backends() -> dict[str, dict[str, Row]]:
    """{op: {"cpu": Row, "cuda": Row}} as the dispatcher will serve them; what `python -m camguide_fast.info` prints."""
    table = {}
    for name, kernel in kernels.items():
        native = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CPU")
        cpu = Row("native", "C++ extension") if native else Row("reference", load_native() or "no C++ kernel yet")
        if kernel is None:
            cuda = Row("reference", "no GPU kernel yet")
        elif why := why_no_kernels(kernel[1]):
            cuda = Row("reference", why)
        else:
            cuda = Row(kernel[1], f"kernels/{kernel[0]}.py")
        table[name] = {"cpu": cpu, "cuda": cuda}
    return table
