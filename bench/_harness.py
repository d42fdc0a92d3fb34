"""`compare` makes a bench: every row in every mode is a test of pytest-benchmark, timed once its result is right."""

import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pytest
import torch
from _check import Check
from _measure import Sampler, copy_bandwidth, sample_in_turn
from _rows import Call, Row, double, moved
from torch import Tensor

from camguide_fast import ops

FUSED_LOSS = "computes the gradient in the forward pass of training, so that `full` is what a step pays"

Cell = tuple[str, str]  # row, mode
Outcome = tuple[list[float], dict[str, Any]] | str  # seconds and `extra_info`; or what is wrong


@dataclass(eq=False)
class Comparison:
    """Rows on the same inputs. Those called "ours..." are ours; "ours" is what ratios refer to."""

    op: str | tuple[str, ...]
    """Name or names of the ops in `camguide_fast.ops` behind "ours"."""
    case: str
    """Shapes and settings, for the title."""
    inputs: Callable[[], tuple]
    """Makes the inputs, once a row runs; tensors are moved to the device."""
    rows: Mapping[str, Row | Callable]
    oracle: Callable[..., Tensor]
    """Gets the inputs with floats in fp64 and returns what every row's result is checked against."""
    check: Check
    """Of results, and of gradients where there are any."""
    grad: int | None = None
    """Index of the input that gets a gradient; None times the forward pass alone."""
    bytes: Callable[..., Mapping[str, int]] | None = None
    """The inputs -> compulsory bytes by mode. By default each input is read once, and each result and gradient
    (upstream's too) read or written once; the inputs are not counted in the backward pass."""
    around: Callable[[], AbstractContextManager] = nullcontext
    """What all of it runs within."""

    def __post_init__(self):
        self.ops = (self.op,) if isinstance(self.op, str) else self.op
        self.op = " + ".join(self.ops)
        self.rows = {name: row if isinstance(row, Row) else Row(row) for name, row in self.rows.items()}

    def cells(self) -> list[Cell]:
        gradient = ("backward", "full") if self.grad is not None else ()
        return [
            (name, mode)
            for mode in ("forward", *gradient)
            for name, row in self.rows.items()
            if row.gradient or mode == "forward"
        ]

    def measure(self, cells: Collection[Cell], device: torch.device, budget: float) -> dict[Cell, Outcome]:
        """What is wrong is told as text, which holds no tensors."""
        try:
            with self.around():
                inputs = self.inputs()
                calls, wrong = self._checked(dict.fromkeys(row for row, _ in cells), inputs, device)
                for call in calls.values() if self.bytes else ():
                    call.bytes |= self.bytes(*inputs)
                del inputs
                timed = self._timed(calls, cells, device, budget)
        except Exception as error:
            return dict.fromkeys(cells, _text(error))
        finally:
            torch.compiler.reset()
        return {cell: wrong.get(cell[0]) or timed[cell] for cell in cells}

    def _checked(
        self, names: Iterable[str], inputs: tuple, device: torch.device
    ) -> tuple[dict[str, Call], dict[str, str]]:
        """The calls of the rows that are right; what is wrong with the others."""
        shared = moved(inputs, device)
        oracle = Call(Row(self.oracle, lambda *x: double(x)), shared, device, self.grad, None)
        wanted = [oracle.result()]
        if oracle.differentiable:
            shape, generator = wanted[0].shape, torch.Generator().manual_seed(0)
            oracle.upstream = torch.randn(shape, generator=generator).double() if shape else torch.ones(())
            wanted.append(oracle.gradient())
        calls, wrong = {}, {}
        for name in names:
            row = self.rows[name]
            own = inputs if row.inputs or row.on_cpu else shared
            try:
                call = Call(row, own, device, self.grad, oracle.upstream)
                if found := call.verify(row.check or self.check, wanted):
                    wrong[name] = found
                else:
                    calls[name] = call
            except Exception as error:  # the other rows are measured all the same
                wrong[name] = _text(error)
        return calls, wrong

    def _timed(
        self, calls: dict[str, Call], cells: Collection[Cell], device: torch.device, budget: float
    ) -> dict[Cell, Outcome]:
        timed = {}
        served = ", ".join(sorted({ops.backends()[op][device.type].backend for op in self.ops}))
        for run, modes in (("forward", ("forward",)), ("full", ("backward", "full"))):
            rows = [name for name in calls if any((name, mode) in cells for mode in modes)]
            samplers = {n: Sampler(getattr(calls[n], run), calls[n].device, budget) for n in rows}
            sample_in_turn(samplers.values())
            for mode in modes:  # backward is the second lap of full
                lap = slice(1, None) if mode == "backward" else slice(None)
                seconds = {n: [sum(laps[lap]) for laps in sampler.samples] for n, sampler in samplers.items()}
                for name in rows:
                    call, took = calls[name], median(seconds[name])
                    compulsory = call.bytes[mode]
                    speed = compulsory / took if compulsory and call.device == device else None
                    info = {
                        "op": self.op,
                        "case": self.case,
                        "mode": mode,
                        "row": name,
                        "backend": served if name.startswith("ours") else None,
                        "ratio": took / median(seconds["ours"]) if "ours" in rows and name != "ours" else None,
                        "error": call.found["forward" if mode == "forward" else "gradient"],
                        "peak_bytes": samplers[name].peak if mode == run else None,
                        "bytes": compulsory,
                        "gbps": speed and speed / 1e9,
                        "copy_share": speed and speed / copy_bandwidth(device),
                        "note": call.row.note,
                    }
                    timed[name, mode] = seconds[name], info
        return timed


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}\n\n{''.join(traceback.format_exception(error))}"


