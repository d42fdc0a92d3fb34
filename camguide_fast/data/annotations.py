"""Which objects an XML file says are in a picture: VOC's format, what tools make of it, and CVAT's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, ElementTree

from ..errors import DataError
from .labels import nfc

SHAPES = (
    "box",
    "polygon",
    "polyline",
    "points",
    "mask",
    "ellipse",
    "cuboid",
    "skeleton",
    "tag",
)  # CVAT's


def object_names(path: Path, image: str) -> list[str]:
    """Names of all objects in the file, of the picture `image` (its name without suffix) where it tells of several.

    `<annotation>` with an `<object>` for each object and its `<name>`, namespaces and wrappers around them or not; or
    CVAT's `<annotations>`, in which an `<image>` holds labelled shapes.
    """
    root = _root(path)
    kind = _local(root)
    pictures = [e for e in root if _local(e) == "image"] if kind == "annotations" else []
    if pictures:
        own = [e for e in pictures if nfc(Path(e.get("name", "")).stem) == image]
        if len(own) != 1:
            raise DataError(f"{path}: {len(own) or 'no'} <image> of its {len(pictures)} is named {image!r}")
        return [_known(shape.get("label"), path) for shape in own[0] if _local(shape) in SHAPES]
    objects = [e for e in root.iter() if _local(e) == "object"]  # the parts of one are no objects
    if not objects and not any(_local(e) == "annotation" for e in root.iter()):
        raise DataError(
            f"{path}: its root is <{kind}>, expected VOC's <annotation> or CVAT's <annotations> with images"
        )
    return [_known(next(_texts(e, "name"), None), path) for e in objects]


def _root(path: Path) -> Element:
    try:
        return ElementTree.parse(path).getroot()  # pyright: ignore[reportReturnType] there is one, or it has raised
    except DefusedXmlException:
        raise DataError(f"{path}: declares XML entities, which are not expanded") from None
    except (ParseError, ValueError) as error:  # ValueError: an encoding Python does not know
        raise DataError(f"{path}: not valid XML ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _local(element: Element) -> str:
    """The element's name without its namespace; comments have none."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _texts(element: Element, name: str) -> Iterator[str | None]:
    return (child.text for child in element if _local(child) == name)


def _known(name: str | None, path: Path) -> str:
    name = (name or "").strip()
    if not name:
        raise DataError(f"{path}: an object without a name")
    return nfc(name)
