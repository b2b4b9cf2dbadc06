"""How far an answer is from the truncated SVD, at a cost that allows gradients of rank 2048: the SVD is found once."""

from typing import NamedTuple

import numpy as np

import lorsum as ls
from lorsum._sums import stacked

__all__ = ["Accuracy", "ReferenceSVD", "as_accurate", "reference_svd"]

ROUNDING = 1  # in units of ε ‖W‖: two answers whose errors differ by less are equally accurate


class Accuracy(NamedTuple):
    """``excess`` and ``distance`` as in :class:`lorsum.Gap`."""

    excess: float
    distance: float


class ReferenceSVD(NamedTuple):
    """The truncated SVD of W as Q Pᵀ, Q orthonormal; ‖W‖ and ‖W − W_r‖, all in double precision."""

    target: ls.LowRankSum
    Q: np.ndarray
    P: np.ndarray
    norm: float
    optimal: float

    def accuracy(self, X: ls.LowRank) -> Accuracy:
        """With D = X − W_r, ‖W − X‖² is ‖W − W_r‖² + ‖D‖² − 2⟨W − W_r, D⟩, in which nothing cancels."""
        U, V = (np.asarray(factor, dtype=np.float64) for factor in X)
        Qu, Ru = np.linalg.qr(np.concatenate([U, self.Q], axis=1))
        Qv, Rv = np.linalg.qr(np.concatenate([V, self.P], axis=1))
        r = U.shape[1]
        best = Ru[:, r:] @ Rv[:, r:].T
        D = Ru[:, :r] @ Rv[:, :r].T - best
        rest = Qu.T @ (self.target @ Qv) - best
        distance = float(np.linalg.norm(D))
        above = (distance**2 - 2 * float(np.sum(rest * D))) / self.optimal**2
        excess = float(np.expm1(0.5 * np.log1p(max(above, 0.0))))  # below zero by rounding only
        return Accuracy(excess, distance / float(np.linalg.norm(best)))

    def rounding(self, dtype: str) -> float:
        """The difference in excess that counts as none in a dtype: some ε of ‖W‖."""
        return ROUNDING * float(np.finfo(dtype).eps) * self.norm / self.optimal


def reference_svd(
    target: ls.LowRankSum, rank: int, *, tolerance: float = 1e-14, max_iterations: int = 300
) -> ReferenceSVD:
    """The truncated SVD of W = Σ cᵢ Aᵢ, by orthogonal iteration from the first term until nothing moves."""
    target = target.astype(np.float64)
    U, V = stacked(target)
    norm = float(np.sqrt(np.sum((U.T @ U) * (V.T @ V))))
    adjoint, Q = target.T, np.linalg.qr(target.terms[0].U)[0]
    for _ in range(max_iterations):
        before, Q = Q, np.linalg.qr(target @ np.linalg.qr(adjoint @ Q)[0])[0]
        if np.linalg.norm(Q - before @ (before.T @ Q)) < tolerance * rank:
            break
    P = adjoint @ Q
    return ReferenceSVD(target, Q, P, norm, float(np.sqrt(norm**2 - np.sum(P**2))))


def as_accurate(ours: float, theirs: float, rounding: float) -> bool:
    """Whether an excess is no larger than another one, up to rounding."""
    return ours <= theirs + rounding
