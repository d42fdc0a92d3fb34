"""Launches csrc/cuda/guided_filter.cu, where the formula stands."""

import torch
from torch import Tensor

from . import _cuda

STRIP = 128  # columns of a warp, four a thread
ROWS, GUIDE_ROWS = 32, 8  # rows that a warp marches down. More: less done twice at the seams; fewer: more warps
WARPS = 4  # of a block: channels of one strip, which read the guide's statistics at the same time
LARGEST_RADIUS = {torch.float32: 16, torch.float64: 8}  # by what is computed in: a warp's rows of (a, b) fit in 72 KB
PLANES, BLOCK = 12, 32  # guide, mean, inverse; columns whose planes lie together


def guided_filter(z: Tensor, guide: Tensor, radius: int, eps: float, adjoint: bool) -> Tensor:
    # [B, K, H, W], [B, 3, H, W] -> [B, K, H, W]
    z, guide = z.contiguous(), guide.contiguous()
    b, k, h, w = z.shape
    radius = min(radius, max(h, w))  # nothing lies further out
    wide = torch.promote_types(z.dtype, torch.float32)
    out = torch.empty_like(z)
    statistics = z.new_empty((b, h, -(-w // BLOCK), PLANES, BLOCK), dtype=wide)
    if radius > LARGEST_RADIUS[wide]:
        for i in range(b):  # one image at a time: its workspaces stay in the cache
            _wide(z[i], guide[i], statistics[i], out[i], radius, eps, adjoint)
        return out

    ring = (2 * radius + 1) * STRIP * 4 * statistics.element_size()
    warps = WARPS if ring * WARPS <= 99 * 1024 else 1  # what a block has from sm_80 on
    launch = _launcher(z, guide, radius, warps)
    strips = _strips(w, radius)
    total = b * -(-h // GUIDE_ROWS) * strips
    launch("guide_statistics", -(-total // warps), 32 * warps, (guide, statistics, b, h, w, strips, eps))
    strips = _strips(w, 2 * radius)
    blocks = b * -(-h // ROWS) * strips * -(-k // warps)
    launch("guided_filter", blocks, 32 * warps, (z, statistics, out, k, h, w, strips, int(adjoint)), warps * ring)
    return out


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
    one, other = (statistics.new_empty((max(4 * k, 9), h, w)) for _ in range(2))

    def columns(kernel: str, planes: int, *args) -> None:
        launch(kernel, -(-planes * w * -(-h // length) // 128), 128, args)

    def rows(kernel: str, planes: int, *args) -> None:
        launch(kernel, -(-planes * h * -(-w // length) // 128), 128, args)

    columns("wide_guide_columns", 1, guide, one, h, w, radius, length)
    rows("wide_guide_rows", 1, guide, one, statistics, h, w, radius, length, eps)
    columns("wide_z_columns", k, z, statistics, one, k, h, w, radius, length, int(adjoint))
    rows("wide_solve_rows", k, one, statistics, other, k, h, w, radius, length)
    columns("wide_ab_columns", 4 * k, other, one, k, h, w, radius, length)
    rows("wide_out_rows", k, one, statistics, out, k, h, w, radius, length, int(adjoint))


def _launcher(z: Tensor, guide: Tensor, radius: int, warps: int):
    """launch(kernel, blocks, threads, args, shared) of the source specialised to this problem."""
    vector = radius > 0 and z.shape[-1] % 4 == 0 and z.data_ptr() % (4 * z.element_size()) == 0
    defines = {
        "Z_TYPE": _cuda.TYPES[z.dtype],
        "GUIDE_TYPE": _cuda.TYPES[guide.dtype],
        "RADIUS": radius,
        "VECTOR": int(vector),
        "WARPS": warps,
        "ROWS": ROWS,
        "GUIDE_ROWS": GUIDE_ROWS,
    }

    def launch(kernel: str, blocks: int, threads: int, args: tuple, shared: int = 0) -> None:
        _cuda.launch("guided_filter", kernel, blocks, threads, args, defines=defines, shared=shared)

    return launch
