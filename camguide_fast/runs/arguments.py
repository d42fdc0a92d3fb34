"""What a run is started with, and what of it a resumed one may change."""

import argparse
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from ..config import Config, Stage, from_dict, to_dict
from ..config.checks import check_settings
from ..config.presets import PRESETS, WEIGHTS
from ..errors import UserError
from ..files import read_json
from ..models.pip_weights import imagenet, installed

StageName = Literal["baseline", "teacher", "1", "2", "3", "affinity", "walk", "final"]
NAMES = {name: f"stage{name}" if name.isdecimal() else name for name in get_args(StageName)}


@dataclass(frozen=True)
class Args:
    """What to train, on what, and where to."""

    data: Path | None = None
    """Tagged images: a VOC tree, or a folder with tags.csv / tags.json. Without it the demo set is generated."""
    out: Path | None = None
    """The run's folder [runs/<name of the data>]."""
    preset: Literal["default", "paper", "small", "demo", "demo-scratch"] | None = None
    """Where all settings below start from [with --data default; without it demo, or demo-scratch where no ImageNet
    weights are installed]."""
    stages: tuple[StageName, ...] = get_args(StageName)
    """Which stages to run; earlier ones must be in the run's folder."""
    split: str = "train"
    """The split that is trained on."""
    weights: Literal["imagenet"] | Path | None = None
    """Pretrained trunk of the student and the baseline: "imagenet", for what the extra `weights` has installed, or a
    file: torchvision/timm .pth, .safetensors, or a folder of folded .npy."""
    teacher_weights: Literal["imagenet"] | Path | None = None
    """Pretrained trunk of the teacher [--weights if that is "imagenet" or both have the same architecture]."""
    seed: int = 0
    resume: bool = False
    """Continue the run in --out with the settings it was started with."""
    skip_bad: bool = False
    """Leave broken images out, counted and reported, instead of stopping."""
    trust_masks: bool = False
    """Go on, with a warning, where the masks of most images contradict their tags."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = 100
    """Iterations between two saved states, besides the end of each epoch."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def folder_of(out: Path | None, data: Path | None) -> Path:
    """The run's folder."""
    return out or Path("runs") / (data.resolve().name if data else "demo")


def holds_a_run(out: Path) -> bool:
    """A start that failed before anything was trained leaves its settings alone, and does not count."""
    left = ("checkpoints", "results.json", "metrics.jsonl")
    return (out / "config.json").exists() and any((out / name).exists() for name in left)


def parse(argv: list[str], description: str | None = None) -> Args:
    """The arguments of `python -m camguide_fast.train`; the preset, or the run that is resumed, gives the defaults of
    everything else.

    Raises UserError for a setting that cannot work, and for one that a resumed run may not change.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--data", type=Path)
    early.add_argument("--out", type=Path)
    early.add_argument("--resume", action="store_true")
    known, _ = early.parse_known_args(argv)
    preset = known.preset if known.preset in PRESETS else "default" if known.data else _demo_preset()
    default = Args(preset=preset, config=PRESETS[preset](), weights=WEIGHTS.get(preset))
    out = folder_of(known.out, known.data)
    resumed = known.resume and holds_a_run(out)
    # A start that failed gives its settings to a bare --resume; a whole command is taken at its word.
    if resumed or (known.resume and (out / "config.json").exists() and not (known.data or known.preset)):
        default = replace(from_dict(Args, read_json(out / "config.json")), out=out)
    args = _resolved(
        tyro.cli(Args, args=argv, default=default, description=description, prog="python -m camguide_fast.train")
    )
    if resumed:
        args = replace(args, config=with_amp_of(default.config, args.config))
        _check_same(_resolved(default), args, out / "config.json")
    check_settings(args.config)
    for name, low in (("seed", 0), ("save_every", 1)):
        if getattr(args, name) < low:
            raise UserError(f"--{name.replace('_', '-')}: expected at least {low}, got {getattr(args, name)}")
    return args


def trunk_path(args: Args, *, teacher: bool) -> Path | None:
    """The file of pretrained weights of the student or the teacher."""
    network, own = args.config.network, args.teacher_weights if teacher else args.weights
    option, arch = ("--teacher-weights", network.teacher) if teacher else ("--weights", network.student)
    if teacher and own is None and (args.weights == "imagenet" or network.teacher == network.student):
        own = args.weights
    return imagenet(arch, option) if own == "imagenet" else own


def _demo_preset() -> Literal["demo", "demo-scratch"]:
    """What a bare command runs: the demo from ImageNet weights where they are installed, else a smaller one."""
    config = PRESETS["demo"]()
    return "demo" if all(map(installed, (config.network.student, config.network.teacher))) else "demo-scratch"


def _resolved(args: Args) -> Args:
    """With whole paths to what is read: a run may be looked at, and resumed, from another folder."""
    named = {name: getattr(args, name) for name in ("data", "weights", "teacher_weights")}
    return replace(args, **{name: path.resolve() for name, path in named.items() if isinstance(path, Path)})


def _check_same(saved: Args, args: Args, path: Path) -> None:
    """A resumed run may change where and how it runs, never what it computes; `same_data` sees to what lies in the data
    set's folder, which may have moved."""
    free = ("resume", "data", "out", "device", "save_every", "stages", "skip_bad", "trust_masks", "config.data.workers")
    before, now = ({k: v for k, v in _flat(to_dict(a)).items() if k not in free} for a in (saved, args))
    changed = [f"{key} (was {before[key]}, now {now[key]})" for key in before if before[key] != now[key]]
    if changed:
        raise UserError(f"{path}: --resume continues with the settings of the run; changed: {', '.join(changed)}")


def with_amp_of(saved: Config, config: Config) -> Config:
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
