"""SLIC superpixels: scikit-image's labels, in batches and on any device."""

from typing import Literal, overload

import torch
from torch import Tensor

from .. import reference
from ..rules.seed_grid import minimum_size, seed_grid
from . import _checks as check
from ._register import define


def _fake(image, n_segments, compactness, iterations, min_size_factor):
    batch, _, height, width = image.shape
    return tuple(image.new_empty(size, dtype=torch.int32) for size in ((batch, height, width), (batch,)))


define(
    "slic(Tensor image, int n_segments, float compactness, int iterations, float min_size_factor) -> (Tensor, Tensor)",
    reference=reference.slic,
    fake=_fake,
    kernel=("slic", "cuda"),
)


@overload
def slic(
    image: Tensor,
    n_segments: int = 1100,
    compactness: float = 10.0,
    iterations: int = 10,
    min_size_factor: float = 0.5,
    *,
    return_num: Literal[False] = False,
) -> Tensor: ...
@overload
def slic(
    image: Tensor,
    n_segments: int = 1100,
    compactness: float = 10.0,
    iterations: int = 10,
    min_size_factor: float = 0.5,
    *,
    return_num: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def slic(
    image: Tensor,
    n_segments: int = 1100,
    compactness: float = 10.0,
    iterations: int = 10,
    min_size_factor: float = 0.5,
    *,
    return_num: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...
def slic(
    image: Tensor,
    n_segments: int = 1100,
    compactness: float = 10.0,
    iterations: int = 10,
    min_size_factor: float = 0.5,
    *,
    return_num: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Superpixels by local k-means in (position, Lab): Achanta et al. (2012), as
    `skimage.segmentation.slic(start_label=0)`.

    Each image is stretched to [0, 1] by its own minimum and maximum over all channels and turned into Lab.
    Seeds without colour lie on `skimage.util.regular_grid` (their number only approximates `n_segments`);
    each pass gives a pixel to the nearest centre whose +-2 step window reaches it, d^2 = |xy|^2 / step^2 +
    |Lab|^2 / compactness^2, ties to the lower index, and moves the centres to their means. All `iterations`
    run.

    With `min_size_factor=0` labels are indices of centres, gaps allowed: `enforce_connectivity=False`.
    Otherwise segments are 4-connected by a rule that knows no order of processing (scikit-image's does, so
    segments there differ in detail):

    1. Components of equal label; the root of one is its first pixel in raster order.
    2. A component of fewer than `int(min_size_factor * H * W / seeds)` pixels joins the component left of its
       root (above it where there is none on the left), and follows it if that one is small as well. Roots
       fall along the way, so this ends: at a component that is large enough, or at the one of pixel 0.
    3. If what pixel 0 has gathered is still too small, it joins the segment of the first pixel in raster
       order outside it.
    4. Segments are numbered by their roots in raster order, without gaps. None is smaller than the minimum
       (if the image is not).

    Args:
        image: RGB [B, 3, H, W], uint8 0-255 or float in [0, 1]; down to 1x1.
        n_segments: approximate number of superpixels, >= 1; from H*W on every pixel is a seed. See
            `max_segments` for the bound.
        compactness: weight of position against colour in Lab units, >= 1e-6.
        iterations: passes, >= 1.
        min_size_factor: least size of a segment in mean segment sizes, >= 0; 0 leaves the labels as they are.
        return_num: also how many labels each image has, which costs nothing.

    Returns:
        int32 [B, H, W]. The same on every backend, bit for bit: colours are rounded to 2^-16 Lab units and
        summed as integers, distances are fp32 (fp64 images are stretched in fp64, then rounded). Against
        scikit-image, which computes in fp64, this leaves a few near-ties in 100,000 pixels. Subnormal numbers are
        exempt: on CUDA, where CuPy compiles with `-ftz=true`, they count as 0.
        With `return_num` also int32 [B] on the image's device: the number of segments, or with
        `min_size_factor=0` of centres. Labels are below it.

    Gradient: none; the result is integer.

    Raises:
        ValueError, TypeError: wrong shape, dtype or setting; an image of 2^31 values or more; on CPU, a float image
            that is not finite or leaves [0, 1] by more than 0.5. On CUDA and under `torch.compile`, which do not look,
            another range is stretched all the same, and a non-finite image gives labels without meaning.
    """
    check.image("image", image)
    if image[0].numel() >= 2**31:
        raise ValueError(f"image must have less than 2^31 values a picture, got shape {tuple(image.shape)}")
    n_segments = check.integer("n_segments", n_segments, 1)
    compactness = check.number("compactness", compactness, 1e-6)
    iterations = check.integer("iterations", iterations, 1)
    min_size_factor = check.number("min_size_factor", min_size_factor, 0)
    check.boolean("return_num", return_num)
    check.image_values("image", image)
    segments, num = torch.ops.camguide_fast.slic(
        image.detach(), n_segments, float(compactness), iterations, float(min_size_factor)
    )
    return (segments, num) if return_num else segments


def max_segments(height: int, width: int, n_segments: int = 1100, min_size_factor: float = 0.5) -> int:
    """How many labels `slic` may return for an image of this size: a `num_segments` that needs no look at the
    labels.

    The number of seeds with `min_size_factor=0`, else H*W / (least size), about `1 / min_size_factor` times
    the seeds. All but `min_size_factor` are integers >= 1; anything else raises a ValueError.
    """
    height = check.integer("height", height, 1)
    width = check.integer("width", width, 1)
    n_segments = check.integer("n_segments", n_segments, 1)
    min_size_factor = check.number("min_size_factor", min_size_factor, 0)
    grid = seed_grid(height, width, n_segments)
    if min_size_factor == 0:
        return grid.count[0] * grid.count[1]
    smallest = minimum_size(height, width, grid, min_size_factor)
    return max(height * width // max(smallest, 1), 1)
