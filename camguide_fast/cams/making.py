"""CAMs of a whole split, made by a network, and made again only when they have to be."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import FullImages, Record, Split, Workers
from ..errors import DataError, UserError
from ..models import CamNet
from ..models.checkpoint import ModelCard
from .cam_files import BROKEN, ImageCams, images_only, save_cam
from .multi_scale import MAX_SIDE, SCALES, mean_logits, merge_maps, scale_maps

Labels = Literal["given", "predicted"]


@dataclass(frozen=True)
class CamSettings:
    """How CAMs are made. `labels`: classes of an image are its tags, or those that the network predicts."""

    scales: tuple[float, ...] = SCALES
    flip: bool = True
    labels: Labels = "given"
    amp: bool = False
    max_side: int = MAX_SIDE

    def check(self, card: ModelCard, split: Split) -> None:
        """UserError for settings that cannot work, DataError for a split that they do not fit."""
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"scales: expected one or more numbers above 0, got {self.scales}")
        if split.classes != card.classes:
            raise UserError(
                f"{split.root}: has {len(split.classes)} classes ({', '.join(split.classes)}), "
                f"the checkpoint {len(card.classes)} ({', '.join(card.classes)})"
            )
        if self.labels == "predicted" and len(card.tag_thresholds) != len(card.classes):
            raise UserError(f"labels: the checkpoint of {card.stage} has no tag thresholds; only 'given' works")
        for record in split:
            if self.labels == "given" and record.tags is None:
                raise DataError(f"{record.image}: no tags are known for this image, and labels are 'given'")


@dataclass(frozen=True)
class CamReport:
    """What `write_cams` did, in numbers of images and names."""

    written: int
    kept: int  # from before
    skipped: list[str] = field(default_factory=list)  # broken


def each_cam(model: CamNet, card: ModelCard, images: FullImages, settings: CamSettings) -> Iterator[ImageCams]:
    """The CAMs of each readable image, in order.

    With predicted labels an image in which no class exceeds its threshold has no CAMs: it is all background.
    Maps that are not finite are a UserError.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] stubs lack it
    for item in images:
        image = item["image"].to(device, non_blocking=True)  # [3, H, W]

        def maps_at(scale: float, image: Tensor = image, flip: bool = settings.flip) -> Tensor:
            return scale_maps(model, image, scale, flip=flip, amp=settings.amp, max_side=settings.max_side)

        maps = {scale: maps_at(scale) for scale in settings.scales}
        if not all(m.isfinite().all() for m in maps.values()):
            raise UserError(
                f"{item['name']}: the maps of {card.stage} are not finite (weights with NaN, or fp16 overflow)"
            )
        if settings.labels == "given":
            present = item["label"] > 0  # [K]
        else:
            at_one = maps[1.0] if settings.flip and 1.0 in maps else maps_at(1.0, flip=True)
            present = mean_logits(at_one).cpu() > torch.tensor(card.tag_thresholds)
        keys = present.nonzero()[:, 0].tolist()
        cam = merge_maps(list(maps.values()), keys, tuple(image.shape[1:]))
        yield ImageCams(item["name"], item["image"], np.array(keys, np.int64), cam.half().cpu().numpy())


class NetworkCams:
    """The images of a split with the CAMs that a network makes of them, in order: see `each_cam`. After an iteration
    `skipped` lists the names that were left out."""

    def __init__(
        self,
        model: CamNet,
        card: ModelCard,
        split: Split,
        settings: CamSettings,
        workers: Workers = "auto",
        skip_bad: bool = False,
    ):
        self.model, self.card, self.settings = model, card, settings
        self.images = images_only(split, workers, skip_bad)

    @property
    def skipped(self) -> list[str]:
        return self.images.skipped

    def __iter__(self) -> Iterator[ImageCams]:
        return each_cam(self.model, self.card, self.images, self.settings)


def write_cams(
    model: CamNet,
    card: ModelCard,
    split: Split,
    out_dir: Path,
    *,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    labels: Labels = "given",
    device: torch.device | str | None = None,
    amp: bool = False,
    max_side: int = MAX_SIDE,
    rank: int = 0,
    world: int = 1,
    workers: Workers = "auto",
    skip_bad: bool = False,
    progress: bool = True,
) -> CamReport:
    """CAMs of a split, `out_dir/<name>.npz` for each image (names with "/" keep their tree).

    A file holds `keys` int64 [P], `cam` float16 [P, H, W] at the image's size, and `made_by`, a digest of weights and
    settings. Files with the right digest and tags are kept, others replaced: stopped anywhere, the next call goes on.

    Args:
        model, card: from `load_model`. The model moves to `device`, if given.
        scales, flip, amp, max_side: see `multi_scale.scale_maps`.
        labels: "given": the tags of the split. "predicted": see `each_cam`.
        rank, world: this process makes every `world`-th image.
        workers: threads that read ahead; 0 reads when asked.
        skip_bad: leave images out that do not decode, and name them in the result.

    Raises:
        UserError: settings that cannot work, other classes than the checkpoint's, a file that cannot be written.
        DataError: an image that does not decode; one without tags where they are to be given.
    """
    settings = CamSettings(tuple(scales), flip, labels, amp, max_side)
    settings.check(card, split)
    model = model if device is None else model.to(device)
    mine, made_by, out_dir = split.shard(rank, world), weights_digest(model, card, settings), Path(out_dir)
    todo = tuple(r for r in mine if not _is_current(out_dir / f"{r.name}.npz", made_by, r, labels))
    cams = NetworkCams(model, card, replace(mine, records=todo), settings, workers, skip_bad)
    bar = tqdm(cams, f"CAMs {card.stage}, {split.name}", len(todo), unit="img", disable=None if progress else True)
    written = 0
    for made in bar:
        save_cam(out_dir / f"{made.name}.npz", made, made_by)
        written += 1
    return CamReport(written, len(mine) - len(todo), cams.skipped)


def weights_digest(model: nn.Module, card: ModelCard, settings: CamSettings | None = None) -> str:
    """A name for a network with its weights and settings."""
    digest = hashlib.sha256(json.dumps([asdict(card), asdict(settings) if settings else None]).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_current(path: Path, made_by: str, record: Record, labels: Labels) -> bool:
    if not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["made_by"]) != made_by:
                return False
            return labels == "predicted" or tuple(file["keys"].tolist()) == record.tags
    except BROKEN:  # of no use: made again
        return False
