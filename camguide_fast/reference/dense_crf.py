"""Twin of ops/dense_crf.py: mean field in a fully connected CRF with Potts labels, Krähenbühl & Koltun (2011)."""

import math
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from . import _permutohedral as permutohedral
from ._common import widen


@torch.no_grad()
def dense_crf(  # [B, L, H, W], [B, 3, H, W] -> [B, L, H, W]
    prob: Tensor | None,
    image: Tensor,
    iterations: int,
    gaussian: list[float],  # sx, sy, weight for each term
    bilateral: list[float],  # sx, sy, sr, sg, sb, weight for each term
    unary: Tensor | None,
) -> Tensor:
    given = cast(Tensor, unary if prob is None else prob)  # one of them is there
    energy = widen(given) if prob is None else -torch.log(widen(given).clamp(1e-5, 1))
    out = torch.empty_like(energy, memory_format=torch.contiguous_format)
    for b in range(len(image)):
        out[b] = _mean_field(energy[b], image[b], iterations, gaussian, bilateral)
    return out.to(given.dtype)


@torch.no_grad()
def dense_crf_labels(  # [B, H, W], [B, 3, H, W] -> [B, H, W]
    labels: Tensor,
    image: Tensor,
    num_labels: int,
    gt_prob: float,
    iterations: int,
    gaussian: list[float],
    bilateral: list[float],
) -> Tensor:
    out = torch.empty_like(labels, memory_format=torch.contiguous_format)
    for b, given in enumerate(labels.long()):
        known = (given >= 0) & (given < num_labels)
        present = given[known].unique()
        if len(present) < 2:
            out[b] = present[0] if len(present) else given
            continue
        energy = _label_energy(torch.searchsorted(present, given), known, len(present), gt_prob)
        out[b] = present[_mean_field(energy, image[b], iterations, gaussian, bilateral).argmax(0)]
    return out


def _label_energy(index: Tensor, known: Tensor, n: int, gt_prob: float) -> Tensor:  # [H, W] -> [n, H, W]
    """-log gt_prob for the label given, -log((1 - gt_prob) / (n - 1)) for others, log n where none is given."""
    right, wrong, none = -math.log(gt_prob), -math.log((1 - gt_prob) / (n - 1)), math.log(n)
    chosen = torch.arange(n, device=index.device)[:, None, None] == index
    energy = torch.full_like(chosen, wrong, dtype=torch.float32).masked_fill_(chosen, right)
    return energy.masked_fill_(~known, none)


def _mean_field(
    energy: Tensor, image: Tensor, iterations: int, gaussian: list[float], bilateral: list[float]
) -> Tensor:
    n, h, w = energy.shape
    unary = energy.reshape(n, -1).T.contiguous()  # [HW, L]
    terms = []
    for sx, sy, weight in zip(*[iter(gaussian)] * 3, strict=True):
        terms.append((weight, _gaussian_lattice(h, w, sx, sy, unary.dtype, unary.device)))
    for *sigma, weight in zip(*[iter(bilateral)] * 6, strict=True):
        terms.append((weight, permutohedral.build(_bilateral_features(image, sigma), unary.dtype)))
    q = torch.softmax(-unary, 1)
    for _ in range(iterations):  # Q <- softmax(-U + sum_m w_m K_m Q)
        q = torch.softmax(sum(weight * permutohedral.blur(lattice, q) for weight, lattice in terms) - unary, 1)
    return q.T.reshape(n, h, w)


@lru_cache(maxsize=4)  # it depends on the size of the image alone; bounded, as a lattice takes 40 to 60 bytes a pixel
def _gaussian_lattice(
    h: int, w: int, sx: float, sy: float, dtype: torch.dtype, device: torch.device
) -> permutohedral.Lattice:
    position = _positions(h, w, device)
    return permutohedral.build(position / position.new_tensor([sx, sy]), dtype)


def _bilateral_features(image: Tensor, sigma: list[float]) -> Tensor:  # [3, H, W], (sx, sy, sr, sg, sb) -> [HW, 5]
    _, h, w = image.shape
    colour = image.to(torch.float32) if image.dtype == torch.uint8 else image.to(torch.float32) * 255
    features = torch.cat([_positions(h, w, image.device), colour.flatten(1).T], 1)
    return features / features.new_tensor(sigma)


def _positions(h: int, w: int, device: torch.device) -> Tensor:  # [HW, 2]: x, y
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1).to(torch.float32)
