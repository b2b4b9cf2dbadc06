"""The accuracy that lorsum promises, measured: the exit status is 1 where a promise is not kept.

Each row compares with something computed in another way: the same iteration in extended precision, a dense SVD by
SciPy. No limit is a reading of one machine: BLAS libraries round differently on every processor.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import DTypeLike

import lorsum as ls
from analysis.benchmarks import extended_precision
from analysis.experiments.command_line import parser
from analysis.experiments.environment import environment
from analysis.experiments.output import write
from analysis.experiments.tables import markdown

__all__ = ["ROWS", "Row", "command", "page", "table"]

EPS = np.finfo(float).eps
M, N = 50, 40
ROUNDING = (M + N) ** 0.5  # ε: rounding errors of sums of n numbers grow as √n (Higham and Mary, SISC 41, 2019)


class Row(NamedTuple):
    """A promise: ``measure()`` is to stay below ``limit``."""

    what: str
    limit: float
    measure: Callable[[], float]


def ill_conditioned(dtype: type[np.floating], condition: float, *, solver: str = "auto", seeds: int = 5) -> float:
    """Worst relative distance at K = 1 to the same iteration in higher precision; κ(U) = κ(V), and W is harmless."""
    return max(_ill_conditioned(dtype, condition, solver, np.random.default_rng(seed)) for seed in range(seeds))


def _ill_conditioned(dtype, condition, solver, rng):
    m, n, r = 60, 40, 8
    spectrum, rotation = np.logspace(0, -np.log10(condition), r), _orthonormal(rng, r, r)
    W = ls.LowRank((_orthonormal(rng, m, r) * spectrum) @ rotation, (_orthonormal(rng, n, r) / spectrum) @ rotation)
    G = ls.LowRank(rng.normal(size=(m, 12)), rng.normal(size=(n, 12)))
    target = W.astype(dtype) - dtype(0.01) * G.astype(dtype)
    expected = extended_precision.iterate(target, 1)
    return float(_norm(ls.lorsum(target, solver=solver).to_dense() - expected) / _norm(expected))


def in_condition(dtype: DTypeLike = np.float64, *, seeds: int = 30, **options: Any) -> float:
    """Worst distance to the exact iteration, in units of ε (κ + ‖|U| |V|ᵀ‖ / ‖U Vᵀ‖), for κ(U), κ(V) up to 1e3.

    κ is what the iteration makes of rounding errors at its best (see `extended_precision.condition`), and the other
    number what it costs to store U and V.
    """
    worst = 0.0
    for seed in range(seeds):
        target, iters, expected, condition = _moderately_conditioned(seed)
        X = ls.lorsum(target.astype(dtype), iters=iters, **options).astype(np.float64)
        storing = _norm(np.abs(X.U) @ np.abs(X.V).T) / _norm(expected)
        unit = np.finfo(dtype).eps * (condition + storing)
        worst = max(worst, _norm(X.to_dense() - expected) / _norm(expected) / unit)
    return float(worst)


@cache
def _moderately_conditioned(seed):
    """A target of numbers that single precision has too, K, the exact iterate, and its condition."""
    rng = np.random.default_rng(seed)
    r, iters = 6, int(rng.integers(1, 9))
    spectrum = np.logspace(0, -rng.uniform(0, 3), r)
    W = ls.LowRank(*((_orthonormal(rng, d, r) * spectrum) @ _orthonormal(rng, r, r) for d in (M, N)))
    target = W - 0.125 * ls.LowRank(rng.normal(size=(M, 9)), rng.normal(size=(N, 9)))
    target = target.astype(np.float32).astype(np.float64)
    return target, iters, extended_precision.iterate(target, iters), extended_precision.condition(target, iters)


def cold_start(rng: np.random.Generator) -> tuple[ls.LowRankSum, ls.LowRank]:
    """A target with singular values 1/i, and a random matrix of rank 8."""
    A = ls.LowRank(_orthonormal(rng, 200, 100) / np.arange(1, 101), _orthonormal(rng, 150, 100))
    return ls.LowRankSum([A]), ls.LowRank(np.zeros((200, 8)), rng.normal(size=(150, 8)))


def warm_start(rng: np.random.Generator) -> tuple[ls.LowRankSum, ls.LowRank]:
    """A training step's target W − G, the singular values of G decaying as 0.8ⁱ, and W of rank 8."""
    W = ls.LowRank(_orthonormal(rng, 200, 8) * np.linspace(2, 1, 8), _orthonormal(rng, 150, 8))
    G = ls.LowRank(_orthonormal(rng, 200, 64) * 0.8 ** np.arange(64), _orthonormal(rng, 150, 64))
    return W - G, W


