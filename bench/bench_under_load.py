"""Ops and a training step where it is quiet, and beside a process that keeps a core busy: on all threads, on one, and
the peers."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from _check import close, equal
from _harness import compare
from _inputs import class_maps, photographs
from _rows import Row
from _step import make_step, process
from bench_dense_crf import PYDENSECRF
from bench_dense_crf import eager as eager_crf
from bench_guided_filter import OPENCV, image_by_image
from bench_guided_filter import ours as filtered
from bench_slic import peers as slic_peers

from camguide_fast import ops, reference
from camguide_fast.rules import waiting


def on_one_thread(f) -> Row:
    def run(*inputs):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return f(*inputs)
        finally:
            torch.set_num_threads(threads)

    return Row(run)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


LOADS = {"quiet": 0, "beside a busy process": 1}


def dense_crf(load):
    return compare(
        "dense_crf",
        f"1x3x512x512, 5 iterations, {load}",
        inputs=lambda: ((2 * class_maps(1, 3, 512, 512)).softmax(1), photographs(1, 512)),
        oracle=eager_crf,
        check=close(1e-4, outliers=1e-4),
        rows={"ours": ops.dense_crf, "ours, 1 thread": on_one_thread(ops.dense_crf), "pydensecrf": PYDENSECRF},
        around=lambda: busy(LOADS[load]),
    )


def slic(load):
    return compare(
        "slic",
        f"1x3x512x512, 1100 segments, {load}",
        inputs=lambda: (photographs(1, 512),),
        oracle=lambda image: reference.slic(image, 1100, 10.0, 10, 0.5)[0],
        check=equal(),
        rows={"ours": ops.slic, "ours, 1 thread": on_one_thread(ops.slic), **slic_peers(1100)},
        around=lambda: busy(LOADS[load]),
    )


def guided_filter(load):
    return compare(
        "guided_filter",
        f"1x21x512x512, r=4, {load}",
        inputs=lambda: (class_maps(1, 21, 512, 512), photographs(1, 512).float() / 255),
        oracle=image_by_image,
        check=close(2e-4),
        rows={"ours": filtered, "ours, 1 thread": on_one_thread(filtered), "OpenCV ximgproc": OPENCV},
        around=lambda: busy(LOADS[load]),
    )


def training_step(load):
    threads = torch.get_num_threads()
    settings = {
        "ours": (threads, {"GOMP_SPINCOUNT": waiting.SPINS}),
        "ours, 1 thread": (1, {}),
        "spinning, as torch is": (threads, {}),
        "sleeping at once": (threads, {"OMP_WAIT_POLICY": "passive"}),
    }
    steps = {}

    @contextmanager
    def started():
        with busy(LOADS[load]), ExitStack() as stack:
            for name, (n, variables) in settings.items():
                steps[name] = stack.enter_context(process(n, **variables))
            yield

    return compare(
        ("cam_normalize", "local_consistency_loss", "target_nll"),
        f"a training step: ResNet-18, fp32, 4x3x224x224, {load}",
        inputs=tuple,
        oracle=lambda: make_step(torch.float64)(),
        check=close(1e-3),
        rows={name: Row(lambda name=name: steps[name](), on_cpu=True) for name in settings},
        around=started,
    )


bench_dense_crf, bench_dense_crf_loaded = map(dense_crf, LOADS)
bench_slic, bench_slic_loaded = map(slic, LOADS)
bench_guided_filter, bench_guided_filter_loaded = map(guided_filter, LOADS)
bench_training_step, bench_training_step_loaded = map(training_step, LOADS)
