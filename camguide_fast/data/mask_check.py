"""Masks against tags, before anything is scored or fitted: a class that a mask shows must be a tag of its image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from ..errors import DataError
from .images import image_size, is_turned, read_image
from .mask_diagnosis import Seen, diagnose
from .mask_files import IGNORE, expected_labels, other_size, read_labels
from .split import Record, Split
from .threads import read_ahead, usable_cores

MASKS = 1000  # of a larger split so many are read, evenly spaced
EXAMPLES = 2
REPORTED = 0.1  # share of images with tags whose masks may show nothing: small objects that were left to the void


def compare_with_tags(split: Split, *, trust: bool = False, skip_bad: bool = False) -> list[str]:
    """Reads the split's masks once and says in lines what is strange about them, nothing if nothing is.

    Args:
        trust: say it too where the masks of most images contradict their tags, instead of raising.
        skip_bad: leave out masks that cannot be scored.

    Raises:
        DataError: a mask that cannot be scored (not readable, of another size than its image, a label that is no
            class); masks that contradict the tags of most images.
    """
    masked = tuple(record for record in split if record.mask)
    chosen = tuple(masked[i * len(masked) // MASKS] for i in range(MASKS)) if len(masked) > MASKS else masked
    seen: list[Seen] = []
    for result in read_ahead(lambda record: _see(record, len(split.classes)), chosen, min(usable_cores(), 8), 32):
        if isinstance(result, Seen):
            seen.append(result)
        elif not skip_bad:
            raise result
    allowed = {*range(len(split.classes) + 1), IGNORE}
    wrong = [image for image in seen if not image.values <= allowed]
    if wrong and not skip_bad:
        raise _not_labels(split, seen, wrong, allowed)
    report = _Report(split, [i for i in seen if i.record.tags is not None and i.values <= allowed])
    lines = [report.text()] if report.is_strange else []
    if report.is_most and not trust:
        raise DataError(f"{lines[0]}; --trust-masks goes on with them as they are")
    lines = [f"warning: {line}" for line in lines]
    if 0 < len(masked) < len(split.records):
        lines.insert(0, f"{split.name}: {len(masked)} of {len(split.records)} images have a mask; these are scored")
    if len(chosen) < len(masked):
        lines.insert(0, f"{split.name}: the masks of {len(chosen)} of {len(masked)} images were compared with the tags")
    return lines


def _see(record: Record, num_classes: int) -> Seen | DataError:
    assert record.mask is not None
    try:
        labels = read_labels(record.mask, num_classes)
        size = image_size(record.image)
        if labels.shape != size:
            size = read_image(record.image).shape[:2]
    except DataError as error:
        return error
    if labels.shape != size:
        turned = labels.shape == size[::-1] and is_turned(record.image)
        hint = ", which its EXIF orientation turns: turn the mask as well" if turned else ""
        return DataError(f"{record.mask}: {other_size(labels.shape, size)}{hint}")
    flat = labels.ravel()
    values = np.unique(np.append(flat[:1], flat[1:][flat[1:] != flat[:-1]]))  # each begins a run: 5 times as fast
    return Seen(record, frozenset(values.tolist()), frozenset(record.tags or ()))


def _not_labels(split: Split, seen: list[Seen], wrong: list[Seen], allowed: set[int]) -> DataError:
    label = min(wrong[0].values - allowed)
    looks = diagnose(split, [image for image in seen if image.record.tags is not None], wrong)
    many = f"; so {len(wrong)} of {len(seen)} masks of split {split.name!r}" if len(seen) > 1 else ""
    because = f": {looks}" if looks else ""
    return DataError(f"{wrong[0].record.mask}: {expected_labels(label, len(split.classes))}{many}{because}")


class _Report:
    """How the masks of a split fit the tags."""

    def __init__(self, split: Split, seen: list[Seen]):
        self.split = split
        self.telling = [image for image in seen if image.shown or image.tags]
        self.tagged = [image for image in self.telling if image.tags]
        self.untagged = [image for image in self.telling if image.shown - image.tags]  # contradictions
        self.nothing = [image for image in self.tagged if not image.shown]
        self.partly = [image for image in self.tagged if image.shown < image.tags and image.shown]
        if len(self.nothing) <= REPORTED * len(self.tagged):
            self.nothing = []
        against = {image.record.name for image in [*self.untagged, *self.nothing]}
        self.against = [image for image in self.telling if image.record.name in against]

    @property
    def is_strange(self) -> bool:
        return bool(self.against)

    @property
    def is_most(self) -> bool:
        return 2 * len(self.against) > len(self.telling)

    def text(self) -> str:
        names = self.split.classes
        counts = Counter(names[k] for image in self.untagged for k in image.shown - image.tags)
        counts += Counter(f"no {names[k]}" for image in self.nothing for k in image.tags)
        often = ", ".join(f"{name} {count}" for name, count in counts.most_common(3))
        root = self.split.root
        found = "; ".join(_example(image, self.split) for image in self.against[:EXAMPLES])
        weak = f"; in {len(self.partly)} more a tag has no pixel" if self.partly else ""
        looks = diagnose(self.split, self.telling, self.against) or (
            "no other reading of the masks explains it: are tags missing, or are the masks those of other images?"
        )
        return (
            f"{root}: in {len(self.against)} of {len(self.telling)} images of split {self.split.name!r} the mask "
            f"contradicts the tags (most often {often}; {found}){weak}; {looks}"
        )


def _example(image: Seen, split: Split) -> str:
    assert image.record.mask is not None
    path = image.record.mask
    path = path.relative_to(split.root) if path.is_relative_to(split.root) else path
    return f"{path} shows {_named(image.shown, split)}, tagged {_named(image.tags, split)}"


def _named(classes: Iterable[int], split: Split) -> str:
    return " and ".join(split.classes[k] for k in sorted(classes)) or "nothing"
