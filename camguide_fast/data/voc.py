"""Data sets in the layout of PASCAL VOC."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException, ElementTree

from ..errors import DataError
from .labels import check_classes, read_classes, read_name_lists, read_text, tag_indices
from .split import Record, Split

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def is_voc(root: Path) -> bool:
    return (root / "ImageSets" / "Segmentation").is_dir()


def open_voc(root: Path, name: str, *, require_tags: bool = True) -> Split:
    """Split `name` of a VOC tree.

    ::

        ImageSets/Segmentation/<split>.txt    image names, one a line, without suffix; they may hold spaces
        JPEGImages/<image>.jpg                or .jpeg, .png
        SegmentationClass/<image>.png         optional: masks with 0, 1..K and 255
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
    lines = read_text(list_file).split("\n")  # splitlines would also split at what names may hold
    names = [line if line in images else line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{list_file}: the split is empty")
    classes, tags = _open_tags(root)
    records: dict[str, Record] = {}
    for image in names:
        if Path(image).name != image or (len(image.split()) > 1 and image not in images):
            raise DataError(f"{list_file}: expected one image name a line, without folder or suffix, found {image!r}")
        if image in records:
            raise DataError(f"{list_file}: image {image!r} is listed twice")
        if image not in images:
            raise DataError(f"{list_file}: image {image!r} is not in {root / 'JPEGImages'}")
        mask = root / "SegmentationClass" / f"{image}.png"
        found = tags(image)
        if found is None and require_tags:
            source = root / "labels.json"
            source = source if source.is_file() else root / "Annotations" / f"{image}.xml"
            raise DataError(f"{source}: no tags for image {image!r} of split {name!r}")
        records[image] = Record(image, images[image], found, mask if mask.is_file() else None)
    return Split(root, name, classes, tuple(records.values()))


def _find_images(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for suffix in (".png", ".jpeg", ".jpg"):  # of two with one name the JPEG is VOC's
        found |= {path.stem: path for path in folder.iterdir() if path.suffix.lower() == suffix}
    return found


def _open_tags(root: Path):
    """(classes, function from an image name to its class indices or None)."""
    class_file, tag_file = root / "classes.txt", root / "labels.json"
    if tag_file.is_file():
        table = read_name_lists(tag_file)
        if class_file.is_file():
            classes = read_classes(class_file)
        else:
            classes = check_classes(sorted({tag for tags in table.values() for tag in tags}), tag_file)

        def from_json(image: str) -> tuple[int, ...] | None:
            return tag_indices(table[image], classes, tag_file, image) if image in table else None

        return classes, from_json

    classes = read_classes(class_file) if class_file.is_file() else VOC_CLASSES

    def from_xml(image: str) -> tuple[int, ...] | None:
        path = root / "Annotations" / f"{image}.xml"
        return tag_indices(_object_names(path), classes, path, image) if path.is_file() else None

    return classes, from_xml


def _object_names(path: Path) -> list[str]:
    try:
        tree = ElementTree.parse(path)
    except DefusedXmlException:
        raise DataError(f"{path}: declares XML entities, which are not expanded") from None
    except (ParseError, ValueError) as error:  # ValueError: an encoding Python does not know
        raise DataError(f"{path}: not valid XML ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    names = [(entry.findtext("name") or "").strip() for entry in tree.findall("object")]  # not the names of parts
    if "" in names:
        raise DataError(f"{path}: an object without a name")
    return names
