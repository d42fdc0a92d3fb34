"""Lists of images as the field has them: VOC's own, and those of PSA, IRN and Puzzle-CAM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .labels import read_text

FLAGS = {"1", "-1", "0"}  # of ImageSets/Main: whether the class of the list is there; tags come from elsewhere


def read_list(path: Path, images: Mapping[str, Path]) -> dict[str, str | None]:
    """{image name: its mask's path in the tree where the line has one}, from lines such as

    ::

        2007_000032                                                       a name may hold spaces
        2007_000032.jpg
        2007_000032  1                                                    ImageSets/Main
        /JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png
    """
    found: dict[str, str | None] = {}
    for line in read_text(path).split("\n"):  # splitlines would also split at what names may hold
        if not line.strip():
            continue
        if line not in images and ".." in line.replace("/", " ").split():
            raise DataError(f"{path}: expected names or paths in the tree, found {line!r}")
        name, mask = _entry(line, images)
        if name not in images:
            raise DataError(f"{path}: image {name!r} is not in {_folder(images, path)}")
        if name in found:
            raise DataError(f"{path}: image {name!r} is listed twice")
        found[name] = mask
    if not found:
        raise DataError(f"{path}: the split is empty")
    return found


def _entry(line: str, images: Mapping[str, Path]) -> tuple[str, str | None]:
    """The image's name and its mask's path. What is an image's name as it stands, spaces and all, is nothing else."""
    for name in (line, line.strip()):
        if name in images:
            return name, None
    line = line.strip()
    words = line.split()
    if len(words) == 2 and words[1] in FLAGS:
        line, words = words[0], words[:1]
    mask = words[1] if len(words) == 2 and words[0].count("/") and words[1].endswith(".png") else None
    image = words[0] if mask else line
    stem = PurePosixPath(image).stem if image.lower().endswith((".jpg", ".jpeg", ".png")) else PurePosixPath(image).name
    return (stem if stem in images else image), mask


def _folder(images: Mapping[str, Path], path: Path) -> Path:
    return next(iter(images.values())).parent if images else path.parents[2] / "JPEGImages"
