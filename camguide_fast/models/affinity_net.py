"""AffinityNet: where an image's boundaries are, learned from the certain parts of its CAMs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .trunks import STRIDE, Trunk

WIDTH = 32


class AffinityNet(nn.Module):
    """A frozen trunk and the edge branch of IRN (Ahn et al., 2019) and Puzzle-CAM, without IRN's displacements.

    Each of the trunk's five maps: 1x1 convolution to 32 channels without bias, GroupNorm(4), resampled to stride 4,
    ReLU; the 160 channels together give one edge logit through a 1x1 convolution. The trunk stays in eval and gets no
    gradient.
    """

    def __init__(self, backbone: Trunk):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, WIDTH, 1, bias=False), nn.GroupNorm(4, WIDTH))
            for channels in backbone.stage_channels
        )
        self.classifier = nn.Conv2d(len(self.branches) * WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Edge logits [B, 1, ceil(H/4), ceil(W/4)] of normalised images [B, 3, H, W], any size from 1x1.

        Sides are filled up to whole strides by replication, so that a map's cells lie where those of the others do.
        """
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        with torch.no_grad():
            stages = self.backbone.stages(x)
        size = [side // 4 for side in x.shape[2:]]
        maps = [
            F.relu(F.interpolate(branch(stage), size, mode="bilinear"))
            for branch, stage in zip(self.branches, stages, strict=True)
        ]
        logits = self.classifier(torch.cat(maps, 1))
        return logits[:, :, : -(-height // 4), : -(-width // 4)]

    def train(self, mode: bool = True) -> "AffinityNet":
        super().train(mode)
        self.backbone.eval()
        return self
