"""Heuristic targets of stage 3 (Eq. 26-29): the student's own maps, refined by the image. And AffinityNet's labels.

The stochastic mask is read as a random constant background channel: label = argmax of [tau, CAM of present classes].
Targets are made at image resolution, where the paper's segments, kernels and sigmas are meant to work, and sampled at
the grid of the maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..config import PAPER_CROP, Affinity, Crf, Refinement

IGNORE = 255
VOC_SIDE = 500
"""The long side of VOC's images, which the CRF's lengths are meant for where whole images are refined."""


def draw_tau(batch: int, settings: Refinement, device: torch.device) -> Tensor:  # [B]
    """tau ~ U(low, high), one for an image (Eq. 6)."""
    tau = torch.empty(batch, pin_memory=device.type == "cuda").uniform_(settings.low, settings.high)
    return tau.to(device, non_blocking=True)  # from pinned memory nobody waits for it


@dataclass(frozen=True)
class TargetMaker:
    """Makes the targets of L_crf and L_rw for crops of `crop` pixels; lengths scale with crop / 512.

    A superpixel's side is a length too, so a crop has the same number of segments at every size: with fewer, larger
    ones the same steps of the walk would reach across the whole picture.
    """

    settings: Refinement
    crop: int

    @property
    def scale(self) -> float:
        return self.crop / PAPER_CROP

    def crf(self, labels: Tensor, image: Tensor, num_classes: int) -> Tensor:
        """closing(dCRF(mask)), Eq. 28: labels [B, H, W] -> the same, like labels; padding stays 255."""
        s = self.settings
        refined = ops.dense_crf_labels(
            labels,
            image,
            num_classes + 1,
            gt_prob=s.crf_gt_prob,
            iterations=s.crf_iterations,
            **_terms(s.crf_gaussian, s.crf_bilateral, self.scale),
        )
        refined = refined.masked_fill(labels == IGNORE, IGNORE)
        if s.closing:
            refined = ops.label_closing(refined, kernel_size=2 * round((s.closing * self.scale - 1) / 2) + 1)
        return refined

    def walk(self, labels: Tensor, image: Tensor, num_classes: int) -> Tensor:
        """SLIC + random walk of the mask, Eq. 13-16 and 29: labels [B, H, W] -> the same, like labels; padding stays
        255."""
        s = self.settings
        height, width = image.shape[2:]
        count = segment_count(height, width, s.segments)
        segments = ops.slic(image, n_segments=count)
        return ops.superpixel_random_walk(
            labels,
            segments,
            image,
            sigma_color=s.walk_sigma,
            iterations=s.walk_iterations,
            squared=s.walk_squared,
            num_segments=ops.max_segments(height, width, count),
            num_labels=num_classes + 1,
            ignore=IGNORE,
        )


def segment_count(height: int, width: int, wanted: int) -> int:
    """`wanted`, as far as a superpixel has four pixels."""
    return min(wanted, max(1, height * width // 4))


def sample(target: Tensor, size: Sequence[int]) -> Tensor:
    """Labels up to 255, or a mask, [B, H, W] at the centres of the cells of a [h, w] grid -> uint8."""
    return F.interpolate(target[:, None].to(torch.uint8), size, mode="nearest-exact")[:, 0]


def refine_labels(labels: Tensor, image: Tensor, num_labels: int, crf: Crf) -> Tensor:
    """Dense CRF of labels [H, W] of a whole image uint8 [3, H, W], lengths scaled to its size -> [H, W]."""
    return ops.dense_crf_labels(labels[None], image[None], num_labels, gt_prob=crf.gt_prob, **_field(crf, labels))[0]


def refine_scores(labels: Tensor, image: Tensor, crf: Crf) -> tuple[Tensor, Tensor]:
    """The probabilities behind `refine_labels`, whose labels are their argmax.

    Returns:
        The L labels that occur, ascending, and their probabilities fp32 [L, H, W].
    """
    present = labels.unique()
    if len(present) == 1:
        return present, torch.ones(1, *labels.shape, device=labels.device)
    given = labels == present[:, None, None]  # [L, H, W]
    prob = torch.where(given, crf.gt_prob, (1 - crf.gt_prob) / (len(present) - 1))
    return present, ops.dense_crf(prob[None], image[None], **_field(crf, labels))[0]


def _field(crf: Crf, labels: Tensor) -> dict[str, Any]:
    return {"iterations": crf.iterations, **_terms(crf.gaussian, crf.bilateral, max(labels.shape) / VOC_SIDE)}


def _terms(gaussian: tuple[float, float], bilateral: tuple[float, float, float], scale: float) -> dict[str, Any]:
    """Positions, which come first, with their lengths times `scale`."""
    return {
        "gaussian": (gaussian[0] * scale, *gaussian[1:]),
        "bilateral": (bilateral[0] * scale, *bilateral[1:]),
    }


def affinity_labels(cam: Tensor, keys: Tensor, image: Tensor, num_classes: int, settings: Affinity) -> Tensor:
    """What is certain in the CAMs of an image, for AffinityNet (IRN's rule).

    The CAMs are cut at a high and at a low threshold, and both label maps are refined by the CRF. A pixel is of the
    class that the high one says; background if both say so; else unknown.

    Args:
        cam: [P, H, W] in [0, 1]; keys: int64 [P] their classes 0..K-1.
        image: uint8 [3, H, W].

    Returns:
        int64 [H, W]: 0 background, k + 1 class k, 255 unknown.
    """
    if len(keys) == 0:
        return torch.zeros(image.shape[1:], dtype=torch.int64, device=image.device)
    top, which = cam.float().max(0)
    high, low = (
        refine_labels(torch.where(top > threshold, keys[which] + 1, 0), image, num_classes + 1, settings.crf)
        for threshold in (settings.foreground, settings.background)
    )
    return torch.where(high > 0, high, torch.where(low > 0, IGNORE, 0))
