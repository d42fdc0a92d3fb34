"""`DenseCRF2D` of pydensecrf over `ops.dense_crf`: same calls, same numbers (to 1e-3), several threads.

What it does not cover raises `NotImplementedError`: normalisations other than the symmetric one, a compatibility that
is no single weight, bilateral terms on different pictures. Kernel types differ in learning alone, so all are taken.
"""

from numbers import Real

import numpy as np
import torch

from ... import ops

CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = range(3)
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = range(4)


class DenseCRF2D:
    """Mean field over the `w` x `h` pixels of an image with `nlabels` labels; arrays are NumPy's."""

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._w, self._h, self._labels = w, h, nlabels
        self._unary = None
        self._gaussian, self._bilateral, self._image = [], [], None

    def setUnaryEnergy(self, u: np.ndarray) -> None:
        """`u`: energies [nlabels, h * w], row by row."""
        u = np.asarray(u, dtype=np.float32)
        if u.shape != (self._labels, self._h * self._w):
            raise ValueError(
                f"the unary energy must have shape {(self._labels, self._h * self._w)} [nlabels, h * w], got {u.shape}"
            )
        self._unary = torch.tensor(u).view(1, self._labels, self._h, self._w)

    def addPairwiseGaussian(
        self, sxy, compat, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """A term that compares positions / `sxy`, one number or (sx, sy)."""
        self._gaussian.append((_sigmas(sxy), _weight(compat, normalization)))

    def addPairwiseBilateral(
        self, sxy, srgb, rgbim: np.ndarray, compat, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """A term that compares positions / `sxy` and the colours of `rgbim`, uint8 [h, w, 3], / `srgb`, one number or
        three."""
        rgbim = np.asarray(rgbim)
        if rgbim.dtype != np.uint8 or rgbim.shape != (self._h, self._w, 3):
            raise ValueError(
                f"rgbim must be uint8 of shape {(self._h, self._w, 3)} [h, w, 3], got {rgbim.dtype} {rgbim.shape}"
            )
        image = torch.tensor(rgbim).permute(2, 0, 1)[None]
        if self._image is not None and not torch.equal(image, self._image):
            raise NotImplementedError("all bilateral terms must have the same rgbim")
        self._image = image
        self._bilateral.append((_sigmas(sxy), _sigmas(srgb), _weight(compat, normalization)))

    def inference(self, niter: int) -> np.ndarray:
        """Q after `niter` steps of mean field: float32 [nlabels, h * w]."""
        if self._unary is None:
            raise ValueError("set the unary energy before inference")
        image = torch.zeros(1, 3, self._h, self._w, dtype=torch.uint8) if self._image is None else self._image
        q = ops.dense_crf(None, image, niter, self._gaussian, self._bilateral, self._unary)
        return q.view(self._labels, -1).numpy()


def _sigmas(sigma: float | tuple[float, ...]) -> float | tuple[float, ...]:
    return float(sigma) if isinstance(sigma, Real) else tuple(map(float, sigma))


def _weight(compat: float, normalization: int) -> float:
    if normalization != NORMALIZE_SYMMETRIC:
        raise NotImplementedError("normalization must be NORMALIZE_SYMMETRIC")
    if not isinstance(compat, Real):
        raise NotImplementedError(f"compat must be one weight (Potts), got {type(compat).__name__}")
    return float(compat)
