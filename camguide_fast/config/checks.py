"""Settings that cannot work are refused before hours are spent on those that can."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from ..errors import UserError

Rule = tuple[Callable[[Any], bool], str]
"""(what must hold, in words)"""


def _at_least(low: float) -> Rule:
    return lambda x: x >= low, f"at least {low:g}"


def _within(low: float, high: float) -> Rule:
    return lambda x: low <= x < high, f"at least {low:g} and less than {high:g}"


_ABOVE_0: Rule = (lambda x: x > 0, "a number above 0")
_SHARE: Rule = (lambda x: 0 <= x <= 1, "a number from 0 to 1")
_PROBABILITY: Rule = (lambda x: 0 < x < 1, "a number between 0 and 1")
_TERM: Rule = (lambda x: min(x[:-1]) > 0 and x[-1] >= 0, "sigmas above 0 and a compatibility of at least 0")
_RANGE: Rule = (lambda x: 1 <= x[0] <= x[1], "two numbers of pixels, the smaller first")
_SCALES: Rule = (lambda x: len(x) > 0 and all(0 < s <= 8 for s in x), "one or more numbers above 0, at most 8")

_RULES: dict[str, Rule] = {
    **dict.fromkeys(("epochs", "batch_size", "crf_every", "segments", "width", "radius", "patience"), _at_least(1)),
    **dict.fromkeys(("crf_iterations", "walk_iterations", "iterations", "target_sample"), _at_least(0)),
    **dict.fromkeys(("weight_decay", "beta", "puzzle_alpha", "power"), _at_least(0)),
    **dict.fromkeys(("lambda_cls", "lambda_reg", "lambda_crf", "lambda_edge", "lambda_rw", "lambda_loc"), _at_least(0)),
    **dict.fromkeys(("lr", "new_scale", "bias_scale", "walk_sigma", "smooth", "factor"), _ABOVE_0),
    **dict.fromkeys(("low", "high", "threshold", "foreground", "background"), _SHARE),
    **dict.fromkeys(("average", "dropout", "momentum"), _within(0, 1)),
    **dict.fromkeys(("gt_prob", "crf_gt_prob"), _PROBABILITY),
    **dict.fromkeys(("gaussian", "bilateral", "crf_gaussian", "crf_bilateral"), _TERM),
    "workers": (lambda x: x == "auto" or x >= 0, '"auto" or at least 0'),
    "crop": _at_least(32),
    "window": (lambda x: x >= 1 and x % 2 == 1, "an odd number of cells"),
    "closing": (lambda x: x >= 0, "0, or a kernel in pixels"),
    "eps": _at_least(1e-6),
    "log2_steps": _within(0, 31),
    "long_side": _RANGE,
    **dict.fromkeys(("scales", "teacher_scales"), _SCALES),
}


def check_settings(settings: Any, name: str = "") -> None:
    """A UserError for the first setting of a dataclass that is out of its range, named as its option is."""
    for field in fields(settings):
        value, own = getattr(settings, field.name), f"{name}.{field.name}" if name else field.name
        if is_dataclass(value):
            check_settings(value, own)
        elif field.name in _RULES and value is not None:
            right, wanted = _RULES[field.name]
            if not right(value):
                raise UserError(f"--{own.replace('_', '-')}: expected {wanted}, got {value}")
    if hasattr(settings, "low") and settings.low > settings.high:
        raise UserError(f"--{name}.low: expected at most --{name}.high ({settings.high}), got {settings.low}")
