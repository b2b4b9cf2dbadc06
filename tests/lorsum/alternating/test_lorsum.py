from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
from array_code import in_array_code
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    EPS,
    alternating,
    dense,
    distance,
    listing_1,
    nearest_least_squares,
    orthogonal_iteration,
    simultaneous,
    solve_exactly,
    truncated,
)
from scipy.sparse.linalg import aslinearoperator
from strategies import Problem, gauge_of_condition, generators, normal_lowrank, orthonormal, problems, with_spectrum

from lorsum import Damped, History, Iterate, LowRank, LowRankSum, gap, lorsum
from lorsum.alternating import least_squares_factor

regs = st.sampled_from([0.0, 1e-3, 1.0, 100.0])
starts = st.sampled_from("UV")
iterations = st.integers(1, 4)
# "auto" takes the kernels; "qr" orthogonalises, in array code.
solvers = pytest.mark.parametrize("solver", ["auto", "qr"])
all_solvers = pytest.mark.parametrize("solver", ["auto", "qr", "gram"])


def example(seed=0, m=9, n=7, rank=3, gradient_rank=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return Problem(normal_lowrank(rng, m, n, rank, dtype), normal_lowrank(rng, m, n, gradient_rank, dtype))


def in_gauge(W, A):
    """The same matrix with the factors U A and V A⁻ᵀ."""
    return LowRank(W.U @ A, W.V @ np.linalg.inv(A).T)


def error(X, target):
    return np.linalg.norm(dense(target) - dense(X))


# --- what is computed: the formulas ---


@given(problems(), iterations, regs.filter(bool), starts, st.sampled_from(["auto", "qr", "gram"]))
def test_regularised_iterates_are_those_of_the_normal_equations(problem, iters, reg, first, solver):
    W, target = problem.W, problem.target
    X = lorsum(target, iters=iters, reg=reg, first=first, solver=solver)
    U, V = alternating(dense(target), *W, iters, reg, first)
    for actual, expected in ((X.U, U), (X.V, V)):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@all_solvers
@pytest.mark.parametrize("first", ["U", "V"])
def test_unregularised_factors_are_those_of_the_normal_equations_too(solver, first):
    W, _ = problem = example()
    X = lorsum(problem.target, iters=3, first=first, solver=solver)
    U, V = alternating(dense(problem.target), *W, 3, 0.0, first)
    np.testing.assert_allclose(X.U, U, rtol=1e-10)
    np.testing.assert_allclose(X.V, V, rtol=1e-10)


@given(problems(), iterations, regs.filter(bool), st.sampled_from(["in", "out"]), st.sampled_from([1.0, 0.9, -2.0]))
def test_listing_1_is_reproduced_with_any_coefficient_of_its_first_term(problem, iters, lmbd, start_turn, c):
    factors = [(A.V.T, A.U) for A in problem]
    X = lorsum(
        LowRankSum.from_factors(factors, [c, -0.1]), iters=iters, reg=lmbd, first={"in": "V", "out": "U"}[start_turn]
    )
    Vt, U = listing_1(factors, [c, -0.1], iters, lmbd, start_turn)
    np.testing.assert_allclose(X.U, U, rtol=0, atol=1e-9 * np.abs(U).max())
    np.testing.assert_allclose(X.V, Vt.T, rtol=0, atol=1e-9 * np.abs(Vt).max())


@given(problems(smallest=3), iterations, regs.filter(bool), starts, st.integers(1, 3), generators())
def test_the_start_and_the_anchor_of_the_proximal_term_are_init(problem, iters, reg, first, rank, rng):
    init = normal_lowrank(rng, *problem.target.shape, rank)
    X = lorsum(problem.target, init=init, iters=iters, reg=reg, first=first)
    U, V = alternating(dense(problem.target), *init, iters, reg, first)
    assert X.rank == rank
    assert distance(X, U @ V.T) < 1e-9


@given(problems(), iterations, regs.filter(bool))
def test_simultaneous_iterates_are_those_of_algorithm_2_as_printed(problem, iters, reg):
    X = lorsum(problem.target, iters=iters, reg=reg, simultaneous=True)
    U, V = simultaneous(dense(problem.target), *problem.W, iters, reg)
    np.testing.assert_allclose(X.U, U, rtol=0, atol=1e-9 * np.abs(U).max())
    np.testing.assert_allclose(X.V, V, rtol=0, atol=1e-9 * np.abs(V).max())


@pytest.mark.parametrize("reg", [0.0, 1e-12])
def test_one_simultaneous_iteration_is_the_preconditioned_gradient_step(reg):
    (U, V), G = example()
    X = lorsum(LowRank(U, V) - 0.1 * G, reg=reg, simultaneous=True)
    G = dense(G)
    np.testing.assert_allclose(X.U, U - 0.1 * G @ V @ np.linalg.inv(V.T @ V), rtol=1e-9)
    np.testing.assert_allclose(X.V, V - 0.1 * G.T @ U @ np.linalg.inv(U.T @ U), rtol=1e-9)


def test_each_regularised_half_step_minimises_its_objective():
    (U0, V0), _ = problem = example()
    W, reg = dense(problem.target), 0.5

    def objective(U, V):
        return np.sum((U @ V.T - W) ** 2) + reg * np.sum((U - U0) ** 2) + reg * np.sum((V - V0) ** 2)

    values = [objective(*lorsum(problem.target, iters=k, reg=reg)) for k in range(20)]
    assert all(after < before for before, after in pairwise(values))


def test_least_squares_factor_is_half_a_step():
    (U, V), _ = problem = example()
    X = lorsum(problem.target, reg=0.5)
    np.testing.assert_allclose(least_squares_factor(problem.target, V, U, 0.5), X.U, rtol=1e-12)
    np.testing.assert_allclose(least_squares_factor(problem.target.T, X.U, V, 0.5), X.V, rtol=1e-12)


# --- λ = 0 is subspace iteration ---


@given(
    generators(), st.integers(2, 20), st.integers(2, 20), st.floats(0, 3), st.sampled_from([0, 1, 2, 3]), iterations,
    starts, st.sampled_from(["auto", "qr"]),
)  # fmt: skip
def test_iterates_are_those_of_orthogonal_iteration_by_qr(rng, m, n, spread, mixing, iters, first, solver):
    # The singular values span κ = 10^spread ≤ 1e3. A gauge of condition 10^mixing costs digits in the input already.
    r = min(m, n, 5) - 1
    W = in_gauge(with_spectrum(rng, m, n, np.geomspace(1, 10**-spread, r)), gauge_of_condition(rng, r, 10.0**mixing))
    G = normal_lowrank(rng, m, n, 3)
    target = W - 0.1 / float(G.norm()) * G
    X = lorsum(target, iters=iters, first=first, solver=solver)
    if first == "U":
        expected = orthogonal_iteration(dense(target), W.V, iters)
    else:
        expected = orthogonal_iteration(dense(target).T, W.U, iters).T
    assert distance(X, expected) < 100 * EPS * 10**mixing


@given(problems(), st.sampled_from(["auto", "qr"]))
def test_the_error_falls_with_every_iteration(problem, solver):
    W, target = problem.W, problem.target
    errors = [error(lorsum(target, init=W, iters=k, solver=solver), target) for k in range(8)]
    assert all(np.diff(errors) <= 1e-12 * np.linalg.norm(dense(target)))


@given(generators(), st.integers(2, 12), st.integers(2, 12), starts, st.sampled_from(["auto", "qr", "gram"]))
def test_many_iterations_reach_the_truncated_svd(rng, m, n, first, solver):
    r = min(m, n) // 2
    A = with_spectrum(rng, m, n, 0.4 ** np.arange(min(m, n)))
    X = lorsum(A, init=normal_lowrank(rng, m, n, r), iters=25, first=first, solver=solver)
    assert distance(X, truncated(A, r)) < (1e-10 if solver == "gram" else 1e-12)


def test_the_angle_to_the_dominant_subspace_shrinks_by_the_squared_ratio_of_singular_values():
    rng = np.random.default_rng(0)
    A = with_spectrum(rng, 12, 10, np.array([4, 3, 2, 1.5, 0.1]))
    init = normal_lowrank(rng, 12, 10, 3)
    dominant = scipy.linalg.svd(dense(A))[0][:, :3]
    angles = [scipy.linalg.subspace_angles(lorsum(A, init=init, iters=k).U, dominant)[0] for k in (10, 11)]
    assert np.tan(angles[1]) / np.tan(angles[0]) == pytest.approx((1.5 / 2) ** 2, rel=1e-2)


@given(problems(), iterations, starts)
def test_all_solvers_agree(problem, iters, first):
    X, Y, Z = (lorsum(problem.target, iters=iters, first=first, solver=solver) for solver in ("auto", "qr", "gram"))
    kappa = max(map(np.linalg.cond, (*problem.W, *X)))
    assert distance(X, Y) < 100 * EPS * kappa
    assert distance(Z, Y) < 100 * EPS * kappa**2


# --- symmetries ---


@given(problems(), iterations, starts, st.sampled_from([1, 30, 1e3]), generators(), st.sampled_from(["auto", "qr"]))
def test_without_regularisation_the_split_into_factors_does_not_matter(problem, iters, first, condition, rng, solver):
    W, G = problem
    A = gauge_of_condition(rng, W.rank, condition)
    kappa = condition * max(map(np.linalg.cond, W))
    one = lorsum(W - 0.1 * G, iters=iters, first=first, solver=solver)
    other = lorsum(in_gauge(W, A) - 0.1 * G, iters=iters, first=first, solver=solver)
    assert distance(one, other) < 100 * EPS * kappa * max(1, W.norm() / one.norm())


def test_with_regularisation_it_does():
    W, G = example()
    A = np.diag([1.0, 2.0, 3.0])
    assert distance(lorsum(W - G, reg=1.0), lorsum(in_gauge(W, A) - G, reg=1.0)) > 1e-2


@given(problems(), regs, iterations, starts)
def test_powers_of_two_scale_the_result_exactly(problem, reg, iters, first):
    W, G = problem
    # λ has the unit of UᵀU: both factors times 2 scale the matrix, and λ, by 4
    X = lorsum(W - 0.1 * G, iters=iters, reg=reg, first=first)
    Y = lorsum(LowRank(2 * W.U, 2 * W.V) - 0.4 * G, iters=iters, reg=4 * reg, first=first)
    assert distance(4 * X, Y) < 1e-10


@given(problems(), st.sampled_from([-1.0, 1e-3, 1e5]), iterations, starts)
def test_without_regularisation_the_result_scales_with_the_sum(problem, scale, iters, first):
    X = lorsum(problem.target, iters=iters, first=first)
    Y = lorsum(scale * problem.target, init=problem.W, iters=iters, first=first)
    kappa = max(map(np.linalg.cond, (*problem.W, *X)))
    assert distance(scale * X, Y) < 100 * EPS * kappa


@given(problems(), generators(), regs, iterations, starts)
def test_rotations_of_rows_and_columns_rotate_the_result(problem, rng, reg, iters, first):
    m, n = problem.W.shape
    P, Q = orthonormal(rng, m, m), orthonormal(rng, n, n)
    W, G = (LowRank(P @ A.U, Q @ A.V) for A in problem)
    X = lorsum(problem.target, iters=iters, reg=reg, first=first)
    kappa = max(map(np.linalg.cond, (*problem.W, *X)))
    assert distance(lorsum(W - 0.1 * G, iters=iters, reg=reg, first=first), P @ dense(X) @ Q.T) < 1e3 * EPS * kappa


@given(problems(), regs, iterations, st.booleans())
def test_the_transpose_started_from_the_other_side_is_the_transpose(problem, reg, iters, simultaneous):
    X = lorsum(problem.target, iters=iters, reg=reg, first="U", simultaneous=simultaneous)
    Y = lorsum(problem.target.T, iters=iters, reg=reg, first="V", simultaneous=simultaneous)
    assert distance(X, Y.T) < 1e-12


@solvers
@pytest.mark.parametrize("reg", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("simultaneous", [False, True])
def test_a_zero_gradient_is_a_fixed_point(solver, reg, first, simultaneous):
    W, G = example()
    X = lorsum(W + 0 * G, iters=3, reg=reg, first=first, solver=solver, simultaneous=simultaneous)
    np.testing.assert_allclose(X.U, W.U, rtol=1e-12)
    np.testing.assert_allclose(X.V, W.V, rtol=1e-12)


@solvers
@pytest.mark.parametrize("iters", [1, 3])
def test_the_factor_that_is_solved_for_first_does_not_matter(solver, iters):
    (U, V), _ = problem = example()
    other = np.random.default_rng(1).normal(size=U.shape)
    X = lorsum(problem.target, init=LowRank(other, V), iters=iters, solver=solver)
    Y = lorsum(problem.target, init=LowRank(U, V), iters=iters, solver=solver)
    assert distance(X, Y) < 10 * EPS


# --- zero, dependent and badly conditioned factors ---


@pytest.mark.parametrize("solver", ["auto", "qr"])
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("zero", ["U", "V"])
@pytest.mark.parametrize("reg", [0.0, 1e-3])
def test_the_zero_factor_of_a_fresh_adapter_is_no_special_case(solver, first, zero, reg):
    (U, V), G = example()
    W = LowRank(0 * U, V) if zero == "U" else LowRank(U, 0 * V)
    X = lorsum(W - G, iters=2, reg=reg, first=first, solver=solver)
    if reg:
        expected = alternating(-dense(G), *W, 2, reg, first)
    elif first == zero:
        expected = alternating(-dense(G), *W, 2, 0, first)
    else:  # the first half does not move, and the other half starts the iteration
        U, V = alternating(-dense(G), *W, 1, 0, zero)
        expected = alternating(-dense(G), U, V, 1, 0, zero)
        expected = (expected[0], V) if zero == "U" else (U, expected[1])
    assert distance(X, expected[0] @ expected[1].T) < 1e-10
    assert error(X, -G) < np.linalg.norm(dense(G))


@solvers
def test_two_zero_factors_stay_zero(solver):
    W, G = example()
    X = lorsum(LowRank(0 * W.U, 0 * W.V) - G, iters=3, solver=solver)
    np.testing.assert_array_equal(dense(X), 0)


@solvers
def test_a_zero_momentum_buffer_takes_the_first_gradient(solver):
    W, G = example(gradient_rank=2)
    M = LowRank(0 * W.U, W.V)
    assert distance(lorsum(0.9 * M + G, iters=1, solver=solver), G) < 1e-13


@solvers
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("reg", [0.0, 1e-3])
def test_a_gradient_of_lower_rank_than_the_adapter(solver, first, reg):
    (U, V), G = example(rank=4, gradient_rank=1)
    target = LowRank(0 * U, V) - G
    X = lorsum(target, iters=8, first=first, solver=solver, reg=reg)
    expected = alternating(-dense(G), 0 * U, V, 8, reg or 1e-10, first)
    assert distance(X, expected[0] @ expected[1].T) < 1e-8
    assert np.isfinite(X.U).all() and np.isfinite(X.V).all()


@solvers
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("size", [1.0, 2.0, 100.0])
def test_dependent_columns_take_the_minimiser_nearest_to_the_start_in_the_scale_of_the_columns(solver, first, size):
    (U, V), G = example()
    V = V @ np.array([[1.0, size, 0], [0, 0, 1], [0, 0, 0]])  # of rank 2
    target = LowRank(U, V) - 0.1 * G
    X = lorsum(target, iters=2, first=first, solver=solver)
    D, U_k, V_k = dense(target), U, V
    for side in 2 * ("UV" if first == "U" else "VU"):
        if side == "U":
            U_k = nearest_least_squares(D, V_k, U)
        else:
            V_k = nearest_least_squares(D.T, U_k, V)
    assert distance(X, U_k @ V_k.T) < 1e-9
    if size == 1:
        limit = alternating(D, U, V, 2, 1e-9, first)
        assert distance(X, limit[0] @ limit[1].T) < 1e-6


@solvers
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("gauge", ["paper", "balanced"])
def test_the_condition_of_the_start_is_forgotten(solver, first, gauge):
    rng = np.random.default_rng(0)
    A = with_spectrum(rng, 9, 7, np.array([4.0, 3, 2, 0.2]))
    init = in_gauge(normal_lowrank(rng, 9, 7, 3), gauge_of_condition(rng, 3, 1e8))
    X = lorsum(A, init=init, iters=10, first=first, solver=solver, gauge=gauge)
    assert distance(X, truncated(A, 3)) < 1e-13


def exact_iterate(W, G, c, iters):
    """The iterate from the factors as they are stored, in exact rational arithmetic; rounded to double at the end."""
    (U, V), (S, X) = (tuple(np.vectorize(Fraction, otypes=[object])(factor) for factor in A) for A in (W, G))
    U, V = alternating(U @ V.T + Fraction(c) * (S @ X.T), U, V, iters, solve=solve_exactly)
    return (U @ V.T).astype(np.float64)


@solvers
@pytest.mark.parametrize("gauge", ["paper", "balanced"])
@pytest.mark.parametrize("iters", [1, 2])
def test_a_gauge_of_condition_1e7_leaves_eight_digits_in_double(solver, gauge, iters):
    W, G = example(0, 8, 7, 3, 2)
    W = in_gauge(with_spectrum(np.random.default_rng(0), 8, 7, np.array([3.0, 2, 1])), gauge_of_condition(
        np.random.default_rng(1), 3, 1e7
    ))  # fmt: skip
    assert min(map(np.linalg.cond, W)) > 1e6
    X = lorsum(W - 0.125 * G, iters=iters, solver=solver, gauge=gauge)
    assert distance(X, exact_iterate(W, G, -0.125, iters)) < 1e-8


@solvers
@pytest.mark.parametrize("gauge", ["paper", "balanced"])
@pytest.mark.parametrize("iters", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_gauge_of_condition_1e5_leaves_two_digits_in_single(solver, gauge, iters, seed):
    rng = np.random.default_rng(seed)
    W = in_gauge(with_spectrum(rng, 30, 20, np.array([4.0, 3, 2, 1])), gauge_of_condition(rng, 4, 1e5))
    W = LowRank(W.U.astype(np.float32), W.V.astype(np.float32))
    G = normal_lowrank(rng, 30, 20, 5, np.float32)
    X = lorsum(W - 0.125 * G, iters=iters, solver=solver, gauge=gauge)
    assert X.dtype == np.float32
    doubled = LowRank(*(factor.astype(np.float64) for factor in W)) - 0.125 * G
    assert distance(dense(LowRank(*(factor.astype(np.float64) for factor in X))), lorsum(doubled, iters=iters)) < 1e-2


@pytest.mark.parametrize("solver", ["auto", "qr"])
def test_the_condition_of_columns_of_very_different_size_is_harmless(solver):
    (U, V), G = example()
    sizes = np.array([1.0, 1e9, 1e-9])
    X = lorsum(LowRank(U * sizes, V / sizes) - 0.1 * G, solver=solver)
    assert distance(X, lorsum(LowRank(U, V) - 0.1 * G)) < 1e-13


@solvers
@pytest.mark.parametrize("size", [1e150, 1e-150])
@pytest.mark.parametrize("gauge", ["paper", "balanced"])
def test_huge_and_tiny_numbers_are_numbers(solver, size, gauge):
    W, G = example()
    expected = lorsum(W - 0.1 * G, iters=2)
    both = LowRank(size * W.U, size * W.V) - 0.1 * LowRank(size * G.U, size * G.V)
    X = lorsum(both, iters=2, solver=solver, gauge=gauge)
    assert distance(X.to_dense() / size / size, expected) < 1e-12
    one = LowRank(size * W.U, W.V / size) - 0.1 * LowRank(G.U, G.V)
    assert distance(lorsum(one, iters=2, solver=solver, gauge=gauge), expected) < 1e-12


# --- ranks, iterations, factors of the result ---


def test_the_rank_of_init_is_that_of_the_result():
    W, G = example()
    for rank in (1, 2, 7):
        assert lorsum(W - G, init=normal_lowrank(np.random.default_rng(0), 9, 7, rank)).rank == rank


def test_a_rank_that_suffices_gives_the_sum_itself():
    W, G = example(rank=7, gradient_rank=9)
    assert distance(lorsum(W - G), W - G) < 1e-12


@pytest.mark.parametrize(
    "options",
    [{}, {"solver": "qr"}, {"reg": 0.1}, {"method": "coefficients"}, {"accelerate": "krylov"}, {"oversample": 2}],
    ids=str,
)
def test_the_gradient_of_an_empty_batch_changes_nothing(options):
    W, _ = example()
    assert distance(lorsum(W - 0.1 * LowRank(np.ones((9, 0)), np.ones((7, 0))), **options), W) < 1e-14


def test_no_iteration_returns_the_start():
    W, G = example()
    X = lorsum(W - G, iters=0)
    np.testing.assert_array_equal(X.U, W.U)
    np.testing.assert_array_equal(X.V, W.V)
    assert distance(lorsum(W - G, iters=0, gauge="balanced"), W) < 1e-14


@given(problems(), iterations, regs, starts, st.booleans(), st.sampled_from(["auto", "qr", "gram"]))
def test_the_balanced_gauge_is_the_same_matrix_with_factors_of_equal_gram_matrices(
    problem, iters, reg, first, simultaneous, solver
):
    options = {"iters": iters, "reg": reg, "first": first, "simultaneous": simultaneous, "solver": solver}
    X, Y = lorsum(problem.target, **options), lorsum(problem.target, **options, gauge="balanced")
    assert distance(Y, X) < 1e-11
    s = scipy.linalg.svdvals(dense(X))[: X.rank]
    np.testing.assert_allclose(Y.U.T @ Y.U, np.diag(s), rtol=0, atol=1e-11 * s[0])
    np.testing.assert_allclose(Y.V.T @ Y.V, np.diag(s), rtol=0, atol=1e-11 * s[0])


def test_arguments_are_left_as_they_were():
    W, G = problem = example()
    before = [factor.copy() for A in (W, G) for factor in A]
    for options in ({}, {"reg": 0.1}, {"simultaneous": True}, {"gauge": "balanced"}, {"solver": "gram"}):
        X = lorsum(problem.target, iters=2, **options)
        X.U[:], X.V[:] = np.nan, np.nan
    for factor, copy in zip((*W, *G), before, strict=True):
        np.testing.assert_array_equal(factor, copy)


# --- ways to go faster, and further ---


@given(
    problems(), iterations, regs, starts, st.booleans(), st.sampled_from(["auto", "qr", "gram"]),
    st.sampled_from([1, 0.9, -2.0]),
)  # fmt: skip
def test_coefficients_give_the_same_iterates_as_the_direct_method(problem, iters, reg, first, simultaneous, solver, c):
    W, G = problem
    options = {"iters": iters, "reg": reg, "first": first, "simultaneous": simultaneous, "solver": solver}
    X, Y = (lorsum(c * W - 0.1 * G, **options, method=method) for method in ("direct", "coefficients"))
    kappa = max(map(np.linalg.cond, (*W, *X)))
    assert distance(Y, X) < 1e3 * EPS * kappa ** (2 if solver == "gram" else 1)


@pytest.mark.parametrize("reg", [0.0, 1.0])
@pytest.mark.parametrize("side", ["init", "first term"])
def test_coefficients_keep_a_start_that_is_not_in_the_sum(reg, side):
    W, G = example()
    target, init = (G - 0.1 * G, W) if side == "init" else (0 * W + G, None)
    X, Y = (lorsum(target, init=init, iters=2, reg=reg, method=method) for method in ("direct", "coefficients"))
    assert distance(Y, X) < 1e-12


def test_coefficients_of_a_large_matrix_are_chosen_by_themselves_and_change_nothing():
    rng = np.random.default_rng(0)
    W, G = normal_lowrank(rng, 400, 300, 4), normal_lowrank(rng, 400, 300, 4)
    X, Y = (in_array_code(W - 0.1 * G, iters=50, method=method) for method in ("auto", "direct"))
    assert distance(X, Y) < 1e-12


@given(problems(), iterations, starts)
def test_krylov_is_the_best_approximation_in_the_span_of_all_iterates(problem, iters, first):
    W, target = problem.W, problem.target
    A, V = (dense(target), W.V) if first == "U" else (dense(target).T, W.U)
    blocks = [A @ V]
    for _ in range(iters - 1):
        blocks.append(A @ (A.T @ scipy.linalg.orth(blocks[-1])))
    Q = scipy.linalg.orth(np.hstack([block / np.linalg.norm(block, axis=0) for block in blocks]))
    expected = np.linalg.norm(A - truncated(Q @ (Q.T @ A), W.rank))
    X = lorsum(target, iters=iters, first=first, accelerate="krylov")
    assert X.rank == W.rank
    # a direction that adds less than rounding may be in one span and not in the other
    assert error(X, target) <= expected + 1e-6 * np.linalg.norm(A)
    assert error(X, target) <= error(lorsum(target, iters=iters, first=first), target) + 1e-12 * np.linalg.norm(A)


def test_krylov_is_exact_once_the_span_holds_the_range():
    problem = example(rank=2, gradient_rank=4)  # three blocks of 2 columns span rank 6
    X = lorsum(problem.target, iters=3, accelerate="krylov")
    assert distance(X, truncated(problem.target, 2)) < 1e-11


@given(problems(smallest=2), st.data(), starts)
def test_oversampling_by_the_rank_of_the_gradient_is_exact(problem, data, first):
    (W, G), target = problem, problem.target
    missing = min(W.rank + G.rank, *W.shape) - W.rank
    X = lorsum(target, oversample=missing, first=first, iters=2)
    s = scipy.linalg.svdvals(dense(target))
    assert X.rank == W.rank
    assert error(X, target) <= np.linalg.norm(s[W.rank :]) + 1e-9 * s[0]


@pytest.mark.parametrize("options", [{}, {"accelerate": "krylov"}, {"method": "coefficients"}, {"first": "V"}], ids=str)
def test_oversampling_comes_nearer_and_draws_the_same_columns_every_time(options):
    rng = np.random.default_rng(0)
    A = with_spectrum(rng, 40, 30, 1 / np.arange(1, 21))
    init = normal_lowrank(rng, 40, 30, 4)
    plain, more, again = (lorsum(A, init=init, iters=2, **options, oversample=p) for p in (0, 4, 4))
    assert gap(more, A, 4).excess < gap(plain, A, 4).excess / 2
    np.testing.assert_array_equal(more.U, again.U)
    np.testing.assert_array_equal(more.V, again.V)


def positive_definite(rng, kind, size):
    """A metric of a kind, and the same as a dense matrix."""
    X = rng.normal(size=(size, 2))
    if kind == "None":
        return None, np.eye(size)
    if kind == "diagonal":
        d = rng.uniform(0.5, 2, size)
        return d, np.diag(d)
    if kind == "matrix":
        M = X @ X.T + np.eye(size)
        return M, M
    if kind == "damped":
        return Damped(LowRank(X, X), 0.5), X @ X.T + 0.5 * np.eye(size)
    s, Q = scipy.linalg.eigh(X @ X.T + 0.5 * np.eye(size))
    return Damped(LowRank(X, X), 0.5, 0.25), Q * s**0.25 @ Q.T


@pytest.mark.parametrize("reg", [0.0, 0.5])
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize(
    "kinds", [("diagonal", "None"), ("None", "matrix"), ("damped", "diagonal"), ("matrix", "root of damped")], ids=str
)
def test_a_metric_gives_the_weighted_normal_equations(reg, first, kinds):
    (U0, V0), G = example()
    rng = np.random.default_rng(0)
    (M, M_dense), (N, N_dense) = (positive_definite(rng, k, d) for k, d in zip(kinds, (9, 7), strict=True))
    X = lorsum(LowRank(U0, V0) - 0.1 * G, iters=2, reg=reg, first=first, metric=(M, N))
    W = U0 @ V0.T - 0.1 * np.linalg.solve(M_dense, dense(G)) @ np.linalg.inv(N_dense)
    U, V, ridge = U0, V0, reg * np.eye(3)
    for side in 2 * ("UV" if first == "U" else "VU"):
        if side == "U":
            U = (W @ N_dense @ V + reg * U0) @ np.linalg.inv(V.T @ N_dense @ V + ridge)
        else:
            V = (W.T @ M_dense @ U + reg * V0) @ np.linalg.inv(U.T @ M_dense @ U + ridge)
    np.testing.assert_allclose(X.U, U, rtol=1e-9)
    np.testing.assert_allclose(X.V, V, rtol=1e-9)


def test_with_a_metric_a_zero_gradient_is_a_fixed_point():
    W, G = example()
    rng = np.random.default_rng(0)
    M, N = (positive_definite(rng, "matrix", d)[0] for d in (9, 7))
    for reg in (0.0, 0.5):
        X = lorsum(W + 0 * G, iters=3, reg=reg, metric=(M, N))
        np.testing.assert_allclose(X.U, W.U, rtol=1e-11)
        np.testing.assert_allclose(X.V, W.V, rtol=1e-11)


@pytest.mark.parametrize(
    ("metric", "kind", "message"),
    [
        (np.ones(9), TypeError, "`metric` is a ndarray; a pair"),
        ((np.ones(7), None), ValueError, r"`metric\[0\]` has shape \(7,\)"),
        ((None, np.ones((7, 9))), ValueError, r"`metric\[1\]` has shape \(7, 9\)"),
        ((None, np.zeros(7)), ValueError, r"`metric\[1\]` is a diagonal with an entry that is not positive"),
        ((None, np.full(7, np.nan)), ValueError, r"`metric\[1\]` has a NaN"),
        ((-np.eye(9), None), ValueError, r"`metric\[0\]` is not positive definite"),
        ((Damped(example(m=7).W, 0.1), None), ValueError, r"`metric\[0\]` has shape"),
        ((Damped(example(n=9).W, 0.0), None), ValueError, r"`metric\[0\]` has damping 0"),
    ],
    ids=["no pair", "size", "matrix size", "zero", "nan", "negative", "damped size", "damping"],
)
def test_metrics_that_make_no_sense_are_refused(metric, kind, message):
    with pytest.raises(kind, match=message):
        lorsum(example().target, metric=metric)


# --- kinds of terms and arrays ---


@pytest.mark.parametrize("as_term", [dense, lambda G: aslinearoperator(dense(G))], ids=["dense", "operator"])
@pytest.mark.parametrize("options", [{"iters": 2}, {"iters": 2, "reg": 0.1}, {"simultaneous": True}], ids=str)
def test_dense_and_operator_terms_act_as_low_rank_ones_do(as_term, options):
    W, G = example()
    assert distance(lorsum(W - 0.1 * LowRankSum([as_term(G)]), **options), lorsum(W - 0.1 * G, **options)) < 1e-13


def test_a_matrix_without_a_low_rank_term_starts_from_init():
    W, G = example()
    X = lorsum(dense(G), init=W, iters=2)
    assert distance(X, lorsum(G, init=W, iters=2)) < 1e-13


@pytest.mark.parametrize("options", [{}, {"iters": 3}, {"reg": 0.1, "first": "V"}, {"simultaneous": True}], ids=str)
@pytest.mark.parametrize("gauge", ["paper", "balanced"])
def test_a_batch_is_a_loop_over_its_matrices(options, gauge):
    rng = np.random.default_rng(0)
    W = LowRank(rng.normal(size=(2, 3, 9, 3)), rng.normal(size=(2, 3, 7, 3)))
    W.U[0, 1] = 0  # a fresh adapter among trained ones
    W.V[1, 1, :, 2] = W.V[1, 1, :, 1]  # and one with dependent columns
    G = LowRank(rng.normal(size=(2, 3, 9, 4)), rng.normal(size=(2, 3, 7, 4)))
    X = lorsum(W - 0.1 * G, **options, gauge=gauge)
    assert X.shape == W.shape
    for i in np.ndindex(2, 3):
        alone = lorsum(LowRank(W.U[i], W.V[i]) - 0.1 * LowRank(G.U[i], G.V[i]), **options, gauge=gauge)
        assert distance(LowRank(X.U[i], X.V[i]), alone) < 1e-12


@pytest.mark.parametrize("reg", [0.0, 0.5])
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("solver", ["qr", "gram"])
def test_complex_iterates_are_those_of_the_normal_equations(reg, first, solver):
    W, _ = problem = example(dtype=np.complex128)
    X = lorsum(problem.target, iters=2, reg=reg, first=first, solver=solver)
    U, V = alternating(dense(problem.target), *W, 2, reg, first)
    assert X.dtype == np.complex128
    assert distance(X, U @ V.T) < 1e-12
    assert gap(lorsum(problem.target, iters=200), problem.target).distance < 1e-6


def test_complex_coefficients_of_real_matrices():
    W, G = example()
    U, V = alternating(dense(W) - 1j * dense(G), *W, 1)
    assert distance(lorsum(W - 1j * G), U @ V.T) < 1e-12


@pytest.mark.parametrize("options", [{}, {"reg": 0.1}, {"simultaneous": True}, {"gauge": "balanced"}], ids=str)
def test_half_precision_comes_back_as_it_came(options):
    problem = example(dtype=np.float16)
    X = lorsum(problem.target, iters=2, **options)
    W, G = (LowRank(*(factor.astype(np.float64) for factor in A)) for A in problem)
    assert X.dtype == X.U.dtype == X.V.dtype == np.float16
    assert distance(LowRank(*(x.astype(np.float64) for x in X)), lorsum(W - 0.1 * G, iters=2, **options)) < 2e-3


def test_bfloat16_comes_back_as_it_came():
    torch = pytest.importorskip("torch")
    W, G = (LowRank(*(torch.as_tensor(x).bfloat16() for x in A)) for A in example())
    X = lorsum(W - 0.1 * G, iters=2)
    assert X.dtype == X.U.dtype == X.V.dtype == torch.bfloat16
    W, G, X = (LowRank(*(x.double().numpy() for x in A)) for A in (W, G, X))
    assert distance(X, lorsum(W - 0.1 * G, iters=2)) < 2e-2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_terms_of_two_precisions_are_computed_in_the_higher(dtype):
    W, G = example()
    W = LowRank(W.U.astype(np.float32), W.V.astype(np.float32))
    X = lorsum(W - 0.1 * LowRank(G.U.astype(dtype), G.V.astype(dtype)))
    assert X.dtype == dtype


@pytest.mark.parametrize(
    "options",
    [
        {"iters": 2},
        {"iters": 2, "reg": 0.1, "first": "V"},
        {"simultaneous": True},
        {"gauge": "balanced"},
        {"solver": "gram"},
    ],
    ids=str,
)
def test_every_array_library_gives_the_same(library, options):
    W, G = example()
    X = lorsum(LowRank(*map(library, W)) - 0.1 * LowRank(*map(library, G)), **options)
    assert type(X.U) is type(library(W.U))
    assert distance(X, lorsum(W - 0.1 * G, **options)) < 1e-12


def test_coefficients_may_be_arrays_of_no_dimensions(library):
    W, G = example()
    X = lorsum(LowRank(*map(library, W)) - LowRank(*map(library, G)) * library(np.asarray(0.1)), iters=2)
    assert distance(X, lorsum(W - 0.1 * G, iters=2)) < 1e-12


def test_parameters_of_torch_are_tensors_too():
    torch = pytest.importorskip("torch")
    W, G = example()
    U, V = (torch.nn.Parameter(torch.as_tensor(x)) for x in W)
    history = History()
    with torch.no_grad():
        X = lorsum(LowRank(U, V) - 0.1 * LowRank(*map(torch.as_tensor, G)), reg=0.5, callback=history)
    expected = lorsum(W - 0.1 * G, reg=0.5)
    assert distance(X, expected) < 1e-12
    assert history.error[-1] == pytest.approx(gap(expected, W - 0.1 * G).error)


def test_under_jit_the_result_is_the_same():
    jax = pytest.importorskip("jax")
    W, G = example(dtype=np.float32)

    @jax.jit
    def step(U, V, S, X, lr):
        return tuple(lorsum(LowRank(U, V) - lr * LowRank(S, X), iters=2, reg=0.01 * lr))

    U, V = step(*W, *G, 0.1)
    assert distance(LowRank(U, V), lorsum(W - 0.1 * G, iters=2, reg=0.001)) < 1e-5


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_the_layout_in_memory_does_not_matter(order, writeable, strided):
    (U, V), G = example()

    def laid_out(x):
        x = np.array(np.repeat(x, 2, axis=0) if strided else x, order=order)
        x.flags.writeable = writeable
        return x[::2] if strided else x

    for W in (LowRank(laid_out(U), V), LowRank(U, laid_out(V)), LowRank(laid_out(U), laid_out(V))):
        assert distance(lorsum(W - 0.1 * G, iters=2), lorsum(LowRank(U, V) - 0.1 * G, iters=2)) < 1e-14


# --- callbacks ---


@pytest.mark.parametrize(
    "options", [{}, {"reg": 0.1}, {"first": "V"}, {"simultaneous": True}, {"solver": "gram"}], ids=str
)
def test_a_callback_sees_the_start_and_every_iterate(options):
    problem = example()
    target, seen = problem.target, []
    X = lorsum(target, iters=3, callback=seen.append, **options)
    assert all(isinstance(iterate, Iterate) for iterate in seen)
    assert [iterate.iteration for iterate in seen] == [0, 1, 2, 3]
    assert [iterate.passes for iterate in seen] == [0, 2, 4, 6]
    assert all(iterate.target is target for iterate in seen)
    for k, iterate in enumerate(seen):
        np.testing.assert_allclose(iterate.approx.U, lorsum(target, iters=k, **options).U, rtol=1e-11)
        np.testing.assert_allclose(iterate.approx.V, lorsum(target, iters=k, **options).V, rtol=1e-11)
    assert distance(seen[-1].approx, X) < EPS


def test_a_callback_without_iterations_sees_the_start():
    W, G = example()
    seen = []
    lorsum(W - G, iters=0, callback=seen.append)
    assert [(iterate.iteration, iterate.approx.rank) for iterate in seen] == [(0, 3)]


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyboardInterrupt])
def test_what_a_callback_raises_comes_through(error):
    W, G = example()

    def fails(iterate):
        raise error("enough")

    with pytest.raises(error, match="enough"):
        lorsum(W - G, callback=fails)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"iters": -1}, ValueError, "`iters` is -1"),
        ({"iters": 1.0}, TypeError, "`iters` is 1.0"),
        ({"iters": "2"}, TypeError, "`iters` is '2'"),
        ({"reg": -1e-9}, ValueError, "`reg` is -1e-09"),
        ({"reg": np.nan}, ValueError, "`reg` is nan"),
        ({"reg": np.inf}, ValueError, "`reg` is inf"),
        ({"reg": "1"}, TypeError, "`reg` is a str"),
        ({"reg": None}, TypeError, "`reg` is a NoneType"),
        ({"first": "in"}, ValueError, "`first` is 'in'"),
        ({"method": "fast"}, ValueError, "`method` is 'fast'"),
        ({"solver": "cholesky"}, ValueError, "`solver` is 'cholesky'"),
        ({"gauge": "left"}, ValueError, "`gauge` is 'left'"),
        ({"accelerate": "chebyshev"}, ValueError, "`accelerate` is 'chebyshev'"),
        ({"accelerate": "krylov", "reg": 1.0}, ValueError, "`accelerate` is 'krylov', which needs `reg` = 0"),
        ({"accelerate": "krylov", "simultaneous": True}, ValueError, "`accelerate` is 'krylov', which needs"),
        ({"accelerate": "krylov", "solver": "gram"}, ValueError, "`accelerate` is 'krylov'.*but `solver` is 'gram'"),
        ({"oversample": -1}, ValueError, "`oversample` is -1"),
        ({"oversample": 0.5}, TypeError, "`oversample` is 0.5"),
        ({"oversample": 5}, ValueError, "`init.rank \\+ oversample` is 8, above min"),
        ({"init": np.ones((9, 7))}, TypeError, "`init` is a ndarray"),
        ({"init": example(m=7, n=9).W}, ValueError, r"`init` has shape \(7, 9\)"),
        ({"init": example(rank=8).W}, ValueError, "`init.rank` is 8, above min"),
        ({"init": LowRank(np.ones((9, 0)), np.ones((7, 0)))}, ValueError, "`init.rank` is 0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        lorsum(example().target, **options)


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ("W", TypeError, "`target` is a str"),
        ([[1.0]], TypeError, "`target` is a list"),
        (np.ones(3), TypeError, "`target` is a ndarray"),
        (np.ones((9, 7)), ValueError, "`init` is None and the first term of `target` is no LowRank"),
        (example(rank=8).target, ValueError, "`init.rank` is 8, above min"),
    ],
    ids=["str", "list", "vector", "dense", "rank"],
)
def test_a_target_that_is_none_is_refused(target, kind, message):
    with pytest.raises(kind, match=message):
        lorsum(target)


