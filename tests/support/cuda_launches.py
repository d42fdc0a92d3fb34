"""The CUDA sources that the launchers have compiled, recorded from the launchers themselves on meta tensors, which have
shapes alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from camguide_fast.kernels import (
    _cuda,
    affinity_walk,
    dense_crf,
    edge_support,
    guided_filter,
    label_closing,
    slic,
    superpixel_walk,
)

FP32, FP16, BF16, FP64, UINT8 = torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8
FLOATS = (FP32, FP16, BF16, FP64)
BILATERAL, GAUSSIAN = [50.0, 50.0, 5.0, 5.0, 5.0, 10.0], [3.0, 3.0, 3.0]


@dataclass
class Variant:
    """A source as it is compiled, and what is launched of it."""

    op: str
    defines: _cuda.Defines
    kernels: dict[str, int] = field(default_factory=dict)  # to the most dynamic shared memory that one asks for

    def __str__(self) -> str:
        return "-".join([self.op, *(str(value) for value in self.defines.values() if len(str(value)) < 20)])

    @property
    def source(self) -> str:
        return _cuda.source(self.op, self.defines)


def recorded() -> list[Variant]:
    found: dict[str, Variant] = {}

    def prepare(op, kernel, blocks, threads, args, *, defines, shared=0, cooperative=False):
        variant = found.setdefault(f"{op} {defines}", Variant(op, dict(defines)))
        variant.kernels[kernel] = max(shared, variant.kernels.get(kernel, 0))
        return lambda: None

    resident = mock.patch.object(_cuda, "resident_blocks", lambda per_multiprocessor: 264)
    multiprocessors = mock.patch.object(_cuda, "multiprocessors", lambda: (34, 100 * 1024))  # of a 4060 Ti
    with mock.patch.object(_cuda, "prepare", prepare), resident, multiprocessors:
        for call in calls():
            call()
    return list(found.values())


def calls() -> Iterator[Callable[[], object]]:
    """fp32 in every form that a launcher has, other types where most is kept in registers: a compile takes a second."""
    for dtype in FLOATS:
        yield lambda x=dtype: walk(x, radius=6, classes=4)
        yield lambda x=dtype: filtered(x, x, radius=4)
        yield lambda x=dtype: graph(x)
        yield lambda x=dtype: superpixels(x, FP64 if x == FP64 else FP32, 1100)
        yield lambda x=dtype: slic.slic(meta(1, 3, 512, 512, dtype=x), 1100, 10.0, 2, 0.5)
        yield lambda x=dtype: edge_support.edge_support(meta(32, 3, 512, 512, dtype=x), [128, 128])
    yield lambda: walk(FP32, radius=5, classes=3)
    yield lambda: walk(FP32, radius=9, classes=4)  # weights that registers do not hold
    for dtype, guide, radius, width in [
        (FP32, UINT8, 4, 125),
        (FP32, FP32, 16, 128),
        (FP32, FP32, 40, 128),
        (FP16, UINT8, 40, 128),
    ]:
        yield lambda z=dtype, g=guide, r=radius, w=width: filtered(z, g, r, w)
    yield lambda: graph(UINT8)
    yield lambda: superpixels(FP16, FP64, 9000)  # too many for shared memory
    for dtype, image, labels in [(FP32, FP32, 2), (FP16, UINT8, 255), (BF16, UINT8, 255), (FP64, FP16, 21)]:
        yield lambda x=dtype, i=image, n=labels: crf(x, i, n)
    yield lambda: dense_crf.dense_crf(None, meta(1, 3, 90, 90), 2, GAUSSIAN, BILATERAL, meta(1, 3, 90, 90))
    for dtype in (UINT8, torch.int64):
        yield lambda x=dtype: crf_labels(x)
    yield lambda: slic.slic(meta(1, 3, 512, 512, dtype=UINT8), 1100, 10.0, 2, 0.5)
    for height, width, size in [(512, 512, [128, 128]), (61, 67, [15, 17]), (512, 512, [100, 90])]:
        yield lambda h=height, w=width, s=size: edge_support.edge_support(meta(1, 3, h, w, dtype=UINT8), s)
    for dtype, side, size in [(UINT8, 512, 501), (torch.int64, 512, 15), (UINT8, 1024, 501)]:
        yield lambda x=dtype, s=side, k=size: label_closing.label_closing(meta(8, s, s, dtype=x), k, 0, 255)


def meta(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def walk(dtype, radius, classes):
    cam, edge = meta(1, classes, 94, 125, dtype=dtype), meta(1, 1, 94, 125, dtype=dtype)
    affinity_walk.affinity_random_walk(cam, edge, radius, 10.0, 8)


def filtered(dtype, guide, radius, width=128):
    z, image = meta(2, 20, 128, width, dtype=dtype), meta(2, 3, 128, width, dtype=guide)
    guided_filter.guided_filter(z, image, radius, 1e-2, False)


def graph(image):
    superpixel_walk.superpixel_graph(
        meta(1, 512, 512, dtype=torch.int32), meta(1, 3, 512, 512, dtype=image), 2.0, False, 1100, False
    )


def superpixels(target, transition, n):
    segments, maps = meta(1, 512, 512, dtype=torch.int32), meta(1, 20, 512, 512, dtype=target)
    counts, offsets, neighbours = (meta(1, size, dtype=torch.int32) for size in (n, n + 1, 8 * n))
    superpixel_walk.superpixel_random_walk(
        maps, segments, counts, offsets, neighbours, meta(1, 8 * n, dtype=transition), 12
    )


def crf(prob, image, labels):
    images = meta(1, 3, 512, 512, dtype=image)
    dense_crf.dense_crf(meta(1, labels, 512, 512, dtype=prob), images, 2, GAUSSIAN, BILATERAL, None)


def crf_labels(dtype):
    labels, image = meta(2, 512, 512, dtype=dtype), meta(2, 3, 512, 512, dtype=UINT8)
    dense_crf.dense_crf_labels(labels, image, 60, 0.7, 2, GAUSSIAN, BILATERAL)
