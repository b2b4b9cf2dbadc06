"""The door to the Numba kernels: which problems they take, and the call. Anything else is answered with None."""

import numpy as np

__all__ = ["alternating", "balanced"]

LARGEST = 2**20  # numbers in all factors, from which BLAS outweighs what Python costs


def alternating(terms, coefficients, init, iters, reg, v_first, balance):
    """U and V after the iteration of :func:`lorsum.lorsum` on low-rank terms, or None."""
    if not (all(isinstance(c, (int, float)) for c in (reg, *coefficients)) and _fit(*terms, init)):
        return None
    from lorsum import _kernels  # importing numba takes a while, and only this needs it

    ok, U, V = _kernels.alternating(
        tuple(_rows(term.U) for term in terms),
        tuple(_rows(term.V) for term in terms),
        np.array(coefficients, dtype=init.dtype),
        _rows(init.U),
        _rows(init.V),
        iters,
        reg,
        v_first,
        balance,
    )
    return (U.T, V.T) if ok else None


def balanced(W):
    """The factors U√s and V√s of a low-rank matrix, or None."""
    if not _fit(W):
        return None
    from lorsum import _kernels

    ok, U, V = _kernels.balanced(_rows(W.U), _rows(W.V))
    return (U.T, V.T) if ok else None


def _fit(first, *others):
    """True for low-rank matrices with real NumPy arrays of one dtype as factors, not a batch, and small."""
    size = 0
    for A in (first, *others):
        if not (type(A.U) is np.ndarray and A.dtype == first.dtype):
            return False
        size += A.U.size + A.V.size
    return first.U.ndim == 2 and first.dtype in (np.float32, np.float64) and size <= LARGEST


def _rows(factor):
    """A factor as the kernels take it: its transpose, contiguous and writeable, since Numba has a type for each."""
    transposed = np.ascontiguousarray(factor.T)
    return transposed if transposed.flags.writeable else transposed.copy()
