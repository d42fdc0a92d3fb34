"""CUDA graphs, as the tests of the GPU rows record them."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NothingFromTheHost(TorchDispatchMode):
    """Refuses tensors made of the host's values: copying them to a GPU waits for it, and no capture takes that."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten.lift_fresh.default, "a tensor of values that the host has"
        return function(*args, **(kwargs or {}))


def captured(call: Callable) -> tuple[torch.cuda.CUDAGraph, object]:
    """A graph of `call`, and what it returned: memory that each replay writes again."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # compiles the kernels before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result
