"""Fully connected CRF with Gaussian edges, by mean field: the numbers of pydensecrf."""

import math

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define, needs_grad
from ._value_range import value_range

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_IGNORE = 255

Gaussian = tuple[float | tuple[float, float], float]  # (sxy or (sx, sy), weight)
Bilateral = tuple[float | tuple[float, float], float | tuple[float, float, float], float]  # (sxy, srgb, weight)


def _fake(prob, image, iterations, gaussian, bilateral, unary):
    return torch.empty_like(unary if prob is None else prob, memory_format=torch.contiguous_format)


def _fake_labels(labels, image, num_labels, gt_prob, iterations, gaussian, bilateral):
    return torch.empty_like(labels, memory_format=torch.contiguous_format)


define(
    "dense_crf(Tensor? prob, Tensor image, int iterations, float[] gaussian, float[] bilateral, Tensor? unary)"
    " -> Tensor",
    reference=reference.dense_crf,
    fake=_fake,
    kernel=("dense_crf", "cuda"),
)
define(
    "dense_crf_labels(Tensor labels, Tensor image, int num_labels, float gt_prob, int iterations, float[] gaussian,"
    " float[] bilateral) -> Tensor",
    reference=reference.dense_crf_labels,
    fake=_fake_labels,
    kernel=("dense_crf", "cuda"),
)


def dense_crf(
    prob: Tensor | None,
    image: Tensor,
    iterations: int = 5,
    gaussian: Gaussian | list[Gaussian] = (3.0, 3.0),
    bilateral: Bilateral | list[Bilateral] = (50.0, 5.0, 10.0),
    unary: Tensor | None = None,
) -> Tensor:
    r"""Mean field of a fully connected CRF: Krähenbühl & Koltun (2011), with the numbers of `pydensecrf`.

    $Q \leftarrow \mathrm{softmax}(-U + w_g K_g Q + w_b K_b Q)$ from $Q = \mathrm{softmax}(-U)$, Potts compatibility.
    K_g compares positions / sxy, K_b positions / sxy and colours (0-255) / srgb, both as $\exp(-|\Delta f|^2 / 2)$ on
    the permutohedral lattice (Adams et al., 2010), normalised as $D^{-1/2} L D^{-1/2}$, a pixel's own term included:
    `DenseCRF2D` with `addPairwiseGaussian` and `addPairwiseBilateral` at their defaults.

    Args:
        prob: probabilities [B, L, H, W], fp32/fp16/bf16/fp64, >= 0; clipped to [1e-5, 1], U = -log prob
            (`unary_from_softmax`). None where `unary` is given.
        image: RGB [B, 3, H, W], uint8 0-255 or float in [0, 1] (times 255 inside); not the normalised one.
        iterations: >= 0; 0 gives softmax(-U).
        gaussian: (sxy > 0 in pixels, weight >= 0); sxy may be a pair (sx, sy). A list, also an empty one, gives the
            number of terms.
        bilateral: (sxy > 0 in pixels, srgb > 0 in colour steps of 0-255, weight >= 0); srgb may be a number for each
            channel. A list as above.
        unary: energies U [B, L, H, W] in place of `prob`.

    Returns:
        Q [B, L, H, W] in the dtype of `prob` or `unary`; sums to 1 over L. Computed in fp32 (fp64 for fp64; positions
        on the lattice in fp32 always, as they decide which vertices exist).

    Gradient: none. An input that requires grad raises; pass it detached.

    Settings of the field: `crf_settings`.

    Memory: one image at a time. Lattices of the Gaussian term depend on H, W and sxy alone; the last four are kept.
    On CPU photographs of 1920 x 1080 take 0.2 to 0.4 GB beside the result at 3 labels and 0.6 to 0.9 GB at 21; pure
    noise, whose pixels share no vertices, 1.6 GB at 3 and 2.9 GB at 21.
    On CUDA nothing is kept, and what that noise would need is set aside always, so that the host need not wait: at 3
    labels 0.3 GB for 512 x 512, 2 GB for 1920 x 1080. A batch is one launch, of which as many images and labels are
    worked on together as a gigabyte holds.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or parameter; both or neither of `prob` and `unary`; sigmas
            too small for fp32 positions and 64-bit vertex numbers; on CPU also negative, NaN or infinite values, and a
            float image that leaves [0, 1] by more than 0.5. On CUDA an image so far outside that its lattice is too
            fine gives NaN.
    """
    if prob is not None and unary is None:
        name, given = "prob", prob
    elif unary is not None and prob is None:
        name, given = "unary", unary
    else:
        raise ValueError(f"exactly one of prob and unary must be given, got {'neither' if prob is None else 'both'}")
    check.tensor(name, given, 4)
    settings = _check(f"{name} [B, L, H, W]", given, image, iterations, gaussian, bilateral)
    check.same_device(prob=prob, unary=unary, image=image)
    for what, x in ((name, given), ("image", image)):
        if needs_grad(x):
            raise ValueError(f"{what} requires grad, but dense_crf has no gradient; pass {what}.detach()")
    check.finite(name, given, -math.inf if prob is None else 0)
    return torch.ops.camguide_fast.dense_crf(prob, image, *settings, unary)


