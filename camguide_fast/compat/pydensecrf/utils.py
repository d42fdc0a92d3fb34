"""Unary energies and features as pydensecrf's `utils` makes them."""

from collections.abc import Sequence
from numbers import Real
from typing import cast

import numpy as np


def unary_from_labels(labels: np.ndarray, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> np.ndarray:
    """Energies [n_labels, labels.size] of a label map that is right with probability `gt_prob`.

    With `zero_unsure` the labels are 1 .. n_labels, and 0 means that all are equally likely; otherwise they are
    0 .. n_labels - 1.
    """
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob must be in (0, 1), got {gt_prob!r}")
    labels = np.asarray(labels).ravel()
    given = np.arange(n_labels)[:, None] == labels - bool(zero_unsure)
    with np.errstate(divide="ignore"):  # a single label: there are no others, whose energy would be infinite
        energy = np.where(given, -np.log(gt_prob), -np.log(np.float64(1 - gt_prob) / (n_labels - 1)))
    if zero_unsure:
        energy[:, labels == 0] = np.log(n_labels)
    return energy.astype(np.float32)


def unary_from_softmax(sm: np.ndarray, scale: float | None = None, clip: float | None = 1e-5) -> np.ndarray:
    """Energies [n, pixels] of probabilities [n, ...]; `scale` mixes them with 1 - scale of the uniform distribution,
    `clip` bounds them from below."""
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale must be in (0, 1], got {scale!r}")
        sm = scale * sm + (1 - scale) / len(sm)
    if clip is not None:
        sm = np.clip(sm, clip, 1)
    return -np.log(sm).reshape(len(sm), -1).astype(np.float32)


def compute_unary(labels: np.ndarray, M: int, GT_PROB: float = 0.5) -> np.ndarray:
    """The older name of `unary_from_labels`."""
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: np.ndarray, GT_PROB: float = 1) -> np.ndarray:
    """The older form of `unary_from_softmax`, without a clip: a probability of 0 gets an infinite energy."""
    with np.errstate(divide="ignore"):
        return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Features float32 [len(shape), pixels] for `addPairwiseEnergy`: positions / `sdims`, rows first."""
    grid = np.array(np.meshgrid(*map(range, shape), indexing="ij"), dtype=np.float32)
    return (grid / _per_row(sdims, grid)).reshape(len(grid), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: np.ndarray, chdim: int = -1
) -> np.ndarray:
    """Features float32 [d, pixels] for `addPairwiseEnergy`: positions / `sdims`, rows first, then colours / `schan`.

    `chdim` is the dimension of `img` that holds the channels; -1: it has none.
    """
    colours = (img[None] if chdim == -1 else np.moveaxis(img, chdim, 0)).astype(np.float32)
    sigmas = [float(schan)] * len(colours) if isinstance(schan, Real) else cast(Sequence[float], schan)
    scaled = (colours / _per_row(sigmas, colours)).reshape(len(colours), -1)
    return np.concatenate([create_pairwise_gaussian(sdims, colours.shape[1:]), scaled])


def _per_row(sigmas: Sequence[float], like: np.ndarray) -> np.ndarray:
    if len(sigmas) != len(like):
        raise ValueError(f"expected {len(like)} sigmas, one for each dimension or channel, got {len(sigmas)}")
    return np.array(sigmas, dtype=np.float32).reshape(-1, *[1] * (like.ndim - 1))
