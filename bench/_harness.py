"""`bench.compare`: checks every row of a comparison against the oracle, then times those that are right."""

import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from _check import Check
from _measure import ROUNDS, Marker, Sampler
from _table import MODES, Line, Table
from torch import Tensor

FUSED_LOSS = "computes the gradient in the forward pass of training, so that `full` is what a step pays"


@dataclass(frozen=True)
class Row:
    """One implementation in a comparison; a bare function is `Row(function)`."""

    f: Callable
    inputs: tuple | None = None
    """Its own form of the comparison's inputs (another dtype or layout), made before the clock starts."""
    result: Callable[[Any], Tensor] = torch.as_tensor
    """What it returns -> the tensor that is checked, made after the clock has stopped."""
    check: Check | None = None
    """In place of the comparison's, for a peer with another border or function; say which in `note`."""
    gradient: bool = True
    """False: it has no backward, only the forward pass is compared."""
    on_cpu: bool = False
    """A library for the CPU: its tensors stay there, whatever the device of the others."""
    needs: str = ""
    """Dotted name of what it is from; a row without it says "not installed"."""
    note: str = ""
    missing: str = ""
    """Why it cannot run here, where `needs` does not tell."""


def compiled(f: Callable, **options) -> Row:
    """`torch.compile` of f."""
    no_compiler = not any(map(shutil.which, ("c++", "g++", "clang++")))
    return Row(torch.compile(f, dynamic=False, **options), missing="no C++ compiler" if no_compiler else "")


class Bench:
    """The fixture `bench`."""

    def __init__(self, device: torch.device, budget: float, tables: list[Table], served: Callable[[str], str]):
        self.device, self._budget, self._tables, self._served = device, budget, tables, served

    def compare(
        self,
        op: str | tuple[str, ...],
        case: str,
        *,
        inputs: tuple,
        rows: Mapping[str, Row | Callable],
        oracle: Callable[..., Tensor],
        check: Check,
        grad: int | None = None,
        bytes: Mapping[str, int] | None = None,
    ) -> None:
        """Checks, then times, every row on the same inputs; rows called "ours..." are ours, "ours" is what ratios
        refer to.

        Args:
            op: name or names of the ops in `camguide_fast.ops` behind "ours".
            case: shapes and settings, for the title.
            inputs: of every row that brings none of its own; tensors are moved to the device.
            oracle: gets the inputs with floats in fp64 and returns what every row's result is checked against.
            check: of results, and of gradients where there are any.
            grad: index of the input that gets a gradient; None times the forward pass alone.
            bytes: compulsory bytes by mode. By default each input is read once, and each result and gradient
                (upstream's too) read or written once; the inputs are not counted in the backward pass.

        Raises `WrongResult`, after the other rows are measured, if a row's result is wrong or it raises. Such a row is
        not timed.
        """
        names = (op,) if isinstance(op, str) else op
        table = Table(names[0] if len(names) == 1 else " + ".join(names), case, {n: self._served(n) for n in names})
        self._tables.append(table)
        inputs = tuple(_to(x, self.device) for x in inputs)
        oracle_call = Call(Row(oracle), _map(inputs, _double), self.device, grad, None)
        wanted = [oracle_call.result()]
        if grad is not None:
            shape, generator = wanted[0].shape, torch.Generator().manual_seed(0)
            oracle_call.upstream = torch.randn(shape, generator=generator).double() if shape else torch.ones(())
            wanted.append(oracle_call.gradient())
        calls, failures = self._right_calls(table, rows, inputs, grad, oracle_call.upstream, check, wanted)
        del oracle_call, wanted

        lines = [
            line
            for gradient, mode in ((False, "forward"), (True, "full"))
            for line in self._measure({n: c for n, c in calls.items() if c.differentiable or not gradient}, mode)
        ]
        for line in lines:
            compulsory = bytes.get(line.mode) if bytes else calls[line.row].bytes[line.mode]
            if compulsory and calls[line.row].device == self.device:
                line.bandwidth = compulsory / line.median
        _set_ratios(lines)
        table.lines[:0] = sorted(lines, key=lambda x: MODES.index(x.mode))
        torch.compiler.reset()
        if failures:
            text = "; ".join(f"{name}: {wrong}" for name, wrong, _ in failures)
            raise WrongResult(f"{table.op}, {case}: {text}") from failures[0][2]

    def _right_calls(
        self,
        table: Table,
        rows: Mapping[str, Row | Callable],
        inputs: tuple,
        grad: int | None,
        upstream: Tensor | None,
        check: Check,
        wanted: list[Tensor],
    ) -> tuple[dict[str, "Call"], list[tuple[str, str, Exception | None]]]:
        """({row: call} of the right ones, [(row, what is wrong, what it raised)]); the others get their line here."""
        calls, failures = {}, []
        for name, row in rows.items():
            row = row if isinstance(row, Row) else Row(row)
            if missing := row.missing or _missing(row.needs):
                table.lines.append(Line("", name, "not installed", missing, row.note))
                continue
            device = torch.device("cpu") if row.on_cpu else self.device
            own = tuple(_to(x, device) for x in (inputs if row.inputs is None else row.inputs))
            call, cause = Call(row, own, device, grad if row.gradient else None, upstream), None
            try:
                wrong = call.verify(row.check or check, wanted)
            except Exception as error:  # the other rows are measured all the same
                wrong, cause = f"{type(error).__name__}: {str(error).strip()[:200]}".splitlines()[0], error
            if wrong:
                failures.append((name, wrong, cause))
                table.lines.append(Line("", name, "FAILED", wrong, row.note))
            else:
                calls[name] = call
        return calls, failures

    def _measure(self, calls: dict[str, "Call"], mode: str) -> list[Line]:
        """Lines of "forward"; or of "full" and of its second lap, "backward"."""
        samplers = {name: Sampler(getattr(c, mode), c.device, self._budget) for name, c in calls.items()}
        for _ in range(ROUNDS):
            for sampler in samplers.values():
                sampler.sample_round()
        lines = []
        for name, sampler in samplers.items():
            times = {mode: [sum(s) for s in sampler.samples]}
            if mode == "full":
                times["backward"] = [s[1] for s in sampler.samples]
            for lap, seconds in times.items():
                p20, p80 = np.quantile(seconds, [0.2, 0.8]).tolist()
                median, runs = statistics.median(seconds), len(seconds)
                peak = sampler.peak if lap == mode else None
                found = calls[name].found["forward" if lap == "forward" else "gradient"]
                lines.append(Line(lap, name, "ok", found, calls[name].row.note, median, p20, p80, runs, peak))
        return lines


