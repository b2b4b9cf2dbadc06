"""From sums to what the kernels iterate on: several of them together, so that the terms they share are read once."""

import numpy as np

from lorsum import _compiled as compiled
from lorsum._preparation import gram_matrices_cost_less
from lorsum.lowrank import LowRank

__all__ = ["by_kernels"]


def by_kernels(problems, iters, first, method):
    """What :func:`lorsum.lorsum` gives for each problem, or None where the kernels are not for it.

    They are not for other arrays than NumPy's, dependent columns, and what is not finite.

    Parameters
    ----------
    problems : list of tuple
        A target, init, λ (or None for 0) and whether to balance the result.
    iters, first, method
        As for ``lorsum``.
    """
    if type(problems[0][1].U) is not np.ndarray:
        return None
    terms, dense, starts, weights = _one(*problems[0][:2]) if len(problems) == 1 else _together(problems)
    if len(dense) > 1 or (dense and (method == "coefficients" or type(dense[0]) is not np.ndarray)):
        return None
    ranks = [terms[first].rank for first in starts]
    wanted = [
        (first, rank, 0.0 if reg is None else reg, balance)
        for first, rank, (_, _, reg, balance) in zip(starts, ranks, problems, strict=True)
    ]
    R, v_first, factors = sum([A.rank for A in terms]), first == "V", None
    if method == "coefficients" or (
        method == "auto" and gram_matrices_cost_less(terms[0].shape, R, ranks, iters, dense=bool(dense))
    ):
        if not dense:
            factors = compiled.alternating(terms, None, weights, wanted, iters, v_first, by_gram=True)
        else:
            factored = [[*row, 0.0] for row in weights]
            factors = compiled.alternating(
                [*terms, _factored(dense[0])], None, factored, wanted, iters, v_first, by_gram=True
            )
    if factors is None and method != "coefficients":
        D = dense[0] if dense else None
        factors = compiled.alternating(terms, D, weights, wanted, iters, v_first, by_gram=False)
    return None if factors is None else [LowRank._of(*pair) for pair in factors]


def _one(target, init):
    """What is below of a single sum, as most calls have it."""
    terms, coefficients = target.terms, target.coefficients
    if init is not terms[0]:
        terms, coefficients = (init, *terms), (0.0, *coefficients)
    for A in terms:
        if type(A) is not LowRank:
            return _together([(target, init)])
    return terms, (), (0,), [[*coefficients, 0.0]]


def _together(problems):
    """The low-rank terms of all sums, each once, and the dense ones; of each sum the term to start from, and weights.

    Weights are the coefficients of the low-rank terms, and of the dense one.
    """
    terms: list = []
    dense: list = []
    number: dict = {}  # of each term, as the weights have it
    for target, init, *_ in problems:
        for A in (init, *target.terms):
            if id(A) not in number:
                is_dense = type(A) is not LowRank
                number[id(A)] = -1 if is_dense else len(terms)
                (dense if is_dense else terms).append(A)
    weights = []
    for target, *_ in problems:
        row = [0.0] * (len(terms) + 1)
        for A, c in zip(target.terms, target.coefficients, strict=True):
            row[number[id(A)]] += c
        weights.append(row)
    return terms, dense, [number[id(init)] for _, init, *_ in problems], weights


def _factored(D):
    """An array as I D or D I: columns that have a Gram matrix."""
    m, n = D.shape[-2:]
    eye = np.broadcast_to(np.eye(min(m, n), dtype=D.dtype), (*D.shape[:-2], min(m, n), min(m, n)))
    return LowRank._of(eye, D.mT) if m <= n else LowRank._of(D, eye)
