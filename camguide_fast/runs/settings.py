"""What the folder of a run says about its checkpoints: scales, fitted thresholds, the stage whose CAMs it walks."""

from pathlib import Path
from typing import Any

import torch

from ..cams.multi_scale import SCALES
from ..cli import option
from ..config import Walk, from_dict, restore
from ..config.precision import Amp, enabled, is_fast, reason
from ..errors import UserError
from ..files import read_json

SCALES_OPTION = option("FLOAT [FLOAT ...]", "default: those of the checkpoint's run, else .5 1 1.5 2")


def run_folder(checkpoint: Path) -> Path:
    """runs/x of runs/x/checkpoints/stage3.safetensors."""
    return checkpoint.resolve().parent.parent


def run_scales(checkpoint: Path) -> tuple[float, ...]:
    """The scales of the run that a checkpoint belongs to; without a run those of the paper."""
    path, saved = _saved(checkpoint)
    try:
        return tuple(float(s) for s in saved["config"]["inference"]["scales"]) if saved else SCALES
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: names no scales under config.inference.scales; name them with --scales") from None


def run_flip(checkpoint: Path) -> bool:
    """Whether the run that a checkpoint belongs to looks at mirror images too; without a run, it does."""
    _, saved = _saved(checkpoint)
    try:
        return saved["config"]["inference"]["flip"] is not False
    except (KeyError, TypeError):
        return True


def run_amp(checkpoint: Path, stage: str, device: torch.device) -> bool:
    """Whether the run that a checkpoint belongs to has `stage` in mixed precision; without a run, whether it is faster.

    Where this machine would only emulate it, fp32 it is, said aloud: seven times slower for a tenth of a point.
    """
    _, saved = _saved(checkpoint)
    try:
        amp = restore(Amp, saved["config"][stage]["amp"])
    except (KeyError, TypeError):
        amp = "auto"
    wanted = enabled(amp, device)
    if wanted and not is_fast(device):
        print(f"fp32, although {stage} was trained in mixed precision: {reason(device)}")
    return wanted and is_fast(device)


def run_walk(checkpoint: Path) -> Walk:
    """The settings of walk and final of the run that a checkpoint belongs to; without a run the defaults."""
    path, saved = _saved(checkpoint)
    try:
        return from_dict(Walk, saved["config"]["walk"]) if saved else Walk()
    except (KeyError, TypeError):
        raise UserError(f"{path}: names no settings under config.walk; expected the config.json of a run") from None


def _saved(checkpoint: Path) -> tuple[Path, Any]:
    path = run_folder(checkpoint) / "config.json"
    return path, read_json(path) if path.is_file() else None


def fitted_thresholds(path: Path, stage: str, classes: tuple[str, ...]) -> tuple[float | tuple[float, ...], str]:
    """Thresholds of a stage in a thresholds.json, class-wise if it has them, and in words where they are from.

    The file: {stage: {"global": t, "class-wise": [t of each class], "fitted_on": split}}.
    """
    saved = read_json(path)
    entry = saved.get(stage) if isinstance(saved, dict) else None
    if not isinstance(entry, dict) or not {"global", "class-wise"} & set(entry):
        raise UserError(f"{path}: has no thresholds for {stage!r}; name one with --threshold")
    where = f"fitted on {entry.get('fitted_on', 'an unnamed split')}, from {path}"
    values = entry.get("class-wise")
    if values is None:
        return checked_threshold(entry["global"], path), f"{entry['global']}, {where}"
    if not isinstance(values, list) or len(values) != len(classes):
        raise UserError(f"{path}: class-wise thresholds of {stage!r} are not {len(classes)} numbers")
    return tuple(checked_threshold(value, path) for value in values), f"class-wise, {where}"


def walked_stage(checkpoint: Path) -> str:
    """The stage whose CAMs the run's own walk starts with."""
    path = run_folder(checkpoint) / "config.json"
    try:
        return read_json(path)["config"]["affinity"]["source"]
    except (UserError, KeyError, TypeError):
        return ""


def checked_threshold(value: object, source: object) -> float:
    """`value` as a threshold; `source` is the option or file that it is from."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{source}: a threshold is a number from 0 to 1, got {value!r}")
    return float(value)
