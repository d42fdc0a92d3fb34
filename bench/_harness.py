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
from _rows import Call, Row, double
from torch import Tensor

from camguide_fast import ops

FUSED_LOSS = "computes the gradient in the forward pass of training, so that `full` is what a step pays"

Cell = tuple[str, str]  # row, mode


@dataclass(frozen=True)
class Timed:
    seconds: list[float]
    info: dict[str, Any]
    """For `extra_info`."""


@dataclass(frozen=True, eq=False)
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

    @property
    def names(self) -> tuple[str, ...]:
        return (self.op,) if isinstance(self.op, str) else self.op

    @property
    def title(self) -> str:
        return f"{' + '.join(self.names)}, {self.case}"

    def row(self, name: str) -> Row:
        row = self.rows[name]
        return row if isinstance(row, Row) else Row(row)

    def cells(self) -> list[Cell]:
        gradient = ("backward", "full") if self.grad is not None else ()
        return [(name, "forward") for name in self.rows] + [
            (name, mode) for mode in gradient for name in self.rows if self.row(name).gradient
        ]

    def measure(self, cells: Collection[Cell], device: torch.device, budget: float) -> dict[Cell, Timed | str]:
        """What was measured of these cells, or what is wrong with the row."""
        with self.around():
            inputs = self.inputs()
            calls, wrong = self._checked(dict.fromkeys(row for row, _ in cells), inputs, device)
            bytes = self.bytes(*inputs) if self.bytes else {}
            del inputs
            timed = self._timed(calls, cells, bytes, device, budget)
        torch.compiler.reset()
        return {cell: wrong[cell[0]] if cell[0] in wrong else timed[cell] for cell in cells}

    def _checked(
        self, names: Iterable[str], inputs: tuple, device: torch.device
    ) -> tuple[dict[str, Call], dict[str, str]]:
        """The calls of the rows that are right; what is wrong with the others."""
        oracle = Call(Row(self.oracle, lambda *x: double(x)), inputs, device, self.grad, None)
        wanted = [oracle.result()]
        if oracle.differentiable:
            shape, generator = wanted[0].shape, torch.Generator().manual_seed(0)
            oracle.upstream = torch.randn(shape, generator=generator).double() if shape else torch.ones(())
            wanted.append(oracle.gradient())
        calls, wrong = {}, {}
        for name in names:
            try:
                calls[name] = Call(self.row(name), inputs, device, self.grad, oracle.upstream)
                wrong[name] = calls[name].verify(calls[name].row.check or self.check, wanted)
            except Exception:  # as text, which holds no tensors; the other rows are measured all the same
                wrong[name] = traceback.format_exc()
        return {n: call for n, call in calls.items() if not wrong[n]}, {n: w for n, w in wrong.items() if w}

    def _timed(
        self, calls: dict[str, Call], cells: Collection[Cell], bytes: Mapping, device: torch.device, budget: float
    ) -> dict[Cell, Timed]:
        timed = {}
        for run, modes in (("forward", ("forward",)), ("full", ("backward", "full"))):
            rows = [name for name in calls if any((name, mode) in cells for mode in modes)]
            samplers = {n: Sampler(getattr(calls[n], run), calls[n].device, budget) for n in rows}
            sample_in_turn(samplers.values())
            for mode in modes:  # backward is the second lap of full
                seconds = {
                    n: [laps[1] if mode == "backward" else sum(laps) for laps in sampler.samples]
                    for n, sampler in samplers.items()
                }
                for name in rows:
                    info = self._info(name, mode, calls[name], bytes, device, seconds)
                    info["peak_bytes"] = samplers[name].peak if mode == run else None
                    timed[name, mode] = Timed(seconds[name], info)
        return timed

    def _info(
        self, name: str, mode: str, call: Call, bytes: Mapping, device: torch.device, seconds: Mapping
    ) -> dict[str, Any]:
        took, compulsory = median(seconds[name]), bytes.get(mode) or call.bytes[mode]
        speed = compulsory / took if call.device == device else None
        served = sorted({ops.backends()[op][device.type].backend for op in self.names})
        return {
            "op": " + ".join(self.names),
            "case": self.case,
            "mode": mode,
            "row": name,
            "backend": ", ".join(served) if name.startswith("ours") else None,
            "ratio": took / median(seconds["ours"]) if name != "ours" and "ours" in seconds else None,
            "error": call.found["forward" if mode == "forward" else "gradient"],
            "bytes": compulsory,
            "gbps": speed and speed / 1e9,
            "copy_share": speed and speed / copy_bandwidth(device),
            "note": call.row.note,
        }


@dataclass(frozen=True)
class Bench:
    """The fixture `bench`: how a session measures, and what it has measured."""

    device: torch.device
    budget: float
    outcomes: dict[Comparison, dict[Cell, Timed | str]] = field(default_factory=dict)
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
        if missing := comparison.row(row).missing():
            pytest.skip(f"{comparison.title}: no {row}: {missing}")
        if comparison not in bench.outcomes:
            params = [item.callspec.params for item in request.session.items if item.function is request.function]
            cells = [(p["row"], p["mode"]) for p in params if not comparison.row(p["row"]).missing()]
            budget = bench.budget if benchmark.enabled else 0  # --benchmark-disable: checks alone
            bench.outcomes[comparison] = comparison.measure(cells, bench.device, budget)
        outcome = bench.outcomes[comparison][row, mode]
        if isinstance(outcome, str):
            pytest.fail(outcome, pytrace=False)
        benchmark.group = f"{comparison.title} | {mode}"
        benchmark.extra_info |= outcome.info
        _ticks[:] = [tick for seconds in reversed(outcome.seconds) for tick in (seconds, 0.0)]
        benchmark.pedantic(lambda: None, rounds=len(outcome.seconds))
        if benchmark.enabled:
            bench.entries.append(benchmark.stats.as_dict(include_data=False))

    return test
