"""How much edge the image has at each cell of a class map's grid (section I.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define


def _fake(image, size):
    return image.new_empty((image.shape[0], 1, *size), dtype=torch.float32)


define(
    "edge_support(Tensor image, SymInt[2] size) -> Tensor",
    reference=reference.edge_support,
    fake=_fake,
    kernel=("edge_support", "cuda"),
)


def edge_support(image: Tensor, size: Sequence[int]) -> Tensor:
    r"""Edge strength $S_\downarrow^{img}$ of an image on the grid of its class maps, for `edge_consistency_loss`.

    Gaussian 9x9 with sigma 3; Scharr norm of each channel; their mean; divided by its maximum over the image (at least
    1e-12); 3x3 dilation; adaptive average pooling. Both filters replicate the border. The result does not depend on the
    image's contrast, and a constant image gives 0.

    Args:
        image: RGB [B, 3, H, W], uint8 0-255 or float in [0, 1], not normalised by mean and deviation. Padding should
            replicate the image, so that it adds no edge.
        size: (h, w) of the class maps.

    Returns:
        fp32 [B, 1, h, w] in [0, 1]; computed in fp32 (fp64 for an fp64 image).

    Gradient: none.

    Raises:
        ValueError, TypeError: wrong shape, dtype or size; on CPU a float image that is not finite or leaves [0, 1] by
            more than 0.5; an image that requires grad (its gradient does not exist here).
    """
    check.image("image", image)
    check.image_values("image", image)
    if len(size) != 2:
        raise ValueError(f"size must be (h, w), got {tuple(size)}")
    size = [check.integer(f"size[{i}]", side, 1) for i, side in enumerate(size)]
    if image.requires_grad:
        raise ValueError("image requires grad, but edge_support has no gradient; pass image.detach()")
    return torch.ops.camguide_fast.edge_support(image, size)
