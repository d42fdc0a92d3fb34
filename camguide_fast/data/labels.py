"""Reading of class lists and tag files; every fault is a DataError that names the file."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import DataError

SEPARATORS = (",", "|", "/", "\t", ";")
MAX_CLASSES = 254  # masks are uint8: 0 is the background, 255 is ignored


def nfc(text: str) -> str:
    """One form of what looks alike: macOS writes an accent as a character of its own."""
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, in NFC; a byte order mark, which spreadsheets like to write, is dropped."""
    try:
        return nfc(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one a line, without the background."""
    return check_classes([line.strip() for line in read_text(path).splitlines() if line.strip()], path)


def check_classes(names: Iterable[str], source: Path) -> tuple[str, ...]:
    """The names as a tuple, or a DataError naming `source`, the file they came from."""
    names = tuple(names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{source}: class {repeated[0]!r} is listed twice")
    if "background" in names:
        raise DataError(f"{source}: 'background' is not a tag; it is always class 0 and must not be listed")
    if not 1 <= len(names) <= MAX_CLASSES:
        raise DataError(f"{source}: {len(names)} classes, expected 1 to {MAX_CLASSES}")
    return names


def classes_of_tags(tags: Iterable[str], source: Path) -> tuple[str, ...]:
    """The classes that no file lists: the tags, sorted. What is rather several tags, or one written in two ways, is a
    DataError."""
    names = check_classes(sorted(set(tags)), source)
    alike: dict[str, str] = {}
    for name in names:
        for separator in SEPARATORS:
            if separator in name:
                raise DataError(
                    f"{source}: the tag {name!r} holds {separator!r}, which separates no tags here (in a CSV ';' does,"
                    " JSON has lists); if it is one class, list it in a classes.txt"
                )
        other = alike.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"{source}: the tags {other!r} and {name!r} differ in case alone; write them alike, or list both in a"
                " classes.txt"
            )
    return names


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; a key that comes twice is an error, where `json` would keep the last one silently."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: {repeated!r} is listed twice")
        return result

    try:
        content = json.loads(read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def read_name_lists(path: Path) -> dict[str, list[str]]:
    """A JSON object of lists of strings: tags by image, or images by split."""
    content = read_json(path)
    for key, value in content.items():
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise DataError(f"{path}: the value of {key!r} must be a list of strings, found {value!r:.60}")
    return {nfc(key): [nfc(item) for item in value] for key, value in content.items()}  # escapes hide the form


def tag_indices(tags: Iterable[str], classes: tuple[str, ...], source: Path, image: str) -> tuple[int, ...]:
    """Sorted class indices of the tags of one image; `source` is the file that holds the tags."""
    unknown = sorted(set(tags) - set(classes))
    if unknown:
        near = {name.casefold(): name for name in reversed(classes)}
        guess = get_close_matches(unknown[0].casefold(), near, 1)
        meant = f"; {near[guess[0]]!r} may be meant" if guess else ""
        raise DataError(
            f"{source}: image {image!r} has the tag {unknown[0]!r}, which is no class{meant}"
            f" (classes: {', '.join(classes)})"
        )
    return tuple(sorted({classes.index(tag) for tag in tags}))