class WrongResult(AssertionError):
    pass


class Call:
    """A row with its inputs: the runs that are timed, and the results that are checked."""

    def __init__(self, row: Row, inputs: tuple, device: torch.device, grad: int | None, upstream: Tensor | None):
        self.row, self.inputs, self.device, self.upstream = row, inputs, device, upstream
        self.differentiable = grad is not None
        if grad is not None:
            self._leaf = inputs[grad].detach().requires_grad_()
            self._inputs_with_leaf = (*inputs[:grad], self._leaf, *inputs[grad + 1 :])
        self.bytes: dict[str, int] = {}  # by mode
        self.found: dict[str, str] = {}  # what the check said of "forward" and "gradient"

    def result(self) -> Tensor:
        with torch.no_grad():
            out = self.row.f(*self.inputs)
        self.bytes["forward"] = _bytes(self.inputs) + _bytes(out)
        return self.row.result(out)

    def gradient(self) -> Tensor:
        out = self.row.f(*self._inputs_with_leaf)
        self._given = self.upstream.to(out)
        (gradient,) = torch.autograd.grad(out, self._leaf, self._given)
        self.bytes["backward"] = _bytes(gradient) + _bytes(self._given)
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


def _set_ratios(lines: list[Line]) -> None:
    ours = {line.mode: line.median for line in lines if line.row == "ours"}
    for line in lines:
        if line.row != "ours" and line.mode in ours:
            line.ratio = line.median / ours[line.mode]


def _missing(needs: str) -> str:
    """What of a dotted name is not there. Attributes first: the parts of OpenCV are no modules to import."""
    if not needs:
        return ""
    top, *rest = needs.split(".")
    try:
        found, name = import_module(top), top
        for part in rest:
            name = f"{name}.{part}"
            found = getattr(found, part) if hasattr(found, part) else import_module(name)
    except ImportError as error:
        return str(error)
    return ""


def _map(x: Any, f: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return f(x)
    return type(x)(_map(y, f) for y in x) if type(x) in (tuple, list) else x


def _to(x: Any, device: torch.device) -> Any:
    return _map(x, lambda t: t.to(device))


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _bytes(x: Any) -> int:
    if isinstance(x, (list, tuple)):
        return sum(map(_bytes, x))
    return getattr(x, "nbytes", 0)
