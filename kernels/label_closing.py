"""Launches csrc/cuda/label_closing.cu, where the algorithm stands."""

import torch
from torch import Tensor

from . import _cuda

TILE = (64, 128)  # rows and columns that a block writes. Smaller: more is done twice in the halos; larger: fewer blocks
PLANES, ALIGN = 5, 16  # of bits, in a block's memory; of its left edge, as in the source
SHARED = 96 * 1024  # what a block has from sm_80 on
STEPS = {  # how many, and whether the first is an erosion
    "dilation": (1, False),
    "erosion": (1, True),
    "closing": (2, False),
    "opening": (2, True),
}


def label_closing(labels: Tensor, kernel_size: int, background: int, ignore: int) -> Tensor:  # [B, H, W] -> [B, H, W]
    return label_morphology(labels, "closing", kernel_size, background, ignore)


def label_morphology(labels: Tensor, operation: str, kernel_size: int, background: int, ignore: int) -> Tensor:
    labels = labels.contiguous()
    b, h, w = labels.shape
    out = torch.empty_like(labels)
    radius = min(kernel_size // 2, max(h, w))  # nothing lies further out
    steps, erosion_first = STEPS[operation]
    if radius == 0:
        return labels.clone()
    rows, columns = (max(side, _round(steps * radius, 32)) for side in TILE)
    across = min(columns + 2 * _round(steps * radius, ALIGN), w)
    words = min(rows + 2 * steps * radius, h) * -(-across // 32)
    blocks = b * -(-h // rows) * -(-w // columns)
    size = 4 * PLANES * words
    in_shared = size <= SHARED
    workspace = torch.empty(1 if in_shared else blocks * PLANES * words, dtype=torch.int32, device=labels.device)
    defines = {
        "LABEL_TYPE": _cuda.TYPES[labels.dtype],
        "PACK": _pack(labels),
        "GROWS": int(operation in ("closing", "dilation")),
        "IN_SHARED": int(in_shared),
    }
    sizes = (h, w, rows, columns, words, radius, steps, int(erosion_first))
    args = (labels, out, workspace, *sizes, *_halves(background), *_halves(ignore))
    _cuda.launch("label_closing", "morphology", blocks, 256, args, defines=defines, shared=size if in_shared else 0)
    return out


def _round(x: int, to: int) -> int:
    return -(-x // to) * to


def _pack(labels: Tensor) -> int:
    """How many labels a thread may read at once: 16 bytes of them, or four bytes, or one."""
    size = labels.element_size()
    for n in (16 // size, 4):
        if n * size <= 16 and labels.shape[-1] % n == 0 and labels.data_ptr() % (n * size) == 0:
            return n
    return 1


def _halves(x: int) -> tuple[int, int]:
    """High and low: a kernel takes ints of 32 bits, signed."""
    low = x & 0xFFFFFFFF
    return x >> 32, low - (low >> 31 << 32)
