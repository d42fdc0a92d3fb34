"""mIoU of CAMs against masks: one threshold for all, and one for each class.

    python -m camguide_fast.evaluate --checkpoint runs/x/checkpoints/stage3.safetensors --data VOC2012 --split val

The rows it writes are described in `camguide_fast.cams.results`. `--table RUN` prints a run's rows beside the paper's.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

from . import ops
from .cams.cam_files import Labels, read_cam, write_cams
from .cams.results import NOWHERE, Row, format_table, merge_rows, read_rows
from .cams.scores import (
    THRESHOLDS,
    fit_classwise,
    fit_global,
    iou,
    label_map,
    mean_iou,
    sweep_confusion,
    sweep_histogram,
)
from .cli import option, parse, pick_device, run_cli
from .config import Data
from .config.checks import check_settings
from .data import Record, Split, Workers, open_split, read_mask
from .errors import DataError, UserError
from .files import write_json
from .models.checkpoint import load_model
from .runs.paper_tables import paper_tables
from .runs.settings import SCALES_OPTION, run_amp, run_flip, run_scales

__all__ = ["evaluate_cams", "format_table", "score", "sweep"]

Thresholds = float | tuple[float, ...]


def sweep(
    cam_dir: Path, split: Split, thresholds: Sequence[float] = THRESHOLDS, *, skip_bad: bool = False
) -> np.ndarray:
    """Confusion matrices int64 [T, C, C] of a split, one for each global threshold; rows are the truth.

    Args:
        cam_dir: of `write_cams`.
        thresholds: T numbers, increasing.
        skip_bad: leave out images whose CAM or mask is missing or broken.

    Raises:
        DataError: a split without masks; a CAM or mask that is missing, broken, or of another size.
    """
    total = np.zeros((len(split.classes) + 1, len(split.classes), len(thresholds) + 1), np.int64)
    for _, keys, cam, mask in _images(cam_dir, split, skip_bad):
        total += sweep_histogram(cam, keys, mask, len(split.classes), thresholds)
    return sweep_confusion(total)


def score(
    cam_dir: Path,
    split: Split,
    settings: Sequence[Thresholds],
    *,
    refine: Callable[[Record, np.ndarray], np.ndarray] | None = None,
    skip_bad: bool = False,
) -> tuple[list[np.ndarray], int]:
    """Confusion matrix int64 [C, C] for each of several thresholds (see `scores.label_map`), and the number of images.

    The thresholds may come from anywhere. `refine(record, labels)` has the last word on an image's labels. Raises as
    `sweep`.
    """
    size = len(split.classes) + 1
    totals, images = [torch.zeros(size, size, dtype=torch.int64) for _ in settings], 0
    for record, keys, cam, mask in _images(cam_dir, split, skip_bad):
        truth = torch.from_numpy(mask)
        for total, thresholds in zip(totals, settings, strict=True):
            labels = label_map(cam, keys, thresholds)
            labels = labels if refine is None else refine(record, labels)
            total += ops.confusion_matrix(torch.from_numpy(labels), truth, size)
        images += 1
    return [total.numpy() for total in totals], images


def evaluate_cams(
    cam_dir: Path,
    split: Split,
    stage: str,
    labels: Labels,
    fit: tuple[Path, Split] | None = None,
    *,
    default: float | None = None,
    skip_bad: bool = False,
) -> list[Row]:
    """Rows of one stage on one split: global and class-wise, thresholds fitted on the split itself.

    With `fit`, CAMs and split to fit on, two more rows: thresholds fitted there and transferred. With `default` one
    more: that threshold, which was fitted nowhere. Raises as `sweep`.
    """
    sources = [(split, _fit(cam_dir, split, skip_bad))]
    if fit is not None and fit[1].name != split.name:
        sources.append((fit[1], _fit(*fit, skip_bad)))
    fits = [(mode, t, source.name) for source, modes in sources for mode, t in modes.items()]
    if default is not None:
        fits.append(("global", default, NOWHERE))
    confusions, images = score(cam_dir, split, [t for _, t, _ in fits], skip_bad=skip_bad)
    return [
        make_row(stage, split, labels, mode, thresholds, fitted_on, confusion, images)
        for (mode, thresholds, fitted_on), confusion in zip(fits, confusions, strict=True)
    ]


def make_row(
    stage: str,
    split: Split,
    labels: Labels,
    mode: str,
    thresholds: Thresholds,
    fitted_on: str,
    confusion: np.ndarray,
    images: int,
) -> Row:
    """A row as `results` describes it."""
    by_class = zip(("background", *split.classes), iou(confusion), strict=True)
    return {
        "stage": stage,
        "split": split.name,
        "labels": labels,
        "threshold_mode": mode,
        "thresholds": thresholds if mode == "global" else dict(zip(split.classes, thresholds, strict=True)),
        "fitted_on": fitted_on,
        "images": images,
        "miou": round(100 * float(mean_iou(confusion)), 3),
        "iou": {name: None if np.isnan(v) else round(100 * float(v), 3) for name, v in by_class},
    }


def check_masks(split: Split, skip_bad: bool = False) -> None:
    """A DataError if the split, or with `skip_bad` off one of its images, has no mask."""
    if not any(record.mask for record in split):
        raise DataError(f"{split.root}: split {split.name!r} has no masks to score against")
    for record in split:
        if record.mask is None and not skip_bad:
            raise DataError(f"{record.image}: this image of split {split.name!r} has no mask to score against")


def _fit(cam_dir: Path, split: Split, skip_bad: bool) -> dict[str, Thresholds]:
    confusions = sweep(cam_dir, split, skip_bad=skip_bad)
    return {"global": fit_global(confusions), "class-wise": fit_classwise(confusions)}


def _images(cam_dir: Path, split: Split, skip_bad: bool) -> Iterator[tuple[Record, np.ndarray, np.ndarray, np.ndarray]]:
    """Record, keys, cam and mask of each image."""
    check_masks(split, skip_bad)
    found = False
    for record in split:
        if record.mask is None:
            continue
        try:
            keys, cam = read_cam(Path(cam_dir) / f"{record.name}.npz", len(split.classes))
            mask = read_mask(record.mask, len(split.classes), cam.shape[1:])
        except DataError:
            if not skip_bad:
                raise
            continue
        found = True
        yield record, keys, cam, mask
    if not found:
        raise DataError(f"{cam_dir}: not one image of split {split.name!r} has both a CAM and a mask")


@dataclass(frozen=True)
class Args:
    """Score a checkpoint against masks: IoU by class and mIoU, thresholds global and class-wise."""

    checkpoint: Annotated[Path | None, option("FILE", "required without --table")] = None
    """A .safetensors of a run."""
    data: Annotated[Path | None, option("DIR", "required without --table")] = None
    """The data set: a VOC tree, or a folder with tags.csv / tags.json and masks/."""
    table: Annotated[Path | None, option("RUN", "default: none")] = None
    """Print what is scored already in this run's folder as the paper's tables IV to VII, beside the paper's figures."""
    split: str = "val"
    """Split that is scored; name:N is an evenly spaced sample of N images."""
    fit_split: Annotated[str | None, option("SPLIT", "default: none")] = None
    """Also fit thresholds here and report them as transferred."""
    labels: Labels = "given"
    """Classes of an image: its tags, or those the network predicts."""
    out: Annotated[Path | None, option("FILE", "default: results are only printed")] = None
    """JSON file of results; its rows of other stages, splits, labels and fits are kept."""
    scales: Annotated[tuple[float, ...] | None, SCALES_OPTION] = None
    """Scales that are merged."""
    cams: Annotated[Path | None, option("DIR", "default: they are not kept")] = None
    """Keep the CAMs here, <stage>/<split>/<name>.npz, and use those of this checkpoint that are there."""
    skip_bad: bool = False
    """Leave out broken images and those without mask, counted, instead of stopping."""
    workers: Workers = "auto"
    """Threads that read images ahead; 0 reads when asked. Does not change the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA if there is a GPU."""


