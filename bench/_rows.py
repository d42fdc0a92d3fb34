"""A row of a comparison, as a bench names it (`Row`), and with its inputs (`Call`): what is timed of it, what is
checked."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

import torch
from _check import Check
from _measure import Marker
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Row:
    """One implementation; a bare function is `Row(function)`."""

    f: Callable
    inputs: Callable[..., tuple] | None = None
    """The comparison's inputs -> its own form of them (another dtype or layout), made before the clock starts."""
    result: Callable[[Any], Tensor] = torch.as_tensor
    """What it returns -> the tensor that is checked, made after the clock has stopped."""
    check: Check | None = None
    """In place of the comparison's, for a peer with another border or function; say which in `note`."""
    gradient: bool = True
    """False: it has no backward, only the forward pass is compared."""
    on_cpu: bool = False
    """A library for the CPU: its tensors stay there, whatever the device of the others."""
    needs: str = ""
    """Dotted name of what it is from; a row without it is skipped."""
    note: str = ""
    absent: str = ""
    """Why it cannot run here, where `needs` does not tell."""

    def missing(self) -> str:
        """Why it cannot run here."""
        try:
            if self.needs:
                resolve_name(self.needs)
        except (ImportError, AttributeError) as error:
            return str(error)
        return self.absent


def compiled(f: Callable) -> Row:
    """`torch.compile` of f, whose import takes seconds: not before it runs."""
    made = cache(lambda: torch.compile(f, dynamic=False))
    no_compiler = not any(map(shutil.which, ("c++", "g++", "clang++")))
    return Row(lambda *inputs: made()(*inputs), absent="no C++ compiler" if no_compiler else "")


class Call:
    def __init__(self, row: Row, inputs: tuple, device: torch.device, grad: int | None, upstream: Tensor | None):
        """`inputs`: of the comparison."""
        self.row, self.upstream = row, upstream
        self.device = torch.device("cpu") if row.on_cpu else device
        self.inputs = moved(row.inputs(*inputs) if row.inputs else inputs, self.device)
        self.differentiable = grad is not None and row.gradient
        if self.differentiable:
            self._leaf = self.inputs[grad].detach().requires_grad_()
            self._inputs_with_leaf = (*self.inputs[:grad], self._leaf, *self.inputs[grad + 1 :])
        self.bytes: dict[str, int] = {}  # by mode
        self.found: dict[str, str] = {}  # what the check said of "forward" and "gradient"

    def result(self) -> Tensor:
        with torch.no_grad():
            out = self.row.f(*self.inputs)
        self.bytes["forward"] = _nbytes(self.inputs) + _nbytes(out)
        return self.row.result(out)

    def gradient(self) -> Tensor:
        out = self.row.f(*self._inputs_with_leaf)
        self._given = self.upstream.to(out)
        (gradient,) = torch.autograd.grad(out, self._leaf, self._given)
        self.bytes["backward"] = _nbytes(gradient) + _nbytes(self._given)
        self.bytes["full"] = self.bytes["forward"] + self.bytes["backward"]
        return gradient

    def verify(self, check: Check, wanted: list[Tensor]) -> str:
        """ "" or what is wrong with the result or the gradient."""
        right, self.found["forward"] = check(self.result(), wanted[0])
        if not right:
            return self.found["forward"] or "wrong"
        if self.differentiable:
            right, self.found["gradient"] = check(self.gradient(), wanted[1])
        return "" if right else f"gradient {self.found['gradient']}"

    def forward(self, mark: Marker) -> None:
        with torch.no_grad():
            mark()
            out = self.row.f(*self.inputs)  # noqa: F841  (freed after the mark: the clock has stopped)
            mark()

    def full(self, mark: Marker) -> None:
        """Forward with gradient, backward: two laps."""
        mark()
        out = self.row.f(*self._inputs_with_leaf)
        mark()
        gradient = torch.autograd.grad(out, self._leaf, self._given)  # noqa: F841
        mark()


def moved(x: Any, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(device), x)


def double(x: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, x)


def _nbytes(x: Any) -> int:
    return sum(getattr(leaf, "nbytes", 0) for leaf in tree_leaves(x))
