"""Data sets in the layout of PASCAL VOC."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .annotations import object_names
from .labels import classes_of_tags, nfc, read_classes, read_name_lists, tag_indices
from .split import Record, Split
from .voc_lists import read_list

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


MASKS = ("SegmentationClass", "SegmentationClassAug")


def is_voc(root: Path) -> bool:
    return (root / "ImageSets" / "Segmentation").is_dir()


def open_voc(root: Path, name: str, *, require_tags: bool = True) -> Split:
    """Split `name` of a VOC tree.

    ::

        ImageSets/Segmentation/<split>.txt    image names, one a line, or as in `voc_lists`
        JPEGImages/<image>.jpg                or .jpeg, .png
        SegmentationClass/<image>.png         optional: masks with 0, 1..K and 255; else SegmentationClassAug/
        labels.json                           {"<image>": ["<tag>", ...], ...}
        classes.txt                           class names in the order of the mask values, one a line
        Annotations/<image>.xml               read where there is no labels.json: names of all objects

    Classes without a `classes.txt`: the tags of `labels.json`, sorted; with XML the 20 VOC classes. Difficult
    objects count. An empty list of tags means that nothing but background is there; an image without an entry
    is an error, unless `require_tags` is off (a test split without annotations): its tags are None then.
    """
    list_file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not list_file.is_file():
        there = ", ".join(sorted(path.stem for path in list_file.parent.glob("*.txt"))) or "none"
        raise DataError(f"{list_file}: no such split (splits there: {there})")
    images = _find_images(root / "JPEGImages")
    listed = read_list(list_file, images)
    classes, tags = _open_tags(root)
    records = []
    for image, own_mask in listed.items():
        found = tags(image)
        if found is None and require_tags:
            source = root / "labels.json"
            source = source if source.is_file() else root / "Annotations" / f"{image}.xml"
            raise DataError(f"{source}: no tags for image {image!r} of split {name!r}")
        masks = [own_mask.lstrip("/")] if own_mask else [f"{folder}/{image}.png" for folder in MASKS]
        mask = next((root / mask for mask in masks if (root / mask).is_file()), None)
        records.append(Record(image, images[image], found, mask))
    return Split(root, name, classes, tuple(records))


def _find_images(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for suffix in (".png", ".jpeg", ".jpg"):  # of two with one name the JPEG is VOC's
        found |= {nfc(path.stem): path for path in folder.iterdir() if path.suffix.lower() == suffix}
    return found


def _open_tags(root: Path):
    """(classes, function from an image name to its class indices or None)."""
    class_file, tag_file = root / "classes.txt", root / "labels.json"
    if tag_file.is_file():
        table = read_name_lists(tag_file)
        if class_file.is_file():
            classes = read_classes(class_file)
        else:
            classes = classes_of_tags((tag for tags in table.values() for tag in tags), tag_file)

        def from_json(image: str) -> tuple[int, ...] | None:
            return tag_indices(table[image], classes, tag_file, image) if image in table else None

        return classes, from_json

    classes = read_classes(class_file) if class_file.is_file() else VOC_CLASSES

    def from_xml(image: str) -> tuple[int, ...] | None:
        path = root / "Annotations" / f"{image}.xml"
        return tag_indices(object_names(path, image), classes, path, image) if path.is_file() else None

    return classes, from_xml
