"""dense_crf and dense_crf_labels on CUDA: csrc/cuda/dense_crf.cu and the lattices under it, run on the CPU by
tests/cuda_host, and on a GPU where there is one."""

from unittest import mock

import cuda_host
import pytest
import torch
from camguide_fast.kernels import _cuda
from camguide_fast.kernels import dense_crf as kernels
from support.capture import captured
from support.crf import case
from torch.utils._python_dispatch import TorchDispatchMode

from camguide_fast import ops, reference

GAUSSIAN, BILATERAL = [3.0, 3.0, 3.0], [50.0, 50.0, 5.0, 5.0, 5.0, 10.0]  # as the op takes its terms
cpu = torch.ops.camguide_fast


def exact(prob, image, iterations, gaussian=GAUSSIAN, bilateral=BILATERAL, unary=None):
    prob, unary = (None if x is None else x.double() for x in (prob, unary))
    return reference.dense_crf(prob, image, iterations, gaussian, bilateral, unary)


@pytest.mark.parametrize(
    "shape, labels, batch",
    [
        ((1, 1), 2, 1),
        ((1, 19), 1, 1),
        ((7, 9), 3, 3),  # H * W % 4 != 0: pydensecrf's filling makes vertices
        ((16, 16), 21, 1),  # one tile, full
        ((33, 18), 4, 1),  # six tiles
    ],
    ids=str,
)
def test_equals_the_rows_on_cpu(shape, labels, batch):
    """In fp64 to rounding: the same vertices and weights."""
    prob, image = case(shape, labels, batch=batch)
    image[0] //= 8  # dark: pixels near black meet the vertices of the filling
    args = (prob, image, 2, GAUSSIAN, BILATERAL, None)
    result = cuda_host.every_order(lambda: kernels.dense_crf(*args), orders=(0, 1, 2))
    for expected in (cpu.dense_crf(*args), exact(prob, image, 2)):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "dtype, image_dtype, bound",
    [
        (torch.float32, torch.uint8, 1e-5),
        (torch.float32, torch.float32, 1e-5),
        (torch.float16, torch.float16, 5e-3),
        (torch.bfloat16, torch.float64, 4e-2),
    ],
    ids=str,
)
def test_types(dtype, image_dtype, bound):
    prob, image = case((17, 23), 5)
    prob = prob.to(dtype)
    image = image if image_dtype == torch.uint8 else (image.double() / 255).to(image_dtype)
    args = (prob, image, 5, GAUSSIAN, BILATERAL, None)
    with cuda_host.on_cpu(order=3):
        result = kernels.dense_crf(*args)
    assert result.dtype == dtype
    assert (result.double() - exact(prob, image, 5)).abs().max() <= bound
    assert (result.double() - cpu.dense_crf(*args).double()).abs().max() <= bound


def test_energies_and_strides():
    prob, image = case((9, 14), 3, batch=2)
    unary = -torch.log(prob) + 2  # a constant changes nothing
    strided = prob.transpose(2, 3).contiguous().transpose(2, 3)
    with cuda_host.on_cpu():
        expected = kernels.dense_crf(prob, image, 2, GAUSSIAN, BILATERAL, None)
        last = image.to(memory_format=torch.channels_last)
        assert torch.equal(kernels.dense_crf(strided, last, 2, GAUSSIAN, BILATERAL, None), expected)
        torch.testing.assert_close(kernels.dense_crf(None, image, 2, GAUSSIAN, BILATERAL, unary), expected)
        none = kernels.dense_crf(prob, image, 0, GAUSSIAN, BILATERAL, None)
        assert torch.equal(kernels.dense_crf(prob, image, 2, [], [], None), none)
    torch.testing.assert_close(none, prob)


