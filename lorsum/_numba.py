"""From NumPy arrays to the Numba kernels: which arrays they take, and the form they take them in.

Importing numba takes half a second, so that it is imported with the first call that needs a kernel.
"""

import math
from functools import cache

import numpy as np

TERMS = 4  # that the kernels take, always: they are compiled once
_DTYPES = frozenset(map(np.dtype, ("f4", "f8")))
_NO_FACTOR = {dtype: (np.empty((1, 0, 0), dtype), False) for dtype in _DTYPES}


def compressed(Us, Vs, coefficients):
    """The core of Σ cᵢ Uᵢ Vᵢᵀ in orthonormal bases of its stacked factors, between products with these bases.

    None where the kernels do not take the factors, or give up: on columns that are nearly dependent, and on what is not
    finite.
    """
    m, n, dtype = Us[0].shape[-2], Vs[0].shape[-2], Us[0].dtype
    if Us[0].ndim > 2 or sum([U.shape[-1] for U in Us]) >= min(m, n) or not _are_for_kernels(Us):
        return None
    if not all([isinstance(c, (int, float)) for c in coefficients]):
        return None
    kernels, blas = loaded(dtype)
    Us, Vs, weights = row_major_factors(Us, Vs, [[*coefficients, 0.0]])
    ok, core, left, K, right, L = kernels.compressed(Us, Vs, weights[0], m, n, blas)
    if not ok:
        return None

    def times(factors, K, length):
        def product(P):
            X = np.empty((P.shape[1], length), dtype)
            kernels.combine(factors, K @ P, X, blas)
            return X.T

        return product

    return times(left, K, m), core.astype(dtype), times(right, L, n)


def balanced(U, V):
    """The factors U√s and V√s of U Vᵀ = P diag(s) Qᵀ, or None as for :func:`compressed`."""
    if U.ndim > 2 or 0 in U.shape or not _are_for_kernels([U]):
        return None
    kernels, blas = loaded(U.dtype)
    ok, left, right = kernels.balanced(np.array(U.T, order="C"), np.array(V.T, order="C"), blas)
    return (left.T, right.T) if ok else None


def _are_for_kernels(Us):
    """True for factors that are real NumPy arrays of one dtype."""
    dtype = Us[0].dtype
    for U in Us:
        if type(U) is not np.ndarray or U.dtype != dtype:
            return False
    return dtype in _DTYPES and may_compile()


@cache
def may_compile():
    """False where Numba is told not to, for a debugger or to measure coverage: the kernels are nothing without it."""
    from numba import config

    return not config.DISABLE_JIT  # type: ignore[attr-defined]  # set when Numba starts


@cache
def loaded(dtype):
    """The kernels, and the addresses of ?gemm for that dtype and for float64."""
    from lorsum import _kernels
    from lorsum._blas import GEMM

    return _kernels, (GEMM[dtype.itemsize], GEMM[8])


def row_major_factors(Us, Vs, weights):
    """The factors U (..., m, r) and V (..., n, r) of terms as the kernels take them, and the weights as an array.

    Factors are a pair for each of four terms: an array with contiguous rows, and False where these are the factor's
    columns, (batch, r, m), or True where they are its rows, (batch, m, r). Terms beyond that number are made one. Each
    sum of these terms has a row of weights: their coefficients, and that of a dense term.
    """
    if len(Us) > TERMS:
        own, ((*c, of_dense),) = TERMS - 1, weights
        scaled = [x * U for x, U in zip(c[own:], Us[own:], strict=True)]
        Us, Vs = ([*Xs[:own], np.concatenate(last, axis=-1)] for Xs, last in ((Us, scaled), (Vs, Vs[own:])))
        weights = [[*c[:own], 1.0, of_dense]]
    missing = TERMS - len(Us)
    padded = np.array([[*c[:-1], *[0.0] * missing, c[-1]] for c in weights], np.float64)
    nothing = [_NO_FACTOR[Us[0].dtype]] * missing
    return (*[_row_major(U) for U in Us], *nothing), (*[_row_major(V) for V in Vs], *nothing), padded


def _row_major(factor):
    flags = factor.flags
    if not flags.writeable:  # Numba has a type for each
        return _row_major(factor.copy(order="K"))
    if flags.c_contiguous:
        return as_batch(factor), True
    return as_batch(np.ascontiguousarray(factor.mT)), False


def as_batch(x):
    """An array with one batch dimension before the matrix."""
    return x[None] if x.ndim == 2 else x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
