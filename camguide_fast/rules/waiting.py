"""How torch's threads wait for one another; to be chosen before torch, and OpenMP with it, is loaded.

PyTorch's wheels leave it to GNU's OpenMP, whose threads spin for milliseconds. Beside other work on
the same cores that keeps a core from the thread that is waited for. Spinning 10,000 times
(less than a millisecond) and sleeping then makes a training step 1.1 to 1.4 times faster beside a busy process, and 4 %
slower to 4 % faster where it is quiet. Sleeping at once costs 9 to 64 % there.
"""

import os
import sys

SPINS = "10000"
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables with which users choose themselves."""


def is_command(argv: list[str], orig_argv: list[str]) -> bool:
    """Whether Python is about to run a module of the package, as in `python -m camguide_fast.train`, from `sys.argv`
    and `sys.orig_argv` while the package is imported."""
    return argv[:1] == ["-m"] and any(x.removeprefix("-m").startswith("camguide_fast.") for x in orig_argv)


def wait_briefly() -> None:
    """Bounds the spinning, of this process and of those that it starts, unless the user has chosen."""
    if not any(name in os.environ for name in CHOICES):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def choose() -> None:
    """For a command alone: who imports the package as a library finds the environment as it was."""
    if is_command(sys.argv, sys.orig_argv):
        wait_briefly()
