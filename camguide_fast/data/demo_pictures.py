"""The pictures of the demo set: small animals on textured ground.

The animals are made to show a classifier too little through image tags alone. What tells the classes apart is
above all the head, a small part in a colour and pattern of its own; bodies, most of an animal's area, come in
colours and textures that all classes share, so a classifier has little reason to look at them. Yet a body is
coherent and parted from the ground by a colour edge: superpixels, a CRF and edge alignment have something to
work with.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

CLASSES = ("beetle", "bird", "fish", "mouse", "turtle")
_FINE = 2  # pictures are drawn this many times larger and averaged down

# RGB. Heads are the classes' own; bodies and grounds are shared.
_HEADS = {
    "beetle": ((214, 48, 44), (40, 16, 18)),
    "bird": ((44, 98, 214), (232, 236, 246)),
    "fish": ((246, 142, 30), (255, 242, 222)),
    "mouse": ((214, 92, 178), (250, 206, 232)),
    "turtle": ((88, 190, 56), (22, 92, 40)),
}
_BODIES = ((238, 226, 196), (58, 56, 72), (120, 52, 50), (240, 240, 236), (66, 70, 112), (206, 176, 196))
_GROUNDS = (
    ((132, 124, 84), (106, 98, 66)),  # dry grass
    ((98, 120, 92), (74, 98, 78)),  # moss
    ((176, 152, 116), (150, 126, 94)),  # sand
    ((136, 132, 128), (112, 110, 110)),  # stone
    ((104, 136, 142), (82, 116, 126)),  # wet slate
    ((134, 106, 84), (108, 84, 66)),  # soil
)
_PETALS = ((240, 214, 84), (244, 240, 230), (226, 206, 160))


def demo_picture(seed: int, split: str, index: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """One picture: (uint8 RGB [H, W, 3], mask uint8 [H, W] with 0 and 1..5 in the order of `CLASSES`)."""
    rng = np.random.default_rng([seed, ("train", "val").index(split), index])
    height, width = rng.integers(size - size // 8, size + size // 8, 2, endpoint=True)
    canvas, light = _ground(rng, int(height) * _FINE, int(width) * _FINE)
    labels = np.zeros(canvas.shape[:2], np.uint8)
    ground = canvas.mean((0, 1))
    _clutter(rng, canvas, ground)
    # The first animal goes round the classes, so that every class is equally common however small the set.
    for number, (centre, scale) in enumerate(_places(rng, *canvas.shape[:2])):
        label = index % len(CLASSES) if number == 0 else int(rng.integers(len(CLASSES)))
        _animal(rng, canvas, labels, CLASSES[label], label + 1, centre, scale, ground)
    canvas *= light[..., None]
    parts = [canvas[y::_FINE, x::_FINE] for y in range(_FINE) for x in range(_FINE)]
    image = sum(parts[1:], parts[0]) / _FINE**2
    image += 2.5 * rng.standard_normal(image.shape, np.float32)  # sensor noise
    # Of the fine pixels of a pixel the one beside its centre says what it is.
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), labels[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE].copy()


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth noise float32 [height, width], about -1..1, with blobs of about `cell` pixels."""
    coarse = rng.uniform(-1, 1, (height // cell + 3, width // cell + 3)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _ground(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(ground float32 [height, width, 3], light float32 [height, width]: a gradient across the picture)."""
    light_colour, dark_colour = np.array(_GROUNDS[rng.integers(len(_GROUNDS))], np.float32)
    mix = 0.5 + 0.42 * _noise(rng, height, width, 44) + 0.3 * _noise(rng, height, width, 9)
    canvas = dark_colour + (light_colour - dark_colour) * mix[..., None]
    canvas += 7 * _noise(rng, height, width, 3)[..., None]
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 1 + rng.uniform(0.05, 0.2) * (np.cos(angle) * x + np.sin(angle) * y)
    return canvas.astype(np.float32), light.astype(np.float32)


def _clutter(rng: np.random.Generator, canvas: np.ndarray, ground: np.ndarray) -> None:
    """Pebbles, blades and flowers: things with edges that are of no class."""
    height, width = canvas.shape[:2]
    for _ in range(rng.integers(3, 9)):  # pebbles, in the ground's own colour, lighter or darker
        centre = rng.integers(width), rng.integers(height)
        axes = rng.integers(4, 13, 2)
        turn, shade = np.radians(rng.uniform(0, 180)), rng.uniform(0.72, 1.28)
        _paint_ellipse(canvas, (centre[0] + 1, centre[1] + 3), axes, turn, ground * 0.6)
        _paint_ellipse(canvas, centre, axes, turn, ground * shade)
    for _ in range(rng.integers(4, 14)):  # blades
        start = rng.uniform(0, 1, 2) * (width, height)
        end = start + rng.uniform(-14, 14, 2) + (0, -16)
        _paint_line(canvas, start, end, ground * rng.uniform(0.65, 1.3))
    for _ in range(rng.integers(0, 4)):  # flowers
        centre, radius = rng.uniform(0, 1, 2) * (width, height), rng.uniform(4, 7)
        colour = _PETALS[rng.integers(len(_PETALS))]
        for angle in np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 1):
            petal = centre + radius * np.array([np.cos(angle), np.sin(angle)])
            _paint_ellipse(canvas, petal, (0.5 * radius, 0.5 * radius), 0, colour)
        _paint_ellipse(canvas, centre, (0.48 * radius, 0.48 * radius), 0, (150, 96, 40))


def _paint_ellipse(canvas: np.ndarray, centre, axes, turn: float, colour) -> None:
    """A filled ellipse at (x, y) with half axes in pixels, turned by radians; its edge is smoothed."""
    reach = max(axes) + 2
    patch, x, y = _around(canvas, np.subtract(centre, reach), np.add(centre, reach))
    x, y = x - centre[0], y - centre[1]
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    inside = (1 - np.hypot(u / axes[0], v / axes[1])) * min(axes)  # about the pixels to the edge
    _blend(patch, inside, colour)


def _paint_line(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, colour) -> None:
    """A line two pixels wide with round ends at (x, y); its edge is smoothed."""
    patch, x, y = _around(canvas, np.minimum(start, end) - 3, np.maximum(start, end) + 3)
    (dx, dy), x, y = end - start, x - start[0], y - start[1]
    along = np.clip((x * dx + y * dy) / (dx**2 + dy**2), 0, 1)
    _blend(patch, 1 - np.hypot(x - along * dx, y - along * dy), colour)


def _around(canvas: np.ndarray, low, high) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(what of the canvas lies between two corners (x, y), its x [1, W], its y [H, 1])."""
    (x0, y0), (x1, y1) = np.maximum(low, 0).astype(int), np.maximum(high, 0).astype(int)
    patch = canvas[y0:y1, x0:x1]
    return patch, x0 + np.arange(patch.shape[1])[None], y0 + np.arange(patch.shape[0])[:, None]


def _blend(patch: np.ndarray, inside: np.ndarray, colour) -> None:
    """Colour where `inside` [H, W], in pixels from the edge, is positive, and part of it half a pixel around 0."""
    patch += np.clip(inside + 0.5, 0, 1)[..., None] * (colour - patch)


def _places(rng: np.random.Generator, height: int, width: int) -> list[tuple[np.ndarray, float]]:
    """1 to 3 places (centre as (x, y), half length of the animal) that barely overlap."""
    wanted = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    low, high = {1: (0.27, 0.38), 2: (0.21, 0.29), 3: (0.18, 0.23)}[wanted]
    places: list[tuple[np.ndarray, float]] = []
    for _ in range(60):
        scale = float(rng.uniform(low, high) * min(height, width))
        centre = np.array([rng.uniform(scale, width - scale), rng.uniform(scale, height - scale)])
        if all(np.linalg.norm(centre - other) > 0.95 * (scale + radius) for other, radius in places):
            places.append((centre, scale))
        if len(places) == wanted:
            break
    return places


def _ellipse(u: np.ndarray, v: np.ndarray, cu: float, cv: float, a: float, b: float) -> np.ndarray:
    return ((u - cu) / a) ** 2 + ((v - cv) / b) ** 2 <= 1


def _below(v: np.ndarray, height: np.ndarray | float) -> np.ndarray:
    return np.abs(v) < height


def _shape(name: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[float, float]]]:
    """(body, head, eyes) of an animal of half length 1 that looks along +u; +v is its left or its back."""
    if name == "fish":
        trunk = _ellipse(u, v, 0.1, 0, 0.82, 0.48)
        tail = (u > -1.1) & (u < 0) & _below(v, 0.08 + 0.8 * np.clip(-0.5 - u, 0, None))
        fins = _ellipse(u, v, -0.02, 0.44, 0.34, 0.2) | _ellipse(u, v, 0.05, -0.46, 0.2, 0.14)
        return trunk | tail | fins, trunk & (u > 0.45 - 0.5 * v**2), [(0.64, 0.14)]
    if name == "turtle":
        shell = _ellipse(u, v, -0.12, 0, 0.74, 0.62)
        legs = [_ellipse(u, v, cu, cv, 0.25, 0.2) for cu in (-0.55, 0.33) for cv in (-0.56, 0.56)]
        return (
            np.logical_or.reduce([shell, *legs]),
            _ellipse(u, v, 0.76, 0, 0.33, 0.28),
            [(0.9, -0.13), (0.9, 0.13)],
        )
    if name == "beetle":
        wings = _ellipse(u, v, -0.2, 0, 0.8, 0.56)
        legs = [(np.abs(u - cu + 0.25 * np.abs(v)) < 0.07) & _below(v, 0.78) for cu in (-0.35, 0.1, 0.5)]
        head = _ellipse(u, v, 0.55, 0, 0.42, 0.44) & ~_ellipse(u, v, -0.2, 0, 0.74, 0.8)
        return np.logical_or.reduce([wings, *legs]), head, [(0.84, -0.17), (0.84, 0.17)]
    if name == "bird":
        trunk = _ellipse(u, v, -0.1, -0.08, 0.68, 0.44)
        tail = (u > -1.15) & (u < -0.4) & _below(v - 0.1, 0.17)
        beak = (u > 0.7) & _below(v - 0.28, 0.4 * (1.12 - u))
        return trunk | tail, _ellipse(u, v, 0.55, 0.3, 0.32, 0.31) | beak, [(0.64, 0.38)]
    trunk = _ellipse(u, v, -0.1, -0.02, 0.68, 0.47)  # mouse
    tail = (u > -1.2) & (u < -0.6) & _below(v + 0.1 - 0.16 * np.sin(6 * u), 0.09)
    ears = _ellipse(u, v, 0.42, 0.36, 0.2, 0.21) | _ellipse(u, v, 0.74, 0.36, 0.17, 0.18)
    return trunk | tail, _ellipse(u, v, 0.62, 0.03, 0.38, 0.3) | ears, [(0.74, 0.1)]


def _body_colour(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """One of the shared colours that stands out from the ground, slightly varied."""
    far = [colour for colour in np.array(_BODIES, np.float32) if np.linalg.norm(colour - ground) > 75]
    return far[rng.integers(len(far))] + rng.normal(0, 6, 3).astype(np.float32)


def _body_texture(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness factor of plain, striped, spotted or scaled skin: faint enough not to break the body up."""
    kind = rng.integers(4)
    if kind == 0:
        return np.ones_like(u)
    if kind == 1:
        return 1 + 0.08 * np.sin(14 * u + 2 * v)
    if kind == 2:
        return 1 - 0.16 * (np.sin(11 * u) * np.sin(11 * v) > 0.45)
    return 1 + 0.09 * np.abs(np.sin(9 * (u + v))) * np.abs(np.sin(9 * (u - v)))


def _head_pattern(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the head has its second colour."""
    if name == "fish":  # bars
        return np.sin(26 * u) > 0.35
    if name == "turtle":  # chequers
        return np.sin(17 * u) * np.sin(17 * v) > 0.25
    if name == "beetle":  # dots
        return np.sin(19 * u) * np.sin(19 * v + 1.57) > 0.5
    if name == "bird":  # mask over the cheek
        return np.sin(16 * v) > 0.5
    ears = _ellipse(u, v, 0.42, 0.36, 0.11, 0.12) | _ellipse(u, v, 0.74, 0.36, 0.09, 0.1)  # mouse, and its nose
    return ears | _ellipse(u, v, 0.97, 0.02, 0.09, 0.09)


def _animal(
    rng: np.random.Generator,
    canvas: np.ndarray,
    labels: np.ndarray,
    name: str,
    label: int,
    centre: np.ndarray,
    scale: float,
    ground: np.ndarray,
) -> None:
    """Draw one animal into canvas [H, W, 3] and labels [H, W]."""
    # Seen from above an animal lies at any angle, seen from the side it stands, more or less.
    turn = float(rng.uniform(0, 2 * np.pi) if name in ("beetle", "fish", "turtle") else rng.uniform(-0.45, 0.45))
    side = float(rng.choice([-1.0, 1.0]))
    reach = 1.25 * scale
    (x0, y0), (x1, y1) = np.maximum(centre - reach, 0).astype(int), (centre + reach).astype(int) + 1
    patch, marks = canvas[y0:y1, x0:x1], labels[y0:y1, x0:x1]
    height, width = marks.shape
    y, x = np.mgrid[y0 : y0 + height, x0 : x0 + width].astype(np.float32)
    x, y = side * (x - float(centre[0])) / scale, (y - float(centre[1])) / scale
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    u, v = cos * x + sin * y, sin * x - cos * y  # v points up where turn is 0

    body, head, eyes = _shape(name, u, v)
    whole = body | head
    shift = max(1, round(0.07 * scale))
    shadow = Image.fromarray(np.roll(whole, (shift, shift), (0, 1)).astype(np.uint8) * 255)
    patch *= 1 - 0.35 / 255 * np.asarray(shadow.filter(ImageFilter.GaussianBlur(0.05 * scale)), np.float32)[..., None]

    colour = _body_colour(rng, ground)
    relief = 1.06 - 0.22 * np.clip(u**2 * 0.5 + v**2, 0, 1)  # rounded: darker towards the rim
    fill = colour * (relief * _body_texture(rng, u, v))[..., None]
    first, second = np.array(_HEADS[name], np.float32) + rng.normal(0, 8, (2, 3)).astype(np.float32)
    head_fill = np.where(_head_pattern(name, u, v)[..., None], second, first)
    if name == "bird":
        yellow = np.array((250, 190, 40), np.float32)
        head_fill = np.where(((u > 0.8) & _below(v - 0.28, 0.16))[..., None], yellow, head_fill)
    fill = np.where(head[..., None], head_fill * (1.05 - 0.1 * v[..., None] ** 2), fill)
    for cu, cv in eyes:
        fill[_ellipse(u, v, cu, cv, 0.085, 0.085)] = 250
        fill[_ellipse(u, v, cu + 0.02, cv, 0.05, 0.05)] = 15
    patch[whole] = fill[whole]
    marks[whole] = label
