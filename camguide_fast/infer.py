"""Palette PNG masks for a folder of images, with any trained checkpoint.

    python -m camguide_fast.infer --checkpoint runs/x/checkpoints/stage3.safetensors --images photos --out masks

`multi_scale_cam`, `write_cams`, `write_masks` and `label_map` are the same steps as functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from tqdm import tqdm

from . import ops
from .cam_files import CamSettings, Labels, each_cam, images_only, save_mask, write_cams, write_masks
from .checkpoint import ModelCard, load_model, read_json, write_atomic
from .cli import option, parse, pick_device, run_cli
from .data import Split, find_tag_file, open_images
from .data.labels import read_name_lists, tag_indices
from .data.tagged_folder import read_csv
from .errors import DataError, UserError
from .multi_scale import MAX_SIDE, SCALES, class_maps, multi_scale_cam
from .pictures import jpeg, overlay
from .scores import label_map

__all__ = ["class_maps", "label_map", "multi_scale_cam", "write_cams", "write_masks"]

DEFAULT_THRESHOLD = 0.15  # IRN's, and the best of plain classification in the measurements here


SCALES_OPTION = option("FLOAT [FLOAT ...]", "default: those of the checkpoint's run, else .5 1 1.5 2")


@dataclass(frozen=True)
class Args:
    """Write palette PNG masks (0 background, 1.. classes) for a folder of images, with any trained checkpoint."""

    checkpoint: Annotated[Path, option("FILE")]
    """A .safetensors of a run."""
    images: Annotated[Path, option("DIR")]
    """Folder of images: jpg, png, bmp, webp."""
    out: Annotated[Path, option("DIR")]
    """Folder for the masks, <image's name>.png."""
    labels: Annotated[Labels | None, option("{given,predicted}", "default: given with --tags, else predicted")] = None
    """Classes that an image may show: its tags (given), or those the network sees (predicted)."""
    tags: Annotated[Path | None, option("FILE", "default: the tag file in --images, if labels are given")] = None
    """Tags of the images: CSV with the columns image,tags, or JSON {image: [tags]}."""
    threshold: Annotated[float | None, option("FLOAT", "default: see --thresholds")] = None
    """One threshold for all classes, 0 to 1."""
    thresholds: Annotated[
        Path | None, option("FILE", "default: thresholds.json of the checkpoint's run; without one .15 for all")
    ] = None
    """Fitted thresholds: {stage: {"global": t, "class-wise": [t, ...], "fitted_on": split}}; class-wise if there."""
    scales: Annotated[tuple[float, ...] | None, SCALES_OPTION] = None
    """Scales that are merged."""
    max_side: int = MAX_SIDE
    """Larger images are shrunk to this long side before scaling, pixels; masks keep the image's size."""
    closing: int = 0
    """Close gaps in the masks with a square of this odd side, pixels; 0 for none."""
    overlay: bool = False
    """Also write <out>/overlays/<name>.jpg, the masks laid over the photographs."""
    skip_bad: bool = False
    """Leave out images that do not decode, counted and named, instead of stopping."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA if there is a GPU."""


def run_scales(checkpoint: Path) -> tuple[float, ...]:
    """The scales of the run that a checkpoint belongs to; without a run those of the paper."""
    path = _run_folder(checkpoint) / "config.json"
    saved = read_json(path) if path.is_file() else None
    try:
        return tuple(float(s) for s in saved["config"]["inference"]["scales"]) if saved else SCALES
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: names no scales under config.inference.scales; name them with --scales") from None


def fitted_thresholds(path: Path, card: ModelCard) -> tuple[float | tuple[float, ...], str]:
    """Thresholds of the card's stage in a thresholds.json, class-wise if it has them, and in words where they are from.

    The file: {stage: {"global": t, "class-wise": [t of each class], "fitted_on": split}}.
    """
    saved = read_json(path)
    entry = saved.get(card.stage) if isinstance(saved, dict) else None
    if not isinstance(entry, dict) or not {"global", "class-wise"} & set(entry):
        raise UserError(f"{path}: has no thresholds for {card.stage!r}; name one with --threshold")
    where = f"fitted on {entry.get('fitted_on', 'an unnamed split')}, from {path}"
    values = entry.get("class-wise")
    if values is None:
        return _in_range(entry["global"], path), f"{entry['global']}, {where}"
    if not isinstance(values, list) or len(values) != len(card.classes):
        raise UserError(f"{path}: class-wise thresholds of {card.stage!r} are not {len(card.classes)} numbers")
    return tuple(_in_range(value, path) for value in values), f"class-wise, {where}"


