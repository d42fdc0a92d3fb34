"""CamGuide: semantic segmentation learned from image tags, as fused ops under drop-in PyTorch functions."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .rules import waiting

if TYPE_CHECKING:
    from . import compat, layers, losses, ops, reference

__version__ = "0.1.0"
__all__ = ["compat", "layers", "losses", "ops", "reference"]

# In a source checkout kernels/ lies beside the package instead of in it: found there whether or not the package is
# installed as well.
_root = Path(__file__).resolve().parent.parent
if not (_root / "camguide_fast/kernels").is_dir() and (_root / "kernels/__init__.py").is_file():
    __path__.append(str(_root))

waiting.choose()


def __getattr__(name: str):
    """Parts are imported when they are asked for: torch must not be loaded before a command has chosen how it waits."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
