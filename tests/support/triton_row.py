"""What the tests of Triton kernels share: an op served by its kernel, and kernels compiled where there is no GPU."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPABILITIES = (80, 89, 90, 120)


@contextmanager
def serves(module: str, op: str) -> Iterator[None]:
    """For its length the kernel, interpreted, is the CPU row of the op: what is called is the public function. On a GPU
    it has a row of its own already."""
    row = torch.library.Library("camguide_fast", "IMPL")
    if DEVICE == "cpu":
        row.impl(op, getattr(importlib.import_module(f"camguide_fast.kernels.{module}"), op), "CPU")
    yield
    row._destroy()


def compile_launches(calls: str) -> None:
    """Runs `calls` in a process of its own (the interpreter replaces the compiler in this one), where to launch a
    kernel means to compile it for every GPU, with the types and constants of the launch."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    start = "from support import triton_row; triton_row.compile_instead()"
    code = f"import sys; sys.path[:0] = {sys.path!r}; {start}\n{calls}"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def compile_instead() -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    def run(self, *args, grid, warmup, **options):
        values = dict(zip(self.arg_names, args, strict=False))
        values |= {name: options.pop(name) for name in self.arg_names if name in options}
        constants = {p.name: values[p.name] for p in self.params if p.is_constexpr}
        constants |= {name: 1 for name, x in values.items() if name not in constants and type(x) is int and x == 1}
        signature = {name: "constexpr" if name in constants else type_name(x) for name, x in values.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(values.values()) if hasattr(x, "data_ptr")}
        source = triton.compiler.ASTSource(fn=self, signature=signature, constexprs=constants, attrs=aligned)
        for capability in CAPABILITIES:
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            assert compiled.asm["cubin"]

    triton.JITFunction.run = run


def type_name(x: Tensor | int) -> str:
    if isinstance(x, int):
        return "i32" if -(2**31) <= x < 2**31 else "i64"
    short = {"float": "fp", "bfloat": "bf", "uint": "u", "int": "i"}
    name = str(x.dtype).removeprefix("torch.")
    letters = name.rstrip("0123456789")
    return f"*{short[letters]}{name[len(letters) :]}"


def graph_equals_eager(step: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> None:
    """On a side stream, and replayed from a CUDA graph with other input, `step` gives the bits it gives eagerly."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    expected = step(x)
    with torch.cuda.stream(side):
        on_the_side = step(x)  # compiles the kernels before the capture, too
    torch.cuda.current_stream().wait_stream(side)
    assert all(torch.equal(a, b) for a, b in zip(on_the_side, expected, strict=True))
    graph, held = torch.cuda.CUDAGraph(), torch.zeros_like(x)
    with torch.cuda.graph(graph):
        replayed = step(held)
    held.copy_(x)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))
