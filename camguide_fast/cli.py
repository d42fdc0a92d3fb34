"""What the commands share: options, the device, and how they end: quietly, or with one line on stderr."""

import io
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import tyro

from .errors import UserError

Args = TypeVar("Args")


def run_cli(function: Callable[[], object]) -> None:
    """Call `function`; a UserError ends as `error: ...` on stderr with exit code 2, Ctrl-C with 130.

    Every other exception is a bug and keeps its traceback. Names with characters that the output cannot encode are
    printed with escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does by itself
    try:
        function()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def option(metavar: str, default: str = "required"):
    """How tyro shows an option whose default is found out later."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({default})")


def parse(kind: type[Args], command: str, default: Args | None = None) -> Args:
    """An instance of the dataclass `kind`, from the command line of `python -m camguide_fast.<command>`; what is not
    named there is from `default`."""
    single_flags = (tyro.conf.FlagCreatePairsOff,)  # --overlay without --no-overlay
    described: dict[str, Any] = dict(
        description=kind.__doc__, prog=f"python -m camguide_fast.{command}", config=single_flags
    )
    return tyro.cli(kind, **described) if default is None else tyro.cli(kind, default=default, **described)


def pick_device(name: str) -> torch.device:
    """The device of --device; UserError for CUDA that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA GPU, or PyTorch was installed without CUDA")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
