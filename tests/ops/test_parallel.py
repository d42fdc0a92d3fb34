"""How the C++ ops share their work out: the same bits on any number of threads, in forks, for callers side by side."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from camguide_fast import ops
from camguide_fast.ops._value_range import value_range

IMAGE = torch.randint(0, 256, (3, 3, 150, 170), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
MAPS = torch.rand(3, 6, 150, 170, generator=torch.Generator().manual_seed(1))
LABEL = torch.ones(3, 6, dtype=torch.bool)
SEGMENTS = ops.slic(IMAGE, n_segments=120)
TARGET = MAPS.argmax(1)

CALLS = {
    "slic": lambda: ops.slic(IMAGE, n_segments=120),
    "superpixel_random_walk": lambda: ops.superpixel_random_walk(MAPS, SEGMENTS, IMAGE),
    "local_consistency_loss": lambda: ops.local_consistency_loss(MAPS),
    "target_nll": lambda: ops.target_nll(MAPS, TARGET, LABEL),
    "dense_crf": lambda: ops.dense_crf(MAPS, IMAGE),
    "dense_crf_labels": lambda: ops.dense_crf_labels(TARGET, IMAGE, 6),
    "guided_filter": lambda: ops.guided_filter(MAPS, IMAGE),
    "confusion_matrix": lambda: ops.confusion_matrix(TARGET, TARGET.flip(0), 6),
    "affinity_random_walk": lambda: ops.affinity_random_walk(MAPS, MAPS[:, :1], log2_steps=4),
}


@pytest.mark.parametrize("op", CALLS)
def test_same_bits(op, same_bits_on_any_threads):
    same_bits_on_any_threads(lambda: [CALLS[op]()])


def test_callers_side_by_side():
    expected = {op: call() for op, call in CALLS.items()}
    with ThreadPoolExecutor(4) as pool:
        results = [(op, pool.submit(call)) for _ in range(3) for op, call in CALLS.items()]
        for op, result in results:
            assert torch.equal(result.result(timeout=300), expected[op]), op


def test_a_fork_does_not_wait_for_threads_that_it_has_not():
    """OpenMP's threads stay behind, and whoever waits for them in the child waits for ever."""
    script = """
import os, torch
from camguide_fast import ops

torch.set_num_threads(2)
image = torch.arange(3 * 200 * 200).remainder(251).to(torch.uint8).view(1, 3, 200, 200)
prob = torch.rand(1, 2, 200, 200)
calls = (lambda: ops.slic(image, 100), lambda: ops.dense_crf(prob, image))
expected = [call().numpy() for call in calls]
child = os.fork()
if child == 0:
    os._exit(7 if all((call().numpy() == e).all() for call, e in zip(calls, expected)) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", script]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stdout == "7\n"


def test_an_error_in_one_thread_reaches_the_caller():
    segments = SEGMENTS.clone()
    segments[1, 149, 169] = 10**6
    with pytest.raises((ValueError, RuntimeError), match="segments must be in"):
        torch.ops.camguide_fast.superpixel_graph(segments, IMAGE, 2.0, False, 200, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 63, 64, 100_003])
def test_value_range_of_floats(dtype, size):
    x = torch.randn(size).to(dtype)
    assert value_range(x) == (x.min().item(), x.max().item())
    x[size // 2] = float("inf")
    assert value_range(x)[1] == float("inf")
    x[-1] = float("nan")
    assert all(v != v for v in value_range(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("size", [1, 63, 64, 100_003])
def test_value_range_of_integers(dtype, size):
    x = torch.randint(0, 100, (size,)).to(dtype)
    assert value_range(x) == (x.min().item(), x.max().item()) == value_range(x, skip=2**40)
    x[0], x[-1] = 127, 5
    assert value_range(x, skip=127)[1] == (x[x != 127].max().item() if size > 1 else 5)
    low, high = value_range(torch.full((size,), 7, dtype=dtype), skip=7)
    assert low > high
