"""What several twins share."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """The dtype in which everything is accumulated: fp64 for fp64, else fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit_image(image: Tensor) -> Tensor:
    """RGB uint8 0-255 or float in [0, 1] -> widened float in [0, 1]."""
    return image.to(torch.float32) / 255 if image.dtype == torch.uint8 else widen(image)


def window_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over the pixels of the (2 radius + 1)^2 window that lie inside the image; [B, C, H, W]."""
    size = 2 * radius + 1
    x = torch.nn.functional.avg_pool2d(x, (1, size), 1, (0, radius), count_include_pad=False)
    return torch.nn.functional.avg_pool2d(x, (size, 1), 1, (radius, 0), count_include_pad=False)


def window_count(x: Tensor, radius: int) -> Tensor:
    """Pixels of each window that lie inside the image; [H, W] in the dtype of x [..., H, W]."""

    def along(size: int) -> Tensor:
        i = torch.arange(size, device=x.device)
        return (i + radius).clamp(max=size - 1) - (i - radius).clamp(min=0) + 1

    return (along(x.shape[-2])[:, None] * along(x.shape[-1])[None]).to(x.dtype)
