"""Launches csrc/cuda/slic.cu, where the formula stands.

Nothing waits for the device: workspaces are of a size that the image's alone decides. Launches: 2, 2 for each pass,
and 6 for the connectivity.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..rules.seed_grid import SeedGrid, minimum_size, seed_grid
from . import _cuda

COLOUR_SCALE = 65536  # steps per Lab unit
RANGE_PART = 8192  # values that a block looks for the range of
TILE_ROWS, TILE_COLUMNS, TILE_WARPS = 8, 32, 4  # of superpixels/slic_assign.cuh
CENTRES_TOGETHER = 32
NUMBERED = 8  # blocks of pixels: PART of superpixels/connectivity.cuh

Prepare = Callable[..., Callable[[], None]]


def slic(
    image: Tensor, n_segments: int, compactness: float, iterations: int, min_size_factor: float
) -> tuple[Tensor, Tensor]:  # [B, 3, H, W] -> int32 [B, H, W], [B]
    image = image.contiguous()
    b, _, h, w = image.shape
    defines = {"IMAGE_TYPE": _cuda.TYPES[image.dtype]}

    def prepare(kernel: str, threads: int, block: int, *args) -> Callable[[], None]:
        return _cuda.prepare("slic", kernel, -(-threads // block), block, args, defines=defines)

    grid = seed_grid(h, w, n_segments)
    label = _cluster(_colours(image, prepare), grid, compactness, iterations, prepare)
    if min_size_factor == 0:
        return label, label.new_full((b,), grid.count[0] * grid.count[1])
    return _connect(label, minimum_size(h, w, grid, min_size_factor), prepare)


def _colours(image: Tensor, prepare: Prepare) -> Tensor:  # -> [B, 3, H, W], integers
    b, _, h, w = image.shape
    range_ = image.new_zeros((b, 2), dtype=torch.int64 if image.dtype == torch.float64 else torch.int32)
    prepare("image_range", b * -(-3 * h * w // RANGE_PART) * 256, 256, image, range_, 3 * h * w, RANGE_PART)()
    colours = image.new_empty(image.shape, dtype=torch.float32)
    prepare("find_colours", b * h * w, 256, image, range_, colours, b, h * w)()
    return colours


def _cluster(colours: Tensor, grid: SeedGrid, compactness: float, iterations: int, prepare: Prepare) -> Tensor:
    b, _, h, w = colours.shape
    n = grid.count[0] * grid.count[1]
    chunks = -(-n // CENTRES_TOGETHER)
    weight = (max(grid.step) / (compactness * COLOUR_SCALE)) ** 2  # of colour, with positions in pixels
    tiles = b * -(-h // TILE_ROWS) * -(-w // TILE_COLUMNS)
    sums = colours.new_empty((b, n, 6), dtype=torch.int64)
    centres = colours.new_empty((b, chunks * CENTRES_TOGETHER, 8))
    boxes = colours.new_empty((b, chunks, 4), dtype=torch.int32)
    limits = colours.new_empty(tiles)
    label = colours.new_empty((b, h, w), dtype=torch.int32)
    seeds = (grid.start[0], grid.step[0], grid.start[1], grid.step[1], grid.count[1])
    state, sizes = (colours, centres, boxes, limits, label, sums), (b, h, w, n, chunks, *grid.reach)

    def passes(first: int, weight: float) -> list[Callable[[], None]]:
        means = (sums, centres, boxes, b, n, chunks, *seeds, first)
        return [
            prepare("update_centres", b * chunks * 32, 128, *means),
            prepare("assign", tiles * 32, 32 * TILE_WARPS, *state, *sizes, weight, first),
        ]

    # Without a colour in the seeds all candidates are equally far in colour: the first pass is spatial.
    for launch in passes(1, 0.0) + passes(0, weight) * (iterations - 1):
        launch()
    return label


def _connect(label: Tensor, smallest: int, prepare: Prepare) -> tuple[Tensor, Tensor]:
    b, h, w = label.shape
    pixels = h * w
    blocks, parts = -(-pixels // 256), -(-pixels // (256 * NUMBERED))
    parent, group = torch.empty_like(label), torch.empty_like(label)
    size, first_size = torch.zeros_like(label), label.new_zeros(b)
    roots = label.new_empty((b, parts))
    every = b * blocks * 256
    prepare("find_runs", every, 256, label, parent, pixels, w, blocks)()
    prepare("unite_runs", every, 256, label, parent, pixels, w, blocks)()
    prepare("find_roots", every, 256, parent, size, pixels, blocks)()
    every_part = b * parts * 256
    prepare("find_groups", every_part, 256, parent, size, group, roots, first_size, pixels, w, smallest, parts)()
    number = parent  # no longer needed
    num = label.new_empty(b)
    prepare("number_groups", every_part, 256, group, roots, first_size, number, num, pixels, smallest, parts)()
    prepare("relabel", every, 256, group, number, first_size, pixels, smallest, blocks)()
    return group, num
