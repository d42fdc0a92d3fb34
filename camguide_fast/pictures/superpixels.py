"""What the random walk of stage 3 makes of one image, as a picture to judge it by."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from .. import ops
from ..config import Refinement
from ..data import read_image
from ..files import write_atomic
from ..method.targets import segment_count

_SHORT, _LONG = 480, 1600  # smaller images are enlarged, so that single superpixels can be seen
_GAP = 8  # pixels
_CAPTION = 20  # pixels
_LINE = (255, 220, 0)
_HEAT = (255, 40, 0)


def superpixel_picture(image: np.ndarray) -> Image.Image:
    """Four panels: the boundaries of the superpixels; the image's colours after the walk; a soft spot in the middle, as
    a class map may be; the same after the walk.

    Where the walk leaks over an edge that a person sees, so do the targets made with it. Superpixels and walk are
    those of `Refinement()`.

    Args:
        image: uint8 RGB [H, W, 3].
    """
    settings = Refinement()
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]  # [1, 3, H, W]
    segments, num = ops.slic(pixels, n_segments=segment_count(height, width, settings.segments), return_num=True)
    count = int(num)
    graph = ops.superpixel_graph(segments, pixels, settings.walk_sigma, settings.walk_squared, count)
    spot = _spot(height, width)
    maps = torch.cat([pixels / 255, spot[None, None]], 1)  # one graph for colours and spot
    walked = ops.superpixel_random_walk(maps, iterations=settings.walk_iterations, graph=graph)[0]
    colours = (walked[:3].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    scale = max(1, min(-(-_SHORT // min(height, width)), _LONG // max(height, width)))
    panels = {
        f"{count} superpixels": _outlined(_enlarged(image, scale), _enlarged(segments[0].numpy(), scale)),
        f"colours after {settings.walk_iterations} steps": _enlarged(colours, scale),
        "a spot": _heated(_enlarged(image, scale), _enlarged(spot.numpy(), scale)),
        f"the spot after {settings.walk_iterations} steps": _heated(
            _enlarged(image, scale), _enlarged((walked[3] / walked[3].max()).numpy(), scale)
        ),
    }
    return _sheet(panels)


def _spot(height: int, width: int) -> torch.Tensor:  # [H, W], 1 in the middle
    y, x = torch.arange(height)[:, None] - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    return torch.exp(-(y**2 + x**2) / (2 * (min(height, width) / 6) ** 2))


def _enlarged(pixels: np.ndarray, scale: int) -> np.ndarray:
    return pixels.repeat(scale, 0).repeat(scale, 1)


def _outlined(image: np.ndarray, segments: np.ndarray) -> np.ndarray:
    edge = np.zeros(segments.shape, bool)
    edge[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    edge[1:] |= segments[1:] != segments[:-1]
    return np.where(edge[..., None], np.array(_LINE, np.uint8), image)


def _heated(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Grey where the map is 0, red where it is 1."""
    grey = image.mean(2, keepdims=True) * 0.6 + 60
    mix = 0.8 * heat[..., None]
    return ((1 - mix) * grey + mix * np.array(_HEAT)).round().astype(np.uint8)


def _sheet(panels: dict[str, np.ndarray]) -> Image.Image:
    """Two by two, each under its caption."""
    height, width = next(iter(panels.values())).shape[:2]
    cell = (width + _GAP, height + _CAPTION + _GAP)
    sheet = Image.new("RGB", (2 * cell[0] + _GAP, 2 * cell[1] + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, panel) in enumerate(panels.items()):
        left, top = _GAP + i % 2 * cell[0], _GAP + i // 2 * cell[1]
        draw.text((left, top + 2), caption, fill="black")
        sheet.paste(Image.fromarray(panel), (left, top + _CAPTION))
    return sheet


def write_superpixels(image: Path, out: Path | None = None) -> Path:
    """Draws superpixels and random walk of an image file to `out`, by default <image's name>_superpixels.png in the
    current folder, and returns that path.

    Raises:
        UserError: an image that cannot be read, or a picture that cannot be written.
    """
    picture = superpixel_picture(read_image(image))
    path, buffer = out or Path(f"{image.stem}_superpixels.png"), io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomic(path, buffer.getbuffer())
    return path
