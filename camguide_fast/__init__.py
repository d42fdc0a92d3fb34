"""CamGuide: semantic segmentation learned from image tags, as fused ops under drop-in PyTorch functions."""

from pathlib import Path

__version__ = "0.1.0"
__all__ = ["layers", "losses", "ops"]

# In a source checkout kernels/ lies beside the package instead of in it: found there whether or not the package is
# installed as well.
_root = Path(__file__).resolve().parent.parent
if not (_root / "camguide_fast/kernels").is_dir() and (_root / "kernels/__init__.py").is_file():
    __path__.append(str(_root))

from . import layers, losses, ops  # noqa: E402  (after the line that finds kernels/)
