"""What a GPU would launch, counted without one: on tensors of the device "meta", which have shapes alone, our ops run
the launchers of their kernels, whose launches are counted and left out. Whatever reads a value on the way raises."""

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import triton.runtime
from camguide_fast.kernels import _cuda
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

from camguide_fast import reference
from camguide_fast.ops._backends import kernels

OF_THE_NETWORK = ("convolution", "batch_norm", "relu", "threshold_backward", "max_pool")
FREE = ("view", "detach", "expand", "select", "slice", "transpose", "permute", "squeeze", "alias", "unbind", "split")
NO_LAUNCH = ("empty", "promote_types")  # memory, and questions
MULTIPROCESSORS = (132, 228 * 1024)  # of an H100, and their shared memory


def nbytes(x: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor))


class Launches(TorchDispatchMode):
    """Calls that compute, beside the layers of a network: each is a launch, or, of our ops, as many as those make.
    `bytes`: their inputs and results, each once a call."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.ours: set[str] = set()
        self._op = ""  # of ours, that is running

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op._schema.name.partition("::")[2]
        if op.namespace != "camguide_fast" or name.startswith("_"):
            result = op(*args, **(kwargs or {}))
            if self._counts(name, args):
                self.counts[self._op or name] += 1
                if not self._op:
                    self.bytes[name] += nbytes((args, kwargs, result))
            return result
        args = list(args) + [a.default_value for a in op._schema.arguments[len(args) :]]
        module = kernels[name]
        f = getattr(importlib.import_module(f"camguide_fast.kernels.{module[0]}") if module else reference, name)
        self._op = name
        self.ours.add(name)
        with self, self._launchers_recorded():
            try:
                result = f(*args)
            finally:
                self._op = ""
        self.bytes[name] += nbytes((args, result))
        return result

    def _counts(self, name: str, args: tuple) -> bool:
        steps_of_batchnorm = name == "add_" and args[0].dtype == torch.int64
        left_out = (*OF_THE_NETWORK, *FREE, *NO_LAUNCH)
        return not steps_of_batchnorm and not any(part in name for part in left_out)

    @contextmanager
    def _launchers_recorded(self) -> Iterator[None]:
        def launch(*_, **__) -> None:
            self.counts[self._op] += 1

        with ExitStack() as stack:
            for owner in (triton.runtime.JITFunction, InterpretedFunction):
                stack.enter_context(mock.patch.object(owner, "__getitem__", lambda kernel, grid: launch))
            for name, value in {
                "prepare": lambda *_, **__: launch,
                "resident_blocks": lambda per_multiprocessor: per_multiprocessor * MULTIPROCESSORS[0],
                "multiprocessors": lambda: MULTIPROCESSORS,
            }.items():
                stack.enter_context(mock.patch.object(_cuda, name, value))
            yield
