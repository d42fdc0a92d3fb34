"""Launches csrc/cuda/label_closing.cu, where the algorithm stands."""

import torch
from torch import Tensor

from . import _cuda

TILE = 64  # side of a block's tile: smaller, more is done twice in the halos; larger, fewer blocks for a small batch
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
    halo = steps * radius
    tile = max(TILE, halo)
    words = min(tile + 2 * halo, h) * -(-min(tile + 2 * halo, w) // 32)
    blocks = b * -(-h // tile) * -(-w // tile)
    in_shared = 3 * 4 * words <= SHARED
    workspace = torch.empty(1 if in_shared else blocks * 3 * words, dtype=torch.int32, device=labels.device)
    defines = {"LABEL_TYPE": _cuda.TYPES[labels.dtype], "IN_SHARED": int(in_shared)}
    sizes = (h, w, tile, words, radius, steps, int(erosion_first))
    args = (labels, out, workspace, *sizes, *_halves(background), *_halves(ignore))
    shared = 3 * 4 * words if in_shared else 0
    _cuda.launch("label_closing", "morphology", blocks, 256, args, defines=defines, shared=shared)
    return out


def _halves(x: int) -> tuple[int, int]:
    """High and low: a kernel takes ints of 32 bits, signed."""
    low = x & 0xFFFFFFFF
    return x >> 32, low - (low >> 31 << 32)