@dataclass(frozen=True)
class Bench:
    """The fixture `bench`: how a session measures, and what it has measured."""

    device: torch.device
    budget: float
    outcomes: dict[Comparison, dict[Cell, Outcome]] = field(default_factory=dict)
    entries: list[dict] = field(default_factory=list)
    """As in pytest-benchmark's JSON."""


_ticks: list[float] = []


def recorded() -> float:
    """pytest-benchmark's clock: what it reads was measured before."""
    return _ticks.pop()


def compare(*args, **kwargs) -> Callable:
    """A bench; the arguments are those of `Comparison`.

    The first of its tests measures all that were selected, so that rows alternate and inputs are made once and not
    kept; each test hands its share to pytest-benchmark.
    """
    comparison = Comparison(*args, **kwargs)

    @pytest.mark.parametrize("row, mode", comparison.cells())
    @pytest.mark.benchmark(timer=recorded)
    @pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # where a row is wrong
    def test(request: pytest.FixtureRequest, benchmark, bench: Bench, row: str, mode: str) -> None:
        title = f"{comparison.op}, {comparison.case}"
        if missing := comparison.rows[row].missing():
            pytest.skip(f"{title}: no {row}: {missing}")
        if comparison not in bench.outcomes:
            params = [item.callspec.params for item in request.session.items if item.function is request.function]
            cells = [(p["row"], p["mode"]) for p in params if not comparison.rows[p["row"]].missing()]
            budget = bench.budget if benchmark.enabled else 0  # --benchmark-disable: checks alone
            bench.outcomes[comparison] = comparison.measure(cells, bench.device, budget)
        outcome = bench.outcomes[comparison][row, mode]
        if isinstance(outcome, str):
            pytest.fail(outcome, pytrace=False)
        seconds, info = outcome
        benchmark.group = f"{title} | {mode}"
        benchmark.extra_info |= info
        _ticks[:] = [tick for lap in reversed(seconds) for tick in (lap, 0.0)]
        benchmark.pedantic(lambda: None, rounds=len(seconds))
        if benchmark.enabled:
            bench.entries.append(benchmark.stats.as_dict(include_data=False))

    return test
