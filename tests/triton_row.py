"""What the tests of Triton kernels share: an op served by its kernel, and kernels compiled where there is no GPU."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
    code = f"import sys; sys.path[:0] = {sys.path!r}; import triton_row; triton_row.compile_instead()\n{calls}"
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


def type_name(x: torch.Tensor | int) -> str:
    if isinstance(x, int):
        return "i32" if -(2**31) <= x < 2**31 else "i64"
    short = {"float": "fp", "bfloat": "bf", "uint": "u", "int": "i"}
    name = str(x.dtype).removeprefix("torch.")
    letters = name.rstrip("0123456789")
    return f"*{short[letters]}{name[len(letters) :]}"
