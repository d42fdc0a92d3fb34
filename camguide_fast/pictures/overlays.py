"""Pictures for people: masks laid over their photograph, small JPEGs, and pictures inside an HTML page."""

import base64
import io

import numpy as np
from PIL import Image

from ..data import VOC_PALETTE


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """The photograph with its labels in the VOC palette; background stays as it is, ignored pixels turn pale.

    Args:
        image: uint8 RGB [H, W, 3].
        labels: uint8 [H, W].
    """
    mixed = (1 - opacity) * image + opacity * VOC_PALETTE[labels]
    return np.where((labels > 0)[..., None], mixed.round(), image).astype(np.uint8)


def jpeg(image: np.ndarray, width: int | None = None, quality: int = 88) -> bytes:
    """uint8 RGB [H, W, 3] as JPEG, shrunk to `width` pixels if it is wider."""
    picture = Image.fromarray(image)
    if width is not None and picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def inline(data: bytes, kind: str) -> str:
    """A picture as the address of an <img>; kind: jpeg, svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
