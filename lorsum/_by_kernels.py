"""From sums to what the kernels iterate on: several of them together, so that the terms they share are read once."""

import numpy as np

from lorsum import _compiled as compiled
from lorsum._preparation import gram_matrices_cost_less
from lorsum.lowrank import LowRank

__all__ = ["by_kernels"]


def by_kernels(problems, iters, start, method):
    """What :func:`lorsum.lorsum` gives for each problem, or None where the kernels are not for it.

    They are not for other arrays than NumPy's, dependent columns, and what is not finite.

    Parameters
    ----------
    problems : list of tuple
        A target, init, λ (or None for 0) and whether to balance the result.
    iters, start, method
        As for ``lorsum``.
    """
    terms: list = []
    dense: list = []
    number: dict = {}  # of each term, as the kernels' weights have it
    for target, init, _, _ in problems:
        for A in (init, *target.terms):
            if id(A) not in number:
                is_dense = type(A) is not LowRank
                number[id(A)] = -1 if is_dense else len(terms)
                (dense if is_dense else terms).append(A)
    if len(dense) > 1 or any([type(D) is not np.ndarray or method == "coefficients" for D in dense]):
        return None
    asked = [
        compiled.Problem(number[id(init)], _weights(target, number, len(terms)), 0.0 if reg is None else reg, balance)
        for target, init, reg, balance in problems
    ]
    v_first, D, factors = start == "V", dense[0] if dense else None, None
    if method == "coefficients" or (method == "auto" and _gram_matrices_pay(terms, D, problems, iters)):
        if D is None:
            factors = compiled.alternating(terms, None, asked, iters, v_first, by_gram=True)
        else:
            factored = [problem._replace(weights=[*problem.weights, 0.0]) for problem in asked]
            factors = compiled.alternating([*terms, _factored(D)], None, factored, iters, v_first, by_gram=True)
    if factors is None and method != "coefficients":
        factors = compiled.alternating(terms, D, asked, iters, v_first, by_gram=False)
    return None if factors is None else [LowRank._of(*pair) for pair in factors]


def _weights(target, number, count):
    """The coefficients of the low-rank terms, and the dense one's."""
    weights = [0.0] * (count + 1)
    for A, c in zip(target.terms, target.coefficients, strict=True):
        weights[number[id(A)]] += c
    return weights


def _gram_matrices_pay(terms, D, problems, iters):
    ranks = [init.rank for _, init, _, _ in problems]
    return gram_matrices_cost_less(terms[0].shape, sum([A.rank for A in terms]), ranks, iters, dense=D is not None)


def _factored(D):
    """An array as I D or D I: columns that have a Gram matrix."""
    m, n = D.shape[-2:]
    eye = np.broadcast_to(np.eye(min(m, n), dtype=D.dtype), (*D.shape[:-2], min(m, n), min(m, n)))
    return LowRank._of(eye, D.mT) if m <= n else LowRank._of(D, eye)
