"""Random walk of class maps over a graph of superpixels (Eq. 13-16)."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..rules.edge_slots import edge_slots
from . import _checks as check
from ._label_walk import walk_labels
from ._register import define, needs_grad
from ._value_range import value_range

_LABELS = (torch.int32, torch.int64, torch.uint8)
_DEFAULTS = (2.0, False)  # sigma_color, squared


class SuperpixelGraph(NamedTuple):
    """What `superpixel_graph` builds: N = num_segments nodes, neighbours in ascending order as in a CSR
    matrix.

    Row s of image b has the entries `offsets[b, s]` to `offsets[b, s + 1]` of `neighbours[b]` and
    `transition[b]`; entries from `offsets[b, N]` on are 0. E is the most directed edges that an image of the batch
    has. On CUDA, and under `torch.compile`, it is what labels of this size can have at most, min(N (N - 1),
    4HW - 2H - 2W): nothing waits for the device.
    """

    segments: Tensor  # int32 [B, H, W]
    counts: Tensor  # int32 [B, N]: pixels of each superpixel, 0 where the label does not occur
    offsets: Tensor  # int32 [B, N + 1]
    neighbours: Tensor  # int32 [B, E]
    transition: Tensor  # float [B, E]: P of Eq. 15, each row sums to 1; fp64 for an fp64 image, else fp32


def _fake_graph(segments, image, sigma_color, squared, num_segments, exact):
    batch, height, width = segments.shape
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    slots = torch.library.get_ctx().new_dynamic_size() if exact else edge_slots(height, width, num_segments)
    return (
        segments.new_empty((batch, num_segments)),
        segments.new_empty((batch, num_segments + 1)),
        segments.new_empty((batch, slots)),
        image.new_empty((batch, slots), dtype=dtype),
    )


def _fake_walk(target, segments, counts, offsets, neighbours, transition, iterations):
    return torch.empty_like(target, memory_format=torch.contiguous_format)


define(
    "superpixel_graph(Tensor segments, Tensor image, float sigma_color, bool squared, int num_segments,"
    " bool exact) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.superpixel_graph,
    fake=_fake_graph,
    kernel=("superpixel_walk", "cuda"),
)
define(
    "superpixel_random_walk(Tensor target, Tensor segments, Tensor counts, Tensor offsets, Tensor neighbours,"
    " Tensor transition, int iterations) -> Tensor",
    reference=reference.superpixel_random_walk,
    fake=_fake_walk,
    kernel=("superpixel_walk", "cuda"),
)


def superpixel_graph(
    segments: Tensor,
    image: Tensor,
    sigma_color: float = _DEFAULTS[0],
    squared: bool = _DEFAULTS[1],
    num_segments: int | None = None,
) -> SuperpixelGraph:
    r"""The transition matrix of the random walk, Eq. 14-15, for several targets over the same superpixels.

    Two superpixels are neighbours if a pixel of one is a 4-neighbour of a pixel of the other; there is no
    self-loop. Weight $\exp(-\lVert\mu_i - \mu_j\rVert / 2\sigma^2)$ with mu the mean CIE Lab colour (D65) of
    the image as it is, not stretched to its range as SLIC does; then each row is divided by its sum.

    Args:
        segments: labels [B, H, W], int32/int64/uint8, each in [0, num_segments); gaps are allowed.
        image: RGB [B, 3, H, W], uint8 0-255 or float in [0, 1].
        sigma_color: sigma >= 1e-6 in Lab units. Not given in the paper.
        squared: the norm squared, a Gaussian. The paper prints the norm itself.
        num_segments: N, a bound above every label (`max_segments` gives one for `slic`). Read from the labels
            when omitted, which on CUDA waits for the device and under `torch.compile` breaks the graph.

    Returns:
        A `SuperpixelGraph`. Memory: 8 bytes for each of E edges, 12 for an fp64 image. At 512x512 the most that may
        occur, which CUDA makes room for, are 8 MB an image.

    Gradient: none.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or setting; an image that requires grad; on CPU, a
            label outside [0, num_segments), or a float image that is not finite or leaves [0, 1] by more than 0.5. On
            CUDA neither is looked for, and labels outside must not occur; under `torch.compile` any image passes on
            CPU as well.
    """
    check.tensor("segments", segments, 3, _LABELS)
    check.image("image", image)
    check.shape("image", image, (segments.shape[0], 3, *segments.shape[1:]), "segments [B, H, W]")
    check.same_device(segments=segments, image=image)
    sigma_color = check.number("sigma_color", sigma_color, 1e-6)
    check.boolean("squared", squared)
    if num_segments is None:
        num_segments = max(int(value_range(segments)[1]), 0) + 1
    num_segments = check.integer("num_segments", num_segments, 1)
    if needs_grad(image):
        raise ValueError("image requires grad, but the superpixel graph has no gradient to it; pass image.detach()")
    if check.values(segments):
        low, high = value_range(segments)
        if low < 0 or high >= num_segments:
            raise ValueError(f"segments must be in [0, {num_segments}) (num_segments), got {low} to {high}")
    check.image_values("image", image)
    segments = segments.to(torch.int32).contiguous()
    settings = (float(sigma_color), squared, num_segments)
    tensors = torch.ops.camguide_fast.superpixel_graph(segments, image, *settings, check.values(segments))
    return SuperpixelGraph(segments, *tensors)


def superpixel_random_walk(
    target: Tensor,
    segments: Tensor | None = None,
    image: Tensor | None = None,
    sigma_color: float = _DEFAULTS[0],
    iterations: int = 12,
    squared: bool = _DEFAULTS[1],
    num_segments: int | None = None,
    *,
    graph: SuperpixelGraph | None = None,
    num_labels: int | None = None,
    ignore: int = 255,
) -> Tensor:
    r"""Diffuses class maps, or labels, over superpixels of similar colour, Eq. 13-16.

    $u_{k,s}$ is the mean of map k over superpixel s; $u_{t+1} = P u_t$, `iterations` times, without restart;
    then each pixel takes the value of its superpixel. A superpixel without neighbours keeps its value.

    Labels walk as their one-hot maps do, and each pixel takes the label whose map is the largest (of equal ones the
    smallest label); the maps are never made.

    Args:
        target: maps [B, K, H, W], fp32/fp16/bf16/fp64, or labels [B, H, W], uint8/int32/int64, at the resolution of the
            segments.
        segments, image, sigma_color, squared, num_segments: as in `superpixel_graph`, which they are handed
            to.
        iterations: steps of the walk, >= 0.
        graph: from `superpixel_graph`, instead of the arguments above: several targets then share it.
        num_labels: L, for labels alone: each is in [0, L), or `ignore`.
        ignore: pixels of this label have no map, and keep it. They count as pixels of their superpixel.

    Returns:
        Like target. Accumulated in fp32 (fp64 for fp64, the graph as well where it is built
        here). NaN or infinity in a map spreads over its superpixel, and from there with each step to the next.

    Gradient: none. The walk makes targets; one that requires grad raises, so that no gradient is lost unseen.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or setting; on CPU a label that is neither in [0, L) nor
            `ignore` (on CUDA it must not occur); both or neither of `graph` and
            `segments` with `image`; a setting beside the graph that it was built with; a target that requires
            grad while gradients are recorded; and what `superpixel_graph` raises.
    """
    if num_labels is None:
        check.tensor("target", target, 4)
    else:
        check.tensor("target", target, 3, _LABELS)
        num_labels = check.integer("num_labels", num_labels, 1)
        ignore = check.integer("ignore", ignore, 0)
        if ignore > 255:
            raise ValueError(f"ignore must be an integer in [0, 256), got {ignore}")
    iterations = check.integer("iterations", iterations, 0)
    if needs_grad(target):
        raise ValueError("target requires grad, but superpixel_random_walk has no gradient; pass target.detach()")
    if graph is None:
        if segments is None or image is None:
            raise ValueError("superpixel_random_walk needs segments and image, or a graph")
        check.image("image", image)
        if target.dtype == torch.float64:
            image = image.double() / 255 if image.dtype == torch.uint8 else image.double()
        graph = superpixel_graph(segments, image, sigma_color, squared, num_segments)
    elif not isinstance(graph, SuperpixelGraph):
        raise TypeError(f"graph must be a SuperpixelGraph, got {type(graph).__name__}")
    elif any(given is not None for given in (segments, image, num_segments)) or (sigma_color, squared) != _DEFAULTS:
        raise ValueError(
            "superpixel_random_walk takes either a graph, or what superpixel_graph builds one of (segments, image,"
            " sigma_color, squared, num_segments), got both"
        )
    batch, *size = graph.segments.shape
    maps = target.shape[1:2] if num_labels is None else ()
    check.shape("target", target, (batch, *maps, *size), "segments [B, H, W]")
    check.same_device(target=target, segments=graph.segments)
    if num_labels is not None:
        if check.values(target):
            low, high = value_range(target, ignore)
            if low <= high and (low < 0 or high >= num_labels):
                raise ValueError(f"target must be in [0, {num_labels}) (num_labels) or {ignore}, got {low} to {high}")
        return walk_labels(target, graph, iterations, num_labels, ignore)
    return torch.ops.camguide_fast.superpixel_random_walk(target, *graph, iterations)
