"""Truncated SVDs by products with A and Aᴴ alone, as triples U, s, Vh for :func:`lorsum.truncated_svd`."""

import warnings
from typing import TypeAlias

import numpy as np
from numpy.linalg import LinAlgError

from lorsum._arrays import computing_dtype, conj, eps, frobenius, is_finite, normal
from lorsum._decompositions import qr, svd
from lorsum._sums import arrays_of, namespace_of_sum
from lorsum.lowrank import LowRank, LowRankSum
from lorsum.typing import RNG, Array

_Triple: TypeAlias = tuple[Array, Array, Array]


def randomized(A: LowRankSum, rank: int, oversample: int, iters: int, rng: RNG) -> _Triple:
    """Algorithms 4.4 and 5.1 of Halko, Martinsson and Tropp."""
    return _first(rank, _from_range(A, _range(A, rank + oversample, iters, rng)))


def subspace(A: LowRankSum, rank: int, oversample: int, max_iters: int, residual_tol: float, rng: RNG) -> _Triple:
    """Orthogonal iteration on a few more columns than r, until the leading r Ritz triples have converged."""
    xp = namespace_of_sum(A)
    Q = _range(A, rank + oversample, 0, rng)
    rounding = 10 * sum(A.shape[-2:]) ** 0.5 * eps(xp, Q.dtype)
    residual = s = xp.ones_like(Q[..., 0, :])
    for _ in range(max_iters):
        U, s, Vh = _from_range(A, Q)
        AV = A @ conj(Vh).mT
        residual = frobenius((AV - U * s[..., None, :])[..., :rank])
        if bool(xp.all(residual <= max(residual_tol, rounding) * s[..., 0])):
            return _first(rank, (U, s, Vh))
        Q = _orthonormal(AV)
    raise LinAlgError(
        f"`method` 'subspace' has not converged after `max_iters` = {max_iters} iterations: ‖A V − U diag(s)‖ = "
        f"{float(xp.max(residual / s[..., 0])):.1e} σ₁. Raise `max_iters`, `oversample` or `residual_tol`, or take an "
        "exact method."
    )


def krylov(A: LowRankSum, rank: int, solver: str, max_iters: int, residual_tol: float, rng: RNG) -> _Triple:
    """What SciPy's solver finds, improved by one orthogonal iteration and checked."""
    V = _svds(A, rank, solver, max_iters, residual_tol, rng)
    V = V.astype(computing_dtype(namespace_of_sum(A), A.dtype), copy=False)
    if not is_finite(V):
        raise _no_convergence(solver, "it gave NaN")
    U, s, Vh = _from_range(A, _orthonormal(A @ V))
    _check_convergence(A, (U, s, Vh), solver, residual_tol, rng)
    return U, s, Vh


def _svds(A: LowRankSum, rank: int, solver: str, max_iters: int, tol: float, rng: RNG) -> Array:
    """Right singular vectors by SciPy, of A scaled to norm 1: it squares the numbers."""
    from scipy.sparse.linalg import svds

    m, n = A.shape
    size = float(randomized(A, 1, 10, 0, rng)[1][0])
    if size == 0:
        return np.eye(n, rank)
    if solver == "propack":  # the size of its Krylov space, which SciPy makes too small for a small rank
        max_iters = min(m, n, max_iters or 10 * rank + 200)
    if solver == "lobpcg":  # asked for all digits of AᴴA it breaks down; and svds squares its `tol`
        tol = max(tol, eps(np, computing_dtype(namespace_of_sum(A), A.dtype)) ** 0.375)
    operator = (A / size).as_linear_operator()
    operator.dtype = np.dtype(computing_dtype(namespace_of_sum(A), A.dtype))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the result is checked
            return svds(operator, rank, solver=solver, maxiter=max_iters or None, tol=tol, rng=rng)[2].conj().T
    except (RuntimeError, ValueError) as error:  # ArpackError; LinAlgError and LOBPCG's own
        raise _no_convergence(solver, str(error)) from error


def _check_convergence(A: LowRankSum, triple: _Triple, solver: str, residual_tol: float, rng: RNG) -> None:
    """An error unless U, s, V are singular, and nothing larger than the smallest of them is left over."""
    U, s, Vh = triple
    unit = eps(np, s.dtype)
    residual = frobenius(A @ Vh.conj().T - U * s)
    if residual > max(residual_tol, unit**0.5) * s[0]:
        raise _no_convergence(solver, f"‖A V − U diag(s)‖ = {residual / s[0]:.1e} σ₁")
    left = _norm_from_below(A - LowRank(U * s, Vh.T), rng)
    if left > (1 + unit**0.5) * s[-1] + max(residual_tol, 10 * max(A.shape) * unit) * s[0]:
        raise _no_convergence(solver, f"a direction was missed along which A is {left:.3e}, above σ_r = {s[-1]:.3e}")


def _norm_from_below(A: LowRankSum, rng: RNG, columns: int = 4, steps: int = 20) -> float:
    """The largest Ritz value in a block Krylov space: nearly ‖A‖, never above it, so that no right answer is refused.

    It falls short of the norm by a part of about (log(min(m, n)) / steps)² at worst (Musco and Musco, 2015), and by
    next to nothing where few singular values stand out.
    """
    steps = min(steps, min(A.shape) // columns)
    blocks = [_range(A, columns, 0, rng)]
    for _ in range(1, steps):
        blocks.append(_orthonormal(A @ _orthonormal(conj(A.T @ conj(blocks[-1])))))
    Q = _orthonormal(np.concatenate(blocks, axis=-1))
    return float(svd_of((A.T @ conj(Q)).mT)[1][0])


def _no_convergence(solver: str, reason: str) -> LinAlgError:
    other = "'lapack'" if solver == "arpack" else "'arpack' or 'lapack'"
    return LinAlgError(f"`method` {solver!r} has not converged: {reason}. Raise `max_iters`, or take {other}.")


def _range(A: LowRankSum, columns: int, iters: int, rng: RNG) -> Array:
    """Orthonormal columns whose span comes near to that of A's leading left singular vectors."""
    like = ([*arrays_of(A).values()] or [np.empty(0, computing_dtype(namespace_of_sum(A), A.dtype))])[0]
    columns = min(columns, *A.shape[-2:])
    Q = _orthonormal(A @ normal((*A.shape[:-2], A.shape[-1], columns), like, rng))
    for _ in range(iters):
        Q = _orthonormal(A @ _orthonormal(conj(A.T @ conj(Q))))
    return Q


def _from_range(A: LowRankSum, Q: Array) -> _Triple:
    """The SVD of Q Qᴴ A."""
    P, s, Vh = svd_of((A.T @ conj(Q)).mT)
    return Q @ P, s, Vh


def _first(rank: int, triple: _Triple) -> _Triple:
    U, s, Vh = triple
    return U[..., :rank], s[..., :rank], Vh[..., :rank, :]


def _orthonormal(X: Array) -> Array:
    return qr(X)[0]


def svd_of(X: Array) -> _Triple:
    """The thin SVD of an array that came out of products with ``A``."""
    if not is_finite(X):
        raise LinAlgError(
            "`A` gives a NaN or an infinity in products: an operator does, or numbers overflow the dtype."
        )
    return svd(X)
