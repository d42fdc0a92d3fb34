"""Which implementation serves an op on a device, and why: what is installed, and what the user has asked for."""

import functools
import importlib
import importlib.util
import os
import re
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
SLOWER = "the ops whose kernels it takes run their PyTorch reference, many times slower"

LEAST_CAPABILITY = (8, 0)  # bf16, and shared memory beyond the 64 KB of sm_75
NEEDED = {"triton": "triton", "cuda": "cupy"}  # by the language of a kernel


@dataclass(frozen=True)
class Row:
    """Which implementation serves an op on a device, and why."""

    backend: str  # "native" | "triton" | "cuda" | "reference"
    why: str


kernels: dict[str, tuple[str, str] | None] = {}  # op -> (module of camguide_fast.kernels, "triton" | "cuda")


def why_no_kernels(language: str) -> str:
    if BACKEND == "reference":
        return "CAMGUIDE_FAST_BACKEND=reference"
    needed = NEEDED[language]
    return "" if importlib.util.find_spec(needed) else f"{needed} is not installed"


def serves(language: str, device: torch.device) -> bool:
    """Whether a GPU takes the kernels in this language that have been registered; warns of a reason once."""
    if why := why_not_on(language, device):
        _warn_once(f"camguide_fast: {why}; {SLOWER} (see python -m camguide_fast.info)")
    return not why


@functools.cache
def why_not_on(language: str, device: torch.device) -> str:
    """Why a GPU does not take the kernels in this language, "" if it does. Starts CUDA: not to be asked on import."""
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"the GPU is of sm_{capability[0]}{capability[1]}, and the kernels need sm_80"
    return (why_no_cupy() or _why_no_compiler(device)) if language == "cuda" else ""


@functools.cache
def why_no_cupy() -> str:
    """Imports CuPy; returns "" or what kept it from loading. Being installed is not enough: it needs a folder for its
    cache, say, and another CuPy must not have written over it."""
    try:
        importlib.import_module("cupy")
    except Exception as error:
        return f"cupy does not load: {_in_a_line(error)}"
    return ""


def _why_no_compiler(device: torch.device) -> str:
    """NVRTC and the headers that it is given are looked for when something is compiled, so a kernel of nothing is."""
    cupy = importlib.import_module("cupy")
    try:
        with torch.cuda.device(device):
            cupy.cuda.Device(device.index).use()
            cupy.RawModule(code='extern "C" __global__ void nothing() {}', options=("-std=c++17",)).compile()
    except Exception as error:
        return f"cupy does not compile: {_in_a_line(error)}"
    return ""


def _in_a_line(error: Exception) -> str:
    """CuPy's are of paragraphs, between rules."""
    text = " ".join(re.sub("={3,}|-{3,}", " ", str(error.__cause__ or error)).split())
    return f"{type(error).__name__}: {text[:120]}{'...' * (len(text) > 120)}"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


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
        table[name] = {"cpu": cpu, "cuda": _gpu_row(*kernel) if kernel else Row("reference", "no GPU kernel yet")}
    return table


def _gpu_row(module: str, language: str) -> Row:
    if why := why_no_kernels(language):
        return Row("reference", why)
    if not torch.cuda.is_available():  # what a GPU of sm_80 would get
        why = why_no_cupy() if language == "cuda" else ""
        return Row("reference", why) if why else Row(language, f"kernels/{module}.py")
    reasons = {f"cuda:{i}": why_not_on(language, torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
    if all(reasons.values()):
        return Row("reference", reasons["cuda:0"])
    others = [f"; not on {gpu}: {why}" for gpu, why in reasons.items() if why]
    return Row(language, f"kernels/{module}.py{''.join(others)}")
