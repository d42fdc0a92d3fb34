"""Do the stages pay? Trains named variants of the pipeline and shows what each is worth.

    python bench/quality.py --data voc_animals --variants base crop-224 no-edge --seeds 0 1 2

A variant is a few changes to a preset (bench/_variants.py). What two runs have in common is trained once: a stage is
taken from any earlier run in which everything that it depends on was the same. Stopped anywhere, the same command goes
on. Each finished run adds a line to --results, and the tables of all lines stand beside it (.md). Masks are looked at
for the scores alone: thresholds are fitted on a sample of the training split and transferred.
"""

import json
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from _quality_runs import drop_changed, is_done, metrics, note, read_done, stage_keys, take_over
from _quality_table import markdown
from _variants import VARIANTS, changed

from camguide_fast.cams.multi_scale import scale_maps
from camguide_fast.cams.results import read_rows
from camguide_fast.cams.tags import mean_average_precision
from camguide_fast.cli import run_cli
from camguide_fast.config import to_dict
from camguide_fast.config.presets import PRESETS, WEIGHTS
from camguide_fast.data import open_split, read_image
from camguide_fast.errors import UserError
from camguide_fast.files import write_atomic, write_json
from camguide_fast.models import logits
from camguide_fast.models.checkpoint import load_model
from camguide_fast.runs.arguments import Args
from camguide_fast.runs.pipeline import Run
from camguide_fast.training.fit import Where

STAGES = ("baseline", "teacher", "stage1", "stage2", "stage3", "affinity", "walk", "final")
HAS_TAGS = STAGES[:5]


@dataclass(frozen=True)
class Study:
    """Which variants to run, on what."""

    data: Path
    """A data set whose images have tags and masks."""
    weights: Literal["imagenet"] | Path | None = None
    """Pretrained trunk, as in camguide_fast.train [that of the preset]."""
    variants: tuple[str, ...] = ("base",)
    seeds: tuple[int, ...] = (0,)
    until: Literal[STAGES] = "final"
    """The last stage to run."""
    preset: str = "small"
    fit_split: str = "train:200"
    """Where thresholds are fitted."""
    score_split: str = "val"
    out: Path = Path("runs/quality")
    """Folder of the runs, one for each preset, variant and seed."""
    results: Path = Path(__file__).parent / "results" / "quality.jsonl"
    """Gets a line for each finished run, in place of an earlier one of the same data, preset, variant and seed."""


def main(study: Study) -> None:
    for option, named, known in (("variants", study.variants, VARIANTS), ("preset", (study.preset,), PRESETS)):
        if unknown := sorted(set(named) - set(known)):
            raise UserError(f"--{option}: expected {' | '.join(known)}, got {' '.join(unknown)}")
        if not named:
            raise UserError(f"--{option}: expected some of {' | '.join(known)}, got none")
    if study.fit_split.split(":")[0] == study.score_split.split(":")[0]:
        raise UserError(f"--fit-split {study.fit_split}: must not be of the scored split, {study.score_split}")
    read_lines(study.results)  # if it cannot be read, better now than after hours
    for seed in study.seeds:
        for name in study.variants:
            line = one_run(study, name, seed)
            lines = [old for old in read_lines(study.results) if identity(old) != identity(line)] + [line]
            write_atomic(study.results, "".join(json.dumps(one) + "\n" for one in lines).encode())
            table = markdown(lines)
            write_atomic(study.results.with_suffix(".md"), f"{table}\n".encode())
            print(f"\n{table}\n", flush=True)


def read_lines(path: Path) -> list[dict]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        set(map(identity, lines))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--results {path}: expected the lines of an earlier study: {error!r}") from error
    return lines


def identity(line: dict) -> tuple:
    return tuple(line[name] for name in ("data", "preset", "variant", "seed"))


def one_run(study: Study, name: str, seed: int) -> dict:
    """Trains and scores what is not there yet; the line of the run."""
    config = changed(PRESETS[study.preset](), VARIANTS[name])
    inference = replace(config.inference, splits=(study.score_split,), fit_split=study.fit_split)
    config = replace(config, inference=inference)
    folder = study.out / f"{study.preset}-{name.replace('/', '_')}-s{seed}"
    weights = study.weights or WEIGHTS.get(study.preset)
    args = Args(data=study.data, out=folder, weights=weights, seed=seed, config=config, resume=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", to_dict(args))
    keys = stage_keys(args, STAGES)
    drop_changed(folder, keys)
    run = Run(args, Where(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    for stage in STAGES[: STAGES.index(study.until) + 1]:
        if is_done(folder, stage, keys[stage]):
            continue
        if donor := next((d for d in sorted(study.out.iterdir()) if is_done(d, stage, keys[stage])), None):
            take_over(donor, folder, stage)
            continue
        print(f"{folder.name}: {stage}", flush=True)
        note(folder, stage, **keys[stage]._asdict())
        spent, start = read_done(folder)[stage].get("minutes", 0), time.monotonic()
        try:
            run.stage(stage)
        finally:  # stopped, it goes on later
            note(folder, stage, minutes=round(spent + (time.monotonic() - start) / 60, 2))
        tags = {"map": tag_map(run, stage)} if stage in HAS_TAGS else {}
        note(folder, stage, done=True, **tags)
    return describe(folder, study, name, seed)


@torch.no_grad()
def tag_map(run: Run, stage: str) -> float:
    """mAP in percent of the tags of the scored split, from the class maps of one scale."""
    net, _ = load_model(run.checkpoint(stage), run.where.device)
    split = open_split(run.args.data, run.config.inference.splits[0])
    scores, label = torch.zeros(len(split), len(split.classes)), torch.zeros(len(split), len(split.classes))
    for i, record in enumerate(split):
        image = torch.from_numpy(read_image(record.image)).permute(2, 0, 1).to(run.where.device)
        scores[i] = logits(scale_maps(net.eval(), image, 0.75, flip=False, amp=True))[0]
        label[i, list(record.tags)] = 1
    return round(100 * mean_average_precision(scores, label), 2)


def describe(folder: Path, study: Study, name: str, seed: int) -> dict:
    """The line of a run: of each stage that is done, be it by an earlier call that went further."""
    done = {stage: entry for stage, entry in read_done(folder).items() if "done" in entry}
    kept = ("stage", "threshold_mode", "fitted_on", "miou")
    said = metrics(folder) if "stage3" in done else []
    epochs = [line for line in said if line["stage"] == "stage3" and line.get("event") == "epoch"]
    return {
        "data": study.data.resolve().name,
        "preset": study.preset,
        "variant": name,
        "seed": seed,
        "changes": VARIANTS[name],
        "commit": _commit(),
        "torch": torch.__version__,
        "scored": study.score_split,
        "rows": [{key: row[key] for key in kept} for row in read_rows(folder / "results.json") if row["stage"] in done],
        "map": {stage: entry["map"] for stage, entry in done.items() if "map" in entry},
        "targets": [{key: round(line[key], 2) for key in line if key.startswith("miou_")} for line in epochs],
        "minutes": {stage: entry["minutes"] for stage, entry in done.items()},
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    study = tyro.cli(Study, description=__doc__)
    run_cli(lambda: main(study))
