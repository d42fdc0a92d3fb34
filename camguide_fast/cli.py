"""How the commands of this package end: quietly, or with one line on stderr."""

import sys
from collections.abc import Callable

from .errors import UserError


def run_cli(function: Callable[[], object]) -> None:
    """Call `function`; a UserError ends as `error: ...` on stderr with exit code 2, Ctrl-C with 130.

    Every other exception is a bug and keeps its traceback.
    """
    try:
        function()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