def dense_crf_labels(
    labels: Tensor,
    image: Tensor,
    num_labels: int,
    gt_prob: float = 0.7,
    iterations: int = 5,
    gaussian: Gaussian | list[Gaussian] = (3.0, 3.0),
    bilateral: Bilateral | list[Bilateral] = (50.0, 5.0, 10.0),
) -> Tensor:
    """Label maps made to follow the image: `dense_crf` on the energies of `unary_from_labels` of pydensecrf, argmax.

    Each image is worked on with the n labels present in it: U = -log gt_prob for a pixel's label,
    -log((1 - gt_prob) / (n - 1)) for the others (`zero_unsure=False`), log n for all where the pixel is 255. Ties go to
    the smaller label.

    Args:
        labels: [B, H, W], any integer dtype, values 0 .. num_labels - 1, or 255 for unknown.
        image: RGB [B, 3, H, W], uint8 0-255 or float in [0, 1].
        num_labels: 1 .. 255.
        gt_prob: trust in a label, in (0, 1).
        iterations, gaussian, bilateral: as in `dense_crf`.

    Returns:
        [B, H, W] like labels, without 255. An image with a single label comes back with that label everywhere; one of
        255 alone stays as it is. Computed in fp32.

    Gradient: none (integers).

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or parameter; on CPU also a label that is neither in range nor
            255 (elsewhere such a label counts as 255), and a float image that is not finite or leaves [0, 1] by more
            than 0.5.
    """
    check.tensor("labels", labels, 3, _INTEGERS)
    settings = _check("labels [B, H, W]", labels, image, iterations, gaussian, bilateral)
    check.same_device(labels=labels, image=image)
    num_labels = check.integer("num_labels", num_labels, 1)
    if num_labels > 255:
        raise ValueError(f"num_labels must be at most 255 (255 marks unknown pixels), got {num_labels}")
    gt_prob = check.number("gt_prob", gt_prob, 0, strict=True)
    if gt_prob >= 1:
        raise ValueError(f"gt_prob must be < 1, got {gt_prob!r}")
    if check.values(labels):
        low, high = value_range(labels, _IGNORE)
        if low < 0 or high >= num_labels:
            raise ValueError(f"labels must be in 0 .. {num_labels - 1} or 255, got {low if low < 0 else high}")
    return torch.ops.camguide_fast.dense_crf_labels(labels, image, num_labels, float(gt_prob), *settings)


