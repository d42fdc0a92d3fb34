"""Launches csrc/cuda/edge_support.cu, where the pipeline stands."""

import math

import torch
from torch import Tensor

from . import _cuda

ROWS = (64, 32, 16)  # of the image that a block marches down, and 13 more: the most that leave BLOCKS of them
BLOCKS = 256


def edge_support(image: Tensor, size: list[int]) -> Tensor:  # [B, 3, H, W] -> [B, 1, h, w]
    x = image.contiguous()
    b, _, h, w = x.shape
    rows, columns = size
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    vector = w % 4 == 0 and x.data_ptr() % min(4 * x.element_size(), 16) == 0
    per_thread, most = (8, 64) if vector and x.dtype == torch.uint8 else (4, 64 if wide == torch.float64 else 128)
    group = min(-(-w // per_thread) + 31, most) // 32 * 32  # threads of a channel
    strip = group * per_thread
    strips = 1 + max(0, -(-(w - strip) // (strip - 2 * per_thread)))
    bands = [min(max(1, r * rows // h), 256) for r in ROWS]  # rows of cells of a block
    band = next((n for n in bands if b * strips * -(-rows // n) >= BLOCKS), bands[-1])
    parts = strips * -(-rows // band)
    pool = math.gcd(4, w // columns) if w % columns == 0 else 1
    defines = {
        "IMAGE_TYPE": _cuda.TYPES[x.dtype],
        "VECTOR": int(vector),
        "COLUMNS": per_thread,
        "WHOLE": int(w % per_thread == 0),
        "GROUP": group,
        "POOL": pool,
    }
    sums = x.new_empty((b, rows, w // pool), dtype=wide)
    peaks = x.new_empty((b, parts), dtype=wide)
    out = x.new_empty((b, 1, rows, columns), dtype=torch.float32)
    shared = (6 * (strip + 8) + 6 * 4 * group + strip) * sums.element_size() + 4 * band
    args = (x, sums, peaks, h, w, rows, band, strips)
    _cuda.launch("edge_support", "edge_cells", b * parts, 3 * group, args, defines=defines, shared=shared)
    blocks = -(-rows * columns // 256)
    least = 1e-12 * _scale(x.dtype)
    args = (sums, peaks, out, h, w, rows, columns, parts, blocks, least)
    _cuda.launch("edge_support", "edge_means", b * blocks, 256, args, defines=defines)
    return out


def _scale(dtype: torch.dtype) -> float:
    """By how much the kernel's edges exceed the mean over the channels of an image in [0, 1]."""
    blur = sum(math.exp(-(i**2) / 18) for i in range(-4, 5))
    columns = blur / math.exp(-(4**2) / 18)  # of filters (1 c 1) instead of the taps
    return 3 * blur * columns / 3 * (255 if dtype == torch.uint8 else 1)
