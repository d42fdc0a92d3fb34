"""CAMs of a whole split on disk: one `.npz` an image, complete or not there, made again only when it has to be."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import (
    FullImages,
    Record,
    Split,
    Workers,
    full_images,
    write_mask,
)
from ..errors import DataError, UserError
from ..files import write_atomic
from ..models.checkpoint import ModelCard
from .multi_scale import MAX_SIDE, SCALES, mean_logits, merge_maps, scale_maps
from .scores import label_map

Labels = Literal["given", "predicted"]
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # what np.load raises on a damaged file


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
class ImageCams:
    """The CAMs of one image."""

    name: str
    image: Tensor  # uint8 [3, H, W]
    keys: np.ndarray  # int64 [P] class indices, ascending
    cam: np.ndarray  # float16 [P, H, W] in [0, 1]


@dataclass(frozen=True)
class CamReport:
    """What `write_cams` did, in numbers of images and names."""

    written: int
    kept: int  # from before
    skipped: list[str] = field(default_factory=list)  # broken


def images_only(split: Split, workers: Workers = "auto", skip_bad: bool = False) -> FullImages:
    """`full_images` without masks: no business of inference, a broken one least of all."""
    return full_images(replace(split, records=tuple(replace(r, mask=None) for r in split)), workers, skip_bad)


def each_cam(model: nn.Module, card: ModelCard, images: FullImages, settings: CamSettings) -> Iterator[ImageCams]:
    """The CAMs of each readable image, in order.

    With predicted labels an image in which no class exceeds its threshold has no CAMs: it is all background.
    Maps that are not finite are a UserError.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
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


def write_cams(
    model: nn.Module,
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
    images = images_only(replace(mine, records=todo), workers, skip_bad)
    cams = each_cam(model, card, images, settings)
    bar = tqdm(cams, f"CAMs {card.stage}, {split.name}", len(todo), unit="img", disable=None if progress else True)
    written = 0
    for made in bar:
        save_cam(out_dir / f"{made.name}.npz", made, made_by)
        written += 1
    return CamReport(written, len(mine) - len(todo), images.skipped)


def save_cam(path: Path, made: ImageCams, made_by: str) -> None:
    """A file as `write_cams` describes it, in one step."""
    buffer = io.BytesIO()
    np.savez(buffer, keys=made.keys, cam=made.cam, made_by=np.array(made_by))
    write_atomic(path, buffer.getbuffer())


def cam_made_by(path: Path) -> str:
    """What a CAM file says it was made from; of one that does not say, as those of other programs, size and time; ""
    if there is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "made_by" in file:
                return str(file["made_by"])
        state = path.stat()
        return f"{state.st_size} {state.st_mtime_ns}"
    except _BROKEN:
        return ""


class SavedCams:
    """The images of a split with the CAMs that `cam_dir` holds for them, in order. After an iteration `skipped` lists
    the names that were left out.

    With `skip_bad` off an image or a file that is missing, broken or of another size is a DataError.
    """

    def __init__(self, split: Split, cam_dir: Path, workers: Workers = "auto", skip_bad: bool = False):
        self.images, self.cam_dir = images_only(split, workers, skip_bad), Path(cam_dir)
        self.skip_bad, self.classes = skip_bad, len(split.classes)
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[ImageCams]:
        missing = []
        for item in self.images:
            try:
                path = self.cam_dir / f"{item['name']}.npz"
                keys, cam = read_cam(path, self.classes, tuple(item["image"].shape[1:]))
                if cam.size and not (0 <= cam.min() and cam.max() <= 1):  # NaN is neither
                    raise DataError(f"{path}: CAMs from {cam.min():g} to {cam.max():g}, expected 0 to 1")
            except DataError:
                if not self.skip_bad:
                    raise
                missing.append(item["name"])
                continue
            yield ImageCams(item["name"], item["image"], keys, cam)
        self.skipped = self.images.skipped + missing


def read_cam(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`keys` [P], `cam` [P, H, W] of a file of `write_cams` or in IRN's layout (see `irn_files`); a DataError names one
    that is missing or does not fit, for instance an image of `size` = (H, W)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, cam = file["keys"], file["high_res" if "high_res" in file else "cam"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such CAM file") from None
    except _BROKEN as error:
        raise DataError(f"{path}: not a readable CAM file ({error})") from None
    if keys.ndim != 1 or cam.ndim != 3 or len(keys) != len(cam) or not np.issubdtype(keys.dtype, np.integer):
        raise DataError(f"{path}: keys {list(keys.shape)} and cam {list(cam.shape)}, expected [P] and [P, H, W]")
    if len(keys) and not 0 <= keys.min() <= keys.max() < num_classes:
        raise DataError(f"{path}: class index {keys.max()}, expected 0 to {num_classes - 1}")
    if size is not None and cam.shape[1:] != size:
        raise DataError(f"{path}: CAMs of {list(cam.shape[1:])} pixels, the image has {list(size)}")
    return keys, cam


def write_masks(
    cam_dir: Path,
    split: Split,
    out_dir: Path,
    thresholds: float | Sequence[float],
    *,
    skip_bad: bool = False,
) -> int:
    """Palette PNG `out_dir/<name>.png` for each image of a split, from its CAMs; returns how many.

    Args:
        thresholds: see `scores.label_map`.
        skip_bad: leave out images whose CAMs are missing or broken.
    """
    written = 0
    for record in split:
        try:
            keys, cam = read_cam(Path(cam_dir) / f"{record.name}.npz", len(split.classes))
        except DataError:
            if not skip_bad:
                raise
            continue
        save_mask(Path(out_dir) / f"{record.name}.png", label_map(cam, keys, thresholds))
        written += 1
    return written


def save_mask(path: Path, labels: np.ndarray, made_by: str = "") -> None:
    """`data.write_mask`, with the folders on the way."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be made: {error.strerror}") from None
    write_mask(path, labels, made_by)


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
    except _BROKEN:  # of no use: made again
        return False
