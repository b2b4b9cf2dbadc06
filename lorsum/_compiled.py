"""The door to the Numba kernels: which problems they take, and the call. Anything else is answered with None."""

from functools import cache

import numpy as np

__all__ = ["alternating", "balanced"]

STACKED = 2**17  # numbers in all factors, up to which stacking them costs less than products with each term


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
    c = np.empty(sum([A.U.shape[-1] for A in terms]))
    first = 0
    for A, coefficient in zip(terms, coefficients, strict=True):
        c[first : first + A.U.shape[-1]] = coefficient
        first += A.U.shape[-1]
    in_rows = _stacked_rows if len(c) * (m + n) <= STACKED else _rows
    Us, Vs = in_rows([A.U for A in terms]), in_rows([A.V for A in terms])
    U, V = np.empty((len(Us[0]), r, m), init.U.dtype), np.empty((len(Us[0]), r, n), init.U.dtype)
    if not kernels.alternating(Us, Vs, c, iters, reg, v_first, balance, by_gram, blas, U, V, 0, len(U)):
        return None
    return (U.mT.reshape(*batch, m, r), V.mT.reshape(*batch, n, r)) if batch else (U[0].T, V[0].T)


def balanced(W):
    """The factors U√s and V√s of a low-rank matrix, or None."""
    if W.U.ndim > 2 or not _fit((W,)):
        return None
    kernels, blas = _loaded(W.dtype.itemsize)
    ok, U, V = kernels.balanced(_rows([W.U])[0][0], _rows([W.V])[0][0], blas)
    return (U.T, V.T) if ok else None


def _fit(terms):
    """True for low-rank matrices with real NumPy arrays of one dtype as factors."""
    dtype = terms[0].U.dtype
    for A in terms:
        if not (type(A.U) is np.ndarray and A.U.dtype == dtype):
            return False
    return dtype in _FLOATS and 0 not in terms[0].U.shape


_FLOATS = frozenset(map(np.dtype, ("f4", "f8")))


def _stacked_rows(factors):
    """One array of all rows; NumPy by itself would keep the order of columns in memory."""
    *batch, m, _ = factors[0].shape
    rows = np.empty((*batch, sum([factor.shape[-1] for factor in factors]), m), factors[0].dtype)
    return (_as_batch(np.concatenate([factor.mT for factor in factors], axis=-2, out=rows)),)


def _rows(factors):
    """Factors as the kernels take them: transposed, contiguous and writeable, since Numba has a type for each."""
    rows = [np.ascontiguousarray(factor.mT) for factor in factors if factor.shape[-1]]
    return tuple([_as_batch(x if x.flags.writeable else x.copy()) for x in rows])


def _as_batch(x):
    return x[None] if x.ndim == 2 else x.reshape(-1, *x.shape[-2:])


@cache
def _loaded(itemsize):
    """The kernels and the addresses of their ?gemm; importing numba takes a while, and only this needs it."""
    from lorsum import _kernels
    from lorsum._blas import GEMM

    return _kernels, (GEMM[itemsize], GEMM[8])