def crf_settings(use: str, scale: float = 1.0) -> dict:
    """The settings that weakly supervised segmentation uses, as arguments of `dense_crf` or `dense_crf_labels`.

    Args:
        use: "labels": label maps with `dense_crf_labels`, as irn, Puzzle-CAM and ToCo; "softmax": probabilities, as
            psa, SEAM and Puzzle-CAM; "clip_es": probabilities, as CLIP-ES. Ten iterations each.
        scale: how many times smaller than the picture the maps are; distances in pixels are divided by it.
    """
    if use not in _SETTINGS:
        raise ValueError(f"use must be one of {', '.join(_SETTINGS)}, got {use!r}")
    scale = check.number("scale", scale, 0, strict=True)
    (near, near_weight), (far, colour, weight) = _SETTINGS[use]
    return dict(iterations=10, gaussian=(near / scale, near_weight), bilateral=(far / scale, colour, weight))


_SETTINGS = {
    "labels": ((3.0, 3.0), (50.0, 5.0, 10.0)),
    "softmax": ((3.0, 3.0), (80.0, 13.0, 10.0)),
    "clip_es": ((1.0, 3.0), (67.0, 3.0, 4.0)),
}


def _check(
    name: str,
    x: Tensor,
    image: Tensor,
    iterations: int,
    gaussian: Gaussian | list[Gaussian],
    bilateral: Bilateral | list[Bilateral],
) -> tuple[int, list[float], list[float]]:
    """Also returns the iterations and the terms as the op takes them: (sx, sy, weight) and (sx, sy, sr, sg, sb,
    weight), end to end."""
    check.image("image", image)
    check.shape("image", image, (x.shape[0], 3, *x.shape[-2:]), name)
    check.image_values("image", image)
    iterations = check.integer("iterations", iterations, 0)
    h, w = x.shape[-2:]
    return (
        iterations,
        _terms("gaussian", gaussian, {"sxy": 2}, (w - 1, h - 1)),
        _terms("bilateral", bilateral, {"sxy": 2, "srgb": 3}, (w - 1, h - 1, 255, 255, 255)),
    )


def _terms(name: str, given: object, sigmas: dict[str, int], extent: tuple[int, ...]) -> list[float]:
    wanted = ", ".join([*sigmas, "weight"])
    if not isinstance(given, (tuple, list)):
        raise ValueError(f"{name} must be ({wanted}), got {given!r}")
    flat = []
    for term in given if all(isinstance(term, (tuple, list)) for term in given) else [given]:
        if len(term) != len(sigmas) + 1:
            raise ValueError(f"{name} must be ({wanted}), got {term!r}")
        values = []
        for (part, count), value in zip(sigmas.items(), term[:-1], strict=True):
            each = value if isinstance(value, (tuple, list)) else [value] * count
            if len(each) != count:
                raise ValueError(f"{part} of {name} must be a number or {count} numbers, got {value!r}")
            values += [check.number(f"{part} of {name}", sigma, 0, strict=True) for sigma in each]
        _check_fineness(name, [size / sigma for size, sigma in zip(extent, values, strict=True)])
        flat += [*values, check.number(f"weight of {name}", term[-1], 0)]
    return [float(value) for value in flat]


def _check_fineness(name: str, extent: list[float]) -> None:
    """A lattice has its vertices placed in fp32 and numbered with 64 bits: `extent` must fit in both."""
    d = len(extent)
    low, high = [0.0] * (d + 1), [0.0] * (d + 1)
    for j, size in enumerate(extent, 1):  # as the positions on the lattice: reference/_permutohedral.py
        scaled = size * math.sqrt(2 / 3) * (d + 1) / math.sqrt(j * (j + 1))
        low[j] -= j * scaled
        high[:j] = [value + scaled for value in high[:j]]
    numbers = math.prod([b - a + 10 * (d + 1) + 3 for a, b in zip(low[:d], high[:d], strict=True)])
    if max(*high, *(-value for value in low)) > 2**20 or numbers > 2**62:
        raise ValueError(
            f"{name}: a sigma is too small for the size or the colours of the image: its lattice is too fine"
        )
