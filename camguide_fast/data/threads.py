"""Threads that read ahead while the main thread computes.

Pillow and NumPy let other threads run while they decode, resize and copy, so threads read as fast as processes would.
They need no shared memory, which containers are short of, hand over what they read without a copy, cannot be left
behind, and the main thread can be interrupted while it waits for them.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, TypeVar

import torch

Workers = int | Literal["auto"]
Key = TypeVar("Key")
Value = TypeVar("Value")


def loading_threads(workers: Workers) -> int:
    """How many threads read: `workers`, or what is fastest here for "auto".

    On a CPU they take their time from the computation: one for four cores. For a GPU nearly all cores read, shared
    among the processes of this machine that torchrun started.
    """
    if workers != "auto":
        return workers
    if not torch.cuda.is_available():
        return min(max(usable_cores() // 4, 1), 8)
    return min(max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1, 1), 8)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and its container's quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, math.ceil(quota)) if (quota := _quota()) else cores


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that the control group allows (version 2, version 1); 0 without a limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(0.0, int(quota) / int(period))
    except (OSError, ValueError):  # no control groups here; "max"
        return 0.0


def read_ahead(
    read: Callable[[Key], Value], keys: Iterable[Key], threads: int, ahead: int
) -> Generator[Value, None, None]:
    """``map(read, keys)``, in order, by `threads` threads that are at most `ahead` values in front; 0 reads when asked.

    `keys` is iterated in the calling thread. What `read` raises is raised here, at its place. `read` must not call
    torch, whose own threads would multiply.
    """
    if not threads:
        yield from map(read, keys)
        return
    tasks: SimpleQueue[tuple[Future, Key] | None] = SimpleQueue()
    for _ in range(threads):
        # Daemons: a read that hangs (a dead network disk) does not keep the program from ending.
        threading.Thread(target=_serve, args=(read, tasks), name="reader", daemon=True).start()
    waiting: deque[Future] = deque()
    try:
        for key in keys:
            waiting.append(Future())
            tasks.put((waiting[-1], key))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(threads):
            tasks.put(None)


def _serve(read: Callable[[Key], Value], tasks: SimpleQueue) -> None:
    while task := tasks.get():
        future, key = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(read(key))
            except BaseException as error:  # whatever it is, the main thread must hear of it
                future.set_exception(error)
        del task, future, key  # or an idle thread would keep the last image
