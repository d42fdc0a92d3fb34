"""What bench/quality.py knows of the runs in its folder: which stage was made with what, and so what they can share.

A run's folder has, besides what training leaves, done.json: {stage: {"key": what it depends on, "minutes", "map"}}; a
stage without "minutes" was begun.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from camguide_fast.checkpoint import read_json, write_json
from camguide_fast.config import to_dict
from camguide_fast.pipeline import Args, needs
from camguide_fast.results import merge_rows, read_rows


def stage_keys(args: Args, stages: tuple[str, ...]) -> dict[str, str]:
    """For each stage a digest of everything that its result depends on."""
    config, keys = args.config, {}
    for stage in stages:
        network = to_dict(config.network)
        settings = config.walk if stage in ("walk", "final") else getattr(config, stage)
        own = {
            "settings": to_dict(settings),
            "network": network if stage == "stage3" else [network["student"], network["teacher"]],
            "data": [str(args.data), config.data.crop, config.data.long_side, args.split],
            "weights": str(args.weights),
            "seed": args.seed,
            "inference": to_dict(config.inference) | {"target_sample": 0},
            "before": [keys[needed] for needed in needs(stage, config)],
        }
        keys[stage] = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
    return keys


def read_done(folder: Path) -> dict:
    return _read(folder / "done.json")


def _read(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def is_done(folder: Path, stage: str, key: str) -> bool:
    entry = read_done(folder).get(stage, {})
    return entry.get("key") == key and "minutes" in entry


def note(folder: Path, stage: str, **values) -> None:
    done = read_done(folder)
    write_json(folder / "done.json", done | {stage: done.get(stage, {}) | values})


def drop_changed(folder: Path, keys: dict[str, str]) -> None:
    """Forgets the stages whose settings are no longer those that they were begun with."""
    done = read_done(folder)
    for stage in [s for s in done if s in keys and done[s]["key"] != keys[s]]:
        for path in (folder / "checkpoints").glob(f"{stage}.*"):
            path.unlink()
        for part in ("cams", "masks"):
            shutil.rmtree(folder / part / stage, ignore_errors=True)
        if stage == "affinity":
            shutil.rmtree(folder / "affinity", ignore_errors=True)
        rows = [row for row in read_rows(folder / "results.json") if row["stage"] != stage]
        write_json(folder / "results.json", rows)
        del done[stage]
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
    lines = [line for line in metrics(donor) if line["stage"] == stage]
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    note(folder, stage, **read_done(donor)[stage])


def metrics(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
