"""Palette PNG masks for a folder of images, with any trained checkpoint, or from the CAMs of any other method.

    python -m camguide_fast.infer --checkpoint runs/x/checkpoints/stage3.safetensors --images photos --out masks
    python -m camguide_fast.infer --stage final --affinity runs/x/checkpoints/affinity.safetensors --cams cams ...

`--stage` says how far to go: the CAMs themselves, CAMs after AffinityNet's walk, or final labels, where the CRF has
refined the walk's. Masks and scores that are there already, made from the same things, are kept.
`multi_scale_cam`, `write_cams`, `write_masks` and `label_map` are the same steps as functions.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import nn
from tqdm import tqdm

from . import ops
from .cams.cam_files import (
    CamSettings,
    ImageCams,
    Labels,
    SavedCams,
    cam_made_by,
    each_cam,
    images_only,
    save_cam,
    save_mask,
    weights_digest,
    write_cams,
    write_masks,
)
from .cams.multi_scale import MAX_SIDE, class_maps, multi_scale_cam
from .cams.pseudo_labels import digest_of, walk_image
from .cams.scores import label_map
from .cli import option, parse, pick_device, run_cli
from .config import Crf, Data, Inference, Walk
from .config.checks import check_settings
from .data import Record, Split, Workers, find_tag_file, mask_made_by, open_images
from .data.labels import read_name_lists, tag_indices
from .data.tagged_folder import read_csv
from .errors import DataError, UserError
from .files import read_json, write_atomic
from .method.targets import refine_scores
from .models.checkpoint import ModelCard, load_model
from .pictures.overlays import jpeg, overlay
from .runs.settings import (
    SCALES_OPTION,
    checked_threshold,
    fitted_thresholds,
    run_amp,
    run_flip,
    run_folder,
    run_scales,
    run_walk,
    walked_stage,
)

__all__ = ["class_maps", "label_map", "multi_scale_cam", "write_cams", "write_masks"]

DEFAULT_THRESHOLD = 0.15  # IRN's, and the best of plain classification in the measurements here


@dataclass(frozen=True)
class Args:
    """Write palette PNG masks (0 background, 1.. classes) for a folder of images, with any trained checkpoint."""

    images: Annotated[Path, option("DIR")]
    """Folder of images: jpg, png, bmp, webp."""
    out: Annotated[Path, option("DIR")]
    """Folder for the masks, <image's name>.png."""
    checkpoint: Annotated[Path | None, option("FILE", "required without --cams")] = None
    """A .safetensors of a run."""
    stage: Literal["cam", "walk", "final"] = "cam"
    """Masks from CAMs, from CAMs after AffinityNet's random walk, or from those refined by the dense CRF."""
    affinity: Annotated[Path | None, option("FILE", "default: affinity.safetensors beside the checkpoint")] = None
    """AffinityNet of a run, for --stage walk and final."""
    cams: Annotated[Path | None, option("DIR", "default: the checkpoint makes them")] = None
    """CAMs <image's name>.npz of any method, in the layout of this project or of IRN (see `irn_files`)."""
    scores: bool = False
    """Also write <out>/scores/<name>.npz: keys [P] and cam [P, H, W], the present classes' CAMs, walked CAMs or
    probabilities."""
    labels: Annotated[Labels | None, option("{given,predicted}", "default: given with --tags, else predicted")] = None
    """Classes that an image may show: its tags (given), or those the network sees (predicted)."""
    tags: Annotated[Path | None, option("FILE", "default: the tag file in --images, if labels are given")] = None
    """Tags of the images: CSV with the columns image,tags, or JSON {image: [tags]}."""
    threshold: Annotated[float | None, option("FLOAT", "default: see --thresholds")] = None
    """One threshold for all classes, 0 to 1."""
    thresholds: Annotated[
        Path | None,
        option("FILE", "default: thresholds.json of the checkpoint's run; without one .15 for all, after a walk .35"),
    ] = None
    """Fitted thresholds: {stage: {"global": t, "class-wise": [t, ...], "fitted_on": split}}; class-wise if there."""
    walk: Walk = field(default_factory=Walk)
    """Settings of --stage walk and final [those of the checkpoint's run]."""
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
    workers: Workers = "auto"
    """Threads that read images ahead; 0 reads when asked. Does not change the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA if there is a GPU."""


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
    _check(args)
    device = pick_device(args.device)
    net, net_card = load_model(_affinity(args), device, affinity=True) if args.stage != "cam" else (None, None)
    model, card = load_model(args.checkpoint, device) if args.checkpoint else (None, net_card)
    if net_card and net_card.classes != card.classes:
        raise UserError(f"{_affinity(args)}: its classes ({', '.join(net_card.classes)}) are not the checkpoint's")
    thresholds, chosen = _thresholds(args, card)
    split = open_images(args.images, card.classes)
    if args.out.resolve() == args.images.resolve():
        raise UserError(f"{args.out}: is the folder of the images; masks of PNG images would replace them")
    labels: Labels = args.labels or ("given" if args.tags else "predicted")
    if labels == "given" and model is not None:
        tags = args.tags or find_tag_file(args.images)
        if tags is None:
            raise UserError(f"{args.images}: holds no tag file; name one with --tags, or use --labels predicted")
        split = tagged(split, tags)
    settings = CamSettings(labels=labels, max_side=args.max_side)
    if model is not None:
        scales = args.scales if args.scales is not None else run_scales(args.checkpoint)
        amp = run_amp(args.checkpoint, card.stage, device)
        settings = replace(settings, scales=scales, flip=run_flip(args.checkpoint), amp=amp)
        settings.check(card, split)
    made_from = [
        args.stage,
        thresholds,
        args.closing,
        args.scores,
        settings,
        weights_digest(model, card) if model else "",
    ]
    edge_amp = run_amp(_affinity(args), "affinity", device) if net else False
    made_from += [args.walk, edge_amp, weights_digest(net, net_card)] if net else []
    marks = {r.name: _mark(args, made_from, r) for r in split}
    todo = tuple(r for r in split if not _is_made(args, r.name, marks[r.name]))
    for path in (args.out / f"{record.name}.png" for record in todo):
        if path.exists() and not mask_made_by(path):
            raise UserError(f"{path}: is there, and not a mask of this command; name another folder with --out")
    source, skipped = _source(args, model, card, replace(split, records=todo), settings)
    empty = 0
    for made in tqdm(source, "masks", len(todo), unit="img", disable=None):
        if net:
            made = walk_image(net, made, args.walk, amp=edge_amp)
        if args.stage == "final":
            mask, made = _final(made, thresholds, args.walk.crf, device)
        else:
            mask = label_map(made.cam, made.keys, thresholds)
        if args.closing:
            mask = ops.label_closing(torch.from_numpy(mask)[None], kernel_size=args.closing)[0].numpy()
        for left in (args.out / "overlays" / f"{made.name}.jpg", args.out / "scores" / f"{made.name}.npz"):
            if left.is_file():  # of the mask that is replaced now
                left.unlink()
        if args.overlay:
            photo = np.ascontiguousarray(made.image.permute(1, 2, 0).numpy())
            write_atomic(args.out / "overlays" / f"{made.name}.jpg", jpeg(overlay(photo, mask)))
        if args.scores:
            save_cam(args.out / "scores" / f"{made.name}.npz", made, marks[made.name])
        save_mask(args.out / f"{made.name}.png", mask, marks[made.name])  # last: it says that all is there
        empty += not mask.any()
    _tell(args, card, len(split) - len(todo), len(todo), empty, skipped())
    if model is None:
        print(f"CAMs: {args.cams}; threshold: {chosen}")
    else:
        print(f"labels: {labels}; threshold: {chosen}; scales: {' '.join(f'{s:g}' for s in settings.scales)}")
    if net:
        walk = args.walk
        print(f"walk: {2**walk.log2_steps} steps, radius {walk.radius}, beta {walk.beta:g}")


