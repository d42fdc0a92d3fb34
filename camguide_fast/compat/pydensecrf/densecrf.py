"""`DenseCRF2D` of pydensecrf over `ops.dense_crf`: same calls, same numbers (to 1e-3), several threads.

What it does not cover raises `NotImplementedError`: normalisations other than the symmetric one, a compatibility that
is no single weight, bilateral terms on different pictures, features other than those of `utils`, points that are no
image. Kernel types differ in learning alone, so all are taken.
"""

from numbers import Real

import numpy as np
import torch

from ... import ops
from .features import grid_sigmas, split_colours

CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = range(3)
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = range(4)
_FORBIDDEN = 1e4  # an energy out of reach of all others: the op takes finite ones


class DenseCRF:
    """pydensecrf's field over points of any kind, which is not covered."""

    def __init__(self, npoints: int, nlabels: int) -> None:
        raise NotImplementedError("DenseCRF over points is not covered; for an image use DenseCRF2D(w, h, nlabels)")


class DenseCRF2D:
    """Mean field over the `w` x `h` pixels of an image with `nlabels` labels; arrays are NumPy's."""

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._w, self._h, self._labels = w, h, nlabels
        self._unary = None
        self._gaussian, self._bilateral, self._image = [], [], None
        self._rows_first = None  # order of the positions in all features, which the lattice depends on; None: no term

    def setUnaryEnergy(self, u: np.ndarray) -> None:
        """`u`: energies [nlabels, h * w], row by row; infinite ones forbid a label."""
        u = np.asarray(u, dtype=np.float32)
        if u.shape != (self._labels, self._h * self._w):
            raise ValueError(
                f"the unary energy must have shape {(self._labels, self._h * self._w)} [nlabels, h * w], got {u.shape}"
            )
        self._unary = torch.tensor(u).clamp_(max=_FORBIDDEN).view(1, self._labels, self._h, self._w)

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
        if rgbim.dtype != np.uint8 or rgbim.shape != (self._h, self._w, 3):
            raise ValueError(
                f"rgbim must be uint8 of shape {(self._h, self._w, 3)} [h, w, 3], got {rgbim.dtype} {rgbim.shape}"
            )
        self._order(rows_first=False)
        image = torch.tensor(rgbim).permute(2, 0, 1)[None]
        if self._image is not None and not torch.equal(image, self._image):
            raise NotImplementedError("all bilateral terms must have the same rgbim")
        self._image = image
        self._bilateral.append((_sigmas(sxy), _sigmas(srgb), _weight(compat, normalization)))

    def addPairwiseEnergy(
        self, features: np.ndarray, compat, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """A term on `features` [d, h * w] of `utils.create_pairwise_gaussian`, or of `create_pairwise_bilateral` for
        three channels."""
        features = np.asarray(features, dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != self._h * self._w:
            raise ValueError(f"features must have shape [d, {self._h * self._w}] [d, h * w], got {features.shape}")
        sigmas = grid_sigmas(features, self._h, self._w)
        self._order(rows_first=True)
        weight = _weight(compat, normalization)
        if len(features) == 2:
            self._gaussian.append((sigmas, weight))
            return
        colours, srgb = split_colours(features[2:].reshape(1, 3, self._h, self._w))
        if self._image is not None and not torch.allclose(colours, self._image, rtol=0, atol=1e-6):
            raise NotImplementedError("all bilateral terms must have the same image")
        self._image = colours if self._image is None else self._image
        self._bilateral.append((sigmas, srgb, weight))

    def inference(self, niter: int) -> np.ndarray:
        """Q after `niter` steps of mean field: float32 [nlabels, h * w]."""
        return self._mean_field(self._energy(), niter).view(self._labels, -1).numpy()

    def startInference(self) -> tuple[np.ndarray, None, None]:
        """Q before the first step, and in place of pydensecrf's working memory None twice."""
        return self.inference(0), None, None

    def stepInference(self, Q: np.ndarray, tmp1: None = None, tmp2: None = None) -> None:
        """One step of mean field, from any `Q`, which it overwrites. `inference` takes all its steps faster."""
        energy = self._energy()[0].flatten(1).double()
        Q[:] = torch.softmax(self._messages(Q) - energy, 0).float().numpy()

    def klDivergence(self, Q: np.ndarray) -> float:
        """KL divergence of the field from `Q`, but for the constant log Z: what the steps bring down."""
        q, energy = torch.from_numpy(np.asarray(Q)).double(), self._energy()[0].flatten(1).double()
        return (q * (q.clamp(min=1e-20).log() + energy - self._messages(Q))).sum().item()

    def _energy(self) -> torch.Tensor:
        if self._unary is None:
            raise ValueError("set the unary energy before inference")
        return self._unary

    def _messages(self, Q: np.ndarray) -> torch.Tensor:
        """sum_m w_m K_m Q in fp64, [nlabels, h * w].

        A step from -log Q gives softmax(log Q + messages). One more label, of no mass, gets the message 0, and so the
        softmax can be undone.
        """
        q = torch.from_numpy(np.asarray(Q)).double().view(1, self._labels, self._h, self._w)
        energy = -torch.cat([q, torch.zeros_like(q[:, :1])], 1).clamp(min=1e-200).log()
        after = self._mean_field(energy, 1).log() + energy
        return (after[0, :-1] - after[0, -1]).flatten(1)

    def _mean_field(self, energy: torch.Tensor, niter: int) -> torch.Tensor:
        image = torch.zeros(1, 3, self._h, self._w, dtype=torch.uint8) if self._image is None else self._image
        if self._rows_first:  # the picture on its side has its rows where the op looks for x
            q = ops.dense_crf(None, image.mT, niter, self._gaussian, self._bilateral, energy.mT)
            return q.mT.contiguous()
        return ops.dense_crf(None, image, niter, self._gaussian, self._bilateral, energy)

    def _order(self, *, rows_first: bool) -> None:
        if self._rows_first not in (None, rows_first):
            raise NotImplementedError(
                "addPairwiseEnergy cannot be mixed with addPairwiseGaussian and addPairwiseBilateral"
            )
        self._rows_first = rows_first


def _sigmas(sigma: float | tuple[float, ...]) -> float | tuple[float, ...]:
    return float(sigma) if isinstance(sigma, Real) else tuple(map(float, sigma))


def _weight(compat: float, normalization: int) -> float:
    if normalization != NORMALIZE_SYMMETRIC:
        raise NotImplementedError("normalization must be NORMALIZE_SYMMETRIC")
    if not isinstance(compat, Real):
        raise NotImplementedError(f"compat must be one weight (Potts), got {type(compat).__name__}")
    return float(compat)
