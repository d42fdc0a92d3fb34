"""Image branch of section I.3: blur 9x9, Scharr norm, mean of the channels, dilation 3x3, adaptive average pooling,
over the maximum (of the norms before dilation, which has the same maximum).

A program walks down a strip of PIX columns, one pixel a thread. From 11 loads a row and channel come the blurred values
left of, at and right of the pixel, and from them a = (3, 10, 3) and b = (-1, 0, 1) of Scharr along the row; the last
nine of both wait in registers for the vertical blur, and two blurred ones for Scharr down the columns. So the state of
the walk stands for two stencils, though registers of a tile cannot be shifted. What the dilation would need from its
neighbours cannot be had that way: edges go through memory, and a second kernel dilates, pools and divides by the
maximum, which is not known before.

Floor at 32x3x512x512 uint8 -> 128x128: 27.3 MB. Here: the edges (fp32) written and read as well, 94 MB, 3.5 times the
floor. Arithmetic: some 150 instructions a pixel and channel, 74/64 of it for the rows between bands, 4.4 G in all: on a
GPU that does 40 operations in the time of a byte about as long as that memory traffic takes. The expectation is 5 to 7
times the floor there, and more where memory is faster: shared memory is what this op wants. Accumulated in fp32 (fp64
for fp64).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._filters import BLUR_9, clamp, largest

ROWS = 64
PIX = 128
CELLS = 128
PEAKS = 128


@triton.jit
def slopes_along_row(row_ptr, x, w, wide: tl.constexpr):
    """Blurred along the row: (3, 10, 3) and (-1, 0, 1) of it."""
    left = tl.zeros([x.shape[0]], wide)
    centre = left
    right = left
    for o in tl.static_range(-5, 6):
        value = tl.load(row_ptr + clamp(x + o, w)).to(wide)
        if o <= 3:
            left += BLUR_9[o + 1 if o + 1 > 0 else -o - 1] * value
        if (o >= -4) & (o <= 4):
            centre += BLUR_9[o if o > 0 else -o] * value
        if o >= -3:
            right += BLUR_9[o - 1 if o - 1 > 0 else 1 - o] * value
    left = tl.where(x == 0, centre, left)  # Scharr sees the blurred map replicated
    right = tl.where(x == w - 1, centre, right)
    return 3 * (left + right) + 10 * centre, right - left


@triton.jit
def blur_column(v):
    return (
        BLUR_9[4] * (v[0] + v[8])
        + BLUR_9[3] * (v[1] + v[7])
        + BLUR_9[2] * (v[2] + v[6])
        + BLUR_9[1] * (v[3] + v[5])
        + BLUR_9[0] * v[4]
    )


@triton.jit
def step(state, row_ptr, x, y, h, w, wide: tl.constexpr):
    """Takes in the row five below y; returns the state after it and the Scharr norm at row y."""
    a, b, above, centre = state
    new_a, new_b = slopes_along_row(row_ptr, x, w, wide)
    a = (a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], new_a)
    b = (b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], new_b)
    below = (blur_column(a), blur_column(b))
    a_above = tl.where(y == 0, centre[0], above[0])
    b_above = tl.where(y == 0, centre[1], above[1])
    a_below = tl.where(y == h - 1, centre[0], below[0])
    b_below = tl.where(y == h - 1, centre[1], below[1])
    gx = 3 * (b_above + b_below) + 10 * centre[1]
    gy = a_below - a_above
    return (a, b, centre, below), tl.sqrt(gx * gx + gy * gy)


@triton.jit
def edges_kernel(
    image_ptr,
    edges_ptr,
    peaks_ptr,
    h,
    w,
    bands,
    strips,
    SCALE: tl.constexpr,
    PIX: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // (bands * strips)).to(tl.int64)
    top_row = program // strips % bands * ROWS
    x = program % strips * PIX + tl.arange(0, PIX)
    wide: tl.constexpr = edges_ptr.dtype.element_ty
    n = tl.cast(h, tl.int64) * w
    red_ptr = image_ptr + b * 3 * n
    edges_ptr += b * n

    z = tl.zeros([PIX], wide)
    nine = (z, z, z, z, z, z, z, z, z)
    red = (nine, nine, (z, z), (z, z))
    green = red
    blue = red
    peaks = z
    for y in range(top_row - 10, tl.minimum(top_row + ROWS, h)):
        row_ptr = red_ptr + clamp(y + 5, h) * w
        red, norm_red = step(red, row_ptr, x, y, h, w, wide)
        green, norm_green = step(green, row_ptr + n, x, y, h, w, wide)
        blue, norm_blue = step(blue, row_ptr + 2 * n, x, y, h, w, wide)
        if y >= top_row:
            edge = tl.where(x < w, (norm_red + norm_green + norm_blue) * SCALE, 0)
            tl.store(edges_ptr + y * w + x, edge, mask=x < w)
            peaks = tl.where((edge > peaks) | (edge != edge), edge, peaks)
    tl.store(peaks_ptr + program, largest(peaks))


@triton.jit
def column_max(edges_ptr, y, x, h, w):
    """Largest of three rows around y in column x; 0 beyond the map, as no edge is less."""
    inside = (x >= 0) & (x < w)
    above = tl.load(edges_ptr + (y - 1) * w + x, mask=inside & (y > 0) & (y <= h), other=0)
    centre = tl.load(edges_ptr + y * w + x, mask=inside & (y < h), other=0)
    below = tl.load(edges_ptr + (y + 1) * w + x, mask=inside & (y + 1 < h), other=0)
    return tl.maximum(tl.maximum(above, centre), below)


@triton.jit
def pool_kernel(
    edges_ptr,
    peaks_ptr,
    out_ptr,
    h,
    w,
    rows,
    columns,
    parts,
    blocks,
    TALL: tl.constexpr,
    BROAD: tl.constexpr,
    CELLS: tl.constexpr,
    PEAKS: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    cell = program % blocks * CELLS + tl.arange(0, CELLS)
    wide: tl.constexpr = edges_ptr.dtype.element_ty
    peaks = tl.zeros([PEAKS], wide)
    for start in range(0, parts, PEAKS):
        j = start + tl.arange(0, PEAKS)
        peak = tl.load(peaks_ptr + b * parts + j, mask=j < parts, other=0)
        peaks = tl.where((peak > peaks) | (peak != peak), peak, peaks)
    peak = largest(peaks)
    peak = tl.where(peak < 1e-12, 1e-12, peak)

    edges_ptr += b * h * w
    i, j = cell // columns, cell % columns
    top, bottom = i * h // rows, ((i + 1) * h + rows - 1) // rows
    first, end = j * w // columns, ((j + 1) * w + columns - 1) // columns
    total = tl.zeros([CELLS], wide)
    for dy in range(TALL):
        y = top + dy
        left = column_max(edges_ptr, y, first - 1, h, w)
        centre = column_max(edges_ptr, y, first, h, w)
        for dx in range(BROAD):
            x = first + dx
            right = column_max(edges_ptr, y, x + 1, h, w)
            dilated = tl.maximum(tl.maximum(left, centre), right)
            total += tl.where((y < bottom) & (x < end), dilated, 0)
            left = centre
            centre = right
    mean = total / ((bottom - top) * (end - first)).to(wide)
    tl.store(out_ptr + b * rows * columns + cell, (mean / peak).to(tl.float32), mask=cell < rows * columns)


def edge_support(image: Tensor, size: list[int]) -> Tensor:  # [B, 3, H, W] -> [B, 1, h, w]
    x = image.contiguous()
    b, _, h, w = x.shape
    rows, columns = size
    bands, strips = triton.cdiv(h, ROWS), triton.cdiv(w, PIX)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    edges = x.new_empty((b, 1, h, w), dtype=wide)
    peaks = edges.new_empty((b, bands * strips))
    out = x.new_empty((b, 1, rows, columns), dtype=torch.float32)
    unit = 255 if x.dtype == torch.uint8 else 1
    edges_kernel[(peaks.numel(),)](x, edges, peaks, h, w, bands, strips, SCALE=1 / (3 * unit), PIX=PIX, ROWS=ROWS)
    blocks = triton.cdiv(rows * columns, CELLS)
    pool_kernel[(b * blocks,)](
        edges,
        peaks,
        out,
        h,
        w,
        rows,
        columns,
        peaks.shape[1],
        blocks,
        TALL=longest(h, rows),
        BROAD=longest(w, columns),
        CELLS=CELLS,
        PEAKS=PEAKS,
    )
    return out


def longest(n: int, cells: int) -> int:
    """Pixels of the longest of `cells` intervals that adaptive pooling makes of n."""
    return n // cells if n % cells == 0 else min(triton.cdiv(n, cells) + 1, n)
