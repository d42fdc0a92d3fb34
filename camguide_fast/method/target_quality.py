"""How good stage 3's own maps and targets are, on a few training images. Evaluation only: it tells at once whether the
targets beat the CAMs, and without masks whether they agree with them and whether the maps grow."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data import Record, Split, read_image, read_mask
from ..data.augment import resize_long_side
from ..models import CamNet, evaluating
from .stages import RefinementStage
from .targets import sample

DRIFT = 1 / 3
"""Change of the maps' foreground from which on they are said to run away. In two runs of the demo with more epochs it
was passed in the third, where the CAMs had lost 3 points of mIoU; one went on and lost 12."""


def scored_sample(split: Split, count: int) -> Split:
    """The images that are looked at: up to `count`, evenly spaced among those with a mask, of all if none has one."""
    pool = [record for record in split if record.mask] or list(split)
    chosen = np.linspace(0, len(pool) - 1, min(count, len(pool))).round().astype(int)
    return replace(split, records=tuple(pool[i] for i in chosen))


class TargetQuality:
    """On whole images at the crop's scale and the maps' grid, labels at the middle threshold; in percent.

    `miou_cam`, `miou_rw`, `miou_crf`: against the masks, of images that have one. `agree_rw`, `agree_crf`: mIoU of the
    targets with the CAMs' labels. `foreground`: the share of the CAMs' labels that is not background.
    """

    def __init__(self, stage: RefinementStage, split: Split, count: int, device: torch.device, amp: bool):
        self.stage, self.device, self.amp = stage, device, amp
        self.records = scored_sample(split, count).records
        self.classes = len(split.classes)
        self._first: float | None = None  # share of foreground that was measured first

    def __call__(self, net: CamNet) -> tuple[dict[str, float], str]:
        """What is measured; and what is to be said of it, "" if nothing is."""
        measured = self._measured(net)
        share = measured["foreground"]
        self._first = self._first or share
        if self._first and not 1 - DRIFT < share / self._first < 1 + DRIFT:
            change = f"from {self._first:.3g} to {share:.3g} % of the pictures"
            how = "shrink" if share < self._first else "grow"
            return measured, f"warning: the maps {how}, {change}; fewer epochs, or a lower rate, may give better ones"
        return measured, ""

    @torch.no_grad()
    def _measured(self, net: CamNet) -> dict[str, float]:
        totals: dict[str, Tensor] = {}

        def add(name: str, labels: Tensor, truth: Tensor) -> None:
            counts = ops.confusion_matrix(labels, truth, self.classes + 1)
            totals[name] = totals.get(name, 0) + counts

        with evaluating(net):
            for record in self.records:
                made, truth = self._labels(net, record)
                for name, labels in made.items():
                    if truth is not None:
                        add(f"miou_{name}", labels, truth)
                    add(f"agree_{name}", labels, made["cam"])
        cam = totals.pop("agree_cam").double()  # with itself
        measured = {name: _miou(counts) for name, counts in totals.items() if counts.any()}  # masks may be void
        return measured | {"foreground": 100 * (1 - cam[0].sum() / cam.sum()).item()}

    def _labels(self, net: CamNet, record: Record) -> tuple[dict[str, Tensor], Tensor | None]:
        """Those of the CAMs and the targets, and of the mask if there is one."""
        photo = read_image(record.image)
        crop = self.stage.targets.crop
        view = resize_long_side(photo, crop)
        image = torch.from_numpy(view).permute(2, 0, 1)[None].to(self.device)
        height, width = view.shape[:2]
        label = torch.zeros(1, self.classes, device=self.device)
        label[0, list(record.tags or ())] = 1
        with torch.autocast(self.device.type, enabled=self.amp):
            maps = net(net.backbone.input(image), image.float() / 255)
        s = self.stage.settings
        tau = (s.low + s.high) / 2
        labels = ops.threshold_labels(ops.cam_normalize(maps.float()), label, tau, (height, width))
        grid = maps.shape[2:]
        made = {"cam": labels}
        if s.lambda_rw:
            made["rw"] = self.stage.targets.walk(labels, image, self.classes)
        if s.lambda_crf:
            made["crf"] = self.stage.targets.crf(labels, image, self.classes)
        truth = None
        if record.mask:
            mask = read_mask(record.mask, self.classes, photo.shape[:2])
            truth = sample(torch.from_numpy(mask)[None].to(self.device), grid)
        return {name: sample(value, grid) for name, value in made.items()}, truth


def _miou(counts: Tensor) -> float:
    """Percent, over background and the classes that the sample or the labels have."""
    counts = counts.double()
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    return 100 * (counts.diag() / union)[union > 0].mean().item()
