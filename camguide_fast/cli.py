"""How the commands of this package end: quietly, or with one line on stderr."""

import os
import sys
from collections.abc import Callable

from .errors import UserError


def run_cli(function: Callable[[], object]) -> None:
    """Call `function` and leave with exit code 2 and `error: ...` on a UserError, with 130 on Ctrl-C.

    A reader that closes the pipe early (`| head`) ends the program quietly. Every other exception is a bug and keeps its traceback.
    """
    try:
        function()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # What is still buffered has nowhere to go; without this the interpreter complains about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
