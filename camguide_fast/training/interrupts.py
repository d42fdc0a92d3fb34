"""Ctrl-C and SIGTERM in the training loop: never in the middle of a step, at once everywhere else."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Batch = TypeVar("Batch")


class Interrupts:
    """As a context: the first signal saves the state and raises KeyboardInterrupt, as soon as no step is under way. The
    second one is immediate and saves nothing."""

    def __init__(self, save: Callable[[], None]) -> None:
        self._save, self._caught, self._at_once = save, False, False
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._restore()
        if self._caught and kind is None:  # it came after the last step
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._caught = True
        self._restore()
        if self._at_once:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def welcome(self) -> Iterator[None]:
        """What is done inside may be cut anywhere, for it changes nothing that is saved."""
        try:
            self._at_once = True
            if self._caught:
                raise KeyboardInterrupt
            yield
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            self._at_once = False

    def between(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """`batches`; a signal ends the training while one is waited for, not while the caller uses it."""
        batches = iter(batches)
        while True:
            with self.welcome():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
