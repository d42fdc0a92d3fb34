"""`DenseCRF2D` and `DenseCRF` of pydensecrf over `ops.dense_crf`: same calls, same numbers (to 1e-3), several threads.

The op has one image, symmetric normalisation and one weight a term. What asks for more raises `NotImplementedError`,
and nothing is computed in its place: other normalisations, a compatibility that is no single weight, bilateral terms
on different pictures, features other than those of `utils`. Kernel types differ in learning alone, so all are taken.
"""

from collections.abc import Sequence
from numbers import Real
from typing import cast

import numpy as np
import torch

from ... import ops
from .features import grid_sigmas, row_length, split_colours

CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = range(3)
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = range(4)
_FORBIDDEN = 1e4  # an energy out of reach of all others: the op takes finite ones


class DenseCRF:
    """Mean field over `npoints` pixels with `nlabels` labels; arrays are NumPy's. The pixels are those of an image row
    by row, whose sides are read from the first features."""

    def __init__(self, npoints: int, nlabels: int) -> None:
        self._pixels, self._labels = npoints, nlabels
        self._sides = None  # (h, w)
        self._unary = None
        self._gaussian, self._bilateral, self._image = [], [], None
        self._rows_first = None  # order of the positions in all features, which the lattice depends on; None: no term

    def setUnaryEnergy(self, u: np.ndarray) -> None:
        """`u`: energies [nlabels, pixels], row by row; infinite ones forbid a label."""
        u = np.asarray(u, dtype=np.float32)
        if u.shape != (self._labels, self._pixels):
            raise ValueError(
                f"the unary energy must have shape {(self._labels, self._pixels)} [nlabels, pixels], got {u.shape}"
            )
        self._unary = torch.tensor(u).clamp_(max=_FORBIDDEN)

    def addPairwiseEnergy(
        self, features: np.ndarray, compat, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """A term on `features` [d, pixels] of `utils.create_pairwise_gaussian`, or of `create_pairwise_bilateral` for
        three channels."""
        features = np.asarray(features, dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != self._pixels:
            raise ValueError(f"features must have shape [d, {self._pixels}] [d, pixels], got {features.shape}")
        w = self._sides[1] if self._sides else row_length(features)
        h = self._pixels // w
        sigmas = grid_sigmas(features, h, w)
        self._sides = h, w
        self._order(rows_first=True)
        weight = _weight(compat, normalization)
        if len(features) == 2:
            self._gaussian.append((sigmas, weight))
            return
        colours, srgb = split_colours(features[2:].reshape(1, 3, h, w))
        if self._image is not None and not torch.allclose(colours, self._image, rtol=0, atol=1e-6):
            raise NotImplementedError("all bilateral terms must have the same image")
        self._image = colours if self._image is None else self._image
        self._bilateral.append((sigmas, srgb, weight))

    def inference(self, niter: int) -> np.ndarray:
        """Q after `niter` steps of mean field: float32 [nlabels, pixels]."""
        return self._mean_field(self._energy(), niter).numpy()

    def startInference(self) -> tuple[np.ndarray, None, None]:
        """Q before the first step, and in place of pydensecrf's working memory None twice."""
        return self.inference(0), None, None

    def stepInference(self, Q: np.ndarray, tmp1: None = None, tmp2: None = None) -> None:
        """One step of mean field, from any `Q`, which it overwrites. `inference` takes all its steps faster."""
        Q[:] = torch.softmax(self._messages(Q) - self._energy().double(), 0).float().numpy()

    def klDivergence(self, Q: np.ndarray) -> float:
        """KL divergence of the field from `Q`, but for the constant log Z: what the steps bring down."""
        q, energy = torch.from_numpy(np.asarray(Q)).double(), self._energy().double()
        return (q * (q.clamp(min=1e-20).log() + energy - self._messages(Q))).sum().item()

    def _energy(self) -> torch.Tensor:  # [nlabels, pixels]
        if self._unary is None:
            raise ValueError("set the unary energy before inference")
        return self._unary

    def _messages(self, Q: np.ndarray) -> torch.Tensor:
        """sum_m w_m K_m Q in fp64, [nlabels, pixels].

        A step from -log Q gives softmax(log Q + messages). One more label, of no mass, gets the message 0, and so the
        softmax can be undone.
        """
        q = torch.from_numpy(np.asarray(Q)).double()
        energy = -torch.cat([q, torch.zeros_like(q[:1])]).clamp(min=1e-200).log()
        after = self._mean_field(energy, 1).log() + energy
        return after[:-1] - after[-1]

    def _mean_field(self, energy: torch.Tensor, niter: int) -> torch.Tensor:  # [nlabels, pixels] -> the same
        h, w = self._sides or (1, self._pixels)
        energy = energy.view(1, -1, h, w)
        image = torch.zeros(1, 3, h, w, dtype=torch.uint8) if self._image is None else self._image
        if self._rows_first:  # the picture on its side has its rows where the op looks for x
            q = ops.dense_crf(None, image.mT, niter, self._gaussian, self._bilateral, energy.mT).mT
        else:
            q = ops.dense_crf(None, image, niter, self._gaussian, self._bilateral, energy)
        return q[0].flatten(1)

    def _order(self, *, rows_first: bool) -> None:
        if self._rows_first not in (None, rows_first):
            raise NotImplementedError(
                "addPairwiseEnergy cannot be mixed with addPairwiseGaussian and addPairwiseBilateral"
            )
        self._rows_first = rows_first


class DenseCRF2D(DenseCRF):
    """Mean field over the `w` x `h` pixels of an image with `nlabels` labels."""

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        super().__init__(h * w, nlabels)
        self._sides = h, w

    def addPairwiseGaussian(
        self, sxy, compat, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """A term that compares positions / `sxy`, one number or (sx, sy)."""
        self._order(rows_first=False)
        self._gaussian.append((_sigmas(sxy), _weight(compat, normalization)))

    def addPairwiseBilateral(
        self, sxy, srgb, rgbim: np.ndarray, compat, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """A term that compares positions / `sxy` and the colours of `rgbim`, uint8 [h, w, 3], / `srgb`, one number or
        three."""
        rgbim = np.asarray(rgbim)
        if rgbim.dtype != np.uint8 or rgbim.shape != (*self._sides, 3):
            raise ValueError(
                f"rgbim must be uint8 of shape {(*self._sides, 3)} [h, w, 3], got {rgbim.dtype} {rgbim.shape}"
            )
        self._order(rows_first=False)
        image = torch.tensor(rgbim).permute(2, 0, 1)[None]
        if self._image is not None and not torch.equal(image, self._image):
            raise NotImplementedError("all bilateral terms must have the same rgbim")
        self._image = image
        self._bilateral.append((_sigmas(sxy), _sigmas(srgb), _weight(compat, normalization)))


def _sigmas(sigma: float | Sequence[float]) -> float | tuple[float, ...]:
    return float(sigma) if isinstance(sigma, Real) else tuple(map(float, cast(Sequence[float], sigma)))


def _weight(compat: float, normalization: int) -> float:
    if normalization != NORMALIZE_SYMMETRIC:
        raise NotImplementedError("normalization must be NORMALIZE_SYMMETRIC")
    if not isinstance(compat, Real):
        raise NotImplementedError(f"compat must be one weight (Potts), got {type(compat).__name__}")
    return float(compat)
