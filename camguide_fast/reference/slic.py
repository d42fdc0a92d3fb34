"""Twin of ops/slic.py: Achanta et al. (2012) as scikit-image's `slic` runs it, then connectivity by
minimum index.

Every backend gives these labels bit for bit: pixel colours are integers (2^-16 Lab), sums of a centre are
integers, a distance is five fp32 squares added in the order written in `_nearest`, and a tie goes to the
lower index.
"""

import math

import torch
from torch import Tensor

from ..rules.seed_grid import SeedGrid, minimum_size, seed_grid
from ._common import widen
from ._lab import lab

# Steps per Lab unit. |L|, |a|, |b| < 128, so fp32 holds a colour exactly and int32 the sum of 256 pixels.
COLOUR_SCALE = 65536
_CACHED = 2**16  # pixels that are assigned together


def slic(
    image: Tensor, n_segments: int, compactness: float, iterations: int, min_size_factor: float
) -> tuple[Tensor, Tensor]:  # [B, 3, H, W] -> int32 [B, H, W], [B]
    height, width = image.shape[2:]
    grid = seed_grid(height, width, n_segments)
    weight = (max(grid.step) / (compactness * COLOUR_SCALE)) ** 2  # of colour, with positions in pixels
    segments = [_cluster(colour, grid, weight, iterations) for colour in quantised_lab(image)]
    if min_size_factor > 0:
        smallest = minimum_size(height, width, grid, min_size_factor)
        segments = [_merge_small(_components(s), smallest) for s in segments]
    labels = torch.stack(segments).to(torch.int32)
    num = labels.amax((1, 2)) + 1 if min_size_factor > 0 else labels.new_full((len(image),), math.prod(grid.count))
    return labels, num


def quantised_lab(image: Tensor) -> Tensor:  # [B, 3, H, W], fp32 holding integers
    x = widen(image)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(low))
    return (lab(((x - low) / span).to(torch.float32)) * COLOUR_SCALE).round()


def _cluster(colour: Tensor, grid: SeedGrid, weight: float, iterations: int) -> Tensor:  # [3, H, W] -> [H, W]
    _, height, width = colour.shape
    y, x = _axis(height, colour), _axis(width, colour)
    position = torch.stack([y[:, None].expand(height, width), x[None].expand(height, width)])
    features = torch.cat([position, colour.to(torch.int64)]).flatten(1)  # [5, HW]: y, x, L, a, b
    seeds = torch.cartesian_prod(*(_axis(n, colour) for n in grid.count)).view(-1, 2)
    seeds = seeds * seeds.new_tensor(grid.step) + seeds.new_tensor(grid.start)
    total = torch.nn.functional.pad(seeds, (0, 3))  # [n, 5]: seeds have no colour
    size = torch.ones_like(total[:, 0])
    tiles = _tile(colour, grid.reach)
    label = torch.zeros(tiles.shape[1:], dtype=torch.int64, device=colour.device)
    for i in range(iterations):
        # Without a colour in the seeds all candidates are equally far in colour: the first pass is spatial.
        label = _assign(tiles, label, total, size, grid.reach, weight if i else 0.0)
        segments = _untile(label, height, width)
        flat = segments.flatten()
        size = torch.bincount(flat, minlength=len(total))
        total = torch.zeros_like(total).T.contiguous().index_add_(1, flat, features).T
    return segments


