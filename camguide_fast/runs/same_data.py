"""A run goes on over the images and tags that it was started with, wherever they lie by now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..data import Split
from ..errors import UserError
from ..files import read_json, write_json

NAMED = 3  # images of each kind that a message names


def check_same_data(path: Path, splits: Iterable[Split]) -> None:
    """Writes to `path` which images and tags the splits hold; where that is there already, a UserError tells what
    differs."""
    now = {split.name: _content(split) for split in splits}
    before = read_json(path) if path.exists() else {}
    for name, content in now.items():
        if name in before and before[name] != content:
            raise UserError(
                f"{path}: split {name!r} is not what the run was started with: {_difference(before[name], content)};"
                " give it back, or start in another folder with --out"
            )
    if now.keys() - before.keys():
        write_json(path, before | now)


def _content(split: Split) -> dict:
    tags = {record.name: None if record.tags is None else list(record.tags) for record in split}
    return {"classes": list(split.classes), "tags": tags}


def _difference(before: dict, now: dict) -> str:
    if before["classes"] != now["classes"]:
        return f"the classes were {', '.join(before['classes'])}, now {', '.join(now['classes'])}"
    old, new = before["tags"], now["tags"]
    kinds = {
        "missing": [name for name in old if name not in new],
        "new": [name for name in new if name not in old],
        "with other tags": [name for name in old if name in new and old[name] != new[name]],
    }
    told = []
    for kind, names in kinds.items():
        more = ", ..." if len(names) > NAMED else ""
        told += [f"{len(names)} images {kind} ({', '.join(names[:NAMED])}{more})"] if names else []
    return "; ".join(told)
