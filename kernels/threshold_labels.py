"""Eq. 6-7 as labels: of the present classes k the one whose interpolated map f_k is the largest, where it exceeds tau.
At pixel (y, x) of H x W, with a = (y + 1/2) h / H - 1/2, not below 0, y0 = floor a, y1 = min(y0 + 1, h - 1),
v = a - y0, and alike x0, x1, u along x:

    f_k = (1 - v) ((1 - u) c_k(y0, x0) + u c_k(y0, x1)) + v ((1 - u) c_k(y1, x0) + u c_k(y1, x1))

One program per run of pixels of one image, which goes over the classes and keeps the largest value and its label.
Maps of absent classes are not read; where tau is negative they count as 0.

Bytes at 32x20x128x128 -> 512x512 in fp32 with 1.5 classes an image: labels and `valid` 8.4 MB each, maps 3.1 MB. Four
loads and some 15 operations a pixel and present class: the loads hit the L1 cache, a warp's lie in two runs of 9
numbers, and the batch has 1.6 M of a warp. What is expected is the time of the bytes where memory is slow, and up to
twice that where it is not. Everything between load and store is fp32 (fp64 for fp64).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def mix(i, n, scale):
    """Which two of n pixels are mixed at position i, and how much of the second."""
    at = tl.maximum(scale * (i.to(scale.dtype) + 0.5) - 0.5, 0)
    low = tl.minimum(at.to(tl.int32), n - 1)
    return low, tl.minimum(low + 1, n - 1), tl.minimum(at - low.to(scale.dtype), 1)


@triton.jit(do_not_specialize=["k", "h", "w", "height", "width", "blocks"])
def threshold_labels_kernel(
    cam_ptr,
    present_ptr,
    tau_ptr,
    valid_ptr,
    labels_ptr,
    k,
    h,
    w,
    height,
    width,
    blocks,
    scale_y: tl.float64,
    scale_x: tl.float64,
    VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    # said to be multiples of 1 and no more: else a thread would take neighbouring pixels for the sake of the store, and
    # each of its loads would reach for others than the next thread's
    i = tl.multiple_of(program % blocks * BLOCK + tl.arange(0, BLOCK), 1)
    inside = i < height * width
    wide: tl.constexpr = tau_ptr.dtype.element_ty
    tau = tl.load(tau_ptr + b)
    y0, y1, v = mix(i // width, h, tl.full([], scale_y, wide))
    x0, x1, u = mix(i % width, w, tl.full([], scale_x, wide))
    top = tl.zeros([BLOCK], wide) + tau
    label = tl.zeros([BLOCK], tl.int32)
    present_ptr += b * k
    cam_ptr += b * k * h * w
    for c in range(k):
        value = tl.zeros([BLOCK], wide)  # of a class that is absent
        present = tl.load(present_ptr + c)
        if present > 0:
            above = (1 - u) * tl.load(cam_ptr + y0 * w + x0, mask=inside, other=0).to(wide)
            above += u * tl.load(cam_ptr + y0 * w + x1, mask=inside, other=0).to(wide)
            below = (1 - u) * tl.load(cam_ptr + y1 * w + x0, mask=inside, other=0).to(wide)
            below += u * tl.load(cam_ptr + y1 * w + x1, mask=inside, other=0).to(wide)
            value = (1 - v) * above + v * below
        if (present > 0) | (tau < 0):
            larger = (value > top) | (value != value)  # a NaN stays
            top = tl.where(larger, value, top)
            label = tl.where(larger, c + 1, label)
        cam_ptr += h * w
    label = tl.where(top == top, label, 0)
    if VALID:
        known = tl.load(valid_ptr + b * height * width + i, mask=inside, other=0)
        label = tl.where(known != 0, label, 255)
    tl.store(labels_ptr + b * height * width + i, label.to(tl.uint8), mask=inside)


def threshold_labels(cam: Tensor, label: Tensor, tau: Tensor, size: list[int], valid: Tensor | None) -> Tensor:
    x = cam.contiguous()
    b, k, h, w = x.shape
    height, width = size
    present = (label.contiguous() > 0).view(torch.uint8)
    known = valid.contiguous().view(torch.uint8) if valid is not None else present  # not read without `valid`
    labels = x.new_empty((b, height, width), dtype=torch.uint8)
    blocks = triton.cdiv(height * width, BLOCK)
    threshold_labels_kernel[(b * blocks,)](
        x,
        present,
        tau.to(torch.promote_types(x.dtype, torch.float32)).contiguous(),
        known,
        labels,
        k,
        h,
        w,
        height,
        width,
        blocks,
        h / height,
        w / width,
        VALID=valid is not None,
        BLOCK=BLOCK,
    )
    return labels