def excesses(start: Callable, iters: int, *, seeds: int = 5, **options: Any) -> np.ndarray:
    """Excess over the best approximation from a start, one a seed."""
    problems = (start(np.random.default_rng(seed)) for seed in range(seeds))
    gaps = [ls.gap(ls.lorsum(target, init=init, iters=iters, **options), target) for target, init in problems]
    return np.array([gap.excess for gap in gaps])


def over_plain(start: Callable, iters: int, **options: Any) -> float:
    """Median ratio of the excess to that of the plain iteration."""
    return float(np.median(excesses(start, iters, **options) / excesses(start, iters)))


def predicted_rate(iters: int = 60) -> float:
    """Relative difference of the measured contraction of the largest angle from (σ_{r+1}/σ_r)², once asymptotic."""
    rng = np.random.default_rng(0)
    s = 1 / np.arange(1.0, 41)
    A = ls.LowRank(_orthonormal(rng, 60, 40) * s, _orthonormal(rng, 50, 40))
    history = ls.History()
    init = ls.LowRank(np.zeros((60, 8)), rng.normal(size=(50, 8)))
    ls.lorsum(ls.LowRankSum([A]), init=init, iters=iters, callback=history)
    measured = np.tan(history.angle[-1]) / np.tan(history.angle[-2])
    return float(abs(measured / ls.theory.contraction_rate(s, 8) - 1))


def gap_against_dense(seeds: int = 10) -> float:
    """Worst difference of ``gap`` to a dense SVD, relative to ‖W‖, for true gaps from 1 down to 1e-13."""
    worst = 0.0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        spectrum = np.concatenate([np.linspace(2, 1, 5), 10.0 ** -rng.integers(0, 14) * rng.uniform(size=10)])
        A = ls.LowRank(_orthonormal(rng, 60, 15) * spectrum, _orthonormal(rng, 40, 15))
        X = ls.LowRank(A.U[:, :5] + 1e-9 * rng.normal(size=(60, 5)), A.V[:, :5])
        measured, dense = ls.gap(X, A), A.to_dense()
        optimal = _norm(scipy.linalg.svdvals(dense)[5:])
        errors = measured.error - _norm(dense - X.to_dense()), measured.optimal - optimal
        worst = max(worst, *(abs(error) / _norm(dense) for error in errors))
    return float(worst)


def incremental_drift(updates: int = 5000) -> float:
    """‖UᵀU − I‖, or ‖VᴴV − I‖, after rank-one updates by Brand's method, rounded to rank 8 each time."""
    rng = np.random.default_rng(0)
    svd = ls.IncrementalSVD(_orthonormal(rng, 60, 8), np.ones(8), _orthonormal(rng, 40, 8).T)
    for _ in range(updates):
        svd.update(rng.normal(size=(60, 1)), 0.1 * rng.normal(size=(40, 1))).truncate(8)
    return float(max(_norm(svd.U.T @ svd.U - np.eye(8)), _norm(svd.Vh @ svd.Vh.T - np.eye(8))))


