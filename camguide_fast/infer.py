"""Palette PNG masks for a folder of images, with any trained checkpoint, or from the CAMs of any other method.

    python -m camguide_fast.infer --checkpoint runs/x/checkpoints/stage3.safetensors --images photos --out masks
    python -m camguide_fast.infer --stage final --affinity runs/x/checkpoints/affinity.safetensors --cams cams ...

`--stage` says how far to go: the CAMs themselves, CAMs after AffinityNet's walk, or final labels, where the CRF has
refined the walk's. Masks and scores that are there already, made from the same things, are kept.
`camguide_fast.cams` has the same steps as functions.
"""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro

from .cams.cam_files import SavedCams
from .cams.image_masks import ImageMasks, MaskReport, Recipe
from .cams.making import CamSettings, Labels, NetworkCams, weights_digest
from .cams.multi_scale import MAX_SIDE
from .cams.thresholds import DEFAULT_THRESHOLD
from .cli import option, parse, pick_device, run_cli
from .config import Data, Inference, Walk
from .config.checks import check_settings
from .data import Split, Workers, find_tag_file, left_out, open_images, with_tags
from .errors import UserError
from .files import read_json
from .models import AffinityNet
from .models.checkpoint import ModelCard, load_model
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


def infer(args: Args) -> None:
    """What the command does: masks, overlays and a closing line."""
    _check(args)
    device = pick_device(args.device)
    affinity = load_model(_affinity(args), device, affinity=True) if args.stage != "cam" else None
    if args.checkpoint is not None:
        model, card = load_model(args.checkpoint, device)
    else:
        model, card = None, cast(tuple[AffinityNet, ModelCard], affinity)[1]  # --cams need one
    if affinity and affinity[1].classes != card.classes:
        raise UserError(f"{_affinity(args)}: its classes ({', '.join(affinity[1].classes)}) are not the checkpoint's")
    thresholds, chosen = _thresholds(args, card)
    split = open_images(args.images, card.classes)
    if others := left_out(args.images, f"{args.images}: {len(split)} images; left out: "):
        print(others)
    if args.out.resolve() == args.images.resolve():
        raise UserError(f"{args.out}: is the folder of the images; masks of PNG images would replace them")
    labels: Labels = args.labels or ("given" if args.tags else "predicted")
    if labels == "given" and model is not None:
        split = _tagged(args, split)
    settings = CamSettings(labels=labels, max_side=args.max_side)
    if model is not None and args.checkpoint is not None:
        scales = args.scales if args.scales is not None else run_scales(args.checkpoint)
        amp = run_amp(args.checkpoint, card.stage, device)
        settings = replace(settings, scales=scales, flip=run_flip(args.checkpoint), amp=amp)
        settings.check(card, split)

    def cams_of(todo: Split) -> NetworkCams | SavedCams:
        if model is None:
            return SavedCams(todo, cast(Path, args.cams), args.workers, args.skip_bad)
        return NetworkCams(model, card, todo, settings, args.workers, args.skip_bad)

    edge_amp = run_amp(_affinity(args), "affinity", device) if affinity else False
    report = ImageMasks(
        split,
        args.out,
        cams_of,
        Recipe(args.stage, thresholds, args.closing, args.walk, edge_amp),
        made_from=(settings, weights_digest(model, card) if model else ""),
        affinity=affinity,
        cam_dir=args.cams,
        overlays=args.overlay,
        scores=args.scores,
    ).write()
    _tell(args, card, report)
    if model is None:
        print(f"CAMs: {args.cams}; threshold: {chosen}")
    else:
        print(f"labels: {labels}; threshold: {chosen}; scales: {' '.join(f'{s:g}' for s in settings.scales)}")
    if affinity:
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
    return args.affinity or cast(Path, args.checkpoint).parent / "affinity.safetensors"


def _tagged(args: Args, split: Split) -> Split:
    tags = args.tags or find_tag_file(args.images)
    if tags is None:
        raise UserError(f"{args.images}: holds no tag file; name one with --tags, or use --labels predicted")
    return with_tags(split, tags)


def _tell(args: Args, card: ModelCard, report: MaskReport) -> None:
    what = card.stage if args.stage == "cam" else f"{args.stage} from {card.stage if args.checkpoint else args.cams}"
    before = f", {report.kept} of them from before" if report.kept else ""
    print(f"{report.kept + report.written} masks of {what} ({', '.join(card.classes)}) are in {args.out}{before}")
    if report.empty:
        print(f"{report.empty} of them are all background")
    if report.skipped:
        print(f"{len(report.skipped)} images left out, not readable: {', '.join(report.skipped)}")


def _thresholds(args: Args, card: ModelCard) -> tuple[float | tuple[float, ...], str]:
    stage = card.stage if args.stage == "cam" else args.stage
    if args.threshold is not None:
        return checked_threshold(args.threshold, "--threshold"), f"{args.threshold:g}, from --threshold"
    if args.thresholds is not None:
        return fitted_thresholds(args.thresholds, stage, card.classes)
    default = DEFAULT_THRESHOLD if args.stage == "cam" else args.walk.threshold
    if args.checkpoint is None:  # another method's CAMs: what was fitted on the run's own says nothing about them
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
