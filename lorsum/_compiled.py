"""The door to the Numba kernels: which problems they take, and the call. Anything else is answered with None."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

__all__ = ["alternating", "balanced", "compressed"]

STACKED = 2**16  # numbers in all terms up to which a copy of them costs less than products with each
SMALL = 2**13  # numbers in one of more up to which this holds for it
WORTH_A_THREAD = 2**24  # multiplications in a batch from which threads save more than they cost


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
    U, V = np.empty((len(Us[0][0]), r, m), init.U.dtype), np.empty((len(Us[0][0]), r, n), init.U.dtype)
    problem = Us, Vs, c, iters, reg, v_first, balance, by_gram, blas, U, V
    if len(U) == 1 or len(U) * iters * len(c) * r * (m + n) <= WORTH_A_THREAD:
        ok = kernels.alternating(*problem, 0, len(U))
    else:
        ok = all(_in_threads(lambda first, last: kernels.alternating(*problem, first, last), len(U)))
    if not ok:
        return None
    return (U.mT.reshape(*batch, m, r), V.mT.reshape(*batch, n, r)) if batch else (U[0].T, V[0].T)


def compressed(W):
    """The core of a sum in orthonormal bases of its stacked factors, and products with these bases; or None.

    What is returned is ``times_left, core, times_right``, in the factors' precision.
    """
    if len(W.shape) > 2 or not all(isinstance(c, (int, float)) for c in W.coefficients) or not _fit(W.terms):
        return None
    m, n = W.shape
    kernels, blas = _loaded(W.dtype.itemsize)
    Us, Vs, c = _in_rows(W.terms, W.coefficients, m, n)
    ok, core, K, L = kernels.compressed(Us, Vs, c, blas) if len(c) <= min(m, n) else (False, None, None, None)
    if not ok:
        return None

    def times(Xs, K):
        def product(P):
            X = np.empty((P.shape[1], Xs[0][0].shape[-1]), W.dtype)
            kernels.combined(Xs, K @ P, X, blas)
            return X.T

        return product

    return times(Us, K), core.astype(W.dtype), times(Vs, L)


def _in_threads(run, count):
    """The results of ``run(first, last)`` on parts of a batch, in as many threads as Numba would use.

    Threads of Python, for a moment: the kernels leave its lock, and Numba's own do not survive a fork.
    """
    from numba import config

    threads = min(config.NUMBA_NUM_THREADS, count)
    if threads == 1:
        return [run(0, count)]
    bounds = [count * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, bounds[:-1], bounds[1:]))


def balanced(W):
    """The factors U√s and V√s of a low-rank matrix, or None."""
    if W.U.ndim > 2 or not _fit((W,)):
        return None
    kernels, blas = _loaded(W.dtype.itemsize)
    ok, U, V = kernels.balanced(_rows(W.U), _rows(W.V), blas)
    return (U.T, V.T) if ok else None


def _fit(terms):
    """True for low-rank matrices with real NumPy arrays of one dtype as factors."""
    dtype = terms[0].U.dtype
    for A in terms:
        if not (type(A.U) is np.ndarray and A.U.dtype == dtype):
            return False
    return dtype in _NOTHING and 0 not in terms[0].U.shape


def _in_rows(terms, coefficients, m, n):
    """The terms' factors and coefficients as the kernels take them: small terms stacked, two large ones as they are.

    There are three of each always, so that the kernels are compiled once.
    """
    ranks = [A.U.shape[-1] for A in terms]
    nothing = _NOTHING[terms[0].U.dtype]
    if sum(ranks) * (m + n) <= STACKED:
        Us, Vs, c = _stacked(terms, coefficients, sum(ranks), m, n)
        return ((Us, False), nothing, nothing), ((Vs, False), nothing, nothing), c
    large = [i for i, rank in enumerate(ranks) if i and rank * (m + n) > SMALL]
    large = sorted(large, key=lambda i: -ranks[i])[:2]
    small = [i for i in range(len(terms)) if i not in large]  # with the start, which comes first
    R, rest = sum([ranks[i] for i in small]), [nothing] * (2 - len(large))
    Us, Vs, c = _stacked([terms[i] for i in small], [coefficients[i] for i in small], R, m, n)
    return (
        ((Us, False), *[_as_it_is(terms[i].U) for i in large], *rest),
        ((Vs, False), *[_as_it_is(terms[i].V) for i in large], *rest),
        np.concatenate([c, *[np.full(ranks[i], coefficients[i], np.float64) for i in large]]),
    )


_NOTHING = {dtype: (np.empty((0, 0, 0), dtype), False) for dtype in map(np.dtype, ("f4", "f8"))}


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


def _as_it_is(factor):
    """A factor's rows and False, or its columns and True, whichever lie in memory one after the other."""
    if factor.flags.c_contiguous and not factor.mT.flags.c_contiguous:
        return _writeable(factor), True
    return _writeable(np.ascontiguousarray(factor.mT)), False


def _rows(factor):
    """A factor transposed and contiguous."""
    return _writeable(np.ascontiguousarray(factor.mT))[0]


def _writeable(x):
    """A batch that may be written to, since Numba has a type for each."""
    return _as_batch(x if x.flags.writeable else x.copy())


def _as_batch(x):
    return x[None] if x.ndim == 2 else x.reshape(-1, *x.shape[-2:])


@cache
def _loaded(itemsize):
    """The kernels and the addresses of their BLAS; importing numba takes a while, and only this needs it."""
    from lorsum import _kernels
    from lorsum._blas import GEMM_AND_SYRK

    return _kernels, (GEMM_AND_SYRK[itemsize], GEMM_AND_SYRK[8])
