from typing import NamedTuple

import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import dense
from spectra import spectra
from strategies import generators, normal_lowrank, orthonormal, with_spectrum

from lorsum import LowRank, gap, lorsum, truncated_svd
from lorsum.theory import (
    angle_bounds,
    contraction_rate,
    excess_bound,
    gap_free_bound,
    iterations_needed,
    random_start_angle,
    reg_singular_values,
    singular_value_bounds,
)

ROUNDING = 1e-11
ACCELERATIONS = (None, "krylov")


class Case(NamedTuple):
    """A target, a start with columns enough for ``dominant``, and its angle to that dominant subspace."""

    s: np.ndarray
    target: LowRank
    left: np.ndarray
    right: np.ndarray
    init: LowRank
    first: str
    rank: int
    dominant: int
    angle: float
    iters: int

    @property
    def bound_arguments(self):
        return self.s, self.rank, self.iters, self.angle

    def iterate(self, accelerate=None):
        return lorsum(
            self.target,
            init=self.init,
            iters=self.iters,
            first=self.first,
            accelerate=accelerate,
            method="direct",
            gauge="balanced",
        )


@st.composite
def cases(draw):
    rng = draw(generators())
    m, n = draw(st.tuples(*[st.integers(2, 12)] * 2))
    k = min(m, n)
    s = draw(spectra(rng, k))
    columns = draw(st.integers(1, k))
    rank = draw(st.integers(1, columns))
    dominant = draw(st.integers(rank, columns))
    left, right = orthonormal(rng, m, k), orthonormal(rng, n, k)
    init, first = normal_lowrank(rng, m, n, columns), draw(st.sampled_from("UV"))
    used, basis = (init.V, right) if first == "U" else (init.U, left)
    used *= 10.0 ** draw(st.integers(-6, 0))  # from a start that is nearly dominant to one that knows nothing
    used[:, :dominant] += basis[:, :dominant]
    angle = scipy.linalg.subspace_angles(basis[:, :dominant], used)[0]
    target = LowRank(left * s, right)
    return Case(s, target, left, right, init, first, rank, dominant, angle, draw(st.integers(1, 6)))


def largest_angle(A, B):
    return scipy.linalg.subspace_angles(A, B)[0]


def sorted_values(X, rank):
    return scipy.linalg.svdvals(dense(X))[:rank]


def plane_start(x, tangent, n=6):
    """σ = (1, √x) and a start in the plane of v₁ and v₂ at that angle, where the bounds are attained."""
    s = np.zeros(n)
    s[:2] = 1, np.sqrt(x)
    start = np.zeros((n, 1))
    start[:2, 0] = 1, tangent
    return s, LowRank(np.eye(n) * s, np.eye(n)), LowRank(np.ones((n, 1)), start)


# --- before the run: bounds hold ---


@given(cases())
def test_angles_stay_below_their_bound(case):
    assume(case.s[case.rank - 1] > 0)
    bounds = angle_bounds(*case.bound_arguments, first=case.first, dominant=case.dominant)
    X = case.iterate()
    assert largest_angle(case.left[:, : case.rank], X.U) <= bounds.left + ROUNDING
    assert largest_angle(case.right[:, : case.rank], X.V) <= bounds.right + ROUNDING


@given(cases(), st.sampled_from(ACCELERATIONS))
def test_singular_values_stay_above_their_bound(case, accelerate):
    bounds = singular_value_bounds(*case.bound_arguments, dominant=case.dominant, accelerate=accelerate)
    assert np.all(sorted_values(case.iterate(accelerate), case.rank) >= bounds - ROUNDING)


@given(cases(), st.sampled_from(ACCELERATIONS))
def test_excess_stays_below_its_bound(case, accelerate):
    X = truncated_svd(case.iterate(accelerate), case.rank).to_lowrank()
    bound = excess_bound(*case.bound_arguments, dominant=case.dominant, accelerate=accelerate)
    error, optimal, *_ = gap(X, case.target)
    assert error <= (1 + bound) * optimal + ROUNDING


@given(cases(), st.sampled_from(ACCELERATIONS))
def test_gap_free_bound_holds_for_each_singular_value_and_for_the_error(case, accelerate):
    after = np.append(case.s, 0)[case.dominant] ** 2
    allowed = gap_free_bound(case.iters, case.angle, accelerate=accelerate) * after
    X = case.iterate(accelerate)
    assert np.all(case.s[: case.rank] ** 2 - sorted_values(X, case.rank) ** 2 <= allowed + ROUNDING)
    error, optimal, *_ = gap(truncated_svd(X, case.rank).to_lowrank(), case.target)
    assert error**2 <= optimal**2 + case.rank * allowed + ROUNDING


