"""The problems that are timed: a training step W − η G − η α M of OPLoRA, its factors laid out as in training."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

import lorsum as ls

__all__ = ["ALPHA", "LR", "SHAPES", "Case", "batch", "problem", "weight_gradient_momentum"]

LENET, SQUARE, LARGE = ((84, 120), (120, 400)), ((384, 384), (768, 768)), ((4096, 4096), (4096, 11008))
SHAPES = (*LENET, *SQUARE, (768, 3072), *LARGE)
# Powers of two, and factors that are rounded to float32: both dtypes then have the very same target
LR, ALPHA = 0.25, 0.875
STEP = 0.3  # ‖ηG + ηαM‖₂ is about this, where W has singular values from 2 to 1: a gap of 3


class Case(NamedTuple):
    """An m × n layer with an adapter of rank r and a gradient of rank R (the batch, which may exceed m and n)."""

    m: int
    n: int
    rank: int
    gradient_rank: int
    dtype: str = "float32"
    seed: int = 0

    @classmethod
    def of(cls, config: dict) -> "Case":
        """The case of a configuration."""
        (m, n), dtype = config["shape"], config.get("dtype", "float32")
        return cls(m, n, config["rank"], config["gradient_rank"], dtype, config["seed"])

    @property
    def stacked_rank(self) -> int:
        """The sum of the ranks of W, G and M."""
        return 2 * self.rank + self.gradient_rank

    @property
    def factor_numbers(self) -> int:
        """How many numbers the factors of W, G and M hold."""
        return (self.m + self.n) * self.stacked_rank

    @property
    def itemsize(self) -> int:
        """Bytes a number."""
        return np.dtype(self.dtype).itemsize


def problem(case: Case) -> ls.LowRankSum:
    """The target W − η G − η α M of a case."""
    W, G, M = weight_gradient_momentum(case)
    return W - LR * G - LR * ALPHA * M


def weight_gradient_momentum(case: Case) -> tuple[ls.LowRank, ls.LowRank, ls.LowRank]:
    """W, G and M, each with its factors in the memory layout that it has in training.

    W is an adapter: U (m, r) and the transpose of A (r, n), both as a layer holds them. G = Sᵀ X comes from S (B, m)
    and X (B, n), the rows being samples. M is what the last step returned, with a spectrum that decays. W has its
    singular values between 2 and 1; G and M together move it by about 0.3 in the spectral norm.
    """
    factors = _in_single(case._replace(dtype=""))
    W, G, M = (ls.LowRank(U.astype(case.dtype), V.astype(case.dtype)) for U, V in factors)
    return W, G, M


def batch(case: Case, count: int) -> tuple[ls.LowRankSum, list[ls.LowRankSum]]:
    """The same for ``count`` adapters of one shape: a target of stacks, and the list of the single ones."""
    singles = [weight_gradient_momentum(case._replace(seed=case.seed + i)) for i in range(count)]
    # As a framework keeps them: (count, m, r) in rows for U, and the transpose of (count, r, n) for V
    W, G, M = (
        ls.LowRank(
            np.stack([A.U for A in terms]) if i == 0 else np.stack([A.U.T for A in terms]).mT,
            np.stack([A.V.T for A in terms]).mT,
        )
        for i, terms in enumerate(zip(*singles, strict=True))
    )
    return W - LR * G - LR * ALPHA * M, [W - LR * G - LR * ALPHA * M for W, G, M in singles]


@lru_cache(maxsize=1)  # the largest has 31 million numbers; both dtypes and both kinds of runs follow one another
def _in_single(case):
    rng = np.random.default_rng([case.seed, case.m, case.n, case.rank, case.gradient_rank])
    m, n, r, R = case[:4]
    roots = np.sqrt(np.linspace(2, 1, r))
    U, A = _orthonormal(rng, m, r) * roots, np.ascontiguousarray((_orthonormal(rng, n, r) * roots).T)
    decay = np.sqrt(0.7 ** np.arange(r))
    Mu, Mv = (np.ascontiguousarray((_orthonormal(rng, d, r) * decay).T) for d in (m, n))
    S, X = (rng.standard_normal((R, d), dtype=np.float32) for d in (m, n))
    S *= (np.arange(1, R + 1, dtype=np.float32) ** -0.5)[:, None]  # samples differ in what they contribute
    S *= np.float32(STEP / LR / 1.5 / _spectral_norm(S, X, rng))
    Mu = Mu * STEP / LR / ALPHA / 3
    return tuple((np.float32(left), np.float32(right)) for left, right in ((U, A.T), (S.T, X.T), (Mu.T, Mv.T)))


def _spectral_norm(S, X, rng, iterations=6):
    """‖Sᵀ X‖₂ to some per cent."""
    v = rng.standard_normal(X.shape[1], dtype=np.float32)
    for _ in range(iterations):
        v = X.T @ (S @ (S.T @ (X @ (v / np.linalg.norm(v)))))
    return float(np.linalg.norm(v)) ** 0.5


def _orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]
