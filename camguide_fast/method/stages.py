"""The stages of the method. Each is a module whose forward takes a batch and returns {"loss", its parts, "logits"}.

A batch: "image" uint8 [B, 3, S, S] RGB, padded by replication; "valid" bool [B, 1, S, S]; "label" [B, K] multi-hot;
for AffinityNet "mask" uint8 [B, S, S], 255 unknown.
`progress` in [0, 1] is how far the stage has come, `step` counts its iterations.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..config import Affinity, Classification, Distillation, Refinement
from ..losses import (
    EdgeConsistencyLoss,
    LocalConsistencyLoss,
    MapRegularization,
    MultiLabelHingeLoss,
    PathAffinityLoss,
    TargetNLL,
)
from ..models import STRIDE, AffinityNet, CamGuideNet, CamNet, logits
from .targets import TargetMaker, draw_tau, sample

Batch = dict[str, Tensor]


def network_input(net: CamNet | AffinityNet, batch: Batch) -> Tensor:  # [B, 3, S, S]
    """What `net` sees of a batch; padding is the mean colour, which is 0."""
    return net.backbone.input(batch["image"], batch["valid"])


def classification_loss(name: str) -> nn.Module:
    return MultiLabelHingeLoss() if name == "hinge" else nn.MultiLabelSoftMarginLoss()


class ClassificationStage(nn.Module):
    """A network trained on tags alone: the baseline, and the teacher's plain pretraining (II.C)."""

    def __init__(self, net: CamNet, settings: Classification):
        super().__init__()
        self.net, self.loss = net, classification_loss(settings.cls_loss)

    def forward(self, batch: Batch, step: int, progress: float) -> dict[str, Tensor]:
        scores = logits(self.net(network_input(self.net, batch))).float()
        loss = self.loss(scores, batch["label"])
        return {"loss": loss, "cls": loss.detach(), "logits": scores.detach()}


class PuzzleStage(nn.Module):
    """Puzzle-CAM pretraining: the image and its 2x2 tiles must be tagged alike and give the same maps (Jo & Yu,
    2021)."""

    def __init__(self, net: CamNet, settings: Classification):
        super().__init__()
        self.net, self.loss, self.alpha = net, classification_loss(settings.cls_loss), settings.puzzle_alpha

    def forward(self, batch: Batch, step: int, progress: float) -> dict[str, Tensor]:
        x, label = network_input(self.net, batch), batch["label"]
        full = self.net(x).float()  # [B, K, h, w]
        tiled = merge_tiles(self.net(split_tiles(x)).float())
        scores = logits(full)
        cls, tiles = self.loss(scores, label), self.loss(logits(tiled), label)
        tiled = F.interpolate(tiled, full.shape[2:], mode="bilinear") if tiled.shape != full.shape else tiled
        reconstruction = ((full - tiled).abs() * label[:, :, None, None]).mean()
        alpha = self.alpha * min(2 * progress, 1.0)
        loss = cls + tiles + alpha * reconstruction
        parts = {"cls": cls, "tiles": tiles, "reconstruction": reconstruction}
        return {
            "loss": loss,
            **{name: part.detach() for name, part in parts.items()},
            "logits": scores.detach(),
        }


def split_tiles(x: Tensor) -> Tensor:  # [B, C, H, W] -> [4B, C, H/2, W/2]
    """The four quarters of each image, row by row; sides must be even."""
    return torch.cat([tile for row in x.chunk(2, 2) for tile in row.chunk(2, 3)])


def merge_tiles(tiles: Tensor) -> Tensor:  # [4B, C, h, w] -> [B, C, 2h, 2w]
    a, b, c, d = tiles.chunk(4)
    return torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)


class DistillationStage(nn.Module):
    """Stages 1 and 2: the student beside a frozen teacher that also chooses what the student may see (II.F, II.G, Eq.
    40-41).

    With `lambda_cls` the student sees [x, x_masked] as one batch: L_cls on the masked view, L_reg on x (stage 1).
    Without it, it sees x_masked alone, and L_reg asks for the teacher's maps of the whole image (stage 2).
    """

    def __init__(self, net: CamNet, teacher: CamNet, settings: Distillation):
        super().__init__()
        self.net, self.settings = net, settings
        self.cls, self.reg = (
            classification_loss(settings.cls_loss),
            MapRegularization(raw=settings.reg == "raw"),
        )
        self._teacher = (
            teacher.eval().requires_grad_(False),
        )  # in a tuple: no part of this module's state, nor of DDP's

    def forward(self, batch: Batch, step: int, progress: float) -> dict[str, Tensor]:
        s, label = self.settings, batch["label"]
        x = network_input(self.net, batch)
        with torch.no_grad():
            teacher = teacher_maps(self._teacher[0], batch, s.teacher_scales)
            masked = x * teacher_mask(teacher, label, s.low, s.high, x.shape[2:])  # Eq. 6-8
        if s.lambda_cls == 0:
            student = self.net(masked).float()
            loss = s.lambda_reg * (reg := self.reg(student, teacher))  # Eq. 25, 41
            return {"loss": loss, "reg": reg.detach(), "logits": logits(student).detach()}
        student, student_masked = self.net(torch.cat([x, masked])).float().chunk(2)  # Eq. 10-12
        cls, reg = self.cls(logits(student_masked), label), self.reg(student, teacher)  # Eq. 23-24
        loss = s.lambda_cls * cls + s.lambda_reg * reg  # Eq. 40
        return {"loss": loss, "cls": cls.detach(), "reg": reg.detach(), "logits": logits(student).detach()}


