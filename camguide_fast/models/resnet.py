"""ResNet trunks at stride 16, with the parameter names of torchvision and timm."""

import torch.nn.functional as F
from torch import Tensor, nn

from .input_norm import InputNorm

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB 0-255, as torchvision's


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """The stride sits on the 3x3 convolution, as in torchvision ("v1.5") and timm."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _downsample(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """Residual trunk without classifier: `conv1, bn1, layer1..4`, stride 16 (none in layer4, no dilation).

    Attributes:
        channels: C of the last map, 512 (BasicBlock) or 2048 (Bottleneck).
        stage1_channels: C of x_stg1, 64.
        stage_channels: C of the five maps of `stages`.
        input: makes its input of RGB 0-255.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: list[int]):
        super().__init__()
        self.input = InputNorm(IMAGENET_MEAN, IMAGENET_STD)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        layers, channels = [], 64
        for width, depth, stride in zip((64, 128, 256, 512), depths, (1, 2, 2, 1), strict=True):
            blocks = []
            for i in range(depth):
                blocks.append(block(channels, width, stride if i == 0 else 1))
                channels = width * block.expansion
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = channels
        self.stage1_channels = 64
        self.stage_channels = [64, *(width * block.expansion for width in (64, 128, 256, 512))]
        # x_stg1 of Eq. 18 has 64 channels at H/4: layer1 with BasicBlock, the stem alone with Bottleneck.
        self._stage1_is_stem = block is Bottleneck
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Stage-1 and last feature map of normalised images.

        Args:
            x: [B, 3, H, W], H and W at least 16, any parity.

        Returns:
            stage1 [B, 64, ceil(H/4), ceil(W/4)] and last [B, channels, ceil(H/16), ceil(W/16)]; >= 0.

        Raises:
            ValueError: another shape, or an image smaller than the stride.
        """
        stem, low, *_, last = self.stages(x)
        return stem if self._stage1_is_stem else low, last

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The stem after its pooling (stride 4) and layer1 to layer4 (strides 4, 8, 16, 16); raises as `forward`."""
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 16:
            raise ValueError(f"x must be [B, 3, H, W], H and W at least 16 (stride), got {list(x.shape)}")
        stem = F.relu(self.bn1(self.conv1(x)), inplace=True)
        stem = F.max_pool2d(stem, 3, 2, padding=1)
        low = self.layer1(stem)
        middle = self.layer2(low)
        high = self.layer3(middle)
        return stem, low, middle, high, self.layer4(high)


# PAPER: its "ResNet18" of 14.00 M parameters is resnet26 here, Bottleneck [2, 2, 2, 2] with 13.99 M; the
# usual resnet18 has 11.19 M (20 classes).
RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet26": (Bottleneck, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
