"""What a run made, in the layouts that others read: a VOC tree, IRN's CAMs, the archive of VOC's test server."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..cams.cam_files import ImageCams, SavedCams
from ..cams.irn_files import export_cams
from ..cams.masks import save_mask
from ..cams.pseudo_labels import final_labels
from ..cams.thresholds import label_map
from ..config import Config, from_dict
from ..data import IGNORE, VOC_CLASSES, Split, is_turned, open_split, read_image, read_mask
from ..errors import DataError, UserError
from ..files import read_json, write_atomic
from ..pictures.overlays import jpeg


@dataclass(frozen=True)
class Made:
    """What the run made of the split."""

    stage: str
    split: Split
    masks: Path
    cams: Path
    config: Config


def find_made(run: Path, split: str, stage: str, data: Path | None = None) -> Made:
    """What the run in the folder `run` made of a split at a stage ("final": its CAMs are the walk's). `data`: where its
    data set lies, if not where it was."""
    saved = read_json(run / "config.json")
    try:
        data, config = data or Path(saved["data"]), from_dict(Config, saved["config"])
    except (KeyError, TypeError):
        raise UserError(f"{run / 'config.json'}: not the settings of a run") from None
    opened = open_split(data, split, require_tags=False)
    folder, walked = opened.name.replace(":", "_"), "walk" if stage == "final" else stage
    return Made(stage, opened, run / "masks" / stage / folder, run / "cams" / walked / folder, config)


def export_irn(made: Made, out: Path) -> None:
    """CAMs as `cams.irn_files` describes them, and classes.txt."""
    count = export_cams(made.cams, made.split, out)
    write_atomic(out / "classes.txt", ("\n".join(made.split.classes) + "\n").encode())
    print(f"CAMs of {count} images are in {out}")


def export_voc(made: Made, out: Path, void: tuple[float, float] | None = None) -> None:
    """A VOC tree with SegmentationClassPseudo. With `void` pixels that get different labels at these two thresholds are
    255."""
    split = made.split
    names = [record.name.replace("/", "_") for record in split]
    if len(set(names)) < len(names):
        raise DataError(f"{split.root}: two images have the same name once their folders are taken off")
    labels = _agreed(made, void) if void else _masks(made)
    for (record, name), mask in zip(zip(split, names, strict=True), labels, strict=True):
        # Loaders of VOC trees look for .jpg alone, and do not turn it as its EXIF orientation says.
        as_it_is = record.image.suffix.lower() in (".jpg", ".jpeg") and not is_turned(record.image)
        picture = record.image.read_bytes() if as_it_is else jpeg(read_image(record.image), quality=95)
        write_atomic(out / "JPEGImages" / f"{name}.jpg", picture)
        save_mask(out / "SegmentationClassPseudo" / f"{name}.png", mask)
    listed = out / "ImageSets/Segmentation" / f"{split.name.replace(':', '_')}.txt"
    write_atomic(listed, ("\n".join(names) + "\n").encode())
    write_atomic(out / "classes.txt", ("\n".join(split.classes) + "\n").encode())
    print(f"{len(names)} images and masks are in {out}, listed in {listed}")


def _masks(made: Made) -> Iterator[np.ndarray]:
    for record in tqdm(made.split, "masks", unit="img", disable=None):
        path = made.masks / f"{record.name}.png"
        if not path.is_file():
            raise DataError(f"{path}: no such mask; name the split in --inference.splits of the training")
        yield read_mask(path, len(made.split.classes))


def _agreed(made: Made, void: tuple[float, float]) -> Iterator[np.ndarray]:
    """Labels at two thresholds, 255 where they differ."""
    for image in tqdm(SavedCams(made.split, made.cams), "masks", unit="img", disable=None):
        low, high = (_labels(made, image, threshold) for threshold in void)
        yield np.where(low == high, low, IGNORE).astype(np.uint8)


def _labels(made: Made, image: ImageCams, threshold: float) -> np.ndarray:
    if made.stage != "final":
        return label_map(image.cam, image.keys, threshold)
    classes = len(made.split.classes)
    return final_labels(image, threshold, classes, made.config.walk.crf, torch.device("cpu")).numpy()


def export_server(made: Made, out: Path) -> None:
    """results/VOC2012/Segmentation/comp6_test_cls/<image>.png, class numbers those of VOC, in one archive."""
    split = made.split
    unknown = [name for name in split.classes if name not in VOC_CLASSES]
    if unknown:
        raise DataError(f"{split.root}: {unknown[0]!r} is none of VOC's 20 classes")
    number = np.full(256, IGNORE, np.uint8)
    number[: len(split.classes) + 1] = [0, *(VOC_CLASSES.index(name) + 1 for name in split.classes)]
    folder = out / "results/VOC2012/Segmentation/comp6_test_cls"
    for record, mask in zip(split, _masks(made), strict=True):
        if mask.shape != read_image(record.image).shape[:2]:
            raise DataError(f"{made.masks / record.name}.png: not the size of its image")
        save_mask(folder / f"{record.name}.png", number[mask])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(out / "results", "results")
    write_atomic(out / "results.tgz", buffer.getvalue())
    print(f"{len(split)} masks are in {out / 'results.tgz'}")