def tagged(split: Split, path: Path) -> Split:
    """`split` with the tags of a CSV or JSON file, by file name or by name without suffix."""
    table = read_csv(path).tags if path.suffix.lower() == ".csv" else read_name_lists(path)
    records = []
    for record in split:
        names = [name for name in (record.image.name, record.name) if name in table]
        if not names:
            raise DataError(f"{path}: no tags for image {record.image.name!r}")
        tags = tag_indices(table[names[0]], split.classes, path, names[0])
        records.append(replace(record, tags=tags))
    return replace(split, records=tuple(records))


def infer(args: Args) -> None:
    """What the command does: masks, overlays and a closing line."""
    if args.threshold is not None and args.thresholds is not None:
        raise UserError("--threshold and --thresholds: expected one of them")
    if args.labels == "predicted" and args.tags is not None:
        raise UserError("--tags is of no use with --labels predicted")
    if args.closing < 0 or (args.closing and args.closing % 2 == 0):
        raise UserError(f"--closing: expected 0 or an odd number of pixels, got {args.closing}")
    if args.max_side < 1:
        raise UserError(f"--max-side: expected at least 1 pixel, got {args.max_side}")
    device = pick_device(args.device)
    model, card = load_model(args.checkpoint, device)
    thresholds, chosen = _thresholds(args, card)
    split = open_images(args.images, card.classes)
    if args.out.resolve() == args.images.resolve():
        raise UserError(f"{args.out}: is the folder of the images; masks of PNG images would replace them")
    labels: Labels = args.labels or ("given" if args.tags else "predicted")
    if labels == "given":
        tags = args.tags or find_tag_file(args.images)
        if tags is None:
            raise UserError(f"{args.images}: holds no tag file; name one with --tags, or use --labels predicted")
        split = tagged(split, tags)
    scales = args.scales if args.scales is not None else run_scales(args.checkpoint)
    settings = CamSettings(scales, labels=labels, amp=device.type == "cuda", max_side=args.max_side)
    settings.check(card, split)
    images = images_only(split, skip_bad=args.skip_bad)
    masks = empty = 0
    for made in tqdm(each_cam(model, card, images, settings), "masks", len(split), unit="img", disable=None):
        mask = label_map(made.cam, made.keys, thresholds)
        if args.closing:
            mask = ops.label_closing(torch.from_numpy(mask)[None], kernel_size=args.closing)[0].numpy()
        save_mask(args.out / f"{made.name}.png", mask)
        if args.overlay:
            photo = np.ascontiguousarray(made.image.permute(1, 2, 0).numpy())
            write_atomic(args.out / "overlays" / f"{made.name}.jpg", jpeg(overlay(photo, mask)))
        masks += 1
        empty += not mask.any()
    print(f"{masks} masks of {card.stage} ({', '.join(card.classes)}) are in {args.out}")
    print(f"labels: {labels}; threshold: {chosen}; scales: {' '.join(f'{s:g}' for s in scales)}")
    if empty:
        print(f"{empty} of them are all background")
    if images.skipped:
        print(f"{len(images.skipped)} images left out, not readable: {', '.join(images.skipped)}")


def _thresholds(args: Args, card: ModelCard) -> tuple[float | Sequence[float], str]:
    if args.threshold is not None:
        return _in_range(args.threshold, "--threshold"), f"{args.threshold:g}, from --threshold"
    if args.thresholds is not None:
        return fitted_thresholds(args.thresholds, card)
    path = _run_folder(args.checkpoint) / "thresholds.json"
    if path.is_file():
        return fitted_thresholds(path, card)
    return DEFAULT_THRESHOLD, f"{DEFAULT_THRESHOLD}, the default, as {path} is not there"


def _run_folder(checkpoint: Path) -> Path:  # runs/x of runs/x/checkpoints/stage3.safetensors
    return checkpoint.resolve().parent.parent


def _in_range(value: object, source: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{source}: a threshold is a number from 0 to 1, got {value!r}")
    return float(value)


def main() -> None:
    infer(parse(Args, "infer"))


if __name__ == "__main__":
    run_cli(main)
