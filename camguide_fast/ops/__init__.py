"""The ops: drop-in functions on CPU or CUDA tensors. Each file holds schema, shapes for tracing, autograd and the docstring."""

from ._register import load_native
from .confusion_matrix import confusion_matrix
from .guided_filter import guided_filter

load_native()
