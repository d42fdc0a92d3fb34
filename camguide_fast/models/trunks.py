"""All trunks by name."""

from ..errors import UserError
from .efficientnet_lite import EFFICIENTNETS_LITE, EfficientNetLite
from .resnet import RESNETS, ResNet

Trunk = ResNet | EfficientNetLite
TRUNKS = (*RESNETS, *EFFICIENTNETS_LITE)
STRIDE = 16
"""Pixels a cell of the last map, for all of them."""


def build_trunk(arch: str) -> Trunk:
    """The trunk named `arch` (one of `TRUNKS`), freshly initialised: Kaiming normal, fan out."""
    if arch in RESNETS:
        return ResNet(*RESNETS[arch])
    if arch in EFFICIENTNETS_LITE:
        return EfficientNetLite(*EFFICIENTNETS_LITE[arch])
    raise UserError(f"arch: {arch!r} is not one of {', '.join(TRUNKS)}")