def _assign(
    tiles: Tensor,
    label: Tensor,
    total: Tensor,
    size: Tensor,
    reach: tuple[int, int],
    weight: float,
) -> Tensor:
    """Nearest centre of each pixel, [ty, tx, h, w]; a pixel that no window reaches keeps its label."""
    ty, tx, h, w = label.shape
    candidates = _candidates(total, size, (ty, tx), reach)  # [S, ty, tx], ascending along S
    n = size.clamp(min=1)
    # One row more than centres: the filler of short lists, out of everybody's reach.
    filler = torch.full_like(total[:1, :2], -(4 * max(reach) + 4))
    floor = torch.cat([total[:, :2] // n[:, None], filler])
    mean = (total.to(torch.float64) / n[:, None].to(torch.float64)).to(torch.float32)
    mean = torch.cat([mean, torch.zeros_like(mean[:1])])
    at_y, at_x = _axis(ty * h, label).view(ty, 1, h, 1), _axis(tx * w, label).view(1, tx, 1, w)
    k = candidates[:, :, :, None, None]
    dy = _squared_in_window(at_y, floor[:, 0][k], mean[:, 0][k], 2 * reach[0])  # [S, ty, tx, h, 1]
    dx = _squared_in_window(at_x, floor[:, 1][k], mean[:, 1][k], 2 * reach[1])  # [S, ty, tx, 1, w]
    centre = mean[:, 2:].T[:, k]  # [3, S, ty, tx, 1, 1]
    band = max(_CACHED // (tx * h * w), 1)
    bands = [*(t.split(band, 1) for t in (tiles, k, dy, dx)), centre.split(band, 2), label.split(band)]
    return torch.cat([_nearest(*one, weight=weight) for one in zip(*bands, strict=True)])


def _nearest(colour: Tensor, k: Tensor, dy: Tensor, dx: Tensor, centre: Tensor, label: Tensor, weight: float) -> Tensor:
    """One band of `_assign`: candidates k in turn, the first of the nearest wins."""
    best = torch.full(label.shape, torch.inf, device=label.device)
    square, distance = torch.empty_like(best), torch.empty_like(best)
    for i in range(len(k)):
        torch.sub(colour[0], centre[0, i], out=distance).mul_(distance)
        for channel in (1, 2):
            torch.sub(colour[channel], centre[channel, i], out=square).mul_(square)
            distance.add_(square)
        # (dy^2 + dx^2) + weight * ((dL^2 + da^2) + db^2)
        distance.mul_(weight).add_(torch.add(dy[i], dx[i], out=square))
        label = torch.where(distance < best, k[i], label)
        best = torch.minimum(best, distance)
    return label


def _squared_in_window(at: Tensor, floor: Tensor, mean: Tensor, reach: int) -> Tensor:
    d = at.to(torch.float32) - mean
    return torch.where((at - floor).abs() <= reach, d * d, torch.inf)


def _candidates(total: Tensor, size: Tensor, tiles: tuple[int, int], reach: tuple[int, int]) -> Tensor:
    """[S, ty, tx]: the centres in the 5 x 5 tiles around each, one reach wide; ascending, then filled."""
    none = len(size)
    ty, tx = tiles
    alive = size.nonzero().squeeze(1)
    at = total[alive, :2] // size[alive, None] // total.new_tensor(reach)
    tile, order = torch.sort(at[:, 0] * tx + at[:, 1], stable=True)
    inhabitants = torch.bincount(tile, minlength=ty * tx)
    rank = _axis(len(tile), tile) - (inhabitants.cumsum(0) - inhabitants)[tile]
    table = total.new_full((ty + 4, tx + 4, int(inhabitants.max())), none)
    table[tile // tx + 2, tile % tx + 2, rank] = alive[order]
    around = table.unfold(0, 5, 1).unfold(1, 5, 1).reshape(ty, tx, -1).sort(-1).values
    return around[:, :, : int((around < none).sum(-1).max())].permute(2, 0, 1)


def _tile(colour: Tensor, size: tuple[int, int]) -> Tensor:  # [3, H, W] -> [3, ty, tx, h, w]
    bottom, right = (-n % by for n, by in zip(colour.shape[1:], size, strict=True))
    padded = torch.nn.functional.pad(colour, (0, right, 0, bottom))
    return padded.unflatten(2, (-1, size[1])).unflatten(1, (-1, size[0])).transpose(2, 3).contiguous()


def _untile(label: Tensor, height: int, width: int) -> Tensor:  # [ty, tx, h, w] -> [H, W]
    return label.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:height, :width]


def _components(label: Tensor) -> Tensor:
    """4-connected components of equal label: the index of each pixel's raster-first fellow, [H, W]."""
    height, width = label.shape
    index = _axis(height * width, label).view(height, width)
    starts = torch.ones_like(label, dtype=torch.bool)
    starts[:, 1:] = label[:, 1:] != label[:, :-1]
    run = torch.where(starts, index, 0).flatten().cummax(0).values  # what is left to join are runs
    joined = (label[1:] == label[:-1]).flatten()
    return _unite(run, run[width:][joined], run[:-width][joined]).view(height, width)


def _unite(parent: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Joins trees a[i] and b[i]; each ends with all its members pointing to its lowest index."""
    while True:
        a, b = parent[a], parent[b]
        apart = a != b
        a, b = a[apart], b[apart]
        if not len(a):
            return parent
        parent = parent.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        parent = _roots(parent)


def _roots(parent: Tensor) -> Tensor:
    while not torch.equal(further := parent[parent], parent):
        parent = further
    return parent


def _merge_small(component: Tensor, smallest: int) -> Tensor:
    """Gives small components away by the rule in ops/slic.py; labels in raster order of the roots, [H, W]."""
    height, width = component.shape
    index = _axis(height * width, component)
    root = component.flatten()
    left = torch.where(index % width > 0, index - 1, index - width).clamp(min=0)  # else above, else itself
    size = torch.bincount(root, minlength=height * width)
    parent = torch.where((root == index) & (size < smallest), root[left], root)
    root = _roots(parent)
    first = root == 0
    if int(first.sum()) < smallest and not bool(first.all()):
        # Only the group of pixel 0 can still be small: it takes over the group of the first pixel outside it.
        outside = root[(~first).to(torch.uint8).argmax()]
        root = torch.where(root == outside, 0, root)
    return ((root == index).cumsum(0) - 1)[root].view(height, width)


def _axis(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)
