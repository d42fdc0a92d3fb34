"""A folder of images with tags, and a folder of images without any."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .images import SUFFIXES
from .labels import classes_of_tags, nfc, read_classes, read_name_lists, read_text, tag_indices
from .split import Record, Split

TAG_FILES = ("tags.csv", "tags.json", "labels.csv", "labels.json")


@dataclass(frozen=True)
class _Table:
    source: Path
    tags: dict[str, list[str]]  # by image
    splits: dict[str, list[str]] | None  # images by split


def find_tag_file(root: Path) -> Path | None:
    """The tag file of a folder, None if it has none; two of them are a DataError."""
    found = [root / name for name in TAG_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{root}: both {found[0].name} and {found[1].name}, expected one tag file")
    return found[0] if found else None


def open_tagged_folder(root: Path, name: str, *, require_tags: bool = True) -> Split:
    """Split `name` of a folder of images with one tag file.

    ::

        tags.csv          columns image,tags[,split]; tags separated by ";", e.g. cats/7.jpg,cat;dog,train. In a
                          spreadsheet's file of columns between ";" or tabs: by ","
        tags.json         or {"cats/7.jpg": ["cat", "dog"], ...}; either file may be named labels.*
        classes.txt       optional: class names in the order of the mask values; without it the tags, sorted
        splits.json       optional, in place of the column: {"train": ["cats/7.jpg", ...], "val": [...]}
        masks/cats/7.png  optional: masks with 0, 1..K and 255, under the image's path without suffix

    Images are given by their path in the folder, with suffix (jpg, jpeg, jfif, png, bmp, gif, tif, webp); files that
    the tag file does not list are not part of the data set. No tags: nothing but background. Without splits
    everything is `train`. With `require_tags` off, an image that `splits.json` lists and the tag file does
    not has the tags None.
    """
    tag_file = find_tag_file(root)
    if tag_file is None:
        raise DataError(f"{root}: no tag file ({', '.join(TAG_FILES)})")
    table = _read_csv(tag_file) if tag_file.suffix == ".csv" else _Table(tag_file, read_name_lists(tag_file), None)
    images = _images_of_split(root, name, table)
    class_file = root / "classes.txt"
    if class_file.is_file():
        classes = read_classes(class_file)
    else:
        classes = classes_of_tags((tag for tags in table.tags.values() for tag in tags), tag_file)

    records: dict[str, Record] = {}
    for image in images:
        stem, path = _locate(root, image, tag_file)
        if stem in records:
            raise DataError(f"{tag_file}: {image!r} and {records[stem].image.name!r} have the same name {stem!r}")
        if image in table.tags:
            tags = tag_indices(table.tags[image], classes, tag_file, image)
        elif require_tags:
            raise DataError(f"{tag_file}: no tags for image {image!r} of split {name!r}")
        else:
            tags = None
        mask = root / "masks" / f"{stem}.png"
        records[stem] = Record(stem, path, tags, mask if mask.is_file() else None)
    return Split(root, name, classes, tuple(records.values()))


def with_tags(split: Split, path: Path) -> Split:
    """`split` with the tags of a CSV or JSON file, by file name or by name without suffix. An image that has none
    there is a DataError."""
    table = _read_csv(path).tags if path.suffix.lower() == ".csv" else read_name_lists(path)
    records = []
    for record in split:
        names = [name for name in (nfc(record.image.name), record.name) if name in table]
        if not names:
            raise DataError(f"{path}: no tags for image {record.image.name!r}")
        tags = tag_indices(table[names[0]], split.classes, path, names[0])
        records.append(replace(record, tags=tags))
    return replace(split, records=tuple(records))


def open_images(folder: str | Path, classes: tuple[str, ...] = ()) -> Split:
    """All images directly in a folder, sorted by name, without tags or masks: input for inference. `left_out` tells
    what else is there."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    records: dict[str, Record] = {}
    for path in sorted(path for path in folder.iterdir() if _is_image(path)):
        if path.stem in records:
            raise DataError(
                f"{path}: same name as {records[path.stem].image.name}; their masks would overwrite each other"
            )
        records[path.stem] = Record(path.stem, path, None, None)
    if not records:
        raise DataError(f"{folder}: no images ({', '.join(SUFFIXES)}){left_out(folder, '; there: ')}")
    return Split(folder, folder.name, classes, tuple(records.values()))


