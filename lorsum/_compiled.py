"""The door to the Numba kernels: which problems they take, and the call. Anything else is answered with None."""

from functools import cache

import numpy as np

__all__ = ["alternating", "balanced"]

STACKED = 2**13  # numbers in a term up to which a copy in a stack costs less than products of its own


def alternating(terms, coefficients, init, iters, reg, v_first, balance, by_gram):
    """U and V after the iteration of :func:`lorsum.lorsum` on low-rank terms, or None."""
    for c in (reg, *coefficients):
        if not isinstance(c, (int, float)):
            return None
    if init is not terms[0]:  # where the iteration starts is the first of the kernels' terms
        terms, coefficients = (init, *terms), (0.0, *coefficients)
    if not _fit(terms):
        return None
    kernels, blas = _loaded(init.dtype.itemsize)
    *batch, m, r = init.U.shape
    n = init.V.shape[-2]
    Us, Vs, c = _in_rows(terms, coefficients, m, n)
    U, V = np.empty((len(Us[0]), r, m), init.U.dtype), np.empty((len(Us[0]), r, n), init.U.dtype)
    if not kernels.alternating(Us, Vs, c, iters, reg, v_first, balance, by_gram, blas, U, V, 0, len(U)):
        return None
    return (U.mT.reshape(*batch, m, r), V.mT.reshape(*batch, n, r)) if batch else (U[0].T, V[0].T)


def balanced(W):
    """The factors U√s and V√s of a low-rank matrix, or None."""
    if W.U.ndim > 2 or not _fit((W,)):
        return None
    kernels, blas = _loaded(W.dtype.itemsize)
    ok, U, V = kernels.balanced(_rows(W.U)[0], _rows(W.V)[0], blas)
    return (U.T, V.T) if ok else None


def _fit(terms):
    """True for low-rank matrices with real NumPy arrays of one dtype as factors."""
    dtype = terms[0].U.dtype
    for A in terms:
        if not (type(A.U) is np.ndarray and A.U.dtype == dtype):
            return False
    return dtype in _FLOATS and 0 not in terms[0].U.shape


_FLOATS = frozenset(map(np.dtype, ("f4", "f8")))


def _in_rows(terms, coefficients, m, n):
    """The terms' factors and coefficients as the kernels take them: small terms stacked, large ones as they are."""
    ranks = [A.U.shape[-1] for A in terms]
    if sum(ranks) * (m + n) <= STACKED:
        Us, Vs, c = _stacked(terms, coefficients, sum(ranks), m, n)
        return (Us,), (Vs,), c
    large = [i for i, rank in enumerate(ranks) if i and rank * (m + n) > STACKED]
    small = [i for i in range(len(terms)) if i not in large]  # with the start, which comes first
    R = sum([ranks[i] for i in small])
    Us, Vs, c = _stacked([terms[i] for i in small], [coefficients[i] for i in small], R, m, n)
    return (
        (Us, *[_rows(terms[i].U) for i in large]),
        (Vs, *[_rows(terms[i].V) for i in large]),
        np.concatenate([c, *[np.full(ranks[i], coefficients[i], np.float64) for i in large]]),
    )


def _stacked(terms, coefficients, R, m, n):
    """The rows of all factors, one coefficient for each."""
    first = terms[0].U
    batch, row = first.shape[:-2], 0
    Us, Vs, c = np.empty((*batch, R, m), first.dtype), np.empty((*batch, R, n), first.dtype), np.empty(R)
    for A, coefficient in zip(terms, coefficients, strict=True):
        end = row + A.U.shape[-1]
        Us[..., row:end, :], Vs[..., row:end, :], c[row:end] = A.U.mT, A.V.mT, coefficient
        row = end
    return _as_batch(Us), _as_batch(Vs), c


def _rows(factor):
    """A factor transposed, contiguous and writeable, since Numba has a type for each."""
    rows = np.ascontiguousarray(factor.mT)
    return _as_batch(rows if rows.flags.writeable else rows.copy())


def _as_batch(x):
    return x[None] if x.ndim == 2 else x.reshape(-1, *x.shape[-2:])


@cache
def _loaded(itemsize):
    """The kernels and the addresses of their BLAS; importing numba takes a while, and only this needs it."""
    from lorsum import _kernels
    from lorsum._blas import GEMM_AND_SYRK

    return _kernels, (GEMM_AND_SYRK[itemsize], GEMM_AND_SYRK[8])