def _check(args: Args) -> None:
    check_settings(args.walk, "walk")
    check_settings(Data(workers=args.workers))
    if args.scales is not None:
        check_settings(Inference(scales=args.scales))
    if (args.checkpoint is None) == (args.cams is None):
        raise UserError("--checkpoint and --cams: expected one of them")
    if args.cams is not None and args.stage == "cam":
        raise UserError("--cams: are refined by --stage walk or final")
    if args.cams is not None and args.affinity is None:
        raise UserError("--cams: --affinity must name an AffinityNet, whose classes the CAMs' keys count")
    if args.cams is not None and (args.tags is not None or args.labels is not None):
        raise UserError("--cams: hold the classes of their images; --tags and --labels are of no use")
    if args.stage == "cam" and args.affinity is not None:
        raise UserError("--affinity is of no use with --stage cam")
    if args.threshold is not None and args.thresholds is not None:
        raise UserError("--threshold and --thresholds: expected one of them")
    if args.labels == "predicted" and args.tags is not None:
        raise UserError("--tags is of no use with --labels predicted")
    if args.closing < 0 or (args.closing and args.closing % 2 == 0):
        raise UserError(f"--closing: expected 0 or an odd number of pixels, got {args.closing}")
    if args.max_side < 1:
        raise UserError(f"--max-side: expected at least 1 pixel, got {args.max_side}")