def test_a_start_of_another_library_is_refused():
    torch = pytest.importorskip("torch")
    W, G = example()
    with pytest.raises(TypeError, match="arrays of one library are needed"):
        lorsum(W - G, init=LowRank(*map(torch.as_tensor, W)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "qr"},
        {"solver": "gram"},
        {"reg": 0.1},
        {"first": "V"},
        {"simultaneous": True},
        {"gauge": "balanced"},
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["W.U", "W.V", "G.U", "G.V", "D"])
@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")
def test_a_value_that_is_not_finite_is_named(bad, options, place):
    W, G = example()
    parts = {"W.U": W.U, "W.V": W.V, "G.U": G.U, "G.V": G.V, "D": np.zeros((9, 7))}
    parts[place][1, 2] = bad
    where = {"W.U": "U", "W.V": "V", "G.U": r"terms\[1\].U", "G.V": r"terms\[1\].V", "D": r"terms\[2\]"}[place]
    target = W - 0.1 * G + parts["D"] if place == "D" else W - 0.1 * G
    with pytest.raises(ValueError, match=f"`target` has a NaN or an infinity in its {where}"):
        lorsum(target, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("factor", ["U", "V"])
@pytest.mark.parametrize("options", [{}, {"solver": "qr"}, {"reg": 0.1}, {"first": "V"}, {"iters": 0}], ids=str)
@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")
def test_a_start_that_is_not_finite_is_named(bad, factor, options):
    problem = example()
    init = example(1).W
    getattr(init, factor)[1, 2] = bad
    with pytest.raises(ValueError, match=f"`init` has a NaN or an infinity in its {factor}"):
        lorsum(problem.target, init=init, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")
def test_a_coefficient_that_is_not_finite_is_named(bad):
    W, G = example()
    with pytest.raises(ValueError, match="`target`"):
        lorsum(W - bad * G)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:.*invalid value:RuntimeWarning")
@solvers
def test_a_product_that_overflows_says_so(solver):
    W, G = example()
    with pytest.raises(OverflowError, match="`target` overflows"):
        lorsum(LowRank(1e200 * W.U, 1e200 * W.V) - G, solver=solver)


@pytest.mark.parametrize("library", ["numpy", "torch"], indirect=True)
def test_a_gram_matrix_that_is_singular_is_a_linalg_error(library):
    W, G = (LowRank(*map(library, A)) for A in example())
    with pytest.raises(np.linalg.LinAlgError, match="Try `solver='qr'`, or `reg` > 0"):
        lorsum(LowRank(0 * W.U, W.V) - G, solver="gram", first="V")


def test_the_gram_solver_takes_a_zero_factor_with_regularisation():
    W, G = example()
    X = lorsum(LowRank(0 * W.U, W.V) - G, solver="gram", first="V", reg=0.1)
    assert distance(X, lorsum(LowRank(0 * W.U, W.V) - G, first="V", reg=0.1)) < 1e-12
