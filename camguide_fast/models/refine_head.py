"""The refine head of stage 3: coarse class maps to stage-1 resolution, along image edges (Eq. 17-22)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import GuidedFilter


class RefineHead(nn.Module):
    r"""Fusion-upscale, guided filter and gated residual.

        x_up = Upsample(x)                             (17)  bilinear, align_corners=False
        h0 = phi([x_up, x_stg1]); z0 = x_up + psi(h0)  (18)
        g = GF(z0, guide)                              (19)
        r = f_res(g); a = sigmoid(r)                   (20-21)
        z1 = z0 + a * r                                (22)

    phi is 3x3, depthwise 3x3 and 1x1, each with BatchNorm and ReLU; f_res the same on K channels and a 1x1
    back to K. psi and the last convolution of f_res start at zero, so that z1 equals x_up before training.

    Args:
        num_classes: K.
        stage1_channels: channels of x_stg1.
        width: channels inside phi and f_res.
        gate: "shared": a = sigmoid(r), Eq. 21 as printed. "separate": a = sigmoid(f_gate(g)) with a branch of
            f_res's layout. PAPER: departs from Eq. 21; with width 512 and K = 20 it has 1,411,644 parameters,
            the 1.41 M that the paper counts.
        radius, eps: of the guided filter.
    """

    def __init__(
        self,
        num_classes: int,
        stage1_channels: int = 64,
        width: int = 128,
        gate: str = "shared",
        radius: int = 4,
        eps: float = 1e-2,
    ):
        super().__init__()
        if gate not in ("shared", "separate"):
            raise ValueError(f"gate must be 'shared' or 'separate', got {gate!r}")
        self.phi = nn.Sequential(*_mix(num_classes + stage1_channels, width))
        self.psi = nn.Conv2d(width, num_classes, 1)
        self.guided_filter = GuidedFilter(radius, eps)
        self.residual = _branch(num_classes, width)
        self.gate = _branch(num_classes, width) if gate == "separate" else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # fan in is right for depthwise ones as well
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.psi.weight)
        nn.init.zeros_(self.residual[-1].get_parameter("weight"))

    def forward(self, x: Tensor, stage1: Tensor, guide: Tensor) -> Tensor:
        """Refined class maps z1.

        Args:
            x: coarse class maps [B, K, h, w].
            stage1: [B, stage1_channels, H/4, W/4].
            guide: RGB in [0, 1], [B, 3, H/4, W/4], no gradient.

        Returns:
            [B, K, H/4, W/4]. Gradient to x, stage1 and the parameters. Under autocast the guided filter gets
            z0 in the dtype it has and accumulates in fp32.
        """
        x_up = F.interpolate(x, size=stage1.shape[-2:], mode="bilinear", align_corners=False)
        h0 = self.phi(torch.cat([x_up, stage1], dim=1))  # [B, width, H/4, W/4]
        z0 = x_up + self.psi(h0)
        g = self.guided_filter(z0, guide)
        r = self.residual(g)
        a = torch.sigmoid(r if self.gate is None else self.gate(g))
        return z0 + a * r


def _mix(in_channels: int, width: int) -> list[nn.Module]:
    convs = (
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
    )
    return [layer for conv in convs for layer in (conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))]


def _branch(num_classes: int, width: int) -> nn.Sequential:
    return nn.Sequential(*_mix(num_classes, width), nn.Conv2d(width, num_classes, 1))
