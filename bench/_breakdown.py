"""Where the time of a stage-3 step goes: its parts, forward, by name."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

from camguide_fast import layers, ops
from camguide_fast.method import stages

TARGETS = ("threshold_labels", "slic", "superpixel_random_walk", "dense_crf_labels", "label_closing", "sample")
LOSSES = ("cam_normalize", "edge_support", "edge_consistency_loss", "local_consistency_loss", "target_nll")
PLACES = (layers, stages, ops)
"""Where the method looks a part up: the first that has it."""


@dataclass
class Lap:
    name: str
    parent: int | None
    start: float | torch.cuda.Event
    end: float | torch.cuda.Event | None = None


class Stopwatch:
    """Seconds in named parts, each without the parts inside it. On CUDA the device's: events in the stream, read at
    the end, so that the host runs ahead as it does without them."""

    def __init__(self, device: torch.device):
        self.device = device
        self._laps: list[Lap] = []
        self._open: list[int] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._laps.append(Lap(name, self._open[-1] if self._open else None, self._now()))
        self._open.append(len(self._laps) - 1)
        try:
            yield
        finally:
            self._laps[self._open.pop()].end = self._now()

    def around(self, f: Callable, name: str) -> Callable:
        def run(*args, **kwargs):
            with self.part(name):
                return f(*args, **kwargs)

        return run

    def seconds(self) -> Counter[str]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent: Counter[str] = Counter()
        for lap in self._laps:
            taken = self._between(lap)
            spent[lap.name] += taken
            if lap.parent is not None:
                spent[self._laps[lap.parent].name] -= taken
        return spent

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, lap: Lap) -> float:
        if isinstance(lap.start, float):
            return lap.end - lap.start
        return lap.start.elapsed_time(lap.end) / 1e3


@contextmanager
def parts_timed(watch: Stopwatch) -> Iterator[None]:
    """Inside, the watch sees every part that a step has, in the forward pass."""
    with ExitStack() as stack:
        for name in (*TARGETS, *LOSSES, "guided_filter"):
            place = next(place for place in PLACES if hasattr(place, name))
            stack.enter_context(mock.patch.object(place, name, watch.around(getattr(place, name), name)))
        yield
