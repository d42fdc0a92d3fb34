"""What a trunk expects of its input: the statistics that its ImageNet weights were trained with."""

import torch
from torch import Tensor, nn


class InputNorm(nn.Module):
    """(image - mean) / std, per channel of RGB.

    Args:
        mean, std: in units of 0-255, three of each; together they are `statistics`. They are no part of the
            state_dict: the model card keeps them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.statistics = tuple(mean), tuple(std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalised fp32 [B, 3, H, W], channels last, of RGB 0-255 (uint8 or float). Where `valid` [B, 1, H, W] is
        False lies the mean colour, which is 0."""
        x = (image - self.mean) / self.std
        return (x if valid is None else x * valid).contiguous(memory_format=torch.channels_last)