def left_out(folder: Path, before: str) -> str:
    """`before` and what `open_images` does not look at, counted by suffix; "" if there is nothing. Tag files and what
    begins with a dot, which systems put beside files, do not count."""
    others = [path for path in folder.iterdir() if not path.name.startswith(".") and not _is_image(path)]
    kinds = Counter("folder" if path.is_dir() else path.suffix.lower() or "without suffix" for path in others)
    for path in others:
        kinds[path.suffix.lower()] -= path.name in TAG_FILES
    counted = [f"{n} {kind}{'s' * (kind == 'folder' and n > 1)}" for kind, n in sorted(kinds.items()) if n > 0]
    return before + ", ".join(counted) if counted else ""


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _images_of_split(root: Path, name: str, table: _Table) -> list[str]:
    source, splits = table.source, table.splits
    split_file = root / "splits.json"
    if split_file.is_file():
        if splits is not None:
            raise DataError(f"{root}: splits both in {source.name} and in splits.json, expected one of them")
        source, splits = split_file, read_name_lists(split_file)
    if splits is None:
        if name != "train":
            raise DataError(
                f"{source}: no split {name!r}: nothing names splits, so all images are 'train' "
                "(add a column 'split' or a splits.json)"
            )
        splits = {"train": list(table.tags)}
    if name not in splits:
        raise DataError(f"{source}: no split {name!r} (splits there: {', '.join(sorted(splits)) or 'none'})")
    if not splits[name]:
        raise DataError(f"{source}: split {name!r} is empty")
    return splits[name]


def _read_csv(path: Path) -> _Table:
    text = read_text(path)
    head = text.partition("\n")[0]
    delimiter = next((mark for mark in ";\t" if mark in head and "," not in head), ",")  # as spreadsheets may write it
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    tags: dict[str, list[str]] = {}
    splits: dict[str, list[str]] = {}
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        if not {"image", "tags"} <= set(columns):
            raise DataError(
                f"{path}: the first line is {head.strip()!r}, expected the columns image,tags or image,tags,split"
            )
        reader.fieldnames = columns
        for row in reader:
            values = {key: (row[key] or "").strip() for key in {"image", "tags", "split"} & set(columns)}
            image = values["image"]
            if None in row or None in row.values() or not image or values.get("split") == "":
                raise DataError(f"{path}: line {reader.line_num} does not fill the columns {','.join(columns)}")
            if image in tags:
                raise DataError(f"{path}: line {reader.line_num} lists image {image!r} a second time")
            listed = values["tags"] if delimiter == "," else values["tags"].replace(",", ";")
            tags[image] = [tag.strip() for tag in listed.split(";") if tag.strip()]
            if "split" in values:
                splits.setdefault(values["split"], []).append(image)
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV (line {reader.line_num}: {error})") from None
    return _Table(path, tags, splits if "split" in columns else None)


def _locate(root: Path, image: str, source: Path) -> tuple[str, Path]:
    """(name without suffix, path) of an image given by its path in the folder."""
    relative = PurePosixPath(image)
    # Names become paths of masks that are written: nothing may point out of the folder.
    if relative.is_absolute() or ".." in relative.parts or "\\" in image:
        raise DataError(f"{source}: image {image!r} must be a path inside the folder, with '/'")
    if relative.suffix.lower() not in SUFFIXES:
        raise DataError(f"{source}: image {image!r} has none of the suffixes {', '.join(SUFFIXES)}")
    path = root / relative
    if not path.is_file():  # its name may be in another form on the disk
        path = root / unicodedata.normalize("NFD", image)
    if not path.is_file():
        raise DataError(f"{source}: image {image!r} is not in {root}")
    return str(relative.with_suffix("")), path
