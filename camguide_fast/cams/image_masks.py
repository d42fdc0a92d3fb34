"""Masks for a folder of images, from a network's CAMs or anybody's, as far refined as is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from tqdm import tqdm

from .. import ops
from ..config import Crf, Walk
from ..data import Record, Split, mask_made_by
from ..errors import UserError
from ..files import write_atomic
from ..method.targets import refine_scores
from ..models import AffinityNet
from ..models.checkpoint import ModelCard
from ..pictures.overlays import jpeg, overlay
from .cam_files import ImageCams, SavedCams, cam_made_by, save_cam
from .making import NetworkCams, weights_digest
from .masks import save_mask
from .pseudo_labels import digest_of, walk_image
from .thresholds import label_map


@dataclass(frozen=True)
class Recipe:
    """How masks are made of CAMs. `stage`: of the CAMs, of those after the walk, or refined by the CRF."""

    stage: Literal["cam", "walk", "final"]
    thresholds: float | Sequence[float]
    """As of `thresholds.label_map`."""
    closing: int = 0
    """Side of the square that closes gaps, pixels; 0 for none."""
    walk: Walk = field(default_factory=Walk)
    edge_amp: bool = False
    """AffinityNet in mixed precision."""


@dataclass(frozen=True)
class MaskReport:
    """What `write_image_masks` did, in numbers of images and names."""

    written: int
    kept: int  # from before
    empty: int  # of the written: all background
    skipped: list[str]  # broken


class ImageMasks:
    """The masks `out/<name>.png` of a split's images; with `overlays` and `scores` more files in folders of that name.

    Args:
        source: the CAMs of those images of the split that it is given.
        made_from: what CAMs and scores are made from, besides the recipe.
        affinity: AffinityNet and its card, for the stages "walk" and "final".
        cam_dir: where the source reads its CAMs, None if it makes them.
    """

    def __init__(
        self,
        split: Split,
        out: Path,
        source: Callable[[Split], NetworkCams | SavedCams],
        recipe: Recipe,
        made_from: Sequence[object],
        affinity: tuple[AffinityNet, ModelCard] | None = None,
        cam_dir: Path | None = None,
        *,
        overlays: bool = False,
        scores: bool = False,
    ):
        self.split, self.out, self.source, self.recipe, self.cam_dir = split, out, source, recipe, cam_dir
        self.net, self.overlays, self.scores = affinity[0] if affinity else None, overlays, scores
        if (recipe.stage == "cam") != (affinity is None):
            raise ValueError(f"affinity: the stage {recipe.stage!r} takes {'no' if affinity else 'an'} AffinityNet")
        edges = [recipe.walk, recipe.edge_amp, weights_digest(*affinity)] if affinity else []
        self.made_from = [recipe.stage, recipe.thresholds, recipe.closing, scores, *made_from, *edges]

    def write(self) -> MaskReport:
        """Every mask that is not there yet, made from the same things.

        Raises UserError for a file in the way that is no mask of this project, and as the source does.
        """
        marks = {record.name: self._mark(record) for record in self.split}
        todo = tuple(r for r in self.split if not self._is_made(r.name, marks[r.name]))
        for path in (self.out / f"{record.name}.png" for record in todo):
            if path.exists() and not mask_made_by(path):
                raise UserError(f"{path}: is there, and not a mask of this command; name another folder with --out")
        cams, written, empty = self.source(replace(self.split, records=todo)), 0, 0
        for made in tqdm(cams, "masks", len(todo), unit="img", disable=None):
            mask, made = self._mask(made)
            self._save(mask, made, marks[made.name])
            written += 1
            empty += not mask.any()
        return MaskReport(written, len(self.split) - len(todo), empty, cams.skipped)

    def _mask(self, made: ImageCams) -> tuple[np.ndarray, ImageCams]:
        """Labels [H, W], and the maps that they are cut from."""
        recipe = self.recipe
        if self.net is not None:
            made = walk_image(self.net, made, recipe.walk, amp=recipe.edge_amp)
        if recipe.stage == "final":
            device = next(cast(AffinityNet, self.net).parameters()).device  # it has made the walk
            mask, made = _final(made, recipe.thresholds, recipe.walk.crf, device)
        else:
            mask = label_map(made.cam, made.keys, recipe.thresholds)
        if recipe.closing:
            mask = ops.label_closing(torch.from_numpy(mask)[None], kernel_size=recipe.closing)[0].numpy()
        return mask, made

    def _save(self, mask: np.ndarray, made: ImageCams, mark: str) -> None:
        photo_path, scores_path = self.out / "overlays" / f"{made.name}.jpg", self.out / "scores" / f"{made.name}.npz"
        for left in (photo_path, scores_path):
            if left.is_file():  # of the mask that is replaced now
                left.unlink()
        if self.overlays:
            photo = np.ascontiguousarray(made.image.permute(1, 2, 0).numpy())
            write_atomic(photo_path, jpeg(overlay(photo, mask)))
        if self.scores:
            save_cam(scores_path, made, mark)
        save_mask(self.out / f"{made.name}.png", mask, mark)  # last: it says that all is there

    def _mark(self, record: Record) -> str:
        """What the mask of an image is made from."""
        cams = cam_made_by(self.cam_dir / f"{record.name}.npz") if self.cam_dir else ""
        return digest_of(self.made_from, record.tags, cams)

    def _is_made(self, name: str, mark: str) -> bool:
        wanted = self.out / "overlays" / f"{name}.jpg"
        return mask_made_by(self.out / f"{name}.png") == mark and (not self.overlays or wanted.is_file())


def _final(
    made: ImageCams, thresholds: float | Sequence[float], crf: Crf, device: torch.device
) -> tuple[np.ndarray, ImageCams]:
    """The CRF's labels [H, W] of walked CAMs, and its probabilities in place of the CAMs."""
    labels = torch.from_numpy(label_map(made.cam, made.keys, thresholds)).to(device)
    present, scores = refine_scores(labels, made.image.to(device), crf)
    mask = present[scores.argmax(0)].cpu().numpy()
    classes = present > 0
    keys = present[classes].long().cpu().numpy() - 1
    return mask, replace(made, keys=keys, cam=scores[classes].half().cpu().numpy())
