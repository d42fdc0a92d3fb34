"""What the tests of Triton kernels share: an op served by its kernel, and kernels compiled where there is no GPU."""

import importlib
import json
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


def compile_launches(calls: str, capabilities: tuple[int, ...] = CAPABILITIES) -> list[dict]:
    """Runs `calls` in a process of its own (the interpreter replaces the compiler in this one), where to launch a
    kernel means to compile it for these GPUs, with the types and constants of the launch. Of each launch and GPU:
    `kernel`, `capability`, `key` (launches of the same key share what was compiled), and of its PTX the number of
    `instructions`, of `shuffles` and of `wide_loads`."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    start = f"from support import triton_row; triton_row.compile_instead({capabilities!r})"
    code = f"import sys; sys.path[:0] = {sys.path!r}; {start}\n{calls}"
    process = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE)
    return [json.loads(line) for line in process.stdout.splitlines()]


def compile_instead(capabilities: tuple[int, ...]) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = {}

    def run(self, *args, grid, warmup, **options):
        values = dict(zip(self.arg_names, args, strict=False))
        values |= {name: options.pop(name) for name in self.arg_names if name in options}
        constants = {p.name: values[p.name] for p in self.params if p.is_constexpr}
        plain = {p.name for p in self.params if p.do_not_specialize or p.annotation_type}
        constants |= {
            name: 1 for name, x in values.items() if name not in {*constants, *plain} and type(x) is int and x == 1
        }
        types = {p.name: p.annotation_type or type_name(values[p.name]) for p in self.params if not p.is_constexpr}
        signature = {name: "constexpr" if name in constants else types[name] for name in values}
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, (name, x) in enumerate(values.items())
            if hasattr(x, "data_ptr") or (type(x) is int and x % 16 == 0 and name not in {*constants, *plain})
        }
        source = triton.compiler.ASTSource(fn=self, signature=signature, constexprs=constants, attrs=aligned)
        for capability in capabilities:
            key = repr((self.__name__, capability, signature, constants, aligned, options))
            if key not in compiled:
                asm = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
                assert asm["cubin"]
                compiled[key] = asm["ptx"]
            lines = [line.strip() for line in compiled[key].splitlines()]
            instructions = [x for x in lines if x.endswith(";") and not x.startswith((".", "//"))]
            shuffles = sum("shfl" in x for x in instructions)
            found = dict(kernel=self.__name__, capability=capability, key=key)
            wide = sum("ld.global" in x and ".v" in x for x in instructions)
            print(json.dumps(found | dict(instructions=len(instructions), shuffles=shuffles, wide_loads=wide)))

    triton.JITFunction.run = run


def type_name(x: Tensor | int | float) -> str:
    if isinstance(x, float):
        return "fp32"
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
