"""What benches run on: photographs, class maps, tags. CPU tensors, the same in every run."""

import torch
import torch.nn.functional as F
from torch import Tensor


def photographs(batch: int, size: int) -> Tensor:  # uint8 [B, 3, S, S]
    """scikit-image's own pictures, squared and mirrored; without scikit-image, blobs and noise."""
    try:
        from skimage import data
    except ImportError:
        return _blobs(batch, size)
    pictures = [
        torch.from_numpy(picture[:, : picture.shape[0]].transpose(2, 0, 1).copy())[None].float()
        for picture in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    ]
    pictures = [F.interpolate(p, (size, size), mode="bilinear", antialias=True) for p in pictures]
    turned = [f(p) for f in (lambda p: p, lambda p: p.flip(3), lambda p: p.flip(2), lambda p: p.mT) for p in pictures]
    return torch.cat([turned[i % len(turned)] for i in range(batch)]).round().clamp(0, 255).to(torch.uint8)


def _blobs(batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 12, 12, generator=generator)
    noise = torch.rand(batch, 3, size, size, generator=generator)
    return (F.interpolate(coarse, (size, size), mode="bilinear") * 220 + noise * 35).to(torch.uint8)


def class_maps(batch: int, classes: int, height: int, width: int) -> Tensor:  # fp32 [B, K, h, w]
    """Smooth, of both signs, with a little noise: like the output of a network."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(batch, classes, height // 16 + 2, width // 16 + 2, generator=generator)
    noise = torch.randn(batch, classes, height, width, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic") + 0.05 * noise


def tags(batch: int, classes: int) -> Tensor:  # bool [B, K]
    """One to three classes an image, 2 on average."""
    generator = torch.Generator().manual_seed(2)
    label = torch.zeros(batch, classes, dtype=torch.bool)
    for i in range(batch):
        label[i, torch.randperm(classes, generator=generator)[: 1 + i % 3]] = True
    return label


def label_map(batch: int, classes: int, height: int, width: int) -> Tensor:  # int64 [B, H, W]
    """0 background and `classes` classes, in blobs with ragged borders and holes."""
    return class_maps(batch, classes + 1, height, width).argmax(1)
