"""Ops as layers, for networks that are assembled from modules."""

from torch import Tensor, nn

from .ops import guided_filter


class GuidedFilter(nn.Module):
    """`camguide_fast.ops.guided_filter` (Eq. 19) with its radius and eps stored; no parameters, no state."""

    def __init__(self, radius: int = 4, eps: float = 1e-2):
        super().__init__()
        self.radius = radius
        self.eps = eps

    def forward(self, z: Tensor, guide: Tensor) -> Tensor:  # [B, K, H, W], [B, 3, H, W] -> [B, K, H, W]
        return guided_filter(z, guide, self.radius, self.eps)

    def extra_repr(self) -> str:
        return f"radius={self.radius}, eps={self.eps}"