def evaluate(args: Args) -> None:
    """What the command does."""
    if args.table is not None:
        print(paper_tables(args.table))
        return
    if args.checkpoint is None or args.data is None:
        raise UserError("--checkpoint and --data: expected both, or --table")
    check_settings(Data(workers=args.workers))
    device = pick_device(args.device)
    if args.fit_split == args.split:
        raise UserError(f"--fit-split {args.fit_split}: is the scored split, on which thresholds are fitted anyway")
    split = open_split(args.data, args.split, require_tags=args.labels == "given")
    fit_split = None
    if args.fit_split is not None:
        fit_split = open_split(args.data, args.fit_split, require_tags=args.labels == "given")
    splits = [split] + ([fit_split] if fit_split else [])
    for each in splits:
        check_masks(each, args.skip_bad)
    before = read_rows(args.out) if args.out else []
    model, card = load_model(args.checkpoint, device)
    scales = args.scales if args.scales is not None else run_scales(args.checkpoint)
    amp = run_amp(args.checkpoint, card.stage, device)
    with _folder(args.cams) as folder:
        made = {}
        for each in splits:
            made[each.name] = folder / card.stage / each.name.replace(":", "_")
            report = write_cams(
                model,
                card,
                each,
                made[each.name],
                scales=scales,
                flip=run_flip(args.checkpoint),
                labels=args.labels,
                device=device,
                amp=amp,
                workers=args.workers,
                skip_bad=args.skip_bad,
            )
            if report.skipped:
                print(f"{each.name}: {len(report.skipped)} images left out, not readable: {', '.join(report.skipped)}")
        fit = (made[fit_split.name], fit_split) if fit_split else None
        rows = evaluate_cams(made[split.name], split, card.stage, args.labels, fit, skip_bad=args.skip_bad)
    if args.out:
        write_json(args.out, merge_rows(before, rows))
    print(format_table(rows))
    if args.out:
        print(f"\nThe results are in {args.out}")


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """`kept`, or a folder that is gone afterwards."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="camguide-cams-") as folder:
        yield Path(folder)


def main() -> None:
    evaluate(parse(Args, "evaluate"))


if __name__ == "__main__":
    run_cli(main)
