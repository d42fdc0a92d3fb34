"""How good stage 3's own targets are, on a few training images with masks. Evaluation only: it tells at once whether
they beat the CAMs."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data import Split, read_image, read_mask
from ..data.augment import resize_long_side
from ..models import CamNet, evaluating
from .stages import RefinementStage
from .targets import sample


def scored_sample(split: Split, count: int) -> Split:
    """The images that are looked at: up to `count`, evenly spaced among those with a mask."""
    masked = [record for record in split if record.mask]
    chosen = np.linspace(0, len(masked) - 1, min(count, len(masked))).round().astype(int)
    return replace(split, records=tuple(masked[i] for i in chosen))


class TargetQuality:
    """mIoU in percent of `cam`, `rw` and `crf` labels at the middle threshold, on whole images at the crop's scale
    and the maps' grid."""

    def __init__(self, stage: RefinementStage, split: Split, count: int, device: torch.device, amp: bool):
        self.stage, self.device, self.amp = stage, device, amp
        self.records = scored_sample(split, count).records
        self.classes = len(split.classes)

    @torch.no_grad()
    def __call__(self, net: CamNet) -> dict[str, float]:
        """{"miou_cam", "miou_rw", "miou_crf"}; empty without masks, or where they are void everywhere."""
        totals: dict[str, Tensor] = {}
        with evaluating(net):
            for record in self.records:
                for name, (labels, truth) in self._labels(net, record).items():
                    counts = ops.confusion_matrix(labels, truth, self.classes + 1)
                    totals[f"miou_{name}"] = totals.get(f"miou_{name}", 0) + counts
        return {name: _miou(counts) for name, counts in totals.items() if counts.any()}

    def _labels(self, net: CamNet, record) -> dict[str, tuple[Tensor, Tensor]]:
        photo = read_image(record.image)
        mask = read_mask(record.mask, self.classes, photo.shape[:2])
        crop = self.stage.targets.crop
        view = resize_long_side(photo, crop)
        image = torch.from_numpy(view).permute(2, 0, 1)[None].to(self.device)
        height, width = view.shape[:2]
        label = torch.zeros(1, self.classes, device=self.device)
        label[0, list(record.tags)] = 1
        with torch.autocast(self.device.type, enabled=self.amp):
            maps = net(net.backbone.input(image), image.float() / 255)
        s = self.stage.settings
        tau = (s.low + s.high) / 2
        labels = ops.threshold_labels(ops.cam_normalize(maps.float()), label, tau, (height, width))
        grid = maps.shape[2:]
        truth = sample(torch.from_numpy(mask)[None].to(self.device), grid)
        made = {"cam": labels}
        if s.lambda_rw:
            made["rw"] = self.stage.targets.walk(labels, image, self.classes)
        if s.lambda_crf:
            made["crf"] = self.stage.targets.crf(labels, image, self.classes)
        return {name: (sample(value, grid), truth) for name, value in made.items()}


def _miou(counts: Tensor) -> float:
    """Percent, over background and the classes that the sample or the labels have."""
    counts = counts.double()
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    return 100 * (counts.diag() / union)[union > 0].mean().item()
