"""The door to the Numba kernels: which problems they take, and the call. Anything else is answered with None."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

__all__ = ["alternating", "balanced", "compressed"]

TERMS = 4  # that the kernels take, always: they are compiled once
WORTH_A_THREAD = 2**24  # multiplications in a batch from which threads save more than they cost
NOTHING = {dtype: (np.empty((1, 0, 0), dtype), False) for dtype in map(np.dtype, ("f4", "f8"))}


def alternating(terms, dense, weights, wanted, iters, v_first, by_gram):
    """U and V after the iteration of :func:`lorsum.lorsum` for each of several sums of the same terms, or None.

    Parameters
    ----------
    terms : sequence of LowRank
        Terms.
    dense : numpy.ndarray or None
        A further one.
    weights : list of list
        Of each sum, the coefficients of the terms, and of the dense one.
    wanted : list of tuple
        Of each sum, the number of the term that is iterated from, its rank, λ, and whether to balance the result.
    """
    *batch, m, n = terms[0].shape
    dtype = terms[0].U.dtype
    for row, (_, rank, reg, _) in zip(weights, wanted, strict=True):
        if type(reg) is not float or not 0 < rank <= min(m, n) or not _fit(terms, row, dtype):
            return None
    if len(terms) > TERMS and len(weights) > 1:
        return None
    Us, Vs, weights = _as_they_lie(terms, weights, dtype)
    count = len(Us[0][0])
    D = _as_dense(dense, count, dtype)
    if D is None or count == 0:
        return None
    results = [(np.empty((count, r, m), dtype), np.empty((count, r, n), dtype)) for _, r, _, _ in wanted]
    kernels, blas = _loaded(dtype)
    problems = tuple([(start, reg, balance, *UV) for (start, _, reg, balance), UV in zip(wanted, results, strict=True)])
    given = Us, Vs, D, weights, problems, iters, v_first, by_gram, blas
    if count == 1 or iters * _multiplications(terms, D, wanted) <= WORTH_A_THREAD:
        ok = kernels.alternating(*given, 0, count)
    else:
        ok = all(_in_threads(lambda first, last: kernels.alternating(*given, first, last), count))
    if not ok:
        return None
    if not batch:
        return [(U[0].T, V[0].T) for U, V in results]
    return [(U.mT.reshape(*batch, m, -1), V.mT.reshape(*batch, n, -1)) for U, V in results]


def _multiplications(terms, D, wanted):
    """How many an iteration takes, for a whole batch."""
    a_column = sum([A.U.size + A.V.size for A in terms]) + D.size
    return a_column * sum([rank for _, rank, _, _ in wanted])


def compressed(W):
    """The core of a sum in orthonormal bases of its stacked factors, and products with these bases; or None.

    What is returned is ``times_left, core, times_right``, in the factors' precision.
    """
    m, n = W.shape[-2:]
    dtype = W.terms[0].U.dtype
    if len(W.shape) > 2 or W.rank == min(m, n) or not _fit(W.terms, W.coefficients, dtype):
        return None
    kernels, blas = _loaded(dtype)
    Us, Vs, weights = _as_they_lie(W.terms, [[*W.coefficients, 0.0]], dtype)
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
    return dtype in NOTHING and _may_compile()


def _as_they_lie(terms, weights, dtype):
    """The terms' factors, in pairs as the kernels take them, and the weights as an array; the last terms as one."""
    Us, Vs, own = [A.U for A in terms], [A.V for A in terms], TERMS - 1
    if len(terms) > TERMS:
        ((*c, of_dense),) = weights
        Us[own:] = [np.concatenate([x * U for x, U in zip(c[own:], Us[own:], strict=True)], axis=-1)]
        Vs[own:] = [np.concatenate(Vs[own:], axis=-1)]
        weights = [[*c[:own], 1.0, of_dense]]
    rest = TERMS - len(Us)
    padded = np.array([[*c[:-1], *[0.0] * rest, c[-1]] for c in weights], np.float64)
    nothing = [NOTHING[dtype]] * rest
    return (*[_as_it_lies(U) for U in Us], *nothing), (*[_as_it_lies(V) for V in Vs], *nothing), padded


def _as_dense(x, count, dtype):
    """An array as a batch with contiguous rows, of no numbers for None; None for one that is not for the kernels."""
    if x is None:
        return np.empty((count, 0, 0), dtype)
    if x.dtype != dtype:
        return None
    return _as_batch(x if x.flags.c_contiguous and x.flags.writeable else x.copy(order="C"))


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
def _may_compile():
    """False where Numba is told not to, for a debugger or to measure coverage: the kernels are nothing without it."""
    from numba import config

    return not config.DISABLE_JIT  # type: ignore[attr-defined]  # set when Numba starts


@cache
def _loaded(dtype):
    """The kernels, and ?gemm for their numbers and for float64. Importing numba takes a while, and only this does."""
    from lorsum import _kernels
    from lorsum._blas import GEMM

    return _kernels, (GEMM[dtype.itemsize], GEMM[8])
