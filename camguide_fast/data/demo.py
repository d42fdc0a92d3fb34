"""A generated data set in VOC layout, to try everything on; the pictures are drawn in `demo_pictures`."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from .demo_pictures import CLASSES, demo_picture
from .mask_files import write_mask

_VERSION = 2  # of the pictures: a set made by another version is made anew


@dataclass(frozen=True)
class _Settings:
    version: int
    seed: int
    train: int
    val: int
    size: int


def make_demo(root: str | os.PathLike[str], *, seed: int = 0, train: int = 256, val: int = 64, size: int = 128) -> Path:
    """Generate the demo set in the folder `root`, or keep it if it is there, complete, with these settings.

    Args:
        root: folder of the set. One that holds anything but a demo set, whole or partial, is refused.
        seed: same seed, same pictures.
        train, val: images per split.
        size: sides are drawn from size - size/8 to size + size/8 pixels.

    Returns:
        `root`: a VOC tree with tags in `labels.json`, masks of both splits, and the settings in `demo.json`.
    """
    root = Path(root)
    if seed < 0 or train < 1 or val < 1 or size < 32:
        raise DataError(
            f"{root}: a demo set needs seed >= 0, at least one image a split and size >= 32, "
            f"got seed={seed}, train={train}, val={val}, size={size}"
        )
    settings = _Settings(_VERSION, seed, train, val, size)
    if _is_complete(root, settings):
        return root
    if root.exists() and not _is_demo(root):
        raise DataError(f"{root}: not empty and not a demo set; choose another folder for the demo set")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        # Made aside and moved into place when complete, so that nobody ever sees half a set.
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as aside:
            made = Path(aside) / "made"
            _write(made, settings)
            if root.exists():
                os.rename(root, Path(aside) / "old")
            os.rename(made, root)
    except OSError as error:
        if _is_complete(root, settings):  # another process was faster
            return root
        raise DataError(f"{error.filename or root}: cannot write the demo set ({error.strerror or error})") from None
    return root


def _write(root: Path, settings: _Settings) -> None:
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", root / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    tags: dict[str, list[str]] = {}
    for split, count in (("train", settings.train), ("val", settings.val)):
        names = [f"demo_{split}_{index:05d}" for index in range(count)]
        for index, name in enumerate(names):
            image, mask = demo_picture(settings.seed, split, index, settings.size)
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=92, subsampling=0)
            write_mask(root / "SegmentationClass" / f"{name}.png", mask)
            tags[name] = [CLASSES[label - 1] for label in np.unique(mask) if label]
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    (root / "labels.json").write_text(json.dumps(tags, indent=0) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "demo.json").write_text(json.dumps(asdict(settings)) + "\n")


def _is_complete(root: Path, settings: _Settings) -> bool:
    try:
        if json.loads((root / "demo.json").read_text()) != asdict(settings):
            return False
    except (OSError, ValueError):
        return False
    counts = (len(list((root / folder).glob("demo_*"))) for folder in ("JPEGImages", "SegmentationClass"))
    lists = [root / "ImageSets" / "Segmentation" / f"{split}.txt" for split in ("train", "val")]
    files = [root / "labels.json", root / "classes.txt", *lists]
    return all(n == settings.train + settings.val for n in counts) and all(file.is_file() for file in files)


def _is_demo(root: Path) -> bool:
    """Whether every file below `root` is one that `make_demo` writes, so that it may be replaced."""
    if not root.is_dir():
        return False
    paths = [path.relative_to(root) for path in root.rglob("*") if not path.is_dir()]
    own = {Path("labels.json"), Path("classes.txt"), Path("demo.json")}
    own |= {Path("ImageSets/Segmentation") / f"{split}.txt" for split in ("train", "val")}
    pictures = [p for p in paths if p.parent.name in ("JPEGImages", "SegmentationClass") and p.name.startswith("demo_")]
    return not paths or (bool(pictures) and set(paths) <= own | set(pictures))
