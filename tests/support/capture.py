"""CUDA graphs, as the tests of the GPU rows record them."""

from collections.abc import Callable

import torch


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