@pytest.mark.parametrize(
    "gaussian, bilateral",
    [
        ([], BILATERAL),
        (GAUSSIAN, []),
        ([3.0, 3.0, 1.5, 5.0, 4.0, 1.0], [40.0, 20.0, 5.0, 9.0, 7.0, 4.0]),
        ([2.0, 2.0, 1.0], [40.0, 20.0, 5.0, 9.0, 7.0, 4.0, 10.0, 10.0, 20.0, 20.0, 20.0, 1.0]),
    ],
    ids=["bilateral", "gaussian", "two and one", "one and two"],
)
def test_terms(gaussian, bilateral):
    prob, image = case((11, 19), 3)
    with cuda_host.on_cpu(order=2):
        result = kernels.dense_crf(prob, image, 2, gaussian, bilateral, None)
    torch.testing.assert_close(result, exact(prob, image, 2, gaussian, bilateral), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sigma", [1.0, 1e4], ids=["vertices for each pixel alone", "one simplex for all"])
def test_any_size_of_lattice(sigma):
    """In fp32, where another order of a sum is seen in the bits."""
    prob, image = torch.rand(1, 2, 40, 37), torch.randint(256, (1, 3, 40, 37)).to(torch.uint8)
    near, far = [0.3 * sigma, 0.3 * sigma, 2.0], [sigma, sigma, sigma, sigma, sigma, 5.0]
    result = cuda_host.every_order(lambda: kernels.dense_crf(prob, image, 2, near, far, None))
    assert (result - cpu.dense_crf(prob, image, 2, near, far, None)).abs().max() <= 1e-5


def test_many_labels():
    """Groups of 24, the last one filled up."""
    prob, image = case((3, 5), 255)
    with cuda_host.on_cpu(order=1):
        result = kernels.dense_crf(prob, image, 1, GAUSSIAN, BILATERAL, None)
    torch.testing.assert_close(result, exact(prob, image, 1), rtol=1e-9, atol=1e-12)


def test_little_memory(monkeypatch):
    """An image and eight labels at a time."""
    prob, image = case((6, 7), 21, batch=2)
    monkeypatch.setattr(kernels, "MEMORY", 1)
    with cuda_host.on_cpu():
        result = kernels.dense_crf(prob, image, 2, GAUSSIAN, BILATERAL, None)
    torch.testing.assert_close(result, exact(prob, image, 2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_batch_is_one_launch_with_the_bits_of_its_images(at_once, monkeypatch):
    """Whatever number of them fits into memory, the last time fewer; labels that are absent take none."""
    prob, image = case((18, 21), 5, torch.float32, batch=3)
    labels = prob.argmax(1)
    labels[1] = 4 * (labels[1] > 2)
    fixed, lattices, values, _ = kernels._sizes(18, 21, 1, 1, 4)
    an_image = lattices + 2 * values + 4 * 4 * 2 * 4 * kernels.PIXELS
    settings = (2, GAUSSIAN, BILATERAL)
    with cuda_host.on_cpu(resident_blocks=1) as launches:
        each = [slice(i, i + 1) for i in range(3)]
        one_by_one = [kernels.dense_crf(prob[i], image[i], *settings, None) for i in each]
        refined = [kernels.dense_crf_labels(labels[i], image[i], 5, 0.7, *settings) for i in each]
        monkeypatch.setattr(kernels, "MEMORY", fixed + at_once * an_image)
        launches.clear()
        assert torch.equal(kernels.dense_crf(prob, image, *settings, None), torch.cat(one_by_one))
        assert launches == ["place_term", "place_term", "mean_field"]
        assert torch.equal(kernels.dense_crf_labels(labels, image, 5, 0.7, *settings), torch.cat(refined))
    with cuda_host.on_cpu():  # a launch a phase: no later phase has anything left to do
        assert torch.equal(kernels.dense_crf(prob, image, *settings, None), torch.cat(one_by_one))


def test_the_batch_of_the_paper():
    """32 images of 512 x 512 with VOC's labels, as stage 3 has them: a dozen calls, and memory for few images."""
    made: list[str] = []

    def prepare(op, kernel, *_, **options):
        made.append(kernel + " together" * options.get("cooperative", False))
        return lambda: None

    class Torch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            result = op(*args, **(kwargs or {}))
            made.extend([] if op.name() in ("aten::empty.memory_format", "aten::select.int") else [op.name()])
            taken.append(result.nbytes)
            return result

    taken: list[int] = []
    with torch.device("meta"):
        labels, image = (torch.zeros(32, *shape, 512, 512, dtype=torch.uint8) for shape in ((), (3,)))
    resident = mock.patch.object(_cuda, "resident_blocks", lambda _: 264)
    with mock.patch.object(_cuda, "prepare", prepare), resident, Torch():
        kernels.dense_crf_labels(labels, image, 21, 0.7, 5, GAUSSIAN, BILATERAL)
    assert made.count("mean_field together") == 1 and len(made) <= 14
    assert sum(taken) <= kernels.MEMORY + labels.nbytes + 2**20


def test_memory_is_bounded():
    for quads in (1, 2, 4, 6, 8, 10, 64):
        for most in (0, 1, 3, 5, 8, 100):
            of_group, groups = kernels._groups(quads, most)
            assert of_group * groups >= quads and of_group <= max(2, min(most, 6))
            assert of_group * (groups - 1) < quads
            assert quads == 1 or of_group % 2 == 0


def test_labels():
    prob, image = case((17, 12), 3, batch=4)
    index = prob.argmax(1)
    index[0, :, 7:] = 255
    names = torch.tensor([2, 7, 20])  # of 21: the others do not take part
    labels = torch.where(index == 255, 255, names[index.clamp(max=2)])
    labels[1] = torch.where(labels[1] == 7, 7, 255)  # one label and unknown pixels
    labels[2] = 255
    args = (21, 0.7, 2, GAUSSIAN, BILATERAL)
    result = cuda_host.every_order(lambda: kernels.dense_crf_labels(labels, image, *args), orders=(0, 1, 2))
    for row in (cpu.dense_crf_labels, reference.dense_crf_labels):
        assert (row(labels, image, *args) == result).double().mean() >= 0.999
    assert (result[1] == 7).all() and (result[2] == 255).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_types_of_labels(dtype):
    prob, image = case((8, 9), 3)
    labels = (5 * prob.argmax(1)).to(dtype)
    labels[0, 0] = -1 if dtype != torch.uint8 else 99  # where values are not looked at, out of range counts as 255
    with cuda_host.on_cpu():
        result = kernels.dense_crf_labels(labels, image, 11, 0.6, 1, GAUSSIAN, [])
    assert result.dtype == dtype
    assert torch.equal(result, reference.dense_crf_labels(labels, image, 11, 0.6, 1, GAUSSIAN, []))


def test_ties_and_many_labels_in_a_map():
    """Without iterations a pixel that nobody knows is tied between all: the smallest label. Three groups of labels."""
    labels = torch.arange(20, 92).view(1, 8, 9)
    labels[0, 0, 0] = 255
    _, image = case((8, 9))
    with cuda_host.on_cpu(order=2):
        unchanged = kernels.dense_crf_labels(labels, image, 100, 0.7, 0, GAUSSIAN, BILATERAL)
        result = kernels.dense_crf_labels(labels, image, 100, 0.7, 1, GAUSSIAN, BILATERAL)
    assert torch.equal(unchanged, labels.masked_fill(labels == 255, 21))
    assert torch.equal(result, reference.dense_crf_labels(labels, image, 100, 0.7, 1, GAUSSIAN, BILATERAL))


def test_nan():
    """Of a pixel; and of images whose lattice is too fine, which only the device sees."""
    prob, image = case((4, 5), batch=2)
    image = image.double() / 255
    spoilt, fine, bright = prob.clone(), image.clone(), image.clone()
    spoilt[0, 1, 2, 3] = torch.nan
    fine[0, 0, 1, 1] = 1e9
    bright[0, 1] *= 40  # not in [0, 1], but finite
    with cuda_host.on_cpu():
        for wrong in (torch.nan, torch.inf):
            image[0, 0, 1, 1] = wrong
            result = kernels.dense_crf(prob, image, 1, GAUSSIAN, BILATERAL, None)
            assert result[0, :, 1, 1].isnan().all() and not result[1].isnan().any()
        assert kernels.dense_crf(spoilt, bright, 1, GAUSSIAN, BILATERAL, None)[0, :, 2, 3].isnan().all()
        assert kernels.dense_crf(prob, fine, 1, GAUSSIAN, BILATERAL, None)[0].isnan().all()
        result = kernels.dense_crf(prob, bright, 1, GAUSSIAN, BILATERAL, None)
    torch.testing.assert_close(result, exact(prob, bright, 1), rtol=1e-9, atol=1e-12)


FAULTS = {
    "no barrier in the sort": ("        }\n      }\n      __syncthreads();", "        }\n      }"),
    "no barrier before the sort": ("__syncthreads();\n    sort<SLOTS>(codes);", "sort<SLOTS>(codes);"),
    "a slot taken by two": ("found = atomicCAS(&table[i], EMPTY, key)", "__nanosleep(1), table[i] = key"),
    "one number for two vertices": (
        "first = atomicAdd(&x.counts[0], total)",
        "first = x.counts[0], x.counts[0] += won",
    ),
    "rows in the order of arrival": (
        "x.ordered[begin + rank]",
        "x.ordered[begin + arrival(x.listed + begin, base + r)]",
    ),
}
ARRIVAL = """
__device__ int arrival(const int* listed, int row) {
  int i = 0;
  while (listed[i] != row) ++i;
  return i;
}"""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault):
    """What these tests rest on: the orders of the threads tell a race."""
    right, wrong = FAULTS[fault]
    prob, image = torch.rand(1, 2, 40, 37), torch.randint(256, (1, 3, 40, 37)).to(torch.uint8)
    args = (prob, image, 1, [], [1e4, 1e4, 40.0, 40.0, 40.0, 5.0], None)
    source = _cuda.source

    def faulty(op, defines):
        text = source(op, defines)
        if op != "dense_crf":
            return text
        assert right in text
        return text.replace(right, wrong).replace("typedef IMAGE_TYPE G;", "typedef IMAGE_TYPE G;" + ARRIVAL)

    with mock.patch.object(_cuda, "source", faulty), pytest.raises((AssertionError, cuda_host.KernelError)) as seen:
        result = cuda_host.every_order(lambda: kernels.dense_crf(*args), orders=(0, 1, 2))
        assert (result - cpu.dense_crf(*args)).abs().max() <= 1e-5
    assert "error:" not in str(seen.value), "it does not compile"


def test_too_large():
    with pytest.raises(ValueError, match="an image of 20000 x 20000 pixels is too large"):
        kernels._sizes(20000, 20000, near=1, far=1, itemsize=4)


@pytest.mark.parametrize("op", ["dense_crf", "dense_crf_labels"])
def test_the_op_is_served_by_it(op):
    row = ops.backends()[op]["cuda"]
    assert row.backend == "cuda" or row.why in ("cupy is not installed", "CAMGUIDE_FAST_BACKEND=reference")


@pytest.mark.cuda
@pytest.mark.parametrize(
    "shape, labels, batch", [((1, 1), 2, 1), ((512, 512), 3, 4), ((375, 501), 21, 2), ((90, 67), 255, 1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_cuda_on_a_side_stream(shape, labels, batch, dtype):
    prob, image = case(shape, labels, batch=batch)
    args = (5, GAUSSIAN, BILATERAL, None)
    expected = cpu.dense_crf(prob, image, *args)
    prob, image = prob.to(dtype).cuda(), image.cuda()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        result, again = (kernels.dense_crf(prob * 1, image * 1, *args) for _ in range(2))
    torch.cuda.synchronize()
    assert torch.equal(result, again)
    bound = {torch.float16: 5e-3, torch.float32: 2e-5, torch.float64: 1e-9}[dtype]
    assert (result.double().cpu() - expected).abs().max() <= bound


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_cuda_labels(dtype):
    prob, image = case((300, 410), 3, batch=3)
    labels = (7 * prob.argmax(1)).to(dtype)
    labels[0, :40] = 255
    with torch.cuda.device(0):
        result = ops.dense_crf_labels(labels.cuda(), image.cuda(), 21)
    assert (result.cpu() == ops.dense_crf_labels(labels, image, 21)).double().mean() >= 0.9995


@pytest.mark.cuda
def test_cuda_graph():
    """No host synchronisation: labels, images and so the lattices may change between replays."""

    def inputs(labels):
        prob, image = case((120, 131), labels, torch.float32, batch=2)
        return prob.cuda(), image.cuda(), prob.argmax(1).cuda()

    prob, image, given = inputs(9)

    def both():
        return ops.dense_crf(prob, image), ops.dense_crf_labels(given, image, 21)

    graph, (q, refined) = captured(both)
    for old, new in zip((prob, image, given), inputs(9), strict=True):
        old.copy_(new)
    graph.replay()
    expected, expected_labels = both()
    assert torch.equal(q, expected) and torch.equal(refined, expected_labels)
