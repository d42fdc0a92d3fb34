"""A training step of stage 3 with the settings of the preset `default`: its time, its parts, its memory, its launches,
and where it waits for the device."""

import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from unittest import mock

import torch
from _breakdown import LOSSES, TARGETS, Stopwatch, parts_timed
from _inputs import photographs, tags
from support.launches import Launches

from camguide_fast.config.precision import enabled
from camguide_fast.config.presets import default
from camguide_fast.method import stages
from camguide_fast.method.stages import Batch, RefinementStage
from camguide_fast.models import build_model
from camguide_fast.training.optim import build_optimizer

REST = "rest of the forward pass"
GROUPS = {
    "network": ("input", "network", "guided_filter"),
    "losses": ("classification", *LOSSES),
    "targets": TARGETS,
    REST: (REST,),
    "backward": ("backward",),
    "optimiser": ("optimiser",),
}
KERNELS = 30  # told one by one, of those of a step


def generated(batch: int, side: int, classes: int, device: torch.device) -> Batch:
    valid = torch.ones(batch, 1, side, side, dtype=torch.bool, device=device)
    image, label = photographs(batch, side).to(device), tags(batch, classes).float().to(device)
    return {"image": image, "valid": valid, "label": label}


class Step:
    """step(i) is the i-th iteration: every `crf_every`-th, from 0 on, has the CRF."""

    def __init__(self, batch: Batch, width: int | None = None):
        config = default()
        network, self.settings = config.network, config.stage3
        self.batch, self.device, crop = batch, batch["image"].device, batch["image"].shape[-1]
        torch.manual_seed(0)
        shape = dict(width=width or network.width, radius=network.radius, eps=network.eps, dropout=network.dropout)
        net = build_model(network.student, batch["label"].shape[1], network.head, **shape)
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.module = RefinementStage(self.net, self.settings, crop).train()
        on_gpu = self.device.type == "cuda"
        self.optimizer = build_optimizer(self.net, ["head"], self.settings.optimizer, fused=on_gpu)
        self.amp = on_gpu and enabled(self.settings.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp)

    def __call__(self, index: int, watch: Stopwatch | None = None) -> None:
        part = watch.part if watch else nullcontext
        with part(REST), torch.autocast(self.device.type) if self.amp else nullcontext():
            loss = self.module(self.batch, index, 0.5)["loss"]
        with part("backward"):
            self.scaler.scale(loss).backward()
        with part("optimiser"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)

    def describe(self) -> str:
        b, _, side, _ = self.batch["image"].shape
        return (
            f"{b} images of {side} x {side}, {self.batch['label'].shape[1]} classes, {'fp16' if self.amp else 'fp32'}"
        )


KINDS = {"with the CRF": 0, "without the CRF": 1}


def measure(step: Step, seconds: float) -> Iterator[dict]:
    """What is known so far, the whole step first. Times in seconds, memory in bytes."""
    device, on_gpu = step.device, step.device.type == "cuda"
    yield {"step": step.describe()}
    start = time.perf_counter()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for index in (0, 1, 0, 1):
        step(index)
    synchronize(device)
    memory = torch.cuda.max_memory_allocated() if on_gpu else None
    yield {"warm_up": time.perf_counter() - start, "peak_bytes": memory}
    every, images = step.settings.crf_every, len(step.batch["image"])
    whole = {name: whole_step(lambda i=index: step(i), device, seconds / 8) for name, index in KINDS.items()}
    mean = (whole["with the CRF"]["median"] + (every - 1) * whole["without the CRF"]["median"]) / every
    yield {"whole": whole, "crf_every": every, "mean": mean, "images_per_second": images / mean}
    parts = {name: breakdown(step, index, seconds / 8) for name, index in KINDS.items()}
    yield {"parts": parts, "groups": {name: grouped(spent) for name, spent in parts.items()}}
    if on_gpu:
        yield {"launches": {name: launches(lambda i=index: step(i)) for name, index in KINDS.items()}}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def whole_step(run: Callable[[], None], device: torch.device, seconds: float) -> dict:
    """Seconds of one step, the device done with it; `host`: until the host has launched all of it."""
    times, host, begin = [], [], time.perf_counter()
    while not times or (time.perf_counter() - begin < seconds and len(times) < 30):
        synchronize(device)
        start = time.perf_counter()
        run()
        host.append(time.perf_counter() - start)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return {
        "median": statistics.median(times),
        "least": min(times),
        "host": statistics.median(host),
        "runs": len(times),
    }


def breakdown(step: Step, index: int, seconds: float) -> dict[str, float]:
    """Seconds of each part of a step, the mean of several."""
    watch, runs, begin = Stopwatch(step.device), 0, time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(parts_timed(watch))
        for holder, name, title in (
            (step.net, "forward_pair", "network"),
            (step.module.cls, "forward", "classification"),
            (stages, "network_input", "input"),
        ):
            timed = watch.around(getattr(holder, name), title)
            stack.enter_context(mock.patch.object(holder, name, timed))
        while not runs or (time.perf_counter() - begin < seconds and runs < 10):
            step(index, watch)
            synchronize(step.device)
            runs += 1
    return {name: spent / runs for name, spent in watch.seconds().items()}


def grouped(parts: dict[str, float]) -> dict[str, float]:
    return {group: sum(parts.get(name, 0.0) for name in names) for group, names in GROUPS.items()}


def launches(run: Callable[[], None]) -> dict:
    """Kernels of one step as the profiler sees them: how many, the device's seconds in all, and the longest."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    count, spent, copies = Counter(), Counter(), 0
    for event in profile.events():
        if event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation:
            continue
        if event.name.startswith(("Memcpy", "Memset")):
            copies += 1
            continue
        count[event.name] += 1
        spent[event.name] += event.time_range.elapsed_us() / 1e6
    longest = [{"kernel": name, "seconds": s, "launches": count[name]} for name, s in spent.most_common(KERNELS)]
    return {"kernels": count.total(), "copies": copies, "seconds": sum(spent.values()), "longest": longest}


def waits(step: Step) -> list[str]:
    """Where the host waits for the GPU in four steps, after warming up: "file:line: message"."""
    for index in (0, 1, 0, 1):
        step(index)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for index in range(4):
                step(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchroniz" in str(w.message)]
    return sorted({f"{w.filename}:{w.lineno}: {str(w.message).splitlines()[0]}" for w in found})


def without_a_gpu(batch: int, side: int, classes: int) -> tuple[list[str], dict]:
    """(where a step waits, of which the first is all that is found; what it would launch and move, by kind of step),
    from tensors without values: whoever reads one raises."""
    with torch.device("meta"):
        image, valid = torch.empty(batch, 3, side, side, dtype=torch.uint8), torch.ones(batch, 1, side, side).bool()
        step = Step({"image": image, "valid": valid, "label": torch.empty(batch, classes)})
    step.optimizer = mock.MagicMock(zero_grad=step.net.zero_grad)  # is fused on a GPU alone
    counted = {}
    for kind, index in KINDS.items():
        try:
            with Launches() as launched:
                step(index)
        except (RuntimeError, NotImplementedError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return [f"{frame.filename}:{frame.lineno}: {str(error).splitlines()[0]}"], counted
        ours = {name: {"launches": launched.counts[name], "bytes": launched.bytes[name]} for name in launched.ours}
        counted[kind] = {"launches": launched.counts.total(), "bytes": launched.bytes.total(), "ours": ours}
    return [], counted
