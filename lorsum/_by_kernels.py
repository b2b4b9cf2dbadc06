"""From sums to what the kernels iterate on: several of them together, so that the terms they share are read once."""

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
                low_rank = type(A) is LowRank
                number[id(A)] = len(terms) if low_rank else -1
                (terms if low_rank else dense).append(A)
    if len(dense) > 1 or (dense and method == "coefficients"):
        return None
    asked = [
        compiled.Problem(number[id(init)], _weights(target, number, len(terms)), 0.0 if reg is None else reg, balance)
        for target, init, reg, balance in problems
    ]
    given, factors = (terms, dense[0] if dense else None, asked, iters, start == "V"), None
    if method == "coefficients" or (method == "auto" and not dense and _gram_matrices_pay(terms, problems, iters)):
        factors = compiled.alternating(*given, by_gram=True)
    if factors is None and method != "coefficients":
        factors = compiled.alternating(*given, by_gram=False)
    return None if factors is None else [LowRank._of(*pair) for pair in factors]


def _weights(target, number, count):
    """The coefficients of the low-rank terms, and the dense one's."""
    weights = [0.0] * (count + 1)
    for A, c in zip(target.terms, target.coefficients, strict=True):
        weights[number[id(A)]] += c
    return weights


def _gram_matrices_pay(terms, problems, iters):
    ranks = [init.rank for _, init, _, _ in problems]
    return gram_matrices_cost_less(sum(terms[0].shape[-2:]), sum([A.rank for A in terms]), ranks, iters)
