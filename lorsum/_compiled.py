"""The door to the Numba kernels: which problems they take, and the call. Anything else is answered with None."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

__all__ = ["alternating", "balanced", "compressed"]

TERMS = 4  # that the kernels take, always: they are compiled once
WORTH_A_THREAD = 2**24  # multiplications in a batch from which threads save more than they cost
NOTHING = {dtype: (np.empty((1, 0, 0), dtype), False) for dtype in map(np.dtype, ("f4", "f8"))}


def alternating(terms, coefficients, init, iters, reg, v_first, balance, by_gram):
    """U and V after the iteration of :func:`lorsum.lorsum` on low-rank terms, or None."""
    if init is not terms[0]:  # where the iteration starts is the first of the kernels' terms
        terms, coefficients = (init, *terms), (0.0, *coefficients)
    dtype = init.U.dtype
    if type(reg) is not float or 0 in init.U.shape or not _fit(terms, coefficients, dtype):
        return None
    *batch, m, r = init.U.shape
    n = init.V.shape[-2]
    Us, Vs, weights = _as_they_lie(terms, coefficients, dtype)
    kernels, blas = _loaded(dtype)
    count = len(Us[0][0])
    U, V = np.empty((count, r, m), dtype), np.empty((count, r, n), dtype)
    problem = Us, Vs, weights, iters, reg, v_first, balance, by_gram, blas, U, V
    if count == 1 or count * iters * sum([A.rank for A in terms]) * r * (m + n) <= WORTH_A_THREAD:
        ok = kernels.alternating(*problem, 0, count)
    else:
        ok = all(_in_threads(lambda first, last: kernels.alternating(*problem, first, last), count))
    if not ok:
        return None
    return (U.mT.reshape(*batch, m, r), V.mT.reshape(*batch, n, r)) if batch else (U[0].T, V[0].T)


def compressed(W):
    """The core of a sum in orthonormal bases of its stacked factors, and products with these bases; or None.

    What is returned is ``times_left, core, times_right``, in the factors' precision.
    """
    m, n = W.shape[-2:]
    dtype = W.terms[0].U.dtype
    if len(W.shape) > 2 or W.rank == min(m, n) or not _fit(W.terms, W.coefficients, dtype):
        return None
    kernels, blas = _loaded(dtype)
    ok, core, left, K, right, L = kernels.compressed(*_as_they_lie(W.terms, W.coefficients, dtype), m, n, blas)
    if not ok:
        return None

    def times(factors, K, length):
        def product(P):
            X = np.empty((P.shape[1], length), dtype)
            kernels.combine(factors, K @ P, X, blas)
            return X.T

        return product

    return times(left, K, m), core.astype(dtype), times(right, L, n)


def balanced(W):
    """The factors U√s and V√s of a low-rank matrix, or None."""
    dtype = W.U.dtype
    if W.U.ndim > 2 or 0 in W.U.shape or not _fit((W,), (1,), dtype):
        return None
    kernels, blas = _loaded(dtype)
    U, V = (np.array(factor.T, order="C") for factor in W)
    ok, U, V = kernels.balanced(U, V, blas)
    return (U.T, V.T) if ok else None


def _fit(terms, coefficients, dtype):
    """True for low-rank matrices with real NumPy arrays of one dtype as factors, and numbers."""
    for A in terms:
        if type(A.U) is not np.ndarray or A.U.dtype != dtype:
            return False
    for c in coefficients:
        if not isinstance(c, (int, float)):
            return False
    return dtype in NOTHING


def _as_they_lie(terms, coefficients, dtype):
    """The terms' factors, in pairs as the kernels take them, and the coefficients; the last terms as one."""
    Us, Vs, own = [A.U for A in terms], [A.V for A in terms], TERMS - 1
    if len(terms) > TERMS:
        Us[own:] = [np.concatenate([c * U for c, U in zip(coefficients[own:], Us[own:], strict=True)], axis=-1)]
        Vs[own:] = [np.concatenate(Vs[own:], axis=-1)]
        coefficients = (*coefficients[:own], 1.0)
    weights, rest = np.zeros(TERMS), [NOTHING[dtype]] * (TERMS - len(Us))
    weights[: len(Us)] = coefficients
    return (*[_as_it_lies(U) for U in Us], *rest), (*[_as_it_lies(V) for V in Vs], *rest), weights


def _as_it_lies(factor):
    """A factor as a batch of its columns and True, or of its rows and False, whichever lie one after the other."""
    if not factor.flags.writeable:  # Numba has a type for each
        factor = factor.copy(order="K")
    if factor.flags.c_contiguous:
        return _as_batch(factor), True
    return _as_batch(np.ascontiguousarray(factor.mT)), False


def _as_batch(x):
    return x[None] if x.ndim == 2 else x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _in_threads(run, count):
    """The results of ``run(first, last)`` on parts of a batch, in as many threads as Numba would use.

    Threads of Python, for a moment: the kernels leave its lock, and Numba's own do not survive a fork.
    """
    from numba import config

    threads = min(config.NUMBA_NUM_THREADS, count)  # type: ignore[attr-defined]  # set when Numba starts
    if threads == 1:
        return [run(0, count)]
    bounds = [count * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, bounds[:-1], bounds[1:]))


@cache
def _loaded(dtype):
    """The kernels, and ?gemm for their numbers and for float64. Importing numba takes a while, and only this does."""
    from lorsum import _kernels
    from lorsum._blas import GEMM

    return _kernels, (GEMM[dtype.itemsize], GEMM[8])
