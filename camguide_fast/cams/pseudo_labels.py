"""From CAMs to final labels: AffinityNet's edges, the walk that they hold back, the CRF. The CAMs may be anybody's.

Every file is made again only if what it was made from has changed, so that each step goes on where it was stopped.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .. import ops
from ..config import Affinity, Crf, Walk
from ..data import Split, Workers, mask_made_by
from ..method.targets import affinity_labels, refine_labels
from ..models import AffinityNet
from ..models.checkpoint import ModelCard
from .cam_files import ImageCams, SavedCams, cam_made_by, save_cam
from .making import CamReport, weights_digest
from .masks import save_mask
from .multi_scale import MAX_SIDE
from .thresholds import label_map

Thresholds = float | Sequence[float]


@torch.no_grad()
def edge_map(net: AffinityNet, image: Tensor, *, amp: bool = False, max_side: int = MAX_SIDE) -> Tensor:
    """Probability that a cell of 4 x 4 pixels is a boundary, from the image and its mirror image.

    Args:
        net: in eval mode, on the image's device.
        image: uint8 RGB [3, H, W], any size from 1x1; first shrunk to a long side of `max_side` if it is larger.

    Returns:
        fp32 [1, 1, h, w], sides a quarter of the (shrunk) image's, rounded up.
    """
    x = image[None].float()
    if max(x.shape[2:]) > max_side:
        scale = max_side / max(x.shape[2:])
        size = [max(1, round(side * scale)) for side in x.shape[2:]]
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 255)
    x = net.backbone.input(x)
    with torch.autocast(image.device.type, enabled=amp):
        logits = net(torch.cat([x, x.flip(3)])).float()
    return ((logits[:1] + logits[1:].flip(3)) / 2).sigmoid()


def walked(cam: Tensor, edge: Tensor, settings: Walk) -> Tensor:
    """CAMs [P, H, W] after the walk over the affinities of `edge` [1, 1, h, w], at their own size, in [0, 1).

    All classes are divided by one maximum, so that a class on which the walk has spread thin stays behind the others.
    """
    if len(cam) == 0:
        return cam
    source = F.interpolate(cam[None].float(), edge.shape[2:], mode="bilinear", antialias=True)
    spread = ops.affinity_random_walk(source, edge, settings.radius, settings.beta, settings.log2_steps)
    result = F.interpolate(spread, cam.shape[1:], mode="bilinear")[0]
    return result / (result.amax() + 1e-5)


def walk_image(net: AffinityNet, made: ImageCams, settings: Walk, *, amp: bool = False) -> ImageCams:
    """The CAMs of an image after the walk."""
    device = next(net.parameters()).device
    edge = edge_map(net, made.image.to(device, non_blocking=True), amp=amp)
    maps = walked(torch.from_numpy(made.cam).to(device).float(), edge, settings)
    return replace(made, cam=maps.half().cpu().numpy())


def final_labels(made: ImageCams, thresholds: Thresholds, num_classes: int, crf: Crf, device: torch.device) -> Tensor:
    """Labels uint8 [H, W] of walked CAMs: cut as `thresholds.label_map` does, then refined by the CRF."""
    labels = torch.from_numpy(label_map(made.cam, made.keys, thresholds)).to(device)
    return refine_labels(labels, made.image.to(device), num_classes + 1, crf)


@dataclass(frozen=True)
class Share:
    """Which images of a split this process makes - every `world`-th - and how it reads them."""

    rank: int = 0
    world: int = 1
    workers: Workers = "auto"
    skip_bad: bool = False
    """Leave out images and CAMs that are missing or broken, and name them in the report."""


def write_walks(
    net: AffinityNet,
    card: ModelCard,
    split: Split,
    cam_dir: Path,
    out_dir: Path,
    settings: Walk,
    share: Share = Share(),
    *,
    amp: bool = False,
) -> CamReport:
    """Walked CAMs of a split, `out_dir/<name>.npz` in the layout of `write_cams`, from the CAMs in `cam_dir`.

    Raises DataError for an image or CAMs that are missing or broken.
    """
    digest = digest_of(weights_digest(net, card), settings.radius, settings.beta, settings.log2_steps, amp)

    def make(made: ImageCams) -> ImageCams:
        return walk_image(net, made, settings, amp=amp)

    return _from_cams(cam_dir, split, Path(out_dir), ".npz", digest, share, make)


def write_final_masks(
    cam_dir: Path,
    split: Split,
    out_dir: Path,
    thresholds: Thresholds,
    crf: Crf,
    device: torch.device,
    share: Share = Share(),
) -> CamReport:
    """Palette PNG `out_dir/<name>.png` for each image, from the walked CAMs in `cam_dir`. Raises as `write_walks`."""

    def make(made: ImageCams) -> Tensor:
        return final_labels(made, thresholds, len(split.classes), crf, device)

    return _from_cams(cam_dir, split, Path(out_dir), ".png", digest_of(crf, thresholds), share, make)


def write_affinity_labels(
    cam_dir: Path, split: Split, out_dir: Path, settings: Affinity, device: torch.device, share: Share = Share()
) -> CamReport:
    """AffinityNet's labels (`targets.affinity_labels`), `out_dir/<name>.png`, from CAMs. Raises as `write_walks`."""
    digest = digest_of(settings.crf, settings.foreground, settings.background)

    def make(made: ImageCams) -> Tensor:
        cam, keys = (torch.from_numpy(x).to(device) for x in (made.cam, made.keys))
        return affinity_labels(cam, keys, made.image.to(device), len(split.classes), settings)

    return _from_cams(cam_dir, split, Path(out_dir), ".png", digest, share, make)


def digest_of(*parts: object) -> str:
    """A name for what something is made from."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _from_cams(
    cam_dir: Path,
    split: Split,
    out_dir: Path,
    suffix: str,
    digest: str,
    share: Share,
    make: Callable[[ImageCams], ImageCams | Tensor],
) -> CamReport:
    """What `make` makes of each image's CAMs, in a file that keeps what it was made from."""
    mine = split.shard(share.rank, share.world)
    marks = {r.name: digest_of(digest, cam_made_by(Path(cam_dir) / f"{r.name}.npz")) for r in mine}
    read_mark = cam_made_by if suffix == ".npz" else mask_made_by
    todo = tuple(r for r in mine if read_mark(out_dir / f"{r.name}{suffix}") != marks[r.name])
    cams = SavedCams(replace(mine, records=todo), cam_dir, share.workers, share.skip_bad)
    written = 0
    for made in tqdm(cams, f"{out_dir.parent.name}, {split.name}", len(todo), unit="img", disable=None):
        path, result = out_dir / f"{made.name}{suffix}", make(made)
        if isinstance(result, ImageCams):
            save_cam(path, result, marks[made.name])
        else:
            save_mask(path, result.cpu().numpy(), marks[made.name])
        written += 1
    return CamReport(written, len(mine) - len(todo), cams.skipped)