def _affinity(args: Args) -> Path:
    return args.affinity or args.checkpoint.parent / "affinity.safetensors"


def _source(
    args: Args, model: nn.Module | None, card: ModelCard, split: Split, settings: CamSettings
) -> tuple[Iterable[ImageCams], Callable[[], list[str]]]:
    """The images' CAMs, made or read, and afterwards the names of those left out."""
    if model is None:
        saved = SavedCams(split, args.cams, args.workers, args.skip_bad)
        return saved, lambda: saved.skipped
    images = images_only(split, args.workers, args.skip_bad)
    return each_cam(model, card, images, settings), lambda: images.skipped


def _mark(args: Args, made_from: list, record: Record) -> str:
    """What the mask of an image is made from."""
    return digest_of(made_from, record.tags, cam_made_by(args.cams / f"{record.name}.npz") if args.cams else "")


def _is_made(args: Args, name: str, mark: str) -> bool:
    wanted = args.out / "overlays" / f"{name}.jpg"
    return mask_made_by(args.out / f"{name}.png") == mark and (not args.overlay or wanted.is_file())


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


def _tell(args: Args, card: ModelCard, kept: int, todo: int, empty: int, skipped: list[str]) -> None:
    what = card.stage if args.stage == "cam" else f"{args.stage} from {card.stage if args.checkpoint else args.cams}"
    before = f", {kept} of them from before" if kept else ""
    print(f"{kept + todo - len(skipped)} masks of {what} ({', '.join(card.classes)}) are in {args.out}{before}")
    if empty:
        print(f"{empty} of them are all background")
    if skipped:
        print(f"{len(skipped)} images left out, not readable: {', '.join(skipped)}")


def _thresholds(args: Args, card: ModelCard) -> tuple[float | Sequence[float], str]:
    stage = card.stage if args.stage == "cam" else args.stage
    if args.threshold is not None:
        return checked_threshold(args.threshold, "--threshold"), f"{args.threshold:g}, from --threshold"
    if args.thresholds is not None:
        return fitted_thresholds(args.thresholds, stage, card.classes)
    default = DEFAULT_THRESHOLD if args.stage == "cam" else args.walk.threshold
    if args.cams is not None:  # another method's: what was fitted on the run's own says nothing about them
        return default, f"{default}, the default"
    path = run_folder(args.checkpoint) / "thresholds.json"
    if not path.is_file():
        return default, f"{default}, the default, as {path} is not there"
    if args.stage == "cam" or (stage in read_json(path) and card.stage == walked_stage(args.checkpoint)):
        return fitted_thresholds(path, stage, card.classes)
    return default, f"{default}, the default, as {path} has none for a {stage} from {card.stage}"


def main() -> None:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--checkpoint", type=Path)
    checkpoint = early.parse_known_args()[0].checkpoint
    walk = run_walk(checkpoint) if checkpoint else Walk()
    infer(parse(Args, "infer", default=Args(images=tyro.MISSING, out=tyro.MISSING, walk=walk)))


if __name__ == "__main__":
    run_cli(main)
