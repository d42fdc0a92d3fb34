"""The rows of a results.json, and the table they make.

A row: {"stage", "split", "labels": "given" | "predicted", "threshold_mode": "global" | "class-wise", "thresholds": t or
{class: t}, "fitted_on": the split on which these thresholds are best, "images": how many were scored, "miou", "iou":
{class: value}}. IoU and mIoU are percent. The mean is over background and classes; a class that is neither in the masks
nor predicted has the IoU null and does not enter it. Where masks are void everywhere the mIoU is null. Where fitted_on
is the scored split itself the row is flattered, a class-wise one more; the others are transferred. "default" is no
split: the threshold was fitted nowhere.
"""

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json

Row = dict[str, Any]
NOWHERE = "default"
_IDENTITY = ("stage", "split", "labels", "threshold_mode", "fitted_on")
_FIELDS = {*_IDENTITY, "thresholds", "images", "miou", "iou"}


def merge_rows(old: list[Row], new: list[Row]) -> list[Row]:
    """`old` with `new`: a row of the same stage, split, labels, mode and fitted_on is replaced in its place."""
    rows = {tuple(row[key] for key in _IDENTITY): row for row in old}
    rows.update({tuple(row[key] for key in _IDENTITY): row for row in new})
    return list(rows.values())


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.json, none if there is no such file; a UserError if it holds something else."""
    if not path.exists():
        return []
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _FIELDS <= set(row) for row in rows):
        raise UserError(f"{path}: not a list of results; expected the results.json of a run")
    return rows


def format_table(rows: list[Row], width: int = 110) -> str:
    """Plain text: a table for each split and kind of labels, by stage; columns of classes break at `width`."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["split"], row["labels"]), []).append(row)
    return "\n\n".join(_table(split, labels, group, width) for (split, labels), group in groups.items())


def describe_fit(row: Row) -> str:
    """Where the thresholds of a row are from, in words."""
    if row["fitted_on"] == NOWHERE:
        return "by default"
    return "fitted" if row["fitted_on"] == row["split"] else f"from {row['fitted_on']}"


def describe_mode(row: Row) -> str:
    """The threshold mode of a row, with the value if there is one for all."""
    return f"global {row['thresholds']:.2f}" if row["threshold_mode"] == "global" else "class-wise"


def _table(split: str, labels: str, rows: list[Row], width: int) -> str:
    rows = sorted(rows, key=lambda row: list(dict.fromkeys(r["stage"] for r in rows)).index(row["stage"]))
    head = [("stage", "threshold", "fit")] + [(r["stage"], describe_mode(r), describe_fit(r)) for r in rows]
    for i in range(len(rows), 1, -1):  # a stage is named once
        if head[i][0] == head[i - 1][0]:
            head[i] = ("", *head[i][1:])
    columns = [["mIoU"] + [_percent(row["miou"]) for row in rows]]
    for name in dict.fromkeys(name for row in rows for name in row["iou"]):
        values = [row["iou"].get(name) for row in rows]
        columns.append([name] + [_percent(value) for value in values])
    left = [list(column) for column in zip(*head, strict=True)]
    images = "/".join(str(n) for n in dict.fromkeys(row["images"] for row in rows))
    lines = [f"{split}, {images} images, {labels} labels: IoU in %"]
    while columns:
        block, used = [], sum(_width(column) for column in left)
        while columns and (not block or used + _width(columns[0]) <= width):
            used += _width(columns[0])
            block.append(columns.pop(0))
        lines += _lines(left, block) + ([""] if columns else [])
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _width(column: list[str]) -> int:
    return max(map(len, column)) + 2


def _lines(left: list[list[str]], right: list[list[str]]) -> list[str]:
    cells = [[cell.ljust(_width(c)) for cell in c] for c in left] + [
        [cell.rjust(_width(c)) for cell in c] for c in right
    ]
    lines = ["".join(line).rstrip() for line in zip(*cells, strict=True)]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
