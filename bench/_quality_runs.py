"""What bench/quality.py knows of the runs in its folder: which stage was made with what, and so what they can share.

A run's folder has, besides what training leaves, done.json: {stage: {"key": what the stage depends on, "scoring": what
its scores do, "minutes": spent on it so far, "map", "done"}}; a stage without "done" was begun.
"""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from camguide_fast.cams.results import merge_rows, read_rows
from camguide_fast.config import to_dict
from camguide_fast.files import read_json, write_atomic, write_json
from camguide_fast.runs.arguments import Args
from camguide_fast.runs.pipeline import needs


class Key(NamedTuple):
    """Digests of everything that a stage depends on, and its scores beyond that."""

    key: str
    scoring: str


def stage_keys(args: Args, stages: tuple[str, ...]) -> dict[str, Key]:
    """By stage: training is the same for equal keys; scores are, if `scoring` is equal too."""
    config, keys = args.config, {}
    inference = replace(config.inference, target_sample=0)
    for stage in stages:
        network = to_dict(config.network)
        after_cams = stage in ("affinity", "walk", "final")
        settings = config.walk if stage in ("walk", "final") else getattr(config, stage)
        own = {
            "settings": to_dict(settings),
            "network": network if stage == "stage3" else [network["student"], network["teacher"]],
            "data": [str(args.data), config.data.crop, config.data.long_side, args.split],
            "weights": str(args.weights),
            "seed": args.seed,
            "cams": [inference.scales, inference.flip] if after_cams else [],
            "before": [keys[needed].key for needed in needs(stage, config)],
        }
        key = _digest(own)
        keys[stage] = Key(key, _digest([key, to_dict(inference)]))
    return keys


def _digest(tree: object) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def read_done(folder: Path) -> dict:
    return _read(folder / "done.json")


def _read(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def is_done(folder: Path, stage: str, key: Key) -> bool:
    entry = read_done(folder).get(stage, {})
    return "done" in entry and (entry["key"], entry["scoring"]) == key


def note(folder: Path, stage: str, **values) -> None:
    done = read_done(folder)
    write_json(folder / "done.json", done | {stage: done.get(stage, {}) | values})


def drop_changed(folder: Path, keys: dict[str, Key]) -> None:
    """Forgets, and says so, what was made with other settings: a stage, or its scores alone."""
    done = read_done(folder)
    for stage in [s for s in done if s in keys]:
        key, scoring = keys[stage]
        if done[stage]["key"] != key:
            print(f"{folder.name}: {stage} was made with other settings and is dropped", flush=True)
            for path in (folder / "checkpoints").glob(f"{stage}.*"):
                path.unlink()
            if stage == "affinity":
                shutil.rmtree(folder / "affinity", ignore_errors=True)
            del done[stage]
        elif done[stage]["scoring"] != scoring:
            print(f"{folder.name}: {stage} was scored with other settings and is scored again", flush=True)
            done[stage].pop("done", None)
        else:
            continue
        for part in ("cams", "masks"):
            shutil.rmtree(folder / part / stage, ignore_errors=True)
        rows = [row for row in read_rows(folder / "results.json") if row["stage"] != stage]
        write_json(folder / "results.json", rows)
    write_json(folder / "done.json", done)


def take_over(donor: Path, folder: Path, stage: str) -> None:
    """What `stage` left in another run's folder; files are linked, not copied."""
    for part in (f"checkpoints/{stage}.safetensors", f"cams/{stage}", f"masks/{stage}"):
        source, target = donor / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, copy_function=os.link, dirs_exist_ok=True)
        elif source.exists():
            target.parent.mkdir(exist_ok=True)
            target.unlink(missing_ok=True)
            os.link(source, target)
    mine = [row for row in read_rows(donor / "results.json") if row["stage"] == stage]
    write_json(folder / "results.json", merge_rows(read_rows(folder / "results.json"), mine))
    theirs, ours = (_read(run / "thresholds.json") for run in (donor, folder))
    write_json(folder / "thresholds.json", ours | {name: t for name, t in theirs.items() if name == stage})
    lines = [line for line in metrics(folder) if line["stage"] != stage]  # what an earlier call began is not of it
    lines += [line for line in metrics(donor) if line["stage"] == stage]
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    note(folder, stage, **read_done(donor)[stage])


def metrics(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