def teacher_maps(teacher: CamNet, batch: Batch, scales: Sequence[float]) -> Tensor:  # [B, K, h, w]
    """F_T (Eq. 4-5), at the resolution of the view's own maps.

    PAPER: over several scales it is their mean. Maps of the view alone teach little to a student as large as its
    teacher.
    """
    x = network_input(teacher, batch)
    return torch.stack([_maps_at(scale, teacher, x) for scale in scales]).mean(0)


def _maps_at(scale: float, net: CamNet, x: Tensor) -> Tensor:
    if scale == 1:
        return net(x).float()
    sides = x.shape[2:]
    view = F.interpolate(x, [max(STRIDE, round(side * scale)) for side in sides], mode="bilinear", antialias=True)
    return F.interpolate(net(view).float(), [-(-side // STRIDE) for side in sides], mode="bilinear", antialias=True)


def teacher_mask(maps: Tensor, label: Tensor, low: float, high: float, size: Sequence[int]) -> Tensor:  # [B, 1, H, W]
    # PAPER: Eq. 7 thresholds F_T itself; thresholds in (0, 1) ask for the normalised CAM of Eq. 3.
    cam = F.interpolate(ops.cam_normalize(maps), size, mode="bilinear")
    return ops.stochastic_mask(cam, label, low, high, None)


class RefinementStage(nn.Module):
    """Stage 3: backbone and refine head, tag loss plus four heuristics on the refined maps (II.H, Eq. 42)."""

    def __init__(self, net: CamGuideNet, settings: Refinement, crop: int):
        super().__init__()
        self.net, self.settings, self.targets = net, settings, TargetMaker(settings, crop)
        self.cls, self.edge = classification_loss(settings.cls_loss), EdgeConsistencyLoss()
        self.nll = TargetNLL(smooth=settings.smooth, balance=settings.balance)
        self.local = LocalConsistencyLoss(window=settings.window)

    def forward(self, batch: Batch, step: int, progress: float) -> dict[str, Tensor]:
        s, image, label = self.settings, batch["image"], batch["label"]
        z1, z1_target = self.net.forward_pair(network_input(self.net, batch), image.float() / 255)
        z1, size = z1.float(), z1.shape[2:]
        cam = ops.cam_normalize(z1)
        valid = sample(batch["valid"][:, 0], size)[:, None] > 0
        scores = logits(z1)
        parts = {
            "cls": (s.lambda_cls, self.cls(scores, label)),
            "edge": (s.lambda_edge, self.edge(cam, ops.edge_support(image, size), label, valid)),
            "loc": (s.lambda_loc, self.local(self._distribution(cam, label), valid)),
        }
        labels = self.labels(z1_target, batch)
        if s.lambda_rw:
            parts["rw"] = (s.lambda_rw, self._follow(cam, self.targets.walk, labels, batch))
        if s.lambda_crf and step % s.crf_every == 0:
            parts["crf"] = (s.lambda_crf, self._follow(cam, self.targets.crf, labels, batch))
        loss = cast(Tensor, sum(weight * part for weight, part in parts.values()))
        return {
            "loss": loss,
            **{name: part.detach() for name, (_, part) in parts.items()},
            "logits": scores.detach(),
        }

    def labels(self, z1: Tensor, batch: Batch) -> Tensor:  # uint8 [B, H, W]
        """The stochastic labels that targets start from, from maps that no gradient goes through."""
        cam = ops.cam_normalize(z1.detach().float())
        tau = draw_tau(cam.shape[0], self.settings, cam.device)
        return ops.threshold_labels(cam, batch["label"], tau, batch["image"].shape[2:], batch["valid"])

    def _follow(self, cam: Tensor, algorithm, labels: Tensor, batch: Batch) -> Tensor:
        """L_crf or L_rw, Eq. 27-29."""
        target = algorithm(labels, batch["image"], cam.shape[1])
        return self.nll(cam, sample(target, cam.shape[2:]), batch["label"])

    def _distribution(self, cam: Tensor, label: Tensor) -> Tensor:
        """What local consistency compares: with the one class of most images, Eq. 35 alone would be 1 on its whole
        support."""
        cam = cam * (label > 0)[:, :, None, None]
        if self.settings.local == "classes":
            return cam
        return torch.cat(
            [1 - cam.amax(1, keepdim=True), cam], 1
        )  # PAPER: Eq. 35 with the background as a class of its own


class AffinityStage(nn.Module):
    """AffinityNet on labels that are certain (`targets.affinity_labels`), the nearest one for each cell."""

    def __init__(self, net: AffinityNet, settings: Affinity):
        super().__init__()
        self.net, self.loss = net, PathAffinityLoss(settings.radius)

    def forward(self, batch: Batch, step: int, progress: float) -> dict[str, Tensor]:
        edge = self.net(network_input(self.net, batch)).float().sigmoid()
        return self.loss(edge, sample(batch["mask"], edge.shape[2:]))
