"""Twin of ops/cam_normalize.py: Eq. 1-3 and their gradient."""

from torch import Tensor

from ._common import widen


def cam_normalize(features: Tensor, eps: float) -> tuple[Tensor, Tensor]:  # [B, K, H, W] -> the same, [B, K]
    f = widen(features)
    peak = f.relu().amax((2, 3), keepdim=True)  # Eq. 1-2
    cam = (f - eps).relu() / (peak + eps)  # Eq. 3
    return cam.to(features.dtype), peak.flatten(1)


def cam_normalize_backward(grad: Tensor, features: Tensor, peak: Tensor, eps: float) -> Tensor:
    """Through the numerator, and through the peak m: d cam / dm = -cam / (m + eps), shared by all pixels equal to m."""
    g, f, m = widen(grad), widen(features), peak[:, :, None, None]
    at_peak = (f == m) & (m > 0)
    through_peak = (g * (f - eps).relu()).sum((2, 3), keepdim=True) / (m + eps) ** 2
    share = through_peak / at_peak.sum((2, 3), keepdim=True).clamp(min=1)
    return (g * (f > eps) / (m + eps) - share * at_peak).to(features.dtype)
