"""What is measured of a call: its time, its peak memory, and beside it what the machine can copy in that time."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
Marker = Callable[[], None]
Run = Callable[[Marker], None]
"""A call that marks its laps: run(mark) calls mark() where a lap starts or ends."""

ROUNDS = 5
FLUSHES = 16  # .1 ms each on an H100


def laps(run: Run, device: torch.device) -> list[float]:
    """Seconds between the marks of one call.

    On CUDA the marks are events in the stream. The L2 cache is overwritten first: an op in a training step finds its
    inputs in memory. It is overwritten for longer than a launcher takes, .3 ms at most: the launches of a call queue up
    behind the writing, so that the events enclose GPU work alone.
    """
    if device.type == "cpu":
        marks: list[float] = []
        run(lambda: marks.append(time.perf_counter()))
        return [b - a for a, b in zip(marks, marks[1:], strict=False)]
    events: list[torch.cuda.Event] = []

    def mark() -> None:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()

    for _ in range(FLUSHES):
        _flush_buffer(device).zero_()
    run(mark)
    torch.cuda.synchronize(device)
    return [a.elapsed_time(b) / 1e3 for a, b in zip(events, events[1:], strict=False)]


@cache
def _flush_buffer(device: torch.device) -> torch.Tensor:
    return torch.empty(2**28, dtype=torch.uint8, device=device)


class Sampler:
    """Collects the laps of one call, a share of its time budget in each of `ROUNDS` rounds."""

    def __init__(self, run: Run, device: torch.device, budget: float):
        self.run, self.device, self.budget = run, device, budget
        self.samples: list[list[float]] = []
        self.peak: int | None = None  # bytes above what was there before the call
        self._spent = 0.0
        if device.type == "cuda":
            _flush_buffer(device)  # so that its memory is not taken for the call's

    def sample_round(self) -> None:
        if self.samples and self._spent >= self.budget:
            return
        if self.samples:
            first = laps(self.run, self.device)
        else:
            self.peak, first = peak_memory(lambda: laps(self.run, self.device), self.device)
        start, share = time.perf_counter(), self.budget / ROUNDS - sum(first)
        if share <= 0:
            self.samples.append(first)
        else:  # a short call: the first one only warms the caches up again
            self.samples.append(laps(self.run, self.device))
            while time.perf_counter() - start < share:
                self.samples.append(laps(self.run, self.device))
        self._spent += sum(first) + time.perf_counter() - start


def sample_in_turn(samplers: Collection[Sampler]) -> None:
    """Round by round: a machine that slows down meanwhile slows all of them."""
    for _ in range(ROUNDS):
        for sampler in samplers:
            sampler.sample_round()


def peak_memory(call: Callable[[], Result], device: torch.device) -> tuple[int | None, Result]:
    """(bytes that `call` needs at its peak above what is held before it, its result).

    CUDA: torch's allocator. CPU: the resident set of the process, whatever allocated it, from the kernel's high-water
    mark; None where the system keeps none that can be reset (not Linux).
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        return torch.cuda.max_memory_allocated(device) - before, result
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the call is served from what earlier ones left behind
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None, call()
    before = _status("VmRSS")
    result = call()
    return max(_status("VmHWM") - before, 0), result


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


@cache
def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy much larger than the caches, with the threads torch has."""
    source = torch.ones(2**26 if device.type == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)

    def copy(mark: Marker) -> None:
        mark()
        target.copy_(source)
        mark()

    copy(lambda: None)
    return 2 * source.nbytes / statistics.median(laps(copy, device)[0] for _ in range(7))
