"""The variants that bench/quality.py knows: each a few changes to a preset."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from camguide_fast.config import Config

Changes = Mapping[str, Any]
"""{dotted name of a setting: its value}."""

CROP_224: Changes = {"stage3.crop": None, "stage3.long_side": None, "stage3.batch_size": 16}
"""Stage 3 with the crops of the other stages: half as many iterations, and targets half as fine."""
CLOSING: Changes = CROP_224 | {"stage3.closing": 15}
SGD: Changes = CLOSING | {
    "network.dropout": 0.5,
    "stage3.epochs": 3,
    "stage3.optimizer.name": "sgd",
    "stage3.optimizer.lr": 1e-3,
    "stage3.optimizer.new_scale": 10.0,
}
"""Stage 3 as table III has it, at a rate for 180 iterations."""
SLOW: Changes = SGD | {"stage3.optimizer.lr": 3e-4, "stage3.optimizer.new_scale": 300.0}
"""The trunk at a third of that rate, the head at nine times it."""

ONE_FACTOR: dict[str, Changes] = {
    # the paper's table V
    "no-local": {"stage3.lambda_loc": 0.0},
    # optimisation of stage 3
    "epochs-8": {"stage3.epochs": 8},
    "batchnorm-train": {"stage3.batchnorm": "train"},
    # views of stage 3: scale of the images, and with it the resolution of the targets
    "crop-384-native": {"stage3.crop": 384, "stage3.long_side": (400, 640), "stage3.batch_size": 8},
    # stochastic threshold of the targets
    "tau-literal": {"stage3.low": 0.05},
    "tau-.10": {"stage3.low": 0.10},
    "tau-.20-.40": {"stage3.low": 0.20, "stage3.high": 0.40},
    # form of the target loss
    "balanced": {"stage3.balance": True},
    "smooth-literal": {"stage3.smooth": 1e-5},
    # which losses
    "no-edge": {"stage3.lambda_edge": 0.0},
    "no-walk": {"stage3.lambda_rw": 0.0},
    "no-crf": {"stage3.lambda_crf": 0.0},
    # head
    "dropout": {"network.dropout": 0.5},
    "width-64": {"network.width": 64},
    "parity-head": {"network.head": "parity", "network.width": 512},
    # stages 1 and 2
    "without-stage-2": {"stage3.start": "stage1"},
    "without-stages-1-2": {"stage3.start": "baseline"},
    "raw-l1": {"stage1.reg": "raw", "stage2.reg": "raw"},
    "mask-high": {"stage1.low": 0.2, "stage1.high": 0.6, "stage2.low": 0.2, "stage2.high": 0.6},
    "tags-.65": {"stage1.lambda_cls": 0.65, "stage1.lambda_reg": 0.35},
    # teacher
    "teacher-puzzle": {"teacher.method": "puzzle"},
    "teacher-320": {"teacher.crop": 320, "teacher.long_side": (320, 560)},
}
"""From `crop-224`, which trains in half the time of `base`."""

VARIANTS: dict[str, Changes] = {
    "base": {},
    "crop-224": CROP_224,
    "closing": CLOSING,
    "closing-no-local": CLOSING | {"stage3.lambda_loc": 0.0},
    "sgd": SGD,
    "sgd-head-rate-x10": SGD | {"stage3.optimizer.new_scale": 100.0},
    "sgd-slow-trunk": SLOW,
    "sgd-slow-trunk-no-dropout": SLOW | {"network.dropout": 0.0},
    "sgd-slow-trunk-no-dropout-crop-384": SLOW
    | {
        "network.dropout": 0.0,
        "stage3.crop": 384,
        "stage3.long_side": (400, 640),
        "stage3.batch_size": 8,
        "stage3.epochs": 2,
    },
    "sgd-crf-every-step-tags-.1": SGD | {"stage3.crf_every": 1, "stage3.lambda_cls": 0.1},
    "trunk-rate-/2.5-epochs-3": CLOSING
    | {
        "stage3.epochs": 3,
        "stage3.optimizer.lr": 2e-5,
        "stage3.optimizer.new_scale": 50.0,
    },
    "rate-x2-closing": CLOSING | {"stage3.optimizer.lr": 1e-4},
    **{name: CROP_224 | changes for name, changes in ONE_FACTOR.items()},
}


def changed(config: Config, changes: Changes) -> Config:
    """`config` with the changes; a KeyError names a setting that does not exist."""
    for name, value in changes.items():
        config = _set(config, name.split("."), value, name)
    return config


def _set(part: Any, path: list[str], value: Any, name: str) -> Any:
    first, *rest = path
    if not is_dataclass(part) or first not in {field.name for field in fields(part)}:
        raise KeyError(f"{name}: there is no such setting")
    return replace(part, **{first: _set(getattr(part, first), rest, value, name) if rest else value})
