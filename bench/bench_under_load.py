"""Ops and a training step where it is quiet, and beside a process that keeps a core busy: on all threads, on one, and
the peers."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from _check import close, equal
from _harness import Row
from _inputs import class_maps, photographs
from _step import make_step, process
from bench_dense_crf import eager as eager_crf
from bench_guided_filter import image_by_image, opencv
from bench_guided_filter import ours as guided_filter
from bench_slic import peers as slic_peers
from support.crf import pydensecrf

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


@pytest.fixture(params=[0, 1], ids=["quiet", "beside 1"])
def load(request: pytest.FixtureRequest) -> Iterator[str]:
    with busy(request.param):
        yield "beside a busy process" if request.param else "quiet"


def bench_dense_crf(bench, load):
    prob, image = (2 * class_maps(1, 3, 512, 512)).softmax(1), photographs(1, 512)
    bench.compare(
        "dense_crf",
        f"1x3x512x512, 5 iterations, {load}",
        inputs=(prob, image),
        oracle=eager_crf,
        check=close(1e-4, outliers=1e-4),
        rows={
            "ours": ops.dense_crf,
            "ours, 1 thread": on_one_thread(ops.dense_crf),
            "pydensecrf": Row(
                pydensecrf,
                inputs=(-torch.log(prob[0].clamp(1e-5, 1)), image[0]),
                result=lambda q: q[None],
                check=close(1e-3),
                on_cpu=True,
                needs="pydensecrf.densecrf",
            ),
        },
    )


def bench_slic(bench, load):
    image = photographs(1, 512)
    bench.compare(
        "slic",
        f"1x3x512x512, 1100 segments, {load}",
        inputs=(image,),
        oracle=lambda image: reference.slic(image, 1100, 10.0, 10, 0.5)[0],
        check=equal(),
        rows={"ours": ops.slic, "ours, 1 thread": on_one_thread(ops.slic), **slic_peers(image, 1100)},
    )


def bench_guided_filter(bench, load):
    z, guide = class_maps(1, 21, 512, 512), photographs(1, 512).float() / 255
    bench.compare(
        "guided_filter",
        f"1x21x512x512, r=4, {load}",
        inputs=(z, guide),
        oracle=image_by_image,
        check=close(2e-4),
        rows={
            "ours": guided_filter,
            "ours, 1 thread": on_one_thread(guided_filter),
            "OpenCV ximgproc": Row(
                opencv,
                inputs=(list(z.numpy()), list(np.ascontiguousarray(guide.permute(0, 2, 3, 1)))),
                result=lambda planes: torch.from_numpy(np.array(planes)),
                check=close(2e-4, border=8),
                on_cpu=True,
                needs="cv2.ximgproc.createGuidedFilter",
                note="reflects at the border, so it is compared from two radii inside on",
            ),
        },
    )


def bench_training_step(bench, load):
    threads = torch.get_num_threads()
    settings = {
        "ours": (threads, {"GOMP_SPINCOUNT": waiting.SPINS}),
        "ours, 1 thread": (1, {}),
        "spinning, as torch is": (threads, {}),
        "sleeping at once": (threads, {"OMP_WAIT_POLICY": "passive"}),
    }
    with ExitStack() as stack:
        steps = {name: stack.enter_context(process(n, **variables)) for name, (n, variables) in settings.items()}
        bench.compare(
            ("cam_normalize", "local_consistency_loss", "target_nll"),
            f"a training step: ResNet-18, fp32, 4x3x224x224, {load}",
            inputs=(),
            oracle=make_step(torch.float64),
            check=close(1e-3),
            rows={name: Row(step, on_cpu=True) for name, step in steps.items()},
        )
