"""Runs what csrc/cuda holds: CUDA C++ compiled by NVRTC through CuPy for the GPU at hand, on the first launch.

`launch` is all that a launcher needs, and `prepare` for what it repeats, which the tests replace to run the same launch
on the CPU.
"""

import ctypes
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Beside kernels/ in a source checkout and in the installed package alike.
SOURCES = Path(__file__).resolve().parents[1] / "csrc/cuda"

# A tensor's element type in the sources; the half types are those of camguide.cuh.
TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "half_t",
    torch.bfloat16: "bfloat_t",
    torch.int64: "long long",
    torch.int32: "int",
    torch.uint8: "unsigned char",
    torch.bool: "bool",
}

Defines = dict[str, object]


def source(op: str, defines: Defines) -> str:
    """csrc/cuda/<op>.cu as one text: `defines` on top, then the house's headers instead of their #include.

    Nothing is left to include paths or -D options, whose contents CuPy's cache on disk would not see.
    """
    lines = [f"#define {name} {value}" for name, value in defines.items()]
    return "\n".join([*lines, _expand(SOURCES / f"{op}.cu", set())])


def _expand(path: Path, seen: set[Path]) -> str:
    """Each header once, where it is first included."""

    def header(match: re.Match) -> str:
        line, file = text.count("\n", 0, match.end()) + 2, (path.parent / match[1]).resolve()
        if file in seen:
            return ""
        seen.add(file)
        return f'{_expand(file, seen)}\n#line {line} "{path.name}"'

    text = path.read_text()
    body = re.sub(r'^#include "([\w./]+\.cuh)"$', header, text, flags=re.MULTILINE)
    return f'#line 1 "{path.name}"\n{body.replace("#pragma once", "")}'


def prepare(
    op: str,
    kernel: str,
    blocks: int,
    threads: int,
    args: tuple,
    *,
    defines: Defines,
    shared: int = 0,
    cooperative: bool = False,
) -> Callable[[], None]:
    """A launch of `kernel` of csrc/cuda/<op>.cu on the current stream, as often as it is called: most of what a launch
    takes the host is done here.

    `args`: contiguous tensors (pointers there), ints (int) and floats (double), in the order of the kernel's
    parameters. `defines`: macros the source is specialised by. `shared`: bytes of dynamic shared memory. `cooperative`:
    the blocks, at most `resident_blocks`, run at the same time and may wait for one another.
    """
    import cupy

    device = torch.cuda.current_device()
    cupy.cuda.Device(device).use()  # binds its context to this thread, which may be one of autograd's
    function = _function(op, kernel, tuple(defines.items()), shared, device)
    values = [_value(a) for a in args]  # to be kept, as the tensors are, until it is launched
    pointers = (ctypes.c_void_p * len(args))(*map(ctypes.addressof, values))
    stream = torch.cuda.current_stream().cuda_stream
    sizes = (blocks, 1, 1, threads, 1, 1, shared)
    start = cupy.cuda.driver.launchCooperativeKernel if cooperative else cupy.cuda.driver.launchKernel
    given = (function.kernel.ptr, *sizes, stream, ctypes.addressof(pointers), *(() if cooperative else (0,)))

    def again(kept: tuple = (args, values, pointers)) -> None:
        start(*given)

    return again


def launch(op: str, kernel: str, blocks: int, threads: int, args: tuple, **options: Any) -> None:
    """What `prepare` prepares, once."""
    prepare(op, kernel, blocks, threads, args, **options)()


def resident_blocks(per_multiprocessor: int) -> int:
    """How many blocks the current GPU runs at the same time, if a multiprocessor has room for so many."""
    device = torch.cuda.current_device()
    return per_multiprocessor * torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _function(op: str, kernel: str, defines: tuple, shared: int, device: int):
    function = _module(op, defines, device).get_function(kernel)
    if shared > function.max_dynamic_shared_size_bytes:  # at first what its static memory leaves of 48 KB
        function.max_dynamic_shared_size_bytes = shared
    return function


@functools.cache
def _module(op: str, defines: tuple, device: int):
    """A module and its functions belong to the device that is current when they are made."""
    import cupy

    return cupy.RawModule(code=source(op, dict(defines)), options=("-std=c++17",))


def _value(x: Tensor | int | float) -> ctypes._SimpleCData:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if isinstance(x, float):
        return ctypes.c_double(x)
    if not -(2**31) <= x < 2**31:  # ctypes would wrap it
        raise ValueError(f"the CUDA kernels count in 32 bits, and these tensors are too large for it: {x}")
    return ctypes.c_int(x)


def multiprocessors() -> tuple[int, int]:
    """How many the current GPU has, and the bytes of shared memory of each (PyTorch keeps a device's properties)."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return properties.multi_processor_count, properties.shared_memory_per_multiprocessor