@given(cases())
def test_singular_values_of_the_iterates_never_fall(case):
    more = case._replace(iters=case.iters + 1)
    assert np.all(sorted_values(more.iterate(), case.rank) >= sorted_values(case.iterate(), case.rank) - ROUNDING)


@given(cases(), st.sampled_from(ACCELERATIONS), st.sampled_from([1e-1, 1e-3, 1e-6]))
def test_the_iterations_needed_are_enough_and_one_less_is_not_by_the_bound(case, accelerate, tolerance):
    options = {"dominant": case.dominant, "accelerate": accelerate}
    iters = iterations_needed(case.s, case.rank, tolerance, case.angle, **options)
    assert excess_bound(case.s, case.rank, iters, case.angle, **options) <= tolerance
    if iters > 1:
        assert excess_bound(case.s, case.rank, iters - 1, case.angle, **options) > tolerance
    if iters < 200:
        X = truncated_svd(case._replace(iters=iters).iterate(accelerate), case.rank).to_lowrank()
        error, optimal, *_ = gap(X, case.target)
        assert error <= (1 + tolerance) * optimal + ROUNDING


@pytest.mark.parametrize("columns", [3, 5, 12])
@pytest.mark.parametrize("rank", [1, 3])
def test_random_starts_exceed_their_angle_as_rarely_as_stated(rank, columns):
    rng = np.random.default_rng(0)
    n, failure = 30, 0.2
    angle = random_start_angle(n, rank, columns=columns, failure=failure)
    angles = [largest_angle(np.eye(n, rank), rng.normal(size=(n, columns))) for _ in range(400)]
    assert np.mean(np.array(angles) > angle) <= failure
    assert np.tan(angle) <= 15 * np.tan(np.quantile(angles, 1 - failure))


# --- before the run: bounds are sharp ---


