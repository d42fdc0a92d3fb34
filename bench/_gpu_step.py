"""One step of gpu.py: what it is told, and how it runs in a process of its own."""

import json
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

START = "import _gpu_step; _gpu_step.main()"
"""Followed by MODULE.FUNCTION, RESULT and CONTEXT: what that process runs."""


@dataclass(frozen=True)
class Context:
    device: str
    """ "cuda", or "cpu" where no GPU was found."""
    seconds: float
    """After which it is stopped."""
    argument: str = ""
    data: str | None = None

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"


def main() -> None:
    """The file RESULT holds at any time what the step has told so far."""
    name, file, context = sys.argv[1:]
    module, _, function = name.rpartition(".")
    result: dict = {}
    fresh = Path(f"{file}.new")
    for found in getattr(import_module(module), function)(Context(**json.loads(context))):
        result |= found
        fresh.write_text(json.dumps(result))
        os.replace(fresh, file)
