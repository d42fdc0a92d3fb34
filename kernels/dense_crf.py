"""Launches csrc/cuda/dense_crf.cu, where the formula stands: a batch is one launch, whose blocks run together."""

import torch
from torch import Tensor

from . import _cuda

PROBABILITIES, ENERGIES, LABELS = range(3)  # what is given
TILE, PIXELS = 16, 256  # side and size of a tile
NEAR, FAR = 3, 6  # corners of a simplex, by positions alone and with colours
BUILD_STEPS = 7  # of building a lattice, beside those of a filter
LARGEST_GROUP = 6  # quads of labels that a thread pair keeps in registers: VOC's 21
MEMORY = 2**30  # bytes that images and labels taken together may fill
LABEL_WORDS = 514  # of what is known about an image's label map
TERM_WORDS = 14  # of 8 bytes, of a term


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
    table = torch.empty((1, 1), dtype=torch.int32, device=given.device)  # of no label map
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
    present = torch.zeros((b, 8), dtype=torch.int32, device=given.device)
    table = torch.empty((b, LABEL_WORDS), dtype=torch.int32, device=given.device)
    active = torch.zeros(1, dtype=torch.int32, device=given.device)
    blocks = min(64, -(-h * w // 1024))  # an image's
    defines = {"INPUT_TYPE": _cuda.TYPES[given.dtype], "LANES": 1 if num_labels <= 4 else 2}
    args = (given, present, num_labels, h * w, blocks)
    _cuda.launch("crf/present_labels", "find_labels", b * blocks, 256, args, defines=defines)
    _cuda.launch("crf/present_labels", "number_labels", b, 1, (present, table, active, gt_prob), defines=defines)
    out = _mean_field(LABELS, given, table, active, image, num_labels, torch.float32, iterations, gaussian, bilateral)
    return out.to(labels.dtype)


def _mean_field(
    kind: int,
    given: Tensor,
    table: Tensor,  # [B, ...]: of the label maps
    active: Tensor,  # [1]: quads that hold labels
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
    near, far = len(gaussian) // 3, len(bilateral) // 6
    fixed, lattices, values, most = _sizes(h, w, near, far, dtype.itemsize)
    quads, groups = _groups(_quads(labels), (MEMORY - fixed - lattices) // max(values, 1))
    pixels = PIXELS * _tiles(h, w)
    of_an_image = lattices + quads * values + 4 * dtype.itemsize * pixels * quads * groups * (2 if groups > 1 else 1)
    at_once = max(1, min(b, most, (MEMORY - fixed) // of_an_image))
    size = -(-(fixed + at_once * of_an_image) // 256)
    memory = torch.empty(256 * size, dtype=torch.uint8, device=image.device)

    defines = {
        "INPUT": kind,
        "INPUT_TYPE": _cuda.TYPES[given.dtype],
        "IMAGE_TYPE": _cuda.TYPES[image.dtype],
        "VALUE": _cuda.TYPES[dtype],
        "QUADS": quads,
        "NEAR": near,
        "FAR": far,
        "BLOCKS": 1 if dtype == torch.float64 else 2,
    }
    terms = _place_terms(image, gaussian, bilateral, defines)
    counter = torch.zeros(1, dtype=torch.int32, device=image.device)
    args = (given, image, terms, table, active, memory, out, counter, size, min(b, most), b, h, w, labels, iterations)

    def launch(blocks: int, first: int, last: int) -> None:
        of_phases, together = (*args, first, last), last > first + 1
        _cuda.launch("dense_crf", "mean_field", blocks, PIXELS, of_phases, defines=defines, cooperative=together)

    busy = at_once * _tiles(h, w) * min(quads, 2)  # blocks that have something to do
    phases = -(-b // at_once) * _phases(near, far, iterations, groups)
    if resident := _cuda.resident_blocks(defines["BLOCKS"]):
        launch(min(resident, busy), 0, phases)
    else:
        for phase in range(phases):
            launch(busy, phase, phase + 1)
    return out


def _place_terms(image: Tensor, gaussian: list[float], bilateral: list[float], defines: _cuda.Defines) -> Tensor:
    """How each lattice is laid over the features, for all images alike."""
    near = [(0, *term[:2], 1.0, 1.0, 1.0, term[2]) for term in zip(*[iter(gaussian)] * 3, strict=True)]
    terms = [*near, *((1, *term) for term in zip(*[iter(bilateral)] * 6, strict=True))]
    placed = torch.empty((max(len(terms), 1), TERM_WORDS), dtype=torch.int64, device=image.device)
    colours = _range(image) if bilateral else placed.new_empty(6, dtype=torch.float32)  # else not used
    h, w = image.shape[2:]
    for i, (coloured, *numbers) in enumerate(terms):
        args = (colours, placed, i, coloured, h, w, *numbers)
        _cuda.launch("crf/place_term", "place_term", 1, 1, args, defines={})
    return placed


def _range(images: Tensor) -> Tensor:  # [2, 3]: least and greatest colours, 0 and 255 among them
    limits = torch.zeros((2, 3), dtype=torch.float32, device=images.device)
    limits[1].fill_(255)
    if images.dtype != torch.uint8:
        colour = images.float() * 255
        colour = torch.where(colour.isfinite(), colour, 0)
        torch.minimum(limits[0], colour.amin((0, 2, 3)), out=limits[0])
        torch.maximum(limits[1], colour.amax((0, 2, 3)), out=limits[1])
    return limits


def _sizes(h: int, w: int, near: int, far: int, itemsize: int) -> tuple[int, int, int, int]:
    """What Field::lay_out takes, in bytes: (once, for each image, for each quad of labels of it beside Q), and the most
    images whose rows and slots are counted in 30 bits."""
    tiles = _tiles(h, w)

    def lattice(corners: int) -> int:
        rows = tiles * corners * PIXELS
        return rows * (itemsize + 24 + 8 * corners) + 8 * tiles + 12 * _slots(h, w, corners)

    largest = max((FAR if far else NEAR) * tiles * PIXELS, _slots(h, w, FAR if far else NEAR))
    if largest >= 2**30:
        raise ValueError(f"dense_crf: an image of {h} x {w} pixels is too large")
    rounding = 2 * 16 * (2 + 20 * (near + far))
    values = 2 * 4 * itemsize * tiles * PIXELS * (NEAR * near + FAR * far)
    return near * lattice(NEAR) + rounding, far * lattice(FAR), values, (2**30 - 1) // largest


def _tiles(h: int, w: int) -> int:
    return -(-h // TILE) * -(-w // TILE)


def _slots(h: int, w: int, corners: int) -> int:
    """Of an image's table: at least a quarter stays empty."""
    return 1 << ((h * w + 1) * corners * 4 // 3).bit_length()


def _quads(labels: int) -> int:
    """Quads of labels, in whole lanes: one lane has the only quad, two share several."""
    return 1 if labels <= 4 else -(-labels // 8) * 2


def _groups(quads: int, most: int) -> tuple[int, int]:
    """(quads of a group, groups) for at most `most` quads at a time, where that is possible."""
    if quads == 1:
        return 1, 1
    groups = -(-quads // max(2, min(LARGEST_GROUP, most) // 2 * 2))
    return -(-quads // (2 * groups)) * 2, groups


def _phases(near: int, far: int, iterations: int, groups: int) -> int:
    """Of as many images as are worked on at once, if all labels are present."""
    filtering = 2 + (FAR if far else NEAR)
    steps = iterations if near + far else 0
    build = BUILD_STEPS + filtering if steps else 0
    return build + steps * groups * filtering + (steps + 1) * (groups + (groups > 1))
