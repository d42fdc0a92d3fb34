"""What lets a stage continue exactly where it stopped. Read with `weights_only=True`: loading executes no code."""

import io
from pathlib import Path

import torch

from ..errors import UserError
from ..files import write_atomic


def save_state(path: Path, state: dict) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getbuffer())


def load_state(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch's reader fail in a dozen ways, KeyError among them
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: training state cannot be read ({reason}); without the file --resume trains the stage anew"
        ) from error