@pytest.mark.parametrize("x", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("tangent", [0.1, 1, 30])
@pytest.mark.parametrize("iters", [1, 2, 5])
def test_a_start_in_the_plane_of_two_singular_vectors_attains_the_bounds(x, tangent, iters):
    s, target, init = plane_start(x, tangent)
    angle = np.arctan(tangent)
    X = lorsum(target, init=init, iters=iters, gauge="balanced")
    bounds = angle_bounds(s, 1, iters, angle)
    assert largest_angle(np.eye(6, 1), X.U) == pytest.approx(bounds.left, rel=1e-9)
    assert largest_angle(np.eye(6, 1), X.V) == pytest.approx(bounds.right, rel=1e-9)
    assert sorted_values(X, 1) == pytest.approx(singular_value_bounds(s, 1, iters, angle), rel=1e-9)
    assert gap(X, target).excess == pytest.approx(excess_bound(s, 1, iters, angle), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("iters", [1, 2, 10])
def test_the_worst_of_all_spectra_attains_the_gap_free_bound(iters):
    losses = []
    for x in np.append(1e-5, np.linspace(0.01, 0.999, 300)):
        _, target, init = plane_start(x, 3)
        losses.append((1 - sorted_values(lorsum(target, init=init, iters=iters), 1)[0] ** 2) / x)
    assert max(losses) == pytest.approx(gap_free_bound(iters, np.arctan(3)), rel=1e-3)


def test_no_spectrum_needs_more_than_the_gap_free_bound():
    for accelerate in ACCELERATIONS:
        for x in (0.2, 0.9, 0.99, 1 - 1e-6):
            s = np.array([1, np.sqrt(x), 0.1])
            value = singular_value_bounds(s, 1, 9, 1.5, accelerate=accelerate)[0]
            assert 1 - value**2 <= gap_free_bound(9, 1.5, accelerate=accelerate) * x * (1 + 1e-9)


@pytest.mark.parametrize("iters", range(1, 7))
def test_with_a_gap_the_excess_of_a_random_start_is_within_a_factor_of_fifteen(iters):
    rng = np.random.default_rng(0)
    s = np.repeat([3.0, 1], [5, 35])
    target, init = with_spectrum(rng, 60, 50, s), normal_lowrank(rng, 60, 50, 5)
    angle = largest_angle(target.V[:, :5], init.V)
    excess = gap(lorsum(target, init=init, iters=iters), target).excess
    assert excess <= excess_bound(s, 5, iters, angle) <= 15 * excess


def krylov_loss(largest, tangent, iters):
    """1 − σ₁(X)² where σ₁ = 1 and the start has equal shares of a dense spectrum up to √largest; its two bounds."""
    s = np.sqrt(np.r_[1, largest * np.sin(np.linspace(np.pi / 2, 0.02, 60)) ** 2])  # denser at the ends, like its zeros
    start = np.r_[1, np.full(60, tangent / np.sqrt(60))][:, None]
    target = LowRank(np.eye(61) * s, np.eye(61))
    X = lorsum(target, init=LowRank(start, start), iters=iters, accelerate="krylov")
    bounds = [singular_value_bounds(s, 1, iters, np.arctan(tangent), accelerate=a) for a in ("krylov", None)]
    return [1 - value[0] ** 2 for value in (sorted_values(X, 1), *bounds)]


@pytest.mark.parametrize("iters", [3, 5])
def test_the_krylov_bound_is_within_a_factor_of_five_where_the_tail_is_dense(iters):
    loss, bound, plain = krylov_loss(0.8, 3, iters)
    assert loss <= bound <= 5 * loss
    assert iters < 5 or bound < 0.5 * plain


@pytest.mark.parametrize("iters", [2, 3])
def test_the_gap_free_krylov_bound_is_within_a_factor_of_four_of_the_worst_spectrum(iters):
    worst = max(krylov_loss(x, 1e4, iters)[0] / x for x in np.geomspace(1e-5, 0.999, 60))
    assert worst <= gap_free_bound(iters, np.arctan(1e4), accelerate="krylov") <= 4 * worst


@given(cases())
def test_singular_value_bounds_are_above_those_of_gu(case):
    tail = np.append(case.s, 0)[case.dominant]
    assume(case.s[case.rank - 1] > 0)
    s = case.s[: case.rank]
    gu = s / np.sqrt(1 + np.tan(case.angle) ** 2 * (tail / s) ** (4 * case.iters - 2))
    assert np.all(singular_value_bounds(*case.bound_arguments, dominant=case.dominant) >= gu - ROUNDING)


def test_gap_free_bounds_fall_like_one_over_k_and_one_over_k_squared():
    for accelerate, rate in ((None, 1), ("krylov", 2)):
        few, many = (gap_free_bound(iters, 1.5, accelerate=accelerate) for iters in (100, 1000))
        assert 10 ** (rate - 0.3) < few / many < 10 ** (rate + 0.1)
    assert gap_free_bound(10**6, 1.5) < 1e-5


def test_the_number_of_iterations_agrees_with_the_rate():
    s = 0.8 ** np.arange(30)
    few, many = (iterations_needed(s, 5, tolerance, 1.5) for tolerance in (1e-6, 1e-12))
    assert many - few == pytest.approx(np.log(1e-6) / np.log(contraction_rate(s, 5) ** 2), abs=1)


def test_a_start_without_information_gets_the_trivial_bound():
    s = np.array([2.0, 1, 0.5])
    assert angle_bounds(s, 1, 9, np.pi / 2) == (np.pi / 2, np.pi / 2)
    assert list(singular_value_bounds(s, 2, 9, np.pi / 2)) == [0, 0]
    assert (1 + excess_bound(s, 2, 9, np.pi / 2)) * 0.5 == pytest.approx(np.linalg.norm(s))
    assert excess_bound(s, 3, 9, np.pi / 2) == gap_free_bound(9, np.pi / 2) == np.inf


@pytest.mark.parametrize("accelerate", ACCELERATIONS)
def test_at_the_extremes_bounds_are_numbers(accelerate):
    for s in ([1.0, 1e-200], [1e200, 1e199], [1e-200, 1e-201], [1.0, 1 - 1e-16], [1.0], [1.0, 0.0], [0.0, 0.0]):
        for iters in (1, 2, 10**6):
            assert 0 <= excess_bound(s, 1, iters, 1.57, accelerate=accelerate) < 1e300
            assert np.all(np.isfinite(singular_value_bounds(s, 1, iters, 1.57, accelerate=accelerate)))
    assert gap_free_bound(5, 0, accelerate=accelerate) == 0
    assert random_start_angle(4, 4) == 0


# --- the bias of λ ---


def aligned(s, start, rng):
    """A target with ``s`` and five more, smaller, singular values, and the balanced start with the same vectors."""
    left, right = orthonormal(rng, 14, len(s) + 5), orthonormal(rng, 12, len(s) + 5)
    target = LowRank(left * np.append(s, np.geomspace(0.1, 0.01, 5)), right)
    root = np.sqrt(start)
    return target, LowRank(left[:, : len(s)] * root, right[:, : len(s)] * root)


def positive(low, high):
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


@given(
    generators(),
    st.lists(st.tuples(positive(-0.5, 1), positive(-1, 1.5)), min_size=1, max_size=4),
    positive(-4, 0),
    st.integers(0, 8),
)
def test_an_aligned_start_follows_the_scalar_recursion(rng, pairs, reg, iters):
    s, start = np.array(pairs).T
    target, init = aligned(s, start, rng)
    X = lorsum(target, init=init, iters=iters, reg=reg)
    values = reg_singular_values(s, start, reg, iters)
    np.testing.assert_allclose(sorted_values(X, len(s)), np.sort(values)[::-1], rtol=1e-9)
    error, optimal, *_ = gap(X, target)
    assert error**2 - optimal**2 == pytest.approx(np.sum((values - s) ** 2), rel=1e-6, abs=1e-10)


@given(positive(-1, 1), positive(-1, 2), positive(-1, 0))
def test_the_recursion_tends_to_its_limit(s, start, reg):
    assume(abs(start / (4 * (s + reg)) - 1) > 0.2)  # there convergence is sublinear
    limit = reg_singular_values([s], [start], reg)
    assert reg_singular_values([s], [start], reg, 3000) == pytest.approx(limit, rel=1e-7)


def test_the_bias_is_first_order_in_reg():
    s, start = np.array([3.0, 2.0, 1.0]), np.array([2.5, 2.5, 0.5])
    for reg in (1e-3, 1e-4):
        bias = s - reg_singular_values(s, start, reg)
        np.testing.assert_allclose(bias, reg * (1 - np.sqrt(start / s)), rtol=3 * reg)


def test_a_start_four_times_too_large_ends_above_the_target():
    assert reg_singular_values([1.0, 0.0], [9.0, 0.0], 0.1) == pytest.approx([1.1, 0])


# --- arguments ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: angle_bounds([1, 0], 2, 1, 0.1, first="U"), "`s` is zero at position `rank` = 2"),
        (lambda: angle_bounds([2, 1], 1, 0, 0.1), "`iters` is 0"),
        (lambda: angle_bounds([2, 1], 1, 1, 0.1, first="W"), "`first` is 'W'"),
        (lambda: angle_bounds([2, 1], 2, 1, 0.1, dominant=1), "`dominant` is 1"),
        (lambda: singular_value_bounds([1, 2], 1, 1, 0.1), "`s` must be"),
        (lambda: singular_value_bounds([2, 1], 3, 1, 0.1), "`rank` is 3"),
        (lambda: singular_value_bounds([2, 1], 1, 1, 2.0), "`start_angle` is 2.0"),
        (lambda: singular_value_bounds([2, 1], 1, 1, np.nan), "`start_angle` is nan"),
        (lambda: excess_bound([2, 1], 1, 1, -0.1), "`start_angle` is -0.1"),
        (lambda: excess_bound([2, 1], 1, 1, 0.1, accelerate="chebyshev"), "`accelerate` is 'chebyshev'"),
        (lambda: gap_free_bound(1, 0.1, accelerate=True), "`accelerate` is True"),
        (lambda: iterations_needed([2, 1], 1, 0, 0.1), "`tol` is 0"),
        (lambda: iterations_needed([2, 1], 1, 0.1, np.pi / 2), "`start_angle` is π/2"),
        (lambda: random_start_angle(10, 3, columns=2), "`columns` is 2"),
        (lambda: random_start_angle(10, 3, columns=11), "`columns` is 11"),
        (lambda: random_start_angle(10, 3, failure=0), "`failure` is 0"),
        (lambda: reg_singular_values([1, -1], [1, 1], 0.1), "`s` must hold"),
        (lambda: reg_singular_values([1, 1], [1, np.inf], 0.1), "`start` must hold"),
        (lambda: reg_singular_values([1, 1], [1], 0.1), "`s` has shape"),
        (lambda: reg_singular_values([1], [1], 0), "`reg` is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
