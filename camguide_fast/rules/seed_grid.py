"""Where the seeds of slic lie, as scikit-image has it, and what a small segment is."""

from typing import NamedTuple


class SeedGrid(NamedTuple):
    start: tuple[int, int]  # y, x of the first seed
    step: tuple[int, int]  # between seeds
    count: tuple[int, int]  # seeds along y, x
    reach: tuple[int, int]  # a centre claims pixels up to 2 * reach from its floor


def seed_grid(height: int, width: int, n_segments: int) -> SeedGrid:
    start, step = _regular_grid(height, width, n_segments)
    count = (len(range(start[0], height, step[0])), len(range(start[1], width, step[1])))
    # scikit-image derives the window from a second grid, made for the number of seeds that the first gave.
    _, reach = _regular_grid(height, width, count[0] * count[1])
    return SeedGrid(start, step, count, reach)


def minimum_size(height: int, width: int, grid: SeedGrid, min_size_factor: float) -> int:
    """Pixels that a component needs to stand; the mean is over the seeds placed, not over `n_segments`."""
    rows, columns = grid.count
    return int(min(min_size_factor * (height * width / (rows * columns)), height * width))


def _regular_grid(height: int, width: int, points: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """`skimage.util.regular_grid`: squares, or a line of seeds where a square exceeds the shorter side."""
    if height * width <= points:
        return (0, 0), (1, 1)
    y = x = (height * width / points) ** 0.5
    if y > min(height, width):
        along = max(height, width) / points
        y, x = (height, along) if height <= width else (along, width)
    return (int(y // 2), int(x // 2)), (round(y), round(x))
