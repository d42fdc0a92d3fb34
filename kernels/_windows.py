"""Windows over `valid`, for the losses that leave pixels out."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512


@triton.jit(do_not_specialize=["h", "w", "blocks"])
def invalid_kernel(valid_ptr, invalid_ptr, h, w, blocks, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    i = tl.multiple_of(program % blocks * BLOCK + tl.arange(0, BLOCK), 1)  # neighbours in neighbouring threads
    y, x = i // w, i % w
    valid_ptr += b * h * w
    count = tl.zeros([BLOCK], tl.int32)
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            inside = (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w)
            count += (tl.load(valid_ptr + i + dy * w + dx, mask=inside, other=1) == 0).to(tl.int32)
    tl.store(invalid_ptr + b * h * w + i, count, mask=i < h * w)


def invalid_in_window(valid: Tensor, radius: int) -> Tensor:
    """uint8 [B, 1, h, w], 0 where not valid -> int32, how many such pixels the window, clipped at the border, holds."""
    b, _, h, w = valid.shape
    invalid = torch.empty_like(valid, dtype=torch.int32)
    blocks = triton.cdiv(h * w, BLOCK)
    invalid_kernel[(b * blocks,)](valid, invalid, h, w, blocks, RADIUS=min(radius, max(h, w) - 1), BLOCK=BLOCK)
    return invalid
