"""Runs the CUDA kernels on the CPU, where their launchers launch them: cuda_host.h says what is emulated and caught.

    result = cuda_host.every_order(lambda: kernels.guided_filter(z, guide, 4, 1e-2, False))

runs a launcher on CPU tensors, with the threads scheduled in several orders; all must give the same bits. Tensors that
a launcher leaves uninitialised hold NaN. A kernel's source by itself: `cuda_host.run(source, kernel, blocks, ...)`.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest
import torch
from camguide_fast.kernels import _cuda
from torch import Tensor
from torch.overrides import TorchFunctionMode

FOLDER = Path(__file__).parent
HEADERS = sorted(FOLDER.glob("*.h"))
BUILD = Path(__file__).resolve().parents[2] / "build/cuda_host"
KERNEL = re.compile(r'^extern "C" __global__ void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\(', re.MULTILINE)
CHECKS = "alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"
FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing"]
FLAGS += ["-ffp-contract=off", f"-fsanitize={CHECKS}", "-fsanitize-undefined-trap-on-error"]
SHARED_LIMIT = 99 * 1024  # of a block on sm_86, sm_89 and sm_120; others have more
MULTIPROCESSORS = (34, 100 * 1024)  # of an RTX 4060 Ti, and their shared memory
ORDERS = (0, 1, 2, 3)  # of the threads: ascending, descending, shuffled by this seed

Result = TypeVar("Result")


class KernelError(Exception):
    """What would have been undefined on a GPU."""


def run(source: str, kernel: str, blocks: int, threads: int, args: tuple, *, shared: int = 0, order: int = 0) -> None:
    """One launch; tensors that are not inputs (const) are written. `source` as `_cuda.source` makes it."""
    library = _library(source)
    signature = getattr(library, f"cuda_host_signature_{kernel}")
    signature.restype = ctypes.c_char_p
    parameters = signature().decode().split(",")[:-1]
    _check_launch(kernel, blocks, threads, args, shared, parameters)
    values = [_cuda._value(a) for a in args]
    sizes = [a.numel() * a.element_size() if isinstance(a, Tensor) else 0 for a in args]
    failed = getattr(library, f"cuda_host_launch_{kernel}")(
        (ctypes.c_uint * 3)(blocks, 1, 1),
        (ctypes.c_uint * 3)(threads, 1, 1),
        ctypes.c_size_t(shared),
        ctypes.c_uint64(order),
        (ctypes.c_void_p * len(args))(*map(ctypes.addressof, values)),
        (ctypes.c_size_t * len(args))(*sizes),
    )
    if failed:
        library.cuda_host_message.restype = ctypes.c_char_p
        raise KernelError(f"{kernel}: {library.cuda_host_message().decode()}")


def _check_launch(kernel: str, blocks: int, threads: int, args: tuple, shared: int, parameters: list[str]) -> None:
    assert 1 <= blocks < 2**31 and 1 <= threads <= 1024 and 0 <= shared <= SHARED_LIMIT, (blocks, threads, shared)
    assert len(args) == len(parameters), f"{kernel} takes {parameters}, got {len(args)} arguments"
    for i, (argument, parameter) in enumerate(zip(args, parameters, strict=True)):
        if isinstance(argument, Tensor):
            assert argument.is_contiguous() and argument.device.type == "cpu"
            given = _cuda.TYPES[argument.dtype] + "*"
        else:
            given = {int: "int", float: "double"}[type(argument)]
        signless = parameter.removeprefix("const ").replace("unsigned long long", "long long")
        assert given in (signless, "int*" if signless == "unsigned*" else None), f"{kernel}, {i}: {given}, {parameter}"
    tensors = [(a.data_ptr(), p) for a, p in zip(args, parameters, strict=True) if isinstance(a, Tensor)]
    pointers = [pointer for pointer, _ in tensors]
    for pointer, parameter in tensors:  # each argument is a copy of its own here
        assert parameter.startswith("const") or pointers.count(pointer) == 1, f"{kernel} writes what it also reads"


@functools.cache
def _library(source: str) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        pytest.skip("needs g++ to run CUDA kernels on the CPU")
    key = hashlib.sha256("\0".join([source, *map(Path.read_text, HEADERS), compiler, *FLAGS]).encode()).hexdigest()[:24]
    library = BUILD / f"{key}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        kernels = KERNEL.findall(_compile([compiler, "-E", "-P", "-DCUDA_HOST"], source))  # those of these macros
        wrappers = [f"CUDA_HOST_KERNEL({name})" for name in kernels]
        text = "\n".join(['#include "cuda_host.h"', source, "CUDA_HOST_END", *wrappers, ""])
        _compile([compiler, *FLAGS, "-I", FOLDER, "-o", unfinished], text)
        os.replace(unfinished, library)
    return ctypes.CDLL(library)


def _compile(command: list[str | Path], text: str) -> str:
    process = subprocess.run([*command, "-x", "c++", "-"], input=text, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@contextmanager
def on_cpu(order: int = 0, resident_blocks: int = 0) -> Iterator[list[str]]:
    """Launchers of camguide_fast.kernels run on CPU tensors inside; what they do not initialise is NaN. Yields the
    names of the kernels, as they are launched.

    Blocks run one after the other here: at most one may be resident, to which waiting for all is nothing.
    """
    launched: list[str] = []

    def prepare(op, kernel, blocks, threads, args, *, defines, shared=0, cooperative=False):
        assert blocks <= resident_blocks <= 1 or not cooperative, "blocks that wait for one another"

        def launch():
            launched.append(kernel)
            run(_cuda.source(op, defines), kernel, blocks, threads, args, shared=shared, order=order)

        return launch

    resident = mock.patch.object(_cuda, "resident_blocks", lambda per_multiprocessor: resident_blocks)
    multiprocessors = mock.patch.object(_cuda, "multiprocessors", lambda: MULTIPROCESSORS)
    with mock.patch.object(_cuda, "prepare", prepare), resident, multiprocessors, _Poison():
        yield launched


class _Poison(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__ in ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"):
            result.view(torch.uint8).fill_(0xFF)  # NaN, -1
        return result


def every_order(f: Callable[[], Result], orders: tuple[int, ...] = ORDERS) -> Result:
    """f() with the threads in each order; its tensors (one or several) must be the same bits."""
    results = []
    for order in orders:
        with on_cpu(order):
            results.append(f())
    for order, result in zip(orders, results, strict=True):
        pairs = [(results[0], result)] if isinstance(result, Tensor) else zip(results[0], result, strict=True)
        assert all(same_bits(a, b) for a, b in pairs), f"order {order} gives another result than order {orders[0]}"
    return results[0]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
