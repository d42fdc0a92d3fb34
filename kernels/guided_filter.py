"""Launches csrc/cuda/guided_filter.cu, where the formula stands."""

import functools

import torch
from torch import Tensor

from . import _cuda

STRIP = 128  # columns of a warp, four a thread
GUIDE_ROWS = 8  # that a warp marches down. More: less done twice at the seams; fewer: more warps
MOST_ROWS = 64  # the same of the filter, at most: so far its sums drift, and a NaN gets
MOST_WARPS = 8  # of a block
SHARED, RESERVED = (
    99 * 1024,
    1024,
)  # what a block has from sm_80 on; what each costs its multiprocessor besides
WORKSPACE = 64 * 2**20  # bytes for windows too large for a strip, or what one class takes: 13 values a pixel
LARGEST_RADIUS = {torch.float32: 16, torch.float64: 8}  # by what is computed in: a warp's rows of (a, b) fit in 72 KB
PLANES, BLOCK = 12, 32  # guide, mean, factors of the inverse; columns whose planes lie together


def guided_filter(z: Tensor, guide: Tensor, radius: int, eps: float, adjoint: bool) -> Tensor:
    # [B, K, H, W], [B, 3, H, W] -> [B, K, H, W]
    z, guide = z.contiguous(), guide.contiguous()
    b, k, h, w = z.shape
    radius = min(radius, max(h, w))  # nothing lies further out
    wide = torch.promote_types(z.dtype, torch.float32)
    out = torch.empty_like(z)
    too_large = radius > LARGEST_RADIUS[wide]
    statistics = z.new_empty((1 if too_large else b, h, -(-w // BLOCK), PLANES, BLOCK), dtype=wide)
    if too_large:
        for i in range(b):  # one image at a time, and as many classes as leave the workspaces in the cache
            _wide(z[i], guide[i], statistics[0], out[i], radius, eps, adjoint)
        return out

    ring = (2 * radius + 1) * STRIP * 4 * statistics.element_size()
    count, shared = _cuda.multiprocessors()
    warps = _warps(k, ring, shared)
    launch = _launcher(z, guide, radius, warps)
    strips = _strips(w, 0)
    total = b * -(-h // GUIDE_ROWS) * strips
    launch("guide_statistics", -(-total // warps), 32 * warps, (guide, statistics, b, h, w, strips, eps))
    strips = _strips(w, 2 * radius)
    columns = b * strips * -(-k // warps)  # of blocks
    rows = _rows(h, columns, radius, count * _resident(warps, ring, shared))
    args = (z, statistics, out, k, h, w, strips, rows, int(adjoint))
    launch("guided_filter", columns * -(-h // rows), 32 * warps, args, warps * ring)
    return out


def _resident(warps: int, ring: int, shared: int) -> int:
    """Blocks that a multiprocessor's shared memory has room for."""
    return max(1, shared // (warps * ring + RESERVED))


@functools.cache
def _warps(k: int, ring: int, shared: int) -> int:
    """Warps of a block: classes of one strip, which read the guide's statistics at the same time.

    What counts is how many have work on a multiprocessor. One alone waits for the statistics about as long as for all
    else; that is shared by the warps of a block. (Counted in bytes, not timed.)
    """

    def worth(warps: int) -> float:
        return _resident(warps, ring, shared) * k / -(-k // warps) * warps / (warps + 1)

    return max((n for n in range(1, min(k, MOST_WARPS) + 1) if n == 1 or n * ring <= SHARED), key=worth)


@functools.cache
def _rows(h: int, columns: int, radius: int, slots: int) -> int:
    """Rows that a warp marches down, of so many columns of blocks where `slots` blocks run at a time.

    It takes 2 r rows before its first comes out, and half as long for the first sums; the last blocks should not run
    alone.
    """

    def time(rows: int) -> int:
        return -(-columns * -(-h // rows) // slots) * (2 * rows + 5 * radius)

    return min(range(8, MOST_ROWS + 1, 8), key=lambda rows: (time(rows), -rows))


def _strips(width: int, reach: int) -> int:
    """Strips that cover a row. Where two meet, the outermost `reach` columns of each serve the other columns only."""
    halo = (reach + 3) // 4 * 4
    return 1 + max(0, -(-(width - STRIP) // (STRIP - 2 * halo)))


def _wide(
    z: Tensor, guide: Tensor, statistics: Tensor, out: Tensor, radius: int, eps: float, adjoint: bool
) -> None:  # [K, H, W], [3, H, W], [H, blocks, 12, 32], [K, H, W]
    k, h, w = z.shape
    length = max(2 * radius + 1, 32)  # of a thread's run: at least what its first sum costs
    launch = _launcher(z, guide, 0, 4)
    chunk = max(1, min(k, WORKSPACE // (8 * h * w * statistics.element_size())))
    one, other = (statistics.new_empty((planes, h, w)) for planes in (max(4 * chunk, 9), 4 * chunk))

    def columns(kernel: str, planes: int, *args) -> None:
        launch(kernel, -(-planes * w * -(-h // length) // 128), 128, args)

    def rows(kernel: str, planes: int, *args) -> None:  # a warp for each run
        launch(kernel, -(-planes * h * -(-w // length) // 4), 128, args)

    columns("wide_guide_columns", 1, guide, one, h, w, radius, length)
    rows("wide_guide_rows", 1, guide, one, statistics, h, w, radius, length, eps)
    for maps, results in zip(z.split(chunk), out.split(chunk), strict=True):
        n = len(maps)
        columns("wide_z_columns", n, maps, statistics, one, n, h, w, radius, length, int(adjoint))
        rows("wide_solve_rows", n, one, statistics, other, n, h, w, radius, length)
        columns("wide_ab_columns", 4 * n, other, one, n, h, w, radius, length)
        rows("wide_out_rows", n, one, statistics, results, n, h, w, radius, length, int(adjoint))


def _launcher(z: Tensor, guide: Tensor, radius: int, warps: int):
    """launch(kernel, blocks, threads, args, shared) of the source specialised to this problem."""
    vector = radius > 0 and z.shape[-1] % 4 == 0 and z.data_ptr() % (4 * z.element_size()) == 0
    defines = {
        "Z_TYPE": _cuda.TYPES[z.dtype],
        "GUIDE_TYPE": _cuda.TYPES[guide.dtype],
        "RADIUS": radius,
        "VECTOR": int(vector),
        "WARPS": warps,
        "GUIDE_ROWS": GUIDE_ROWS,
    }

    def launch(kernel: str, blocks: int, threads: int, args: tuple, shared: int = 0) -> None:
        _cuda.launch("guided_filter", kernel, blocks, threads, args, defines=defines, shared=shared)

    return launch
