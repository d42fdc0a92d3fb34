"""What masks that do not fit the tags look like: the classes in another order, other values for them, 255 for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt

from .mask_files import IGNORE, VOC_PALETTE, palette_of
from .split import Record, Split
from .voc import VOC_CLASSES

EXPLAINED = 0.9  # share of the images that a reading must fit
SHOWN = 6  # classes that are named
SAMPLE = 20  # masks whose palettes are compared


@dataclass(frozen=True)
class Seen:
    """One image: the values in its mask, and its tags, class indices."""

    record: Record
    values: frozenset[int]
    tags: frozenset[int]

    @property
    def shown(self) -> frozenset[int]:
        """Classes in the mask, read as masks are."""
        return frozenset(value - 1 for value in self.values if value not in (0, IGNORE))


@dataclass(frozen=True)
class _Reading:
    """Another meaning of the values in the masks, and how to say it."""

    says: str
    classes: Mapping[int, int]  # value -> class index
    empty: frozenset[int] = frozenset((0, IGNORE))
    """Values that show no class; any that is neither here nor there speaks against the reading."""

    def fits(self, image: Seen) -> bool:
        shown = {self.classes[value] for value in image.values if value in self.classes}
        known = image.values <= self.empty | set(self.classes)
        return known and shown <= image.tags and bool(shown or not image.tags)


def diagnose(split: Split, images: list[Seen], against: list[Seen]) -> str:
    """What the masks look like and what is to be done about it, "" if nothing explains them.

    Args:
        images: all that are compared.
        against: those that do not fit.
    """
    if not against:
        return ""
    values = [image.values for image in against]
    binary = frozenset((0, IGNORE))
    for where, says in (
        (lambda v: v == {0}, "they show nothing but background (0)"),
        (lambda v: v == {IGNORE}, f"they are void ({IGNORE}) everywhere"),
        (lambda v: v <= binary, f"{IGNORE}, which is void, seems to stand for the object; write {_labels(split)}"),
        (lambda v: len(v) > len(split.classes) + 20, "such masks were resized with interpolation or saved as JPEG"),
    ):
        if sum(map(where, values)) >= EXPLAINED * len(values):
            return says
    for reading in _readings(split, images):
        if all(sum(map(reading.fits, group)) >= EXPLAINED * len(group) for group in (images, against)):
            return reading.says
    palettes = {palette for image in against[:SAMPLE] if (palette := palette_of(image.record.mask))}
    if len(palettes) > 1:
        return "their palettes differ, so that an encoder seems to have changed the indices; write them as grey PNG"
    return ""


def _readings(split: Split, images: list[Seen]) -> Iterator[_Reading]:
    names, count = split.classes, len(split.classes)
    alphabetical = sorted(names)
    if alphabetical != list(names):
        yield _order(split, "in alphabetical order", {i + 1: names.index(n) for i, n in enumerate(alphabetical)})
    if set(names) < set(VOC_CLASSES):
        numbers = {VOC_CLASSES.index(name) + 1: k for k, name in enumerate(names)}
        others = frozenset(range(len(VOC_CLASSES) + 1)) - set(numbers)
        says = f"they have VOC's own numbers ({_numbered(split, numbers)}); write {_labels(split)}"
        yield _Reading(says, numbers, others | {IGNORE})
    says = "they seem to count the classes from 0, without a background; add 1, and write 0 where no class is"
    yield _Reading(says, {k: k for k in range(count)}, frozenset((count, IGNORE)))
    says = "they seem to count the classes from 2; subtract 1"
    yield _Reading(says, {k + 2: k for k in range(count)}, frozenset((0, 1, IGNORE)))
    greys = (VOC_PALETTE @ (0.299, 0.587, 0.114)).round().astype(int).tolist()
    says = "they seem to hold the grey of VOC's colours; export them as palette or RGB images, not as grey ones"
    yield _Reading(says, {greys[k + 1]: k for k in range(count)}, frozenset((0, greys[IGNORE], IGNORE)))
    for ignored in ((0, IGNORE), (0,)):
        learned = _matched(images, ignored)
        if set(learned) <= set(range(1, count + 1)):
            yield _order(split, "in another order", learned)
        else:
            yield _Reading(
                f"{_numbered(split, learned)}, it seems; write {_labels(split)}", learned, frozenset(ignored)
            )


def _matched(images: list[Seen], ignored: tuple[int, ...]) -> dict[int, int]:
    """To each value the class whose tag comes and goes with it."""
    values = Counter(value for image in images for value in image.values)
    tags = Counter(tag for image in images for tag in image.tags)
    together = Counter((value, tag) for image in images for value in image.values for tag in image.tags)
    alike = sorted(together, key=lambda pair: (-together[pair] / sqrt(values[pair[0]] * tags[pair[1]]), pair))
    matched: dict[int, int] = {}
    for value, tag in alike:
        if value not in ignored and value not in matched and tag not in matched.values():
            matched[value] = tag
    return dict(sorted(matched.items()))


def _order(split: Split, how: str, classes: dict[int, int]) -> _Reading:
    moved = {label: k for label, k in classes.items() if k != label - 1}
    here = {label: label - 1 for label in moved}
    source = "classes.txt has" if (split.root / "classes.txt").is_file() else "the tags, sorted, are"
    says = (
        f"they seem to number the classes {how} ({_numbered(split, moved)}), where {source} "
        f"{_numbered(split, here)}; name the classes in the order of the masks in classes.txt, or renumber the masks"
    )
    return _Reading(says, classes)


def _labels(split: Split) -> str:
    return _numbered(split, {k + 1: k for k in range(len(split.classes))})


def _numbered(split: Split, classes: Mapping[int, int]) -> str:
    """ "1 cat, 2 dog"."""
    listed = [f"{value} {split.classes[k]}" for value, k in classes.items()]
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
