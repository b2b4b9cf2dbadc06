"""The matrices that the field tests with, as facts: LAPACK's, the named ones, scikit-learn's, and two real ones.

Their spectra and scales are those that break formulas: κ = 1/ε, ties, graded columns, both ends of the range of
numbers.
"""

from fractions import Fraction
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
from reference import EPS, alternating, dense, distance, solve_exactly
from scipy.sparse.linalg import aslinearoperator
from strategies import gauge_of_condition, normal_lowrank, orthonormal, with_spectrum

from lorsum import LowRank, LowRankSum, gap, lorsum, lorsum_until, truncated_svd

TINY, HUGE = np.finfo(float).tiny, np.finfo(float).max
SPACING = 5e-324  # of the numbers below TINY


# --- LAPACK's own test of singular value decompositions ---

SPECTRA = {  # the types of its programs dchkbd and ddrvbd, from 1 down to κ = 1/ε
    "zero": lambda k, eps, rng: np.zeros(k),
    "identity": lambda k, eps, rng: np.ones(k),
    "one large": lambda k, eps, rng: np.append(1, np.full(k - 1, eps)),
    "one small": lambda k, eps, rng: np.append(np.ones(k - 1), eps),
    "geometric": lambda k, eps, rng: np.geomspace(1, eps, k),
    "arithmetic": lambda k, eps, rng: np.linspace(1, eps, k),
    "random logarithms": lambda k, eps, rng: np.sort(eps ** rng.uniform(size=k))[::-1],
    "half zero": lambda k, eps, rng: np.append(np.linspace(1, 0.5, (k + 1) // 2), np.zeros(k // 2)),
}
SHAPES = [(30, 20), (20, 30), (25, 25), (2, 2), (1, 9), (9, 1), (1, 1)]
THRESHOLD = 35  # LAPACK's


def spectral_matrix(spectrum, m, n, dtype, scale=1.0):
    rng = np.random.default_rng(m + n)
    s = SPECTRA[spectrum](min(m, n), np.finfo(dtype).eps, rng)
    P, Q = (orthonormal(rng, d, min(m, n)) for d in (m, n))
    if np.issubdtype(dtype, np.complexfloating):
        P = P * np.exp(1j * np.arange(len(s)))
    return LowRank((P * s).astype(dtype) * dtype(scale), Q.astype(dtype))


def lapack_ratios(A, svd):
    """Residual, orthonormality and values in LAPACK's units of rounding; whether the values descend from above 0."""
    m, n = A.shape
    k, eps = len(svd.s), np.finfo(A.dtype).eps
    exact = scipy.linalg.svdvals(A)[:k] if A.any() else np.zeros(k)
    VT, V = svd.Vh, svd.Vh.conj().T
    residual = A - svd.U * svd.s @ VT if k == min(m, n) else A @ V - svd.U * svd.s
    return {
        "A = U S Vᴴ": np.linalg.norm(residual, 1) / ((np.linalg.norm(A, 1) or 1) * max(m, n) * eps),
        "UᴴU = I": np.linalg.norm(np.eye(k) - svd.U.conj().T @ svd.U, 1) / (m * eps),
        "VᴴV = I": np.linalg.norm(np.eye(k) - VT @ V, 1) / (n * eps),
        "values": np.abs(svd.s - exact).max() / ((exact[0] or 1) * max(m, n) * eps),
        "order": 0 if np.all(np.diff(svd.s) <= 0) and np.all(svd.s >= 0) else 1 / eps,
    }


def ranks_of(shape, method):
    full = min(shape)
    return {1, (full + 1) // 2, full - 2 if method == "arpack" else full}  # ARPACK does not find the last two


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("method", ["factored", "lapack", "subspace", "arpack"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}×{0[1]}".format)
def test_the_ratios_of_lapack_are_below_its_threshold(shape, spectrum, method, dtype):
    A = spectral_matrix(spectrum, *shape, dtype)
    if method == "arpack" and min(shape) <= 2:
        with pytest.raises(ValueError, match="`method` 'arpack' finds at most"):
            truncated_svd(A, 2, method="arpack") if min(shape) == 2 else truncated_svd(A, 1, method="arpack")
        return
    for rank in ranks_of(shape, method):
        ratios = lapack_ratios(dense(A), truncated_svd(A, rank, method=method, rng=0))
        assert max(ratios.values()) < THRESHOLD, (rank, ratios)


@pytest.mark.parametrize("scale", [HUGE * EPS, HUGE**0.5, TINY**0.5, TINY / EPS], ids="{:.0e}".format)
@pytest.mark.parametrize("method", ["factored", "lapack", "subspace", "arpack"])
@pytest.mark.parametrize("spectrum", ["geometric", "arithmetic", "one large"])
def test_lapacks_scales_near_overflow_and_underflow(spectrum, method, scale):
    A = spectral_matrix(spectrum, 30, 20, np.float64, scale)
    for rank in ranks_of(A.shape, method):
        svd = truncated_svd(A, rank, method=method, rng=0)
        ratios = lapack_ratios(dense(A) / scale, svd._replace(s=svd.s / scale))
        assert max(ratios.values()) < THRESHOLD, (rank, ratios)


# --- matrices without rows, columns or factors ---

EMPTY = {"no rows": (0, 5, 2), "no columns": (5, 0, 2), "neither": (0, 0, 1)}


@pytest.fixture(params=EMPTY)
def empty(request):
    m, n, rank = EMPTY[request.param]
    return LowRank(np.ones((m, rank)), np.ones((n, rank)))


def test_empty_matrices_are_matrices(empty):
    assert empty.norm() == (empty - 2 * empty).norm() == 0
    assert empty.singular_values().shape == (0,)
    assert empty.balanced().shape == empty.shape
    assert (empty + empty).to_dense().shape == empty.shape
    np.testing.assert_array_equal(empty @ np.ones(empty.shape[1]), np.zeros(empty.shape[0]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda A: truncated_svd(A, 1), r"`rank` is 1, above min\(m, n\) = 0"),
        (lambda A: lorsum(A - A), r"`init.rank` is \d, above min\(m, n\) = 0"),
        (lambda A: lorsum(A - A, iters=0), r"`init.rank` is \d, above min\(m, n\) = 0"),
        (lambda A: gap(A, A - A), r"`rank` is 0"),
        (lambda A: lorsum_until(A - A, 0.1), r"rank` is"),
    ],
    ids=["truncated_svd", "lorsum", "no iterations", "gap", "lorsum_until"],
)
def test_there_is_nothing_to_approximate_an_empty_matrix_with(empty, function, message):
    with pytest.raises(ValueError, match=message):
        function(empty)


def test_a_matrix_without_factors_is_zero():
    A = LowRank(np.ones((5, 0)), np.ones((4, 0)))
    assert A.norm() == 0
    np.testing.assert_array_equal(A.to_dense(), np.zeros((5, 4)))
    svd = truncated_svd(A, 2)
    np.testing.assert_array_equal(svd.s, [0, 0])
    assert max(lapack_ratios(dense(A), svd).values()) < THRESHOLD
    with pytest.raises(ValueError, match=r"`init.rank` is 0"):
        lorsum(A - A)


def test_a_matrix_without_factors_is_balanced():
    assert LowRank(np.ones((5, 0)), np.ones((4, 0))).balanced().rank == 0


# --- named matrices ---


def lauchli(n, mu):
    """A row of ones above μI: its Gram matrix is singular in floating point from μ = √ε on."""
    return np.vstack([np.ones(n), mu * np.eye(n)])


def mikota(n):
    """The chain of n masses 1, 1/2, 1/3, … and n springs whose squared frequencies are 1, 4, 9, …"""
    k = np.arange(n, 0, -1.0)
    stiffness = np.diag(k + np.append(k[1:], 0)) - np.diag(k[1:], 1) - np.diag(k[1:], -1)
    root = np.sqrt(np.arange(1.0, n + 1))
    return root[:, None] * stiffness * root


def kahan(n, angle=1.2):
    """The triangle whose diagonal does not tell how small its smallest singular value is."""
    s, c = np.sin(angle), np.cos(angle)
    return s ** np.arange(n)[:, None] * (np.eye(n) - c * np.triu(np.ones((n, n)), 1))


def effective_rank(m, n, rank=10, tail=0.5, seed=0):
    """A bell-shaped profile of singular values and a slow tail: ``sklearn.datasets.make_low_rank_matrix``."""
    i, rng = np.arange(min(m, n)) / rank, np.random.default_rng(seed)
    s = (1 - tail) * np.exp(-(i**2)) + tail * np.exp(-0.1 * i)
    return orthonormal(rng, m, len(s)) * s @ orthonormal(rng, n, len(s)).T


GALLERY = {
    "Hilbert": scipy.linalg.hilbert(20),
    "Läuchli": lauchli(20, 1e-8),
    "Mikota": mikota(20),
    "Kahan": kahan(25),
    "effective rank": effective_rank(40, 30),
    "effective rank, no tail": effective_rank(40, 30, tail=0.0),
    "effective rank, nothing but tail": effective_rank(40, 30, tail=1.0),
}
gallery = pytest.mark.parametrize("name", GALLERY)


def known(values):
    return np.sort(values)[::-1]


@pytest.mark.parametrize("method", ["factored", "lapack"])
@pytest.mark.parametrize(
    ("A", "values"),
    [
        (mikota(20), known(np.arange(1.0, 21) ** 2)),
        (lauchli(20, 1e-8), known(np.append(np.sqrt(20 + 1e-16), np.full(19, 1e-8)))),
        (lauchli(4, 1e-3), known(np.append(np.sqrt(4 + 1e-6), np.full(3, 1e-3)))),
    ],
    ids=["Mikota", "Läuchli 1e-8", "Läuchli 1e-3"],
)
def test_singular_values_that_are_known(A, values, method):
    svd = truncated_svd(LowRank(A, np.eye(A.shape[1])), len(values), method=method)
    np.testing.assert_allclose(svd.s, values, rtol=0, atol=10 * EPS * values[0])


def test_facts_about_hilberts_and_kahans_matrix():
    H, K = scipy.linalg.hilbert(10), kahan(25)
    s = truncated_svd(H, 10).s
    assert s[0] == pytest.approx(1.7519196702651775, rel=1e-15)  # Fettis and Caslin's tables
    assert s[-1] == pytest.approx(1.093153819379e-13, rel=1e-2)
    assert s.sum() == pytest.approx(sum(1 / (2 * i - 1) for i in range(1, 11)), rel=1e-15)  # the trace
    s = truncated_svd(K, 25).s
    assert np.prod(s) == pytest.approx(np.sin(1.2) ** (24 * 25 / 2), rel=1e-9)  # the determinant
    assert s[-1] < 0.01 * np.abs(np.diag(K)).min()


@gallery
@pytest.mark.parametrize("rank", [1, 3, 10])
@pytest.mark.parametrize("method", ["factored", "lapack", "subspace", "arpack"])
def test_the_truncated_svd_has_the_error_of_eckart_and_young(name, rank, method):
    A = GALLERY[name]
    s = scipy.linalg.svdvals(A)
    svd = truncated_svd(LowRank(A, np.eye(A.shape[1])), rank, method=method, rng=0)
    np.testing.assert_allclose(svd.s, s[:rank], rtol=0, atol=20 * EPS * s[0])
    error = np.linalg.norm(A - svd.U * svd.s @ svd.Vh)
    assert abs(error - np.linalg.norm(s[rank:])) < 20 * EPS * s[0]


@gallery
@pytest.mark.parametrize("rank", [1, 3, 10])
def test_the_gap_is_that_of_dense_matrices(name, rank):
    A = GALLERY[name]
    X = normal_lowrank(np.random.default_rng(0), *A.shape, rank)
    s = scipy.linalg.svdvals(A)
    for target in (A, LowRank(A, np.eye(A.shape[1]))):
        measured = gap(X, target)
        assert measured.error == pytest.approx(np.linalg.norm(A - dense(X)), rel=1e-13)
        assert measured.optimal == pytest.approx(np.linalg.norm(s[rank:]), rel=1e-13, abs=20 * EPS * s[0])


@gallery
@pytest.mark.parametrize("first", ["U", "V"])
def test_krylov_ends_at_the_optimum_and_plain_iterations_come_nearer_all_the_time(name, first):
    A, rank = GALLERY[name], 5
    target = LowRankSum([LowRank(A, np.eye(A.shape[1]))])
    init = normal_lowrank(np.random.default_rng(0), *A.shape, rank)
    optimal, rounding = np.linalg.norm(scipy.linalg.svdvals(A)[rank:]), 100 * EPS * np.linalg.norm(A)

    def error(**options):
        return np.linalg.norm(A - dense(lorsum(target, init=init, first=first, **options)))

    errors = [error(iters=k) for k in (1, 2, 4, 8)]
    assert all(after <= before + rounding for before, after in pairwise(errors))
    assert min(errors) >= optimal - rounding
    assert error(iters=8, accelerate="krylov") <= (1 + 1e-10) * optimal + rounding


# --- near ties ---


@pytest.mark.parametrize("closeness", [0.0, 1e-15, 1e-12])
@pytest.mark.parametrize("ties", [2, 5])
def test_a_tie_at_the_rank_costs_no_accuracy_in_the_error(closeness, ties):
    rank, s = 3, np.array([4.0, 2, 1, 1, 1, 1, 1, 0.5, 0.1])[: 2 + ties]
    s[3:] *= 1 - closeness
    A = with_spectrum(np.random.default_rng(0), 30, 20, s)
    optimal = np.linalg.norm(s[rank:])
    results = [truncated_svd(A, rank, method=method, rng=0) for method in ("factored", "lapack", "subspace", "arpack")]
    approximations = [svd.to_lowrank() for svd in results]
    init = normal_lowrank(np.random.default_rng(1), 30, 20, rank)
    approximations += [lorsum(A, init=init, iters=60), lorsum(A, init=init, iters=10, accelerate="krylov")]
    approximations.append(lorsum_until(A, 1e-12, init=init).approx)
    for X in approximations:
        measured = gap(X, A)
        assert measured.excess < 1e-12
        assert np.linalg.norm(dense(A) - dense(X)) == pytest.approx(optimal, rel=1e-12)


# --- both ends of the range of numbers ---

SCALES = [1e-320, 1e-315, 1e-308, 1e-300, 1e-200, 1e200, 1e300, 1e305]
scales = pytest.mark.parametrize("scale", SCALES, ids="{:.0e}".format)
OPTIONS = [
    {},
    {"solver": "qr"},
    {"first": "V", "solver": "qr"},
    {"method": "coefficients"},
    {"gauge": "balanced"},
    {"gauge": "balanced", "solver": "qr"},
    {"accelerate": "krylov"},
    {"oversample": 2},
    {"metric": (np.ones(12), np.eye(9))},
]


def example():
    rng = np.random.default_rng(0)
    return normal_lowrank(rng, 12, 9, 3), normal_lowrank(rng, 12, 9, 4)


def digits_left(scale):
    """The relative accuracy of numbers of that size."""
    return max(1e-11, 200 * SPACING / scale)


def in_units_of(scale, X):
    """The dense matrix divided by ``scale``, without a product that overflows."""
    sizes = [np.abs(factor).max() for factor in X]
    U, V = (np.ldexp(factor, -np.frexp(size)[1]) for factor, size in zip(X, sizes, strict=True))
    return np.exp(sum(np.frexp(size)[1] for size in sizes) * np.log(2) - np.log(scale)) * (U @ V.T)


@scales
@pytest.mark.parametrize("side", ["U", "V"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "nothing")
def test_lorsum_of_huge_and_tiny_numbers(scale, side, options):
    W, G = example()

    def scaled(A):
        return LowRank(scale * A.U, A.V) if side == "U" else LowRank(A.U, scale * A.V)

    expected = dense(lorsum(W - G, iters=2, **options))
    with np.errstate(over="ignore", invalid="ignore"):  # 1/1e-320 is infinite, but nothing depends on it
        X = lorsum(scaled(W) - scaled(G), iters=2, **options)
    assert distance(in_units_of(scale, X), expected) < digits_left(scale)


@scales
def test_gap_of_huge_and_tiny_numbers(scale):
    W, G = example()
    X = truncated_svd(W - G, 3).to_lowrank()
    X = LowRank(X.U + 1e-2, X.V)
    measured = gap(LowRank(scale * X.U, X.V), LowRank(scale * W.U, W.V) - LowRank(scale * G.U, G.V))
    expected = gap(X, W - G)
    tolerance = digits_left(scale)
    assert measured.error / scale == pytest.approx(expected.error, rel=tolerance)
    assert measured.optimal / scale == pytest.approx(expected.optimal, rel=tolerance)
    assert measured.excess == pytest.approx(expected.excess, abs=10 * tolerance)
    assert np.isfinite(measured.distance)


# Where numbers have few digits left, the iterative methods do not converge, and say so
@scales
@pytest.mark.parametrize("method", ["factored", "lapack", "randomized", "subspace", "arpack", "propack", "lobpcg"])
def test_truncated_svd_of_huge_and_tiny_numbers(scale, method, request):
    W, G = example()
    target = LowRank(scale * W.U, W.V) - LowRank(scale * G.U, G.V)
    if scale < 1e-310 and method in ("subspace", "arpack", "propack", "lobpcg"):
        if method == "lobpcg":
            request.applymarker(pytest.mark.xfail(reason="1/σ overflows, and LOBPCG meets the NaN with an IndexError"))
        with pytest.raises(np.linalg.LinAlgError, match=f"`method` '{method}' has not converged"):
            truncated_svd(target, 3, method=method, rng=0)
        return
    svd = truncated_svd(target, 3, method=method, rng=0)
    s = scipy.linalg.svdvals(dense(W - G))[:3]
    np.testing.assert_allclose(svd.s / scale, s, rtol=max(1e-7, digits_left(scale)))
    np.testing.assert_allclose(svd.U.T @ svd.U, np.eye(3), rtol=0, atol=1e-13)
    np.testing.assert_allclose(svd.Vh @ svd.Vh.T, np.eye(3), rtol=0, atol=1e-13)


@pytest.mark.xfail(reason="V of size 1e-320 makes U of size 1, but by way of W V and 1e320")
def test_a_simultaneous_update_of_subnormal_numbers():
    W, G = example()
    X = lorsum(LowRank(W.U, 1e-320 * W.V) - LowRank(G.U, 1e-320 * G.V), simultaneous=True)
    assert distance(in_units_of(1e-320, X), dense(lorsum(W - G, simultaneous=True))) < digits_left(1e-320)


def test_a_matrix_whose_norm_overflows_is_an_error_for_lorsum():
    W, G = (LowRank(1e200 * A.U, 1e200 * A.V) for A in example())
    with np.errstate(all="ignore"), pytest.raises(OverflowError, match="`target` overflows its dtype"):
        lorsum(W - G)


def test_a_matrix_whose_norm_overflows_is_an_error_for_gap():
    W, G = (LowRank(1e200 * A.U, 1e200 * A.V) for A in example())
    with np.errstate(all="ignore"), pytest.raises(OverflowError, match="`target` or `approx` overflows"):
        gap(W, W - G)


# --- graded, badly balanced, dependent ---


column_sizes = pytest.mark.parametrize(
    "sizes", [[1e-150, 1, 1e150], [1e150, 1e-150, 1e-150], [1e100, 1e100, 1e100], [1e-100, 1e-100, 1e-100]], ids=str
)


@column_sizes
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "nothing")
def test_the_sizes_of_columns_do_not_matter(sizes, options, request):
    if "oversample" in options and max(sizes) != 1e100:
        request.applymarker(pytest.mark.xfail(reason="more columns come from the factor's largest alone"))
    W, G = example()
    X = lorsum(LowRank(W.U * sizes, W.V / sizes) - 0.1 * G, iters=2, **options)
    assert distance(X, lorsum(W - 0.1 * G, iters=2, **options)) < 1e-12


@pytest.mark.parametrize("size", [1e100, 1e150, 1e200, 1e300])
def test_the_sizes_of_columns_do_not_matter_for_what_is_measured(size, request):
    W, G = example()
    sizes = np.array([size, 1, 1 / size])
    A = LowRank(W.U * sizes, W.V / sizes)
    np.testing.assert_allclose(A.singular_values(), W.singular_values(), rtol=1e-13)
    np.testing.assert_allclose(truncated_svd(A - G, 3).s, truncated_svd(W - G, 3).s, rtol=1e-13)
    assert distance(A.balanced(), W) < 1e-14
    assert gap(A, A - G).excess == pytest.approx(gap(W, W - G).excess, rel=1e-12)
    assert A.norm() == pytest.approx(W.norm(), rel=1e-13)


@pytest.mark.parametrize("condition", [1e4, 1e8, 1e12, 1e16], ids="{:.0e}".format)
@pytest.mark.parametrize("solver", ["auto", "qr"])
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("seed", range(3))
def test_a_rotated_gauge_costs_as_many_digits_as_its_condition_has(condition, solver, first, seed):
    """Against the iteration in exact rational numbers: κ(U) = κ(V) = 10⁴ … 10¹⁶, and W harmless."""
    rng = np.random.default_rng(seed)
    W, G = with_spectrum(rng, 8, 6, np.array([3.0, 2, 1])), normal_lowrank(rng, 8, 6, 2)
    gauge = gauge_of_condition(rng, 3, condition)
    W = LowRank(W.U @ gauge, W.V @ np.linalg.inv(gauge).T)
    X = lorsum(W - 0.5 * G, first=first, solver=solver)
    assert np.isfinite(dense(X)).all()
    (U, V), (S, Y) = ([np.vectorize(Fraction, otypes=[object])(x) for x in A] for A in (W, G))
    exact = alternating(U @ V.T - S @ Y.T / 2, U, V, 1, first=first, solve=solve_exactly)
    assert distance(X, (exact[0] @ exact[1].T).astype(float)) < 100 * EPS * condition


@pytest.mark.parametrize("condition", [1e8, 1e12, 1e16], ids="{:.0e}".format)
@pytest.mark.parametrize("options", [{}, {"solver": "qr"}, {"method": "coefficients"}, {"gauge": "balanced"}], ids=str)
def test_factors_of_condition_up_to_1e16_do_not_keep_the_error_from_falling(condition, options):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        U, V = (orthonormal(rng, d, 4) @ gauge_of_condition(rng, 4, condition) for d in (12, 9))
        W, G = LowRank(U, V), normal_lowrank(rng, 12, 9, 3)
        target = dense(W) - dense(G)
        errors = [np.linalg.norm(target - dense(lorsum(W - G, iters=k, **options))) for k in range(6)]
        rounding = 100 * EPS * np.linalg.norm(target)
        assert all(after <= before + rounding for before, after in pairwise(errors))


DEPENDENT = {
    "U is zero": lambda U, V: (0 * U, V),
    "V is zero": lambda U, V: (U, 0 * V),
    "both are zero": lambda U, V: (0 * U, 0 * V),
    "a zero column on one side": lambda U, V: (U, V * [1, 0, 1]),
    "a zero column on both": lambda U, V: (U * [1, 1, 0], V * [1, 1, 0]),
    "zero columns in different places": lambda U, V: (U * [0, 1, 1], V * [1, 1, 0]),
    "one direction": lambda U, V: (U[:, [0, 0, 0]], V[:, [0, 0, 0]]),
    "equal columns on one side": lambda U, V: (U, V[:, [0, 0, 1]]),
}


def nearest_least_squares(W, V, U0):
    """Of all minimisers of ‖U Vᵀ − W‖ the one nearest to U₀ in the scale in which V's columns have the same size."""
    size = np.linalg.norm(V, axis=0)
    size[size == 0] = 1
    V, U0 = V / size, U0 * size
    return (U0 + (W - U0 @ V.T) @ scipy.linalg.pinv(V.T, rtol=1e-10)) / size


@pytest.mark.parametrize("kind", DEPENDENT)
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("solver", ["auto", "qr"])
@pytest.mark.parametrize("iters", [1, 2])
def test_without_regularisation_the_nearest_of_all_minimisers_is_taken(kind, first, solver, iters):
    W, G = example()
    U, V = W0 = LowRank(*DEPENDENT[kind](*W))
    target = dense(W0) - dense(G)
    for side in ("UV" if first == "U" else "VU") * iters:
        if side == "U":
            U = nearest_least_squares(target, V, W0.U)
        else:
            V = nearest_least_squares(target.T, U, W0.V)
    X = lorsum(W0 - G, iters=iters, first=first, solver=solver)
    if kind == "one direction":  # rounding opens others in the second half-step, which is no loss
        assert np.linalg.norm(target - dense(X)) <= np.linalg.norm(target - U @ V.T) * (1 + 1e-12)
    else:
        assert distance(X, U @ V.T) < 1e-12


@pytest.mark.parametrize("kind", DEPENDENT)
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("options", [{}, {"solver": "qr"}, {"solver": "gram"}, {"method": "coefficients"}], ids=str)
@pytest.mark.parametrize("reg", [1e-3, 1.0])
def test_with_regularisation_dependent_columns_are_no_special_case(kind, first, options, reg):
    W, G = example()
    W = LowRank(*DEPENDENT[kind](*W))
    U, V = alternating(dense(W) - dense(G), *W, 1, reg, first)
    X = lorsum(W - G, reg=reg, first=first, **options)
    assert distance(X, U @ V.T) < 1e-10


# --- two real matrices: PROPACK's examples, from the Harwell–Boeing collection and Matrix Market, in SciPy's wheel ---


@pytest.fixture(scope="module")
def real_matrices():
    with (resources.files("scipy.sparse.linalg.tests") / "propack_test_data.npz").open("rb") as file:
        data = np.load(file, allow_pickle=True)
        return {"illc1850": data["A_real"].item(), "mhd1280b": data["A_complex"].item()}


FACTS = {  # shape, ‖A‖₂ and κ, as Matrix Market gives them; the excess of K plain iterations, and of Krylov
    "illc1850": ((1850, 712), 2.123343, 1.405e3, 8, 5e-4, 1e-4),
    "mhd1280b": ((1280, 1280), 70.32203, 4.7e12, 6, 5e-3, 1e-12),
}


@pytest.mark.parametrize("name", FACTS)
def test_real_matrices(name, real_matrices):
    shape, norm, condition, iters, plain_excess, krylov_excess = FACTS[name]
    A, rank = real_matrices[name], 10
    D, operator = A.toarray(), aslinearoperator(A)
    s = scipy.linalg.svdvals(D)
    assert A.shape == shape
    assert s[0] == pytest.approx(norm, rel=1e-6)
    assert s[0] / s[-1] == pytest.approx(condition, rel=2e-2)

    svd = truncated_svd(operator, rank, method="arpack", rng=0)
    np.testing.assert_allclose(svd.s, s[:rank], rtol=0, atol=THRESHOLD * EPS * s[0])
    assert truncated_svd(operator, rank, method="randomized", rng=0).s[0] <= s[0] * (1 + 10 * EPS)

    optimal = np.linalg.norm(s[rank:])
    V = np.random.default_rng(0).normal(size=(shape[1], rank)).astype(D.dtype)
    init = LowRank(np.zeros((shape[0], rank), D.dtype), V)
    plain, krylov = (
        np.linalg.norm(D - dense(lorsum(operator, init=init, iters=iters, accelerate=accelerate))) / optimal - 1
        for accelerate in (None, "krylov")
    )
    assert plain > plain_excess  # a spectrum without gaps: plain iterations are slow
    assert -1e-12 < krylov < krylov_excess
