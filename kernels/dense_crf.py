"""Launches csrc/cuda/dense_crf.cu, where the formula stands, on lattices of _permutohedral."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _cuda, _permutohedral
from ._permutohedral import PIXELS, Filter, Lattice

PROBABILITIES, ENERGIES, LABELS = range(3)  # what is given
TO_SUMS, TO_Q, TO_RESULT = range(3)  # where a step writes
LARGEST_GROUP = 8  # quads of labels that a thread pair keeps in registers
MEMORY = 2**30  # bytes of workspaces that images and labels taken together may fill
LABEL_WORDS = 514  # of what is known about an image's label map


def dense_crf(
    prob: Tensor | None,
    image: Tensor,
    iterations: int,
    gaussian: list[float],
    bilateral: list[float],
    unary: Tensor | None,
) -> Tensor:  # [B, L, H, W], [B, 3, H, W] -> [B, L, H, W]
    kind, given = (PROBABILITIES, prob) if unary is None else (ENERGIES, unary)
    given = given.contiguous()
    labels, wide = given.shape[1], torch.promote_types(given.dtype, torch.float32)
    active = torch.full((1,), _quads(labels), dtype=torch.int32, device=given.device)
    table = torch.empty((len(given), 1), dtype=torch.int32, device=given.device)  # of no label map
    return _mean_field(kind, given, table, active, image, labels, wide, iterations, gaussian, bilateral)


def dense_crf_labels(
    labels: Tensor,
    image: Tensor,
    num_labels: int,
    gt_prob: float,
    iterations: int,
    gaussian: list[float],
    bilateral: list[float],
) -> Tensor:  # [B, H, W], [B, 3, H, W] -> [B, H, W]
    """Absent labels are left out by the device, which numbers those that are present: the host need not know them."""
    given = labels.contiguous()
    if given.dtype in (torch.int8, torch.int16):
        given = given.int()
    b, h, w = given.shape
    quads = min(_quads(num_labels), LARGEST_GROUP)
    defines = _defines(LABELS, given, torch.float32, quads, [])
    present = torch.zeros((b, 8), dtype=torch.int32, device=given.device)
    table = torch.empty((b, LABEL_WORDS), dtype=torch.int32, device=given.device)
    active = torch.zeros(1, dtype=torch.int32, device=given.device)
    blocks = min(64, -(-h * w // 1024))  # an image's
    args = (given, present, num_labels, h * w, blocks)
    _cuda.launch("dense_crf", "find_labels", b * blocks, 256, args, defines=defines)
    _cuda.launch("dense_crf", "number_labels", b, 1, (present, table, active, gt_prob), defines=defines)
    out = _mean_field(LABELS, given, table, active, image, num_labels, torch.float32, iterations, gaussian, bilateral)
    return out.to(labels.dtype)


@dataclass
class Term:
    lattice: Lattice
    weight: float


def _mean_field(
    kind: int,
    given: Tensor,
    table: Tensor,
    active: Tensor,
    image: Tensor,
    labels: int,
    dtype: torch.dtype,
    iterations: int,
    gaussian: list[float],
    bilateral: list[float],
) -> Tensor:
    image, out = image.contiguous(), torch.empty_like(given)
    b, _, h, w = image.shape
    if iterations == 0:
        gaussian, bilateral = [], []
    near = [
        Term(_permutohedral.build(h, w, sigma, dtype, image), weight)
        for *sigma, weight in zip(*[iter(gaussian)] * 3, strict=True)
    ]
    corners = 3 * len(near) + 6 * (len(bilateral) // 6)
    pixels = PIXELS * _permutohedral.tiles_of(h, w)
    quad = 4 * dtype.itemsize * pixels  # bytes of an image's pixels
    quads, groups = _groups(_quads(labels), MEMORY // max(2 * corners * quad, 1))
    lattices = _permutohedral.BYTES * (len(bilateral) // 6) * pixels
    at_once = max(1, MEMORY // (2 * quad * quads * (corners + groups) + lattices))
    for start in range(0, b, at_once):
        part = slice(start, start + at_once)
        far = [
            Term(_permutohedral.build(h, w, sigma, dtype, image[part]), weight)
            for *sigma, weight in zip(*[iter(bilateral)] * 6, strict=True)
        ]
        field = _Field(kind, given[part], table[part], active, out[part], h, w, labels, dtype, quads, groups)
        field.run(near + far, iterations)
    return out


def _quads(labels: int) -> int:
    """Quads of labels, in whole lanes: one lane has the only quad, two share several."""
    return 1 if labels <= 4 else -(-labels // 8) * 2


def _groups(quads: int, most: int) -> tuple[int, int]:
    """(quads of a group, groups) for at most `most` quads at a time, where that is possible."""
    if quads == 1:
        return 1, 1
    groups = -(-quads // max(2, min(LARGEST_GROUP, most) // 2 * 2))
    return -(-quads // (2 * groups)) * 2, groups


def _defines(kind: int, given: Tensor, dtype: torch.dtype, quads: int, terms: list[Term]) -> _cuda.Defines:
    corners = [term.lattice.corners for term in terms] + [0, 0]
    return {
        "INPUT": kind,
        "INPUT_TYPE": _cuda.TYPES[given.dtype],
        "VALUE": _cuda.TYPES[dtype],
        "QUADS": quads,
        "CORNERS_0": corners[0],
        "CORNERS_1": corners[1],
    }


@dataclass
class _Field:
    """The mean field of a few images at once."""

    kind: int
    given: Tensor
    table: Tensor  # [images, ...]: of the label maps
    active: Tensor  # [1]: quads that hold labels
    out: Tensor
    h: int
    w: int
    labels: int
    dtype: torch.dtype
    quads: int  # of a group
    groups: int

    def __post_init__(self):
        self.images = len(self.given)
        self.tiles = self.images * _permutohedral.tiles_of(self.h, self.w)
        self.nothing = self._empty(1)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.given.device)

    def run(self, terms: list[Term], iterations: int) -> None:
        steps = iterations if terms else 0  # nothing pulls at Q
        pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
        filters = [[Filter(t.lattice, self.tiles // t.lattice.tiles, self.quads) for t in pair] for pair in pairs]
        values, nothing = (self.tiles, PIXELS, 4 * self.quads), (1,)
        q = self._empty(self.groups, *(values if steps else nothing))
        sums = self._empty(self.groups, *(values if self.groups > 1 or len(pairs) > 1 else nothing))
        self._slice([], [], sums, q, True, TO_Q if steps else TO_RESULT)
        for i in range(steps):
            to = TO_Q if i < steps - 1 else TO_RESULT
            for j, (pair, own) in enumerate(zip(pairs, filters, strict=True)):
                last = j == len(pairs) - 1
                self._slice(pair, own, sums, q, j == 0, to if last else TO_SUMS)

    def _slice(self, pair: list[Term], filters: list[Filter], sums: Tensor, q: Tensor, begin: bool, to: int) -> None:
        """Adds a pair of terms to -U or to `sums`, a group of labels after the other."""
        several = self.groups > 1
        for group in range(self.groups):
            first = group * self.quads
            slots = []
            for term, filtered in zip(pair, filters, strict=True):
                x = term.lattice
                slots += [x.vertex, x.weight, filtered(q[group], self.active, first), term.weight, x.tiles, x.capacity]
            slots += [self.table, self.nothing, self.nothing, 0.0, 1, 0] * (2 - len(pair))
            sizes = (self.h, self.w, self.labels, first, int(begin), TO_SUMS if several else to)
            args = (self.given, self.table, sums[group], q[group], self.out, self.active, *slots, *sizes)
            self._launch("mean_field", args, pair)
        if several and to != TO_SUMS:
            args = (self.given, self.table, sums, q, self.out, self.groups, self.tiles * PIXELS)
            self._launch("softmax", (*args, self.h, self.w, self.labels, to), pair)

    def _launch(self, kernel: str, args: tuple, pair: list[Term]) -> None:
        defines = _defines(self.kind, self.given, self.dtype, self.quads, pair)
        blocks = self.tiles * min(self.quads, 2)
        _cuda.launch("dense_crf", kernel, blocks, PIXELS, args, defines=defines)
