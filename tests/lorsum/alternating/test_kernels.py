"""The Numba kernels give what the array code gives, in every way that they may take, and copy next to nothing."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_code import in_array_code
from numba import config
from reference import alternating, distance, truncated
from strategies import gauge_of_condition, normal_lowrank

from lorsum import LowRank, LowRankSum, lorsum, truncated_svd
from lorsum.alternating import lorsums
from lorsum.alternating import numba as from_problems
from lorsum.alternating.problem import Problem, checked

BLOCK = 1024  # columns that the kernels take at a time

# A side shorter than a block, of one block, of one and a bit; small terms alone, large ones beside them
SHAPES = [(30, 20, 3, (5, 2)), (1024, 25, 4, (6,)), (BLOCK + 1, 2100, 8, (40, 8)), (300, 500, 8, (90, 70, 3))]


def problem(m, n, rank, ranks, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    W, *others = (normal_lowrank(rng, m, n, k) for k in (rank, *ranks))
    target = sum((0.05 / (i + 1) * A for i, A in enumerate(others)), start=W)
    return LowRankSum(target.terms, target.coefficients).astype(dtype)


def stacked(sums, shape):
    """Sums of one kind as a batch."""
    terms = [
        LowRank(*(np.stack(factors).reshape(*shape, *factors[0].shape) for factors in zip(*batch, strict=True)))
        for batch in zip(*(sum_.terms for sum_ in sums), strict=True)
    ]
    return LowRankSum(terms, sums[0].coefficients)


@pytest.fixture
def kernels_alone(monkeypatch):
    """The array code is closed."""

    def closed(*args):
        raise AssertionError("the kernels gave up")

    monkeypatch.setattr("lorsum.alternating.by_array_code", closed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"iters": 3},
        {"first": "V"},
        {"reg": 0.5, "iters": 2},
        {"gauge": "balanced"},
        {"reg": 0.1, "gauge": "balanced"},
    ],
    ids=str,
)
def test_kernels_give_what_the_array_code_gives(shape, dtype, options):
    target = problem(*shape, dtype)
    expected = in_array_code(target, **options)
    for method in ("direct", "coefficients"):
        X = lorsum(target, method=method, **options)
        assert X.dtype == dtype
        assert distance(X, expected) < 40 * np.finfo(dtype).eps
        if options.get("gauge") != "balanced":  # where signs are free
            assert distance(X.U, expected.U) < 300 * np.finfo(dtype).eps


@pytest.mark.parametrize("shape", [*SHAPES, (120, 84, 8, (8,)), (10, 84, 8, (1,))], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"iters": 3, "first": "V"}, {"reg": 0.5, "iters": 2}], ids=str)
def test_a_dense_term_beside_low_rank_ones(shape, dtype, options, kernels_alone):
    target = problem(*shape, np.float64)
    D = 0.02 * np.random.default_rng(1).normal(size=target.shape)
    U, V = alternating(target.to_dense() - 0.3 * D, *target.terms[0], **{"iters": 1, **options})
    X = lorsum(target.astype(dtype) - 0.3 * D.astype(dtype), **options)
    assert X.dtype == dtype
    assert distance(X, U @ V.T) < 40 * np.finfo(dtype).eps
    assert distance(X.U, U) < 300 * np.finfo(dtype).eps


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("iters", [1, 8])
@pytest.mark.parametrize("dense", [False, True])
def test_sums_of_the_same_terms_together_and_one_by_one(shape, iters, dense, kernels_alone):
    target = problem(*shape)
    W, G, *_ = target.terms
    M = normal_lowrank(np.random.default_rng(1), *target.shape, 2)
    G = G.to_dense() if dense else G
    problems = [(W - 0.1 * G - 0.05 * M, {"reg": 1e-3}), (0.9 * M + G, {"gauge": "balanced"})]
    together = lorsums([checked(Problem(target, iters=iters, **own)) for target, own in problems])
    for X, (target, own) in zip(together, problems, strict=True):
        assert distance(X, lorsum(target, iters=iters, **own)) < 1e-13


@pytest.mark.parametrize("method", ["direct", "coefficients"])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_they_do_not_give_up_where_factors_are_well_conditioned(shape, method, kernels_alone):
    target = problem(*shape)
    D = target.to_dense()
    U, V = alternating(D, *target.terms[0], iters=2)
    assert distance(lorsum(target, iters=2, method=method), U @ V.T) < 1e-13


def test_auto_is_one_of_the_two(kernels_alone):
    few, many = problem(120, 400, 8, (64, 8)), problem(400, 300, 8, (8, 8))
    assert np.array_equal(lorsum(few).U, lorsum(few, method="direct").U)
    assert np.array_equal(lorsum(many, iters=40).U, lorsum(many, iters=40, method="coefficients").U)
    assert not np.array_equal(lorsum(many, iters=40).U, lorsum(many, iters=40, method="direct").U)


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e9])
@pytest.mark.parametrize("method", ["auto", "direct", "coefficients"])
def test_an_ill_conditioned_gauge_of_the_start_costs_no_digits(condition, method):
    target, rng = problem(60, 50, 4, (6,)), np.random.default_rng(1)
    A, (U, V) = gauge_of_condition(rng, 4, condition), target.terms[0]
    init = LowRank(U @ A, np.linalg.solve(A, V.T).T)
    X = lorsum(target, init=init, iters=2, method=method)
    assert distance(X, lorsum(target, iters=2)) < 4e-15 * condition


@pytest.mark.parametrize("method", ["direct", "coefficients"])
def test_terms_that_cancel(method):
    rng = np.random.default_rng(2)
    A, small = normal_lowrank(rng, 40, 30, 3), normal_lowrank(rng, 40, 30, 3)
    target = LowRankSum([A, LowRank(-A.U, A.V), small], [1.0, 1.0, 1e-6])
    X = lorsum(target, init=small, iters=3, method=method)
    assert distance(X, 1e-6 * small.to_dense()) < 1e-9  # 1e-16 / 1e-6, and a margin


def test_a_start_that_is_no_term(kernels_alone):
    target, init = problem(50, 40, 3, (5,)), normal_lowrank(np.random.default_rng(3), 50, 40, 6)
    U, V = alternating(target.to_dense(), *init, iters=2, reg=0.3)
    assert distance(lorsum(target, init=init, iters=2, reg=0.3), U @ V.T) < 1e-13


@pytest.mark.parametrize("shape", [(1, 7, 1, (1,)), (7, 1, 1, (3, 0)), (3, 3, 3, (9,)), (2, 2000, 2, (50,))], ids=str)
def test_narrow_matrices(shape):
    target = problem(*shape)
    assert distance(lorsum(target, iters=30), truncated(target.to_dense(), shape[2])) < 1e-12


def test_arrays_of_any_order_that_must_not_be_written_to():
    target = problem(300, 500, 8, (90,))
    expected = lorsum(target)
    for order in "CF":
        terms = [LowRank(*(np.array(factor, order=order) for factor in A)) for A in target.terms]
        for A in terms:
            for factor in A:
                factor.flags.writeable = False
        X = lorsum(LowRankSum(terms, target.coefficients))
        assert distance(X.U, expected.U) < 1e-14
        assert X.U.flags.writeable


# --- batches and threads ---


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(
    ("dense", "options"),
    [
        *((dense, options) for dense in (False, True) for options in ({"iters": 3, "reg": 0.1}, {"gauge": "balanced"})),
        (False, {}),
        (False, {"method": "coefficients"}),
    ],
)
def test_a_batch_is_a_loop_in_any_number_of_threads(threads, dense, options, monkeypatch):
    monkeypatch.setattr(from_problems, "WORTH_A_THREAD", 0)
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", threads)
    singles = [problem(40, 30, 3, (5, 100), seed=seed) for seed in range(6)]
    batch = stacked(singles, (2, 3))
    if dense:
        D = np.random.default_rng(9).normal(size=(2, 3, 40, 30))
        singles, batch = [single + D[i // 3, i % 3] for i, single in enumerate(singles)], batch + D
    X = lorsum(batch, **options)
    assert X.shape == (2, 3, 40, 30)
    for i, single in enumerate(singles):
        alone = lorsum(single, **options)
        assert np.array_equal(X.U[i // 3, i % 3], alone.U)
        assert np.array_equal(X.V[i // 3, i % 3], alone.V)


def test_the_gradient_of_an_empty_batch_of_samples_in_a_batch():
    W, empty = normal_lowrank(np.random.default_rng(8), 20, 15, 3), LowRank(np.zeros((20, 0)), np.zeros((15, 0)))
    X = lorsum(stacked([W - 0.1 * empty, W - 0.1 * empty], (2,)))
    assert distance(LowRank(X.U[1], X.V[1]), W) < 1e-14


def test_one_dependent_matrix_in_a_batch_leads_all_to_the_array_code():
    W = normal_lowrank(np.random.default_rng(4), 20, 15, 3)
    zero = LowRank(np.zeros_like(W.U), W.V)
    G = normal_lowrank(np.random.default_rng(5), 20, 15, 4)

    X = lorsum(stacked([first - 0.1 * G for first in (W, zero)], (2,)), first="V")
    for i, first in enumerate((W, zero)):
        assert distance(LowRank(X.U[i], X.V[i]), lorsum(first - 0.1 * G, first="V")) < 1e-14


def test_calls_from_several_threads():
    targets = [problem(300, 500, 8, (90,), seed=seed) for seed in range(8)]
    expected = [lorsum(target) for target in targets]
    with ThreadPoolExecutor(4) as pool:
        for X, alone in zip(pool.map(lorsum, targets), expected, strict=True):
            assert np.array_equal(X.U, alone.U)


# --- what is not finite ---


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["direct", "coefficients", "factored"])
@pytest.mark.parametrize("term", [0, 1])
@pytest.mark.parametrize("side", ["U", "V"])
def test_the_array_that_is_not_finite_is_named(bad, method, term, side):
    target = problem(1100, 40, 3, (6,))
    getattr(target.terms[term], side)[-1, -1] = bad
    with pytest.raises(ValueError, match=f"NaN or an infinity in its (terms.{term}..)?{side}"):
        truncated_svd(target, 3, method=method) if method == "factored" else lorsum(target, method=method)


# --- the factored SVD ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_factored_svd_is_that_of_lapack(shape, dtype):
    target, rank, eps = problem(*shape, dtype), shape[2], np.finfo(dtype).eps
    U, s, Vh = truncated_svd(target, rank, method="factored")
    expected = np.linalg.svd(target.to_dense().astype(np.float64), compute_uv=False)[:rank]
    assert U.dtype == s.dtype == Vh.dtype == dtype
    np.testing.assert_allclose(s, expected, rtol=20 * eps)
    for Q in (U, Vh.T):
        np.testing.assert_allclose(Q.T @ Q, np.eye(rank), atol=20 * eps)


@pytest.mark.parametrize("condition", [1e3, 1e8, np.inf])
def test_the_factored_svd_of_dependent_factors_is_as_exact(condition):
    rng = np.random.default_rng(6)
    A, B = normal_lowrank(rng, 60, 50, 4), normal_lowrank(rng, 60, 50, 4)
    target = A + LowRank(A.U + B.U / condition, B.V)
    U, s, _ = truncated_svd(target, 8, method="factored")
    np.testing.assert_allclose(s, np.linalg.svd(target.to_dense(), compute_uv=False)[:8], atol=1e-14 * s[0])
    np.testing.assert_allclose(U.T @ U, np.eye(8), atol=1e-14)


# --- memory ---


@pytest.mark.parametrize("method", ["direct", "coefficients"])
def test_temporaries_are_less_than_half_of_the_factors(method):
    target = problem(4096, 4096, 8, (128, 128), np.float32)
    lorsum(target, method=method)
    tracemalloc.start()
    lorsum(target, method=method, iters=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    factors = sum(factor.nbytes for A in target.terms for factor in A)
    result = 2 * 4096 * 8 * 4
    assert peak < result + 0.5 * factors
    assert peak < 4096 * 4096 * 4 / 16
