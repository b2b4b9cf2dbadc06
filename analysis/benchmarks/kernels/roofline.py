"""The roofline: the bytes and operations that a case needs, over the rates measured beside it.

The model, for an m × n sum of stacked rank R, factors of rank r, and K iterations:

- directly, each half-step reads each factor once and writes its result: 2K (m + n) R numbers read and K (m + n) r
  written. It multiplies by all factors, 4K (m + n) R r operations, forms a Gram matrix of half r² inner products and
  applies its inverse, K (m + n) (r² + 2r²);
- on coefficients, all factors are read twice, for their Gram matrices, (m + n) R² operations by symmetry, and for the
  result, 2 (m + n) R r, of which (m + n) r is written; K iterations between cost 8K R² r.

The least time is the larger of bytes over bandwidth and operations over the rate of matrix products, for the cheaper of
the two. A half-step could share the reading of one side with the next, which no code here does: it would save a quarter
of the reading at K = 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg.blas

from analysis.benchmarks.kernels.problems import Case
from analysis.experiments.timing import median

__all__ = ["PRODUCT", "Rates", "least_seconds", "probes", "rates", "work"]

SMALLEST = 2**18  # bytes from which the call itself does not count
PRODUCT = 1024  # size of the square matrices


class Work(NamedTuple):
    """What must be moved and done."""

    bytes: float
    operations: float


class Rates(NamedTuple):
    """What the machine moves and does in a second."""

    bandwidth: float
    products: float


def work(case: Case, iters: int) -> tuple[Work, Work]:
    """The work of K iterations, directly and on coefficients."""
    both, r, R = case.m + case.n, case.rank, case.stacked_rank
    direct = Work(
        case.itemsize * iters * both * (2 * R + r),
        iters * both * (4 * R * r + 3 * r**2),
    )
    coefficients = Work(
        case.itemsize * both * (2 * R + r),
        both * (R**2 + 2 * R * r) + 8 * iters * R**2 * r,
    )
    return direct, coefficients


def least_seconds(case: Case, iters: int, measured: Rates) -> float:
    """Seconds that K iterations need at least, at the measured rates."""
    return min(
        max(needed.bytes / measured.bandwidth, needed.operations / measured.products) for needed in work(case, iters)
    )


def probes(case: Case, product: int = PRODUCT) -> dict[str, Callable]:
    """Calls whose times give the rates, in the case's dtype and on as much memory as its factors take."""
    numbers = _vector(case)
    x, y = np.ones(numbers, case.dtype), np.zeros(numbers, case.dtype)
    axpy = scipy.linalg.blas.get_blas_funcs("axpy", (x, y))
    A, C = np.full((product, product), 0.5, case.dtype), np.empty((product, product), case.dtype)
    return {
        "dot": lambda: x @ y,
        "axpy": lambda: axpy(x, y, a=1e-3),  # in place
        "product": lambda: np.matmul(A, A, out=C),
    }


def rates(case: Case, seconds: dict[str, list[float]], product: int = PRODUCT) -> Rates:
    """The rates from the probes' times: the bandwidth is the better of reading two vectors and of updating one."""
    numbers = _vector(case)
    read, updated = (
        words * numbers * case.itemsize / median(seconds[name]) for name, words in (("dot", 2), ("axpy", 3))
    )
    return Rates(max(read, updated), 2 * product**3 / median(seconds["product"]))


def _vector(case):
    """How many numbers each of two vectors has that take as much memory as the factors do, or a little."""
    return max(case.factor_numbers, SMALLEST // case.itemsize) // 2
