"""The iteration of LoRSum free of rounding errors, and how much rounding errors of a stable one would change it.

Extended precision is mpmath's: NumPy's long double is the double on many processors.
"""

import mpmath
import numpy as np
import scipy.linalg

import lorsum as ls

__all__ = ["DIGITS", "condition", "iterate"]

_numbers = np.vectorize(mpmath.mpf, otypes=[object])
DIGITS = 60  # of which the normal equations below may lose 2 log₁₀ κ(V), and each iteration 4 log₁₀ σ₁/σᵣ


def iterate(target: ls.LowRankSum, iters: int) -> np.ndarray:
    """The matrix after K iterations from U with λ = 0, from the factors as they are stored; rounded to double.

    The target's first term is where it starts. Its column space is that of (W Wᵀ)ᴷ⁻¹ W V, and the matrix is the
    projection of W onto it.
    """
    with mpmath.workdps(DIGITS):
        W = sum(c * (_numbers(A.U) @ _numbers(A.V).T) for A, c in zip(target.terms, target.coefficients, strict=True))
        V = _numbers(target.terms[0].V)
        for _ in range(iters):
            U = W @ V
            V = W.T @ U
        inverse = np.array(mpmath.inverse(mpmath.matrix((U.T @ U).tolist())).tolist())
        return (U @ inverse @ V.T).astype(np.float64)


def condition(target: ls.LowRankSum, iters: int, *, samples: int = 8, size: float = 1e-8) -> float:
    """How many times larger than the rounding errors of a stable iteration the change of its result is.

    Stable is an iteration by QR factorisations whose every column, before it is orthogonalised, is off by a small
    part of its norm, and every product with W by as small a part of ‖W‖. Here these are normal random numbers, of
    relative size ``size``; the largest change of the result in ``samples`` draws is relative to that.
    """
    W, V = target.to_dense(), target.terms[0].V
    rng = np.random.default_rng(0)
    exact = _perturbed(W, V, iters, 0.0, rng)
    changes = [_perturbed(W, V, iters, size, rng) - exact for _ in range(samples)]
    return float(max(map(np.linalg.norm, changes)) / np.linalg.norm(exact) / size)


def _perturbed(W, V, iters, size, rng):
    def noise(X):
        return size * rng.standard_normal(X.shape) / len(X) ** 0.5

    def half_step(W, V):
        Q = scipy.linalg.qr(V + noise(V) * np.linalg.norm(V, axis=0), mode="economic")[0]
        return W @ Q + noise(W @ Q) * np.linalg.norm(W, 2)

    for _ in range(iters):
        U = half_step(W, V)
        V = half_step(W.T, U)
    Q = scipy.linalg.qr(U, mode="economic")[0]
    return Q @ (Q.T @ W)
