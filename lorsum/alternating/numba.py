"""From problems to the arguments of the Numba kernel that iterates on them; a batch in threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lorsum._numba import as_batch, loaded, row_major_factors
from lorsum.lowrank import LowRank

__all__ = ["by_kernels"]

WORTH_A_THREAD = 2**24  # multiplications in a batch from which threads save more than they cost


def by_kernels(problems, plan):
    """The solutions, or None where the kernels give up: on columns that are dependent, and on what is not finite.

    Parameters
    ----------
    problems : sequence of Problem
        One or several that a plan sends to the kernels. Terms that they have in common are read once.
    plan : Plan
        The way that is taken.
    """
    terms, dense, starts, weights = _arranged(problems)
    by_gram = plan.way == "Gram coefficients"
    if by_gram and dense is not None:  # as a product, whose columns have a Gram matrix
        terms, dense, weights = [*terms, _factored(dense)], None, [[*row, 0.0] for row in weights]
    *batch, m, n = terms[0].shape
    dtype = terms[0].U.dtype
    Us, Vs, weights = row_major_factors([A.U for A in terms], [A.V for A in terms], weights)
    count, ranks, iters = len(Us[0][0]), [terms[start].rank for start in starts], problems[0].iters
    D = np.empty((count, 0, 0), dtype) if dense is None else as_batch(_row_major(dense))
    results = [(np.empty((count, r, m), dtype), np.empty((count, r, n), dtype)) for r in ranks]
    wanted = [
        (start, problem.reg, problem.gauge == "balanced", *factors)
        for start, problem, factors in zip(starts, problems, results, strict=True)
    ]
    kernels, blas = loaded(dtype)
    arguments = Us, Vs, D, weights, tuple(wanted), iters, problems[0].first == "V", by_gram, blas
    if count == 1 or iters * _multiplications(terms, D, ranks) <= WORTH_A_THREAD:
        ok = kernels.alternating(*arguments, 0, count)
    else:
        ok = all(_in_threads(lambda first, last: kernels.alternating(*arguments, first, last), count))
    if not ok:
        return None
    if not batch:
        return [LowRank._of(U[0].T, V[0].T) for U, V in results]
    return [LowRank._of(U.mT.reshape(*batch, m, -1), V.mT.reshape(*batch, n, -1)) for U, V in results]


def _arranged(problems):
    """What the sums of several problems are made of.

    Returns
    -------
    terms : list of LowRank
        The low-rank terms of all sums and the starts, each once.
    dense : array or None
        A term that is no LowRank.
    starts : list of int
        Of each sum, the number of the term that is iterated from.
    weights : list of list
        Of each sum, the coefficients of the low-rank terms, and of the dense one.
    """
    terms, dense, number = [], None, {}
    for problem in problems:
        for A in (problem.init, *problem.target.terms):
            if id(A) not in number:
                if type(A) is LowRank:
                    number[id(A)] = len(terms)
                    terms.append(A)
                else:
                    number[id(A)], dense = -1, A
    weights = []
    for problem in problems:
        row = [0.0] * (len(terms) + 1)
        for A, c in zip(problem.target.terms, problem.target.coefficients, strict=True):
            row[number[id(A)]] += c
        weights.append(row)
    return terms, dense, [number[id(problem.init)] for problem in problems], weights


def _factored(D):
    """An array as I D or D I."""
    m, n = D.shape[-2:]
    identity = np.broadcast_to(np.eye(min(m, n), dtype=D.dtype), (*D.shape[:-2], min(m, n), min(m, n)))
    return LowRank._of(identity, D.mT) if m <= n else LowRank._of(D, identity)


def _row_major(D):
    return D if D.flags.c_contiguous and D.flags.writeable else D.copy(order="C")


def _multiplications(terms, D, ranks):
    """How many an iteration takes, for a whole batch."""
    return (sum([A.U.size + A.V.size for A in terms]) + D.size) * sum(ranks)


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
