"""What a run made, in the layouts that others read.

    python -m camguide_fast.export voc --run runs/x --split train --out pseudo
    python -m camguide_fast.export irn --run runs/x --split train --out cams
    python -m camguide_fast.export server --run runs/x --split test --out submission

The run must hold the split's masks or CAMs: name it in --inference.splits of `camguide_fast.train`.
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from .cams.cam_files import SavedCams, save_mask
from .cams.irn_files import export_cams
from .cams.pseudo_labels import final_labels
from .cams.scores import label_map
from .cli import option, parse, run_cli
from .config import Config, from_dict
from .data import IGNORE, VOC_CLASSES, Split, open_split, read_image, read_mask
from .errors import DataError, UserError
from .files import read_json, write_atomic
from .pictures.overlays import jpeg

StageName = Literal["baseline", "teacher", "stage1", "stage2", "stage3", "walk", "final"]


@dataclass(frozen=True)
class Args:
    """Masks or CAMs of a run in the layouts that others read."""

    kind: Annotated[Literal["voc", "irn", "server"], tyro.conf.Positional]
    """voc: a VOC tree with SegmentationClassPseudo, to train any segmentation network on. irn: CAMs in IRN's layout.
    server: the archive that VOC's test server takes."""
    run: Annotated[Path, option("DIR")]
    """The run's folder."""
    out: Annotated[Path, option("DIR")]
    """Folder for the export."""
    split: str = "train"
    """Split of the run's data set; name:N is a sample."""
    stage: StageName = "final"
    """Whose masks; for irn whose CAMs (final: the walk's)."""
    void: Annotated[tuple[float, float] | None, option("LOW HIGH", "default: nothing is left open")] = None
    """voc: pixels that get different labels at these two thresholds become 255."""


@dataclass(frozen=True)
class _Source:
    """What the run made of the split."""

    split: Split
    masks: Path
    cams: Path
    config: Config


def export(args: Args) -> None:
    """What the command does."""
    source = _open(args)
    if args.void is not None and (args.kind != "voc" or not 0 <= args.void[0] <= args.void[1] <= 1):
        raise UserError(f"--void: expected two thresholds from 0 to 1, ascending, and kind voc; got {args.void}")
    {"voc": _voc, "irn": _irn, "server": _server}[args.kind](args, source)


def _open(args: Args) -> _Source:
    saved = read_json(args.run / "config.json")
    try:
        data, config = Path(saved["data"]), from_dict(Config, saved["config"])
    except (KeyError, TypeError):
        raise UserError(f"{args.run / 'config.json'}: not the settings of a run") from None
    split = open_split(data, args.split, require_tags=False)
    folder = split.name.replace(":", "_")
    cams = "walk" if args.stage == "final" else args.stage
    return _Source(split, args.run / "masks" / args.stage / folder, args.run / "cams" / cams / folder, config)


def _irn(args: Args, source: _Source) -> None:
    count = export_cams(source.cams, source.split, args.out)
    (args.out / "classes.txt").write_text("\n".join(source.split.classes) + "\n")
    print(f"CAMs of {count} images are in {args.out}")


def _voc(args: Args, source: _Source) -> None:
    split = source.split
    names = [record.name.replace("/", "_") for record in split]
    if len(set(names)) < len(names):
        raise DataError(f"{split.root}: two images have the same name once their folders are taken off")
    labels = _agreed(args, source) if args.void else _masks(source)
    for (record, name), mask in zip(zip(split, names, strict=True), labels, strict=True):
        is_jpeg = record.image.suffix.lower() in (".jpg", ".jpeg")  # loaders of VOC trees look for .jpg alone
        picture = record.image.read_bytes() if is_jpeg else jpeg(read_image(record.image), quality=95)
        write_atomic(args.out / "JPEGImages" / f"{name}.jpg", picture)
        save_mask(args.out / "SegmentationClassPseudo" / f"{name}.png", mask)
    listed = args.out / "ImageSets/Segmentation" / f"{split.name.replace(':', '_')}.txt"
    write_atomic(listed, ("\n".join(names) + "\n").encode())
    write_atomic(args.out / "classes.txt", ("\n".join(split.classes) + "\n").encode())
    print(f"{len(names)} images and masks are in {args.out}, listed in {listed}")


def _masks(source: _Source):
    for record in tqdm(source.split, "masks", unit="img", disable=None):
        path = source.masks / f"{record.name}.png"
        if not path.is_file():
            raise DataError(f"{path}: no such mask; name the split in --inference.splits of the training")
        yield read_mask(path, len(source.split.classes))


def _agreed(args: Args, source: _Source):
    """Labels at two thresholds, 255 where they differ."""
    for made in tqdm(SavedCams(source.split, source.cams), "masks", unit="img", disable=None):
        low, high = (_labels(args, source, made, threshold) for threshold in args.void)
        yield np.where(low == high, low, IGNORE).astype(np.uint8)


def _labels(args: Args, source: _Source, made, threshold: float) -> np.ndarray:
    if args.stage != "final":
        return label_map(made.cam, made.keys, threshold)
    classes = len(source.split.classes)
    return final_labels(made, threshold, classes, source.config.walk.crf, torch.device("cpu")).numpy()


def _server(args: Args, source: _Source) -> None:
    """results/VOC2012/Segmentation/comp6_test_cls/<image>.png, class numbers those of VOC, in one archive."""
    split = source.split
    unknown = [name for name in split.classes if name not in VOC_CLASSES]
    if unknown:
        raise DataError(f"{split.root}: {unknown[0]!r} is none of VOC's 20 classes")
    number = np.full(256, IGNORE, np.uint8)
    number[: len(split.classes) + 1] = [0, *(VOC_CLASSES.index(name) + 1 for name in split.classes)]
    folder = args.out / "results/VOC2012/Segmentation/comp6_test_cls"
    for record, mask in zip(split, _masks(source), strict=True):
        if mask.shape != read_image(record.image).shape[:2]:
            raise DataError(f"{source.masks / record.name}.png: not the size of its image")
        save_mask(folder / f"{record.name}.png", number[mask])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(args.out / "results", "results")
    write_atomic(args.out / "results.tgz", buffer.getvalue())
    print(f"{len(split)} masks are in {args.out / 'results.tgz'}")


def main() -> None:
    export(parse(Args, "export"))


if __name__ == "__main__":
    run_cli(main)
