"""From problems to the arguments of the Numba kernel, :func:`lorsum._kernels.alternating`; a batch in threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from lorsum._numba import as_batch, loaded, row_major_factors
from lorsum.alternating.plan import Plan
from lorsum.alternating.problem import Problem, all_terms
from lorsum.lowrank import LowRank

WORTH_A_THREAD = 2**24  # multiplications in a batch from which threads save more than they cost


def by_kernels(problems: Sequence[Problem], plan: Plan) -> list[LowRank] | None:
    """The solutions of problems that a plan sends to the kernels; terms that they have in common are read once.

    None where the kernels give up: on columns that are dependent, and on what is not finite.
    """
    terms, dense, starts, weights = _arranged(problems)
    by_gram = plan.way == "Gram coefficients"
    if by_gram and dense is not None:  # as a product, whose columns have a Gram matrix
        terms, dense, weights = [*terms, _factored(dense)], None, [[*row, 0.0] for row in weights]
    U, V = terms[0].U, terms[0].V
    *batch, m, _ = U.shape
    n, dtype = V.shape[-2], U.dtype
    Us, Vs, weights = row_major_factors([A.U for A in terms], [A.V for A in terms], weights)
    count, ranks, iters = len(Us[0][0]), [terms[start].U.shape[-1] for start in starts], problems[0].iters
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
        ok = all(_in_threads(partial(kernels.alternating, *arguments), count))
    if not ok:
        return None
    if not batch:
        return [LowRank._of(U[0].T, V[0].T) for U, V in results]
    return [LowRank._of(U.mT.reshape(*batch, m, -1), V.mT.reshape(*batch, n, -1)) for U, V in results]


def _arranged(problems: Sequence[Problem]) -> tuple[list[LowRank], Any, list[int], list[list[Any]]]:
    """What the sums of several problems are made of: terms, dense, starts, weights.

    The low-rank terms of all sums and the starts, each once; the term that is no LowRank, or None; and of each sum the
    number of the term that it starts from, and the coefficients of the low-rank terms and of the dense one.
    """
    everything = all_terms(problems)
    terms = [A for A in everything if type(A) is LowRank]
    dense = None if len(terms) == len(everything) else next(A for A in everything if type(A) is not LowRank)
    if len(problems) == 1 and everything is problems[0].target.terms and dense is None:
        return terms, None, [0], [[*problems[0].target.coefficients, 0.0]]
    number: dict[int, int] = {}
    for i, A in enumerate(terms):
        number.setdefault(id(A), i)
    weights = []
    for problem in problems:
        row = [0.0] * (len(terms) + 1)  # the last for what has no number
        for A, c in zip(problem.target.terms, problem.target.coefficients, strict=True):
            row[number.get(id(A), -1)] += c
        weights.append(row)
    return terms, dense, [number[id(problem.init)] for problem in problems], weights


def _factored(D: np.ndarray) -> LowRank:
    """An array as I D or D I."""
    m, n = D.shape[-2:]
    identity = np.broadcast_to(np.eye(min(m, n), dtype=D.dtype), (*D.shape[:-2], min(m, n), min(m, n)))
    return LowRank._of(identity, D.mT) if m <= n else LowRank._of(D, identity)


def _row_major(D: np.ndarray) -> np.ndarray:
    return D if D.flags.c_contiguous and D.flags.writeable else D.copy(order="C")


def _multiplications(terms: list[LowRank], D: np.ndarray, ranks: list[int]) -> int:
    """How many an iteration takes, for a whole batch."""
    return (sum([A.U.size + A.V.size for A in terms]) + D.size) * sum(ranks)


def _in_threads(run: Callable[[int, int], bool], count: int) -> list[bool]:
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
