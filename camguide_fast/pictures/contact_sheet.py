"""The contact sheet of a report: photograph, truth and the mask of each stage side by side."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..data import (
    IGNORE,
    VOC_PALETTE,
    Record,
    Split,
    open_split,
    read_image,
    read_mask,
)
from ..errors import DataError, UserError
from .overlays import inline, jpeg, overlay

PICTURES = 8
WIDTH = 240  # pixels


def contact_sheet(root: Path, data: Path, order: Sequence[str] = ()) -> str:
    """HTML of up to 8 images, evenly spaced among those with a mask.

    Args:
        root: folder of masks, `<stage>/<split>/<name>.png`.
        data: the data set that the splits are of.
        order: stages in the order of the columns; others follow by name.

    Raises:
        UserError: no masks, no such data set, or masks that belong to none of its images.
    """
    stages = _stages(root, order)
    folder, split = _split_of_masks(root, stages, data)
    records = [r for r in split if any((root / stage / folder / f"{r.name}.png").is_file() for stage in stages)]
    if not records:
        raise UserError(f"{root}: no mask belongs to an image of split {split.name!r}")
    count = min(PICTURES, len(records))
    chosen = [records[(2 * i + 1) * len(records) // (2 * count)] for i in range(count)]
    columns = ["photograph", "truth", *stages] if any(r.mask for r in chosen) else ["photograph", *stages]
    body, seen = "", set()
    for record in chosen:
        masks = [root / stage / folder / f"{record.name}.png" for stage in stages]
        cells, labels = _row(record, [record.mask, *masks] if "truth" in columns else masks, len(split.classes))
        body += f"<tr>{cells}</tr>"
        seen |= labels
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    names = {k + 1: name for k, name in enumerate(split.classes)} | {IGNORE: "not scored"}
    legend = "".join(_legend(label, name) for label, name in names.items() if label in seen)
    return (
        f'<p class="soft">{count} of {len(records)} images of split {escape(split.name)}, evenly spaced</p>'
        f'<div class="card"><p class="legend">{legend}</p><table class="sheet"><tr>{head}</tr>{body}</table></div>'
    )


def _legend(label: int, name: str) -> str:
    colour = ", ".join(map(str, VOC_PALETTE[label]))
    return f'<span><i style="background: rgb({colour})"></i>{escape(name)}</span>'


def _row(record: Record, masks: Sequence[Path | None], num_classes: int) -> tuple[str, set[int]]:
    """Table cells of one image, and the labels in them."""
    try:
        photo = read_image(record.image)
    except DataError as error:
        return f'<td class="none" colspan="{len(masks) + 1}">{escape(str(error))}</td>', set()
    cells, seen = [_picture(photo, record.name)], set()
    for path in masks:
        if path is None or not path.is_file():
            cells.append("<td></td>")
            continue
        try:
            labels = read_mask(path, num_classes, photo.shape[:2])
        except DataError as error:
            cells.append(f'<td class="none">{escape(str(error))}</td>')
            continue
        seen |= set(np.unique(labels).tolist()) - {0}
        cells.append(_picture(overlay(photo, labels), ""))
    return "".join(cells), seen


def _picture(pixels: np.ndarray, title: str) -> str:
    return f'<td><img title="{escape(title)}" alt="{escape(title)}" src="{inline(jpeg(pixels, WIDTH), "jpeg")}"></td>'


def _stages(root: Path, order: Sequence[str]) -> list[str]:
    """Stages with masks: those of `order`, then the others."""
    there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not there:
        raise UserError(f"{root}: no masks yet")
    return [name for name in dict.fromkeys([*order, *there]) if name in there]


def _split_of_masks(root: Path, stages: Sequence[str], data: Path) -> tuple[str, Split]:
    """The folder of masks that most stages have, val if it is one of them, and the split that it belongs to."""
    counts: dict[str, int] = {}
    for stage in stages:
        for folder in sorted((root / stage).iterdir()):
            counts[folder.name] = counts.get(folder.name, 0) + folder.is_dir()
    if not counts:
        raise UserError(f"{root}: no masks yet")
    folder = max(counts, key=lambda name: (counts[name], name == "val"))
    base, _, count = folder.rpartition("_")
    try:
        return folder, open_split(data, folder, require_tags=False)
    except DataError:
        if not (base and count.isdecimal()):
            raise
        return folder, open_split(data, f"{base}:{count}", require_tags=False)  # train_200 holds masks of train:200