KRYLOV: dict[str, Any] = {"accelerate": "krylov"}
BOTH = KRYLOV | {"oversample": 5}
ROWS = [
    Row("float32, κ(U) = κ(V) = 1e5: distance to exact arithmetic", 1e-2, lambda: ill_conditioned(np.float32, 1e5)),
    Row("float64, κ(U) = κ(V) = 1e7: distance to exact arithmetic", 1e-8, lambda: ill_conditioned(np.float64, 1e7)),
    Row("direct: distance to exact arithmetic, in ε × condition", ROUNDING, lambda: in_condition(method="direct")),
    Row("coefficients: the same", ROUNDING, lambda: in_condition(method="coefficients")),
    Row("coefficients by QR: the same", ROUNDING, lambda: in_condition(method="coefficients", solver="qr")),
    Row("balanced factors: the same", ROUNDING, lambda: in_condition(gauge="balanced")),
    Row("direct in float32: the same", ROUNDING, lambda: in_condition(np.float32, method="direct")),
    Row("coefficients in float32: the same", ROUNDING, lambda: in_condition(np.float32, method="coefficients")),
    Row("1/i, cold start, K = 3: Krylov / plain excess", 1e-1, lambda: over_plain(cold_start, 3, **KRYLOV)),
    Row("1/i, cold start, K = 4: Krylov / plain excess", 1e-3, lambda: over_plain(cold_start, 4, **KRYLOV)),
    Row("1/i, cold start, K = 4: p = 5 / plain excess", 1 / 50, lambda: over_plain(cold_start, 4, oversample=5)),
    Row("1/i, cold start, K = 4: both, excess", 1e-7, lambda: float(np.median(excesses(cold_start, 4, **BOTH)))),
    Row("decaying gradient, warm start, K = 2: Krylov / plain", 1e-2, lambda: over_plain(warm_start, 2, **KRYLOV)),
    Row("contraction rate against (σ_{r+1}/σ_r)², relative", 1e-1, predicted_rate),
    Row("gap against a dense SVD, relative to ‖W‖", 1e-12, gap_against_dense),
    Row("5,000 Brand updates: ‖UᵀU − I‖", 1e-12, incremental_drift),
]


def table(rows: Sequence[Row] = ROWS) -> tuple[str, bool]:
    """The table as Markdown, and whether every promise is kept."""
    measured = [(row, row.measure()) for row in rows]
    kept = [value <= row.limit for row, value in measured]
    lines = [
        [row.what, f"{value:.2g}", f"{row.limit:.2g}", "yes" if fine else "**no**"]
        for (row, value), fine in zip(measured, kept, strict=True)
    ]
    return markdown(["what", "measured", "limit", ""], lines), all(kept)


PAGE = """# Accuracy

Measured by `python -m analysis accuracy` with BLAS kernels for {kernels}.

{table}
*Condition*: what the exact iteration makes of relative changes of size ε in every column that is orthogonalised and in
every product with W, the most that a stable algorithm can promise, plus ‖|U| |V|ᵀ‖ / ‖U Vᵀ‖, what it costs to store the
factors. The exact iteration is computed with {digits} digits. Rounding errors of sums of n numbers
grow as √n, so that √(m + n) such units are the limit on any processor. `solver="gram"`, the paper's solve, is not held
to it: it squares the condition.

A comparison with a second iteration in double precision would not do. Where κ(V) is 700, SciPy's QR is off by 143 ε and
`lorsum` by 30 ε, and the difference of the two, 131 ε, is that of SciPy.
"""


def page(table: str) -> str:
    """The page as Markdown."""
    kernels = sorted({pool["kernels"] for pool in environment()["thread_pools"] if pool["kernels"]})
    return PAGE.format(kernels=" and ".join(kernels), table=table, digits=extended_precision.DIGITS)


def command(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write its page where ``--output`` says; 0 if every promise is kept, else 1."""
    options = parser("analysis accuracy", __doc__, output=None).parse_args(arguments)
    text, kept = table()
    print(text)
    if options.output is not None:
        write(options.output / "accuracy.md", page(text))
    return 0 if kept else 1


def _orthonormal(rng, m, k):
    return np.linalg.qr(rng.normal(size=(m, k)))[0]


def _norm(A):
    return np.sqrt(np.sum(np.abs(A) ** 2))


if __name__ == "__main__":
    sys.exit(command())
