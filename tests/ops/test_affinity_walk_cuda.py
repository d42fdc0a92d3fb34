"""affinity_random_walk on CUDA: csrc/cuda/affinity_walk.cu, run on the CPU by tests/cuda_host, and on a GPU where there
is one."""

from unittest import mock

import cuda_host
import pytest
import torch
from camguide_fast.kernels import _cuda
from camguide_fast.kernels import affinity_walk as kernels
from support.capture import NothingFromTheHost, captured

from camguide_fast import ops, reference


def case(b, k, h, w, dtype=torch.float32, edge=None, device="cpu"):
    cam, edges = torch.rand(b, k, h, w, device=device), torch.rand(b, 1, h, w, device=device) ** 4
    return cam.to(dtype), edges.to(edge or dtype)


def twin(cam, edge, radius=5, beta=10.0, log2_steps=8):
    return reference.affinity_random_walk(cam.double(), edge.double(), radius, beta, log2_steps)


def launched(cam, edge, radius=5, beta=10.0, log2_steps=8):
    return kernels.affinity_random_walk(cam, edge, radius, beta, log2_steps)


def error(result, expected):
    return ((result.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    "shape, settings",
    [
        ((1, 1, 1, 1), {}),
        ((1, 3, 9, 37), {}),  # two columns of tiles, the last of one row
        ((2, 5, 5, 7), dict(log2_steps=3)),  # classes in groups of 3, the last with one that is not there
        ((1, 9, 3, 33), dict(log2_steps=2)),
        ((3, 4, 4, 32), dict(log2_steps=0)),  # whole tiles, a single step
        ((1, 2, 6, 40), dict(radius=12, log2_steps=2)),  # weights that registers do not hold
        ((1, 1, 4, 3), dict(radius=10**9, log2_steps=1)),
        ((1, 2, 3, 5), dict(radius=1)),  # no neighbours
        ((1, 2, 7, 9), dict(beta=0.0, log2_steps=4)),
        ((1, 2, 200, 2), dict(radius=3, beta=2.5, log2_steps=1)),
    ],
    ids=str,
)
def test_equals_the_twin(shape, settings):
    cam, edge = case(*shape)
    result = cuda_host.every_order(lambda: launched(cam, edge, **settings), orders=(0, 1, 2))
    assert error(result, twin(cam, edge, **settings)) <= 1e-5
    assert error(result, ops.affinity_random_walk(cam, edge, **settings).double()) <= 1e-5


@pytest.mark.parametrize(
    "dtype, edge, bound",
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float64, torch.float32, 1e-12),
        (torch.float16, torch.float32, 1e-3),
        (torch.bfloat16, torch.float16, 8e-3),
    ],
    ids=str,
)
def test_types(dtype, edge, bound):
    cam, edge = case(1, 2, 9, 35, dtype, edge)
    with cuda_host.on_cpu(order=3):
        result = launched(cam, edge, log2_steps=5)
    assert result.dtype == dtype
    assert error(result, twin(cam, edge, log2_steps=5)) <= bound


def test_one_launch_or_one_a_step():
    """The same bits; here for walks of a single block, which is all that can wait for itself."""
    cam, edge = case(2, 5, 2, 31)
    results, launches = [], []
    run = cuda_host.run

    def counted(source, kernel, *args, **options):
        launches.append(kernel)
        run(source, kernel, *args, **options)

    with mock.patch.object(cuda_host, "run", counted):
        for resident in (0, 1):
            launches.clear()
            with cuda_host.on_cpu(resident_blocks=resident):
                results.append(launched(cam, edge))
            assert launches.count("walk") == (4 if resident else len(kernels._coefficients(8, cam.dtype)))
    assert torch.equal(*results)
    assert error(results[0], twin(cam, edge)) <= 1e-5


def test_a_gpu_takes_what_fits_at_once():
    """Launches of the walk by the number of blocks that the GPU runs together; 94 x 125 cells are 188."""
    made = []

    def record(op, kernel, blocks, threads, args, *, defines, cooperative=False):
        if kernel == "walk":
            made.append((blocks, *args[-3:], cooperative))

    for batch, resident, expected in [
        (1, 264, [(188, 0, 0, 88, True)]),
        (3, 264, [(188, i, 0, 88, True) for i in range(3)]),
        (3, 400, [(376, 0, 0, 88, True), (188, 2, 0, 88, True)]),
        (1, 187, [(188, 0, k, k + 1, False) for k in range(88)]),
        (5, 264, [(5 * 188, 0, k, k + 1, False) for k in range(88)]),
    ]:
        made.clear()
        resident_blocks = mock.patch.object(_cuda, "resident_blocks", lambda _, found=resident: found)
        with mock.patch.object(_cuda, "launch", record), resident_blocks:
            launched(*case(batch, 3, 94, 125))
        assert made == expected


