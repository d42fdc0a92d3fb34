"""Unary energies as pydensecrf's `utils` makes them."""

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
