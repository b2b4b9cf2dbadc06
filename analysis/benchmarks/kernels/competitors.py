"""Who is timed: lorsum's own ways, and what a user would otherwise take; each as a call that has its inputs at hand."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from sklearn.utils.extmath import randomized_svd

import lorsum as ls
from analysis.benchmarks.kernels.listing_1 import listing_1
from analysis.benchmarks.kernels.problems import Case
from lorsum._sums import stacked

__all__ = ["BASELINES", "FORM", "LISTING", "OURS", "STANDARD", "calls", "feasible", "parsed", "picks", "to_lowrank"]

LISTING, FORM = "Listing 1", "form the matrix"
# All start with V, as Listing 1 does, so that the iterates are the same
OURS = (
    *("auto K=1", "auto K=2", "auto K=8", "direct K=1", "direct K=8", "coefficients K=1", "coefficients K=8"),
    *("Krylov K=2", "Krylov K=8", "factored"),
)
STANDARD = (*OURS, f"{LISTING} K=1", f"{LISTING} K=8")
ON_THE_MATRIX = ("torch.svd_lowrank", "randomized_svd", "dense SVD")
BASELINES = (FORM, *ON_THE_MATRIX, "svds")
OVERSAMPLE = 10  # scikit-learn's default, given to torch too
LONGEST = 2.5  # seconds that a call may take, as predicted


def calls(names: Sequence[str], target: ls.LowRankSum) -> dict[str, Callable]:
    """Name → call, for a target of NumPy factors."""
    dense = _formed(target) if set(names) & set(ON_THE_MATRIX) else None
    as_tensors = _tensors(target)
    made = {}
    for name in names:
        kind, iters = parsed(name)
        if kind in ("auto", "direct", "coefficients", "Krylov"):
            made[name] = _ours(kind, iters, target)
        elif kind == LISTING:
            made[name] = _listing(iters, *as_tensors)
        else:
            made[name] = _baseline(kind, target, dense)
    return made


def parsed(name: str) -> tuple[str, int | None]:
    """The kind of a call and K, None where there is none: ``("auto", 8)`` of ``"auto K=8"``."""
    kind, _, iters = name.partition(" K=")
    return kind, int(iters) if iters else None


def _ours(kind, iters, target):
    options = {"accelerate": "krylov"} if kind == "Krylov" else {"method": kind}
    return lambda: ls.lorsum(target, iters=iters, first="V", **options)


def _listing(iters, factors, coefficients):
    return lambda: listing_1(factors, coefficients, iters)


def _baseline(kind, target, dense):
    r = target.terms[0].rank
    if kind == "factored":
        return lambda: ls.truncated_svd(target, r, method="factored")
    if kind == FORM:
        return lambda: _formed(target)
    if kind == "torch.svd_lowrank":
        tensor = torch.from_numpy(dense)
        return lambda: torch.svd_lowrank(tensor, q=min(r + OVERSAMPLE, *dense.shape))
    if kind == "randomized_svd":
        return lambda: randomized_svd(dense, r, n_oversamples=OVERSAMPLE, random_state=0)
    if kind == "dense SVD":
        return lambda: scipy.linalg.svd(dense, full_matrices=False)
    if kind == "svds":
        operator = target.as_linear_operator()
        return lambda: scipy.sparse.linalg.svds(operator, r, rng=0)
    raise ValueError(f"`kind` is {kind!r}, which is no competitor.")


def _formed(target):
    """The matrix, by one product of the stacked factors: the fastest way to it."""
    U, V = stacked(target)
    return U @ V.T


def _tensors(target):
    """Listing 1's lists, of tensors that share the arrays' memory."""
    factors = [(torch.from_numpy(A.V.T), torch.from_numpy(A.U)) for A in target.terms]
    return factors, list(map(float, target.coefficients))


def to_lowrank(name: str, answer: Any, rank: int) -> ls.LowRank | None:
    """What a call returned as a LowRank of the asked rank; None for the matrix itself."""
    if name == FORM:
        return None
    if isinstance(answer, ls.LowRank):
        return answer
    if name.startswith(LISTING):
        Vt, U = answer
        return ls.LowRank(U.numpy(), Vt.numpy().T)
    U, s, V = (np.asarray(part) for part in answer)
    if name != "torch.svd_lowrank":  # torch alone returns V and not its transpose
        V = V.T
    top = np.argsort(s)[::-1][:rank]  # svds promises no order
    return ls.LowRank(U[:, top] * s[top], V[:, top])


def picks(answers: dict[str, Any]) -> dict[str, str | None]:
    """K → the method whose factors those of ``auto`` equal bit for bit, which is the one that it took."""
    chosen = {}
    for name, answer in answers.items():
        kind, iters = parsed(name)
        if kind == "auto":
            same = [
                method
                for method in ("direct", "coefficients")
                if (other := answers.get(f"{method} K={iters}")) is not None and np.array_equal(answer.U, other.U)
            ]
            chosen[str(iters)] = same[0] if same else None
    return chosen


def feasible(name: str, case: Case) -> bool:
    """Whether a call should end within some seconds on one core: operations at 20 GF/s, half of that in double."""
    m, n, R = case.m, case.n, case.stacked_rank
    p, q = min(m, R), min(n, R)
    kind, _ = parsed(name)
    forming = 2 * m * n * R / 2
    core = 4 * R * (m * p + n * q) + 14 * min(p, q) ** 2 * max(p, q)
    operations = {
        "factored": core,
        "coefficients": core,
        "auto": 0,
        "svds": 3 * 10 * 4 * (m + n) * R * case.rank,  # memory-bound: a tenth of the rate
        "dense SVD": forming + 14 * min(m, n) ** 2 * max(m, n),
    }
    operations |= dict.fromkeys((FORM, "torch.svd_lowrank", "randomized_svd"), forming)
    return operations.get(kind, 0) / 20e9 * case.itemsize / 4 <= LONGEST
