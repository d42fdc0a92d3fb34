"""Gaussian filtering on the permutohedral lattice: launches csrc/cuda/crf/lattice_build.cu and lattice.cu,
where the algorithm stands.

The host never learns how many vertices there are: what holds a row for each is sized for one at each corner of each
pixel, and kernels that walk over vertices read their number on the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _cuda

TILE, PIXELS = 16, 256  # side and size of a tile
SWEEP = 1056  # blocks that walk over vertices, at most: eight for each multiprocessor of an H100
BYTES = 750  # of a bilateral lattice for each pixel, about: 288 of neighbours, 170 of the rest, what building it takes


@dataclass
class Lattice:
    """Of `images` images; [tiles, ...] where a tile has its own, [capacity, ...] where a vertex has."""

    corners: int  # D, one more than the dimensions
    tiles: int
    capacity: int
    dtype: torch.dtype
    vertex: Tensor  # [tiles, D, PIXELS]: the vertices around a pixel
    weight: Tensor  # [tiles, D, PIXELS]: its barycentric weights / sqrt(L 1)
    entries: Tensor  # [tiles, D * PIXELS]: corner * PIXELS + pixel, row by row of the tile, pixels ascending
    starts: Tensor  # [tiles, D * PIXELS + 1]: where each row begins among them
    rows: Tensor  # [tiles]: how many there are
    ordered: Tensor  # [capacity]: the rows of each vertex in turn, tiles ascending
    uses: Tensor  # [capacity]: how many those are
    ends: Tensor  # [capacity]: and where they end
    count: Tensor  # [1]: of vertices
    neighbours: Tensor  # [D, capacity, 2]


def tiles_of(h: int, w: int) -> int:
    return -(-h // TILE) * -(-w // TILE)


def build(h: int, w: int, sigma: list[float], dtype: torch.dtype, images: Tensor) -> Lattice:
    """Of positions alone (sx, sy), the same for all images, or of each with its colours (sx, sy, sr, sg, sb)."""
    count, corners, device = len(images) if len(sigma) == 5 else 1, len(sigma) + 1, images.device
    tiles = count * tiles_of(h, w)
    capacity = tiles * corners * PIXELS
    slots = 1 << ((h * w + 1) * corners * 4 // 3).bit_length()  # of a table: at least a quarter stays empty
    if max(capacity, count * slots) >= 2**30:
        raise ValueError(f"dense_crf: an image of {h} x {w} pixels is too large")
    types = {"VALUE": _cuda.TYPES[dtype], "IMAGE_TYPE": _cuda.TYPES[images.dtype]}

    def launch(kernel: str, blocks: int, threads: int, *args) -> None:
        defines = {"CORNERS": corners, **types}
        _cuda.launch("crf/lattice_build", kernel, blocks, threads, args, defines=defines)

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    embedding = torch.empty(corners + 1, dtype=torch.int64, device=device)
    scale = torch.empty(corners, dtype=torch.float32, device=device)
    sigmas = [*sigma, 1.0, 1.0, 1.0][:5]
    launch("embed_image", 1, 1, _range(images), embedding, scale, h, w, *sigmas)
    lattice = Lattice(
        corners,
        tiles,
        capacity,
        dtype,
        vertex=integers(tiles, corners, PIXELS),
        weight=torch.empty((tiles, corners, PIXELS), dtype=dtype, device=device),
        entries=integers(tiles, corners * PIXELS),
        starts=integers(tiles, corners * PIXELS + 1),
        rows=integers(tiles),
        ordered=integers(capacity),
        uses=integers(capacity).zero_(),
        ends=integers(0),
        count=integers(1).zero_(),
        neighbours=integers(corners, capacity, 2),
    )
    keys = torch.full((count, slots), -1, dtype=torch.int64, device=device)
    numbers, vertex_slot = integers(count, slots), integers(capacity)
    row_slot, row_vertex, arrival, listed = (integers(capacity) for _ in range(4))
    x = lattice
    found = (x.weight, x.vertex, x.entries, x.starts, x.rows, row_slot, vertex_slot)
    launch(
        "find_vertices", tiles, PIXELS, images, embedding, scale, keys, numbers, x.count, *found, h, w, slots, *sigmas
    )
    rest = (row_slot, x.vertex, row_vertex, arrival, x.uses)
    launch("number_rows", tiles, PIXELS, numbers, x.rows, *rest, h, w)
    x.ends = torch.cumsum(x.uses, 0, dtype=torch.int32)
    launch("list_rows", tiles, PIXELS, x.rows, row_vertex, arrival, x.uses, x.ends, listed)
    launch("order_rows", tiles, PIXELS, x.rows, row_vertex, x.uses, x.ends, listed, x.ordered)
    rest = (x.count, vertex_slot, x.neighbours, capacity, slots)
    launch("find_neighbours", min(SWEEP, -(-capacity // 256)), 256, embedding, keys, numbers, *rest)
    _normalise(lattice, h, w)
    return lattice


def _range(images: Tensor) -> Tensor:  # [2, 3]: least and greatest colours
    limits = torch.zeros((2, 3), dtype=torch.float32, device=images.device)
    limits[1].fill_(255)
    if images.dtype != torch.uint8:
        colour = images.float() * 255
        colour = torch.where(colour.isfinite(), colour, 0)
        torch.minimum(limits[0], colour.amin((0, 2, 3)), out=limits[0])
        torch.maximum(limits[1], colour.amax((0, 2, 3)), out=limits[1])
    return limits


def _normalise(lattice: Lattice, h: int, w: int) -> None:
    """The weights over the root of what becomes of ones."""
    x = lattice
    ones = torch.ones((x.tiles, PIXELS, 4), dtype=x.dtype, device=x.weight.device)
    active = torch.ones(1, dtype=torch.int32, device=x.weight.device)
    at = Filter(lattice, 1, 1)(ones, active, 0)
    _cuda.launch(
        "crf/lattice", "normalise", x.tiles, PIXELS, (x.vertex, at, x.weight, h, w), defines=_defines(lattice, 1)
    )


class Filter:
    """filter(q) -> the values of the lattice's vertices [copies, capacity, 4 * quads], which the next call overwrites.

    q: [copies * tiles, PIXELS, 4 * quads]. active, first: quads from the first one on to work on, at most all.
    """

    def __init__(self, lattice: Lattice, copies: int, quads: int):
        self.lattice, self.copies, self.quads = lattice, copies, quads
        shape = (copies, lattice.capacity, 4 * quads)
        if copies * lattice.capacity >= 2**30:
            raise ValueError("dense_crf: too many pixels at once")
        self.tables = [torch.empty(shape, dtype=lattice.dtype, device=lattice.weight.device) for _ in range(2)]

    def __call__(self, q: Tensor, active: Tensor, first: int) -> Tensor:
        x, (rows, at) = self.lattice, self.tables
        sweep = min(SWEEP, -(-self.copies * x.capacity * self.quads // 256))
        split = (x.entries, x.starts, x.rows, x.weight)
        self._launch("splat", self.copies * x.tiles, *split, q, rows, active, first, x.tiles)
        listed = (x.ordered, x.uses, x.ends, x.count)
        self._launch("merge", sweep, *listed, rows, at, active, first, x.capacity, self.copies)
        other = rows
        for axis in range(x.corners):
            links = (x.neighbours, x.count)
            self._launch("blur", sweep, *links, at, other, active, first, x.capacity, self.copies, axis)
            at, other = other, at
        return at

    def _launch(self, kernel: str, blocks: int, *args) -> None:
        _cuda.launch("crf/lattice", kernel, blocks, 256, args, defines=_defines(self.lattice, self.quads))


def _defines(lattice: Lattice, quads: int) -> _cuda.Defines:
    return {"CORNERS": lattice.corners, "VALUE": _cuda.TYPES[lattice.dtype], "QUADS": quads}
