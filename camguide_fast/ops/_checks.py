"""Argument checks, each made once, in the public functions. A message names the argument, what came, and what was
expected."""

import math
import numbers

import torch
from torch import Tensor

from ._value_range import value_range

OVERSHOOT = 0.5  # of a float image beyond [0, 1]: bicubic resizing, which goes furthest, reaches 0.45

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def tensor(name: str, x: object, ndim: int, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """`x` is a tensor of `ndim` non-empty dimensions with one of `dtypes`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.ndim != ndim or 0 in x.shape:
        raise ValueError(f"{name} must have {ndim} non-empty dimensions, got shape {tuple(x.shape)}")
    if x.dtype not in dtypes:
        expected = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be one of {expected}, got {str(x.dtype).removeprefix('torch.')}")


def image(name: str, x: Tensor) -> None:
    """`x` is RGB [B, 3, H, W], uint8 or float."""
    tensor(name, x, 4, (torch.uint8, *FLOATS))
    if x.shape[1] != 3:
        raise ValueError(f"{name} must be RGB [B, 3, H, W], got shape {tuple(x.shape)}")


def shape(name: str, x: Tensor, expected: tuple[int, ...], why: str) -> None:
    """`x` has exactly the shape that `why` (another argument) asks for."""
    if tuple(x.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)} to match {why}, got {tuple(x.shape)}")


def label(name: str, x: object, batch: int, classes: int) -> None:
    """`x` is [B, K]: bool, int or float, > 0 means present."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if tuple(x.shape) != (batch, classes) or x.is_complex():
        raise ValueError(
            f"{name} must be real and have shape {(batch, classes)} [B, K], got {x.dtype} {tuple(x.shape)}"
        )


def valid(x: Tensor | None, batch: int, height: int, width: int) -> None:
    """`valid` is None or bool [B, 1, h, w]."""
    if x is None:
        return
    tensor("valid", x, 4, (torch.bool,))
    shape("valid", x, (batch, 1, height, width), "the maps [B, 1, h, w]")


def same_device(**tensors: Tensor | None) -> None:
    given = {name: x.device for name, x in tensors.items() if x is not None}
    if len(set(given.values())) > 1:
        raise ValueError("all tensors must be on one device, got " + ", ".join(f"{n} on {d}" for n, d in given.items()))


def integer(name: str, x: object, low: int, bits: int = 32) -> int:
    """`x` is an integer, NumPy's too, from `low` on that fits in so many bits; returned as Python's."""
    if not isinstance(x, int) and isinstance(x, numbers.Integral):
        x = int(x)
    if isinstance(x, bool) or not isinstance(x, int) or x < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {x!r}")
    if x >= 2 ** (bits - 1):
        raise ValueError(f"{name} must be less than 2^{bits - 1}, got {x}")
    return x


def number(name: str, x: object, low: float, *, strict: bool = False) -> float:
    """`x` is a finite real number, NumPy's too, from `low` on, or above it; returned as Python's."""
    if not isinstance(x, (int, float)) and isinstance(x, numbers.Real):
        x = float(x)
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not (x > low if strict else x >= low):
        raise ValueError(f"{name} must be a number {'>' if strict else '>='} {low:g}, got {x!r}")
    if x == math.inf:
        raise ValueError(f"{name} must be finite, got {x!r}")
    return x


def boolean(name: str, x: object) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"{name} must be True or False, got {x!r}")


def values(x: Tensor) -> bool:
    """Whether the values of `x` may be looked at: on CPU only (no host synchronisation), and not while torch.compile
    traces."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def finite(name: str, x: Tensor, least: float = -math.inf) -> None:
    """The values of `x` are finite and not below `least`, and the difference of any two is finite in the type that
    kernels compute with."""
    if values(x) and x.is_floating_point():
        low, high = value_range(x)
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"{name} holds NaN or infinite values")
        if low < least:
            raise ValueError(f"{name} must be >= {least:g}, got a minimum of {low:g}")
        if high - low > torch.finfo(torch.promote_types(x.dtype, torch.float32)).max:
            raise ValueError(f"{name} holds values too far apart, from {low:g} to {high:g}")


def image_values(name: str, x: Tensor) -> None:
    """The values of a float image are finite and in [0, 1], give or take what resizing overshoots by."""
    if values(x) and x.is_floating_point():
        low, high = value_range(x)
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"{name} holds NaN or infinite values")
        if low < -OVERSHOOT or high > 1 + OVERSHOOT:
            cause = "values of 0-255 belong into uint8, or divided by 255" if low >= 0 else "normalised for a network?"
            raise ValueError(f"{name} must be in [0, 1], or uint8; got values from {low:.4g} to {high:.4g} ({cause})")