@pytest.mark.parametrize(
    "fault", ["    __syncthreads();\n    for (int c", "? y1 : y0", "back[i] * (near[c * REGION - shift]"]
)
def test_faults_are_seen(fault):
    """Guards the guard: a barrier left out, a step that reads the wrong map, an offset taken twice."""
    broken = {fault: fault.replace("__syncthreads();", "").replace("y1 : y0", "y0 : y0").replace("- shift", "+ shift")}
    source = _cuda.source

    def with_fault(op, defines):
        text = source(op, defines)
        assert fault in text and broken[fault] != fault
        return text.replace(fault, broken[fault])

    cam, edge = case(1, 2, 6, 35)
    with mock.patch.object(_cuda, "source", with_fault):
        try:
            result = cuda_host.every_order(lambda: launched(cam, edge, log2_steps=4), orders=(0, 1, 2))
        except AssertionError as found:
            assert "order" in str(found)
        else:
            assert not error(result, twin(cam, edge, log2_steps=4)) <= 1e-4


@pytest.mark.parametrize("resident", [0, 264])
def test_a_capture_takes_it(resident):
    """The first call too, and nothing is kept that lies in a graph's memory."""
    inputs = case(1, 3, 94, 125)
    kernels._coefficients.cache_clear()
    resident_blocks = mock.patch.object(_cuda, "resident_blocks", lambda _: resident)
    with mock.patch.object(_cuda, "launch", lambda *args, **options: None), resident_blocks, NothingFromTheHost():
        launched(*inputs)
    assert not isinstance(kernels._coefficients(8, torch.float32), torch.Tensor)


def test_coefficients():
    """Of a walk of n steps: Pr(|R_n| >= k), from the binomial distribution."""
    for log2_steps in (0, 1, 3, 8):
        n = 2**log2_steps
        chance = torch.distributions.Binomial(n, torch.tensor(0.5, dtype=torch.float64))
        places = torch.arange(n + 1, dtype=torch.float64)
        probability, distance = chance.log_prob(places).exp(), (2 * places - n).abs()
        found = torch.tensor(kernels._coefficients(log2_steps, torch.float64), dtype=torch.float64)
        expected = torch.stack([probability[distance >= k].sum() for k in range(1, n + 1)])
        torch.testing.assert_close(found, expected[: len(found)], rtol=1e-12, atol=1e-15)
        assert len(found) == n or expected[len(found)] < 2**-53
    assert len(kernels._coefficients(8, torch.float32)) == 88


def test_strides_and_what_a_walk_keeps():
    cam, edge = case(1, 3, 6, 9)
    with cuda_host.on_cpu():
        expected = launched(cam, edge)
        strided = launched(cam.to(memory_format=torch.channels_last), edge.mT.contiguous().mT)
        assert torch.equal(strided, expected)
        flat = torch.full((1, 2, 5, 40), 0.7)
        assert torch.equal(launched(flat, torch.zeros(1, 1, 5, 40)), flat)  # not even rounding moves it


def test_a_nan_shows():
    for which in (0, 1):
        inputs = case(1, 2, 9, 35)
        inputs[which][0, 0, 4, 4] = torch.nan
        with cuda_host.on_cpu():
            result = launched(*inputs, log2_steps=0)
        assert result[0, 0, 1:8, 1:8].isnan().all() and not result[..., 20:].isnan().any()


def test_the_op_is_served_by_it():
    row = ops.backends()["affinity_random_walk"]["cuda"]
    assert row.backend == "cuda" or row.why in ("cupy is not installed", "CAMGUIDE_FAST_BACKEND=reference")


GPU_SHAPES = [(1, 1, 1, 1), (1, 3, 94, 125), (3, 3, 94, 125), (16, 3, 94, 125), (1, 21, 61, 67), (1, 2, 300, 260)]


@pytest.mark.cuda
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_cuda_on_a_side_stream(shape, dtype):
    cam, edge = case(*shape, dtype, device="cuda")
    expected = twin(cam, edge)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        result, again = (ops.affinity_random_walk(cam * 1, edge) for _ in range(2))
        bound = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
        assert error(result, expected) <= bound
        assert torch.equal(result, again)
    torch.cuda.synchronize()


@pytest.mark.cuda
@pytest.mark.parametrize("resident", [0, None], ids=["a launch a step", "one launch"])
def test_cuda_graph(resident):
    cam, edge = case(1, 3, 94, 125, device="cuda")
    blocks = _cuda.resident_blocks(1) * 2 if resident is None else resident
    with mock.patch.object(_cuda, "resident_blocks", lambda _: blocks):
        graph, result = captured(lambda: ops.affinity_random_walk(cam, edge))
    cam.copy_(torch.rand_like(cam))
    graph.replay()
    assert error(result, twin(cam, edge)) <= 1e-5


@pytest.mark.cuda
def test_cuda_walks_on_two_streams_at_a_time():
    """Blocks that wait for one another must not wait for those of another walk."""
    cases = [case(1, 3, 94, 125, device="cuda") for _ in range(2)]
    expected = [twin(*inputs) for inputs in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for stream, inputs in zip(streams, cases, strict=True):
            with torch.cuda.stream(stream):
                results.append(ops.affinity_random_walk(*inputs))
    torch.cuda.synchronize()
    assert all(error(r, e) <= 1e-5 for r, e in zip(results, expected, strict=True))


@pytest.mark.cuda
def test_cuda_compiled_to_graphs():
    """Each run may take the memory of the one before, and what a launcher keeps must not lie in it."""
    cam, edge = case(1, 3, 94, 125, device="cuda")
    expected = twin(cam, edge)
    walk = torch.compile(lambda x: ops.affinity_random_walk(x * 1, edge), mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        assert error(walk(cam), expected) <= 1e-5
