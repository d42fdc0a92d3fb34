"""Where the seeds of slic lie, what a small segment is: rules of camguide_fast/reference/slic.py, out of reach here."""

from typing import NamedTuple


class SeedGrid(NamedTuple):
    start: tuple[int, int]  # y, x of the first seed
    step: tuple[int, int]  # between seeds
    count: tuple[int, int]  # seeds along y, x
    reach: tuple[int, int]  # a centre claims pixels up to 2 * reach from its floor


def seed_grid(height: int, width: int, n_segments: int) -> SeedGrid:
    start, step = _regular_grid(height, width, n_segments)
    count = tuple(-(-(size - first) // by) for size, first, by in zip((height, width), start, step, strict=True))
    _, reach = _regular_grid(height, width, count[0] * count[1])
    return SeedGrid(start, step, count, reach)


def minimum_size(height: int, width: int, grid: SeedGrid, min_size_factor: float) -> int:
    return int(min(min_size_factor * (height * width / (grid.count[0] * grid.count[1])), height * width))


def _regular_grid(height: int, width: int, points: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Start and step of `points` squares, or of a line of them where a square exceeds the shorter side."""
    if height * width <= points:
        return (0, 0), (1, 1)
    y = x = (height * width / points) ** 0.5
    if y > min(height, width):
        along = max(height, width) / points
        y, x = (height, along) if height <= width else (along, width)
    return (int(y // 2), int(x // 2)), (round(y), round(x))
