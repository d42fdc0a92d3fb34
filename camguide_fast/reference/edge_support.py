"""Twin of ops/edge_support.py: the image branch of section I.3."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ._common import unit_image
from ._filters import gaussian, scharr_norm


def edge_support(image: Tensor, size: Sequence[int]) -> Tensor:  # [B, 3, H, W] -> [B, 1, h, w]
    edges = scharr_norm(gaussian(unit_image(image), 9, 3.0)).mean(1, keepdim=True)
    edges = edges / edges.amax((2, 3), keepdim=True).clamp(min=1e-12)
    return F.adaptive_avg_pool2d(F.max_pool2d(edges, 3, 1, 1), (size[0], size[1])).float()
