import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from reference import dense
from scipy.sparse.linalg import aslinearoperator
from spectra import spectra
from strategies import generators, normal_lowrank, orthonormal, with_spectrum

from lorsum import LowRank, gap, lorsum
from lorsum.theory import a_posteriori_bounds

ROUNDING = 1e-11


def largest_angle(A, B):
    return scipy.linalg.subspace_angles(A, B)[0]


@st.composite
def iterates(draw):
    """Any approximation: iterates of any λ, stationary points with wrong singular vectors, nearly stationary ones."""
    rng = draw(generators())
    m, n = draw(st.tuples(*[st.integers(2, 12)] * 2))
    k = min(m, n)
    s = draw(spectra(rng, k))
    rank = draw(st.integers(1, k))
    left, right = orthonormal(rng, m, k), orthonormal(rng, n, k)
    target = LowRank(left * s, right)
    X = normal_lowrank(rng, m, n, rank)
    if draw(st.booleans()):
        chosen = rng.permutation(k)[:rank]
        noise = 10.0 ** draw(st.integers(-16, -1))
        X = LowRank(left[:, chosen] + noise * X.U, right[:, chosen] * s[chosen] + noise * X.V)
    options = {"reg": draw(st.sampled_from([0, 1e-3, 1.0])), "first": draw(st.sampled_from("UV"))}
    return s, left, target, lorsum(target, init=X, iters=draw(st.integers(0, 5)), gauge="balanced", **options)


def check_bounds(bounds, s, left, target, X):
    error, optimal, *_ = gap(X, target)
    assert bounds.error == pytest.approx(error, rel=1e-9, abs=1e-12)
    assert bounds.optimal <= optimal + 1e-14
    assert bounds.excess == np.inf or error <= (1 + bounds.excess) * optimal + ROUNDING
    assert np.all(bounds.lower <= s[: X.rank] + 1e-14)
    assert np.all(bounds.upper >= s[: X.rank] - 1e-14)
    if bounds.angle < np.pi / 2:
        assert s[X.rank - 1] > np.append(s, 0)[X.rank]  # else the subspace is not unique
        assert largest_angle(left[:, : X.rank], X.U) <= bounds.angle + ROUNDING


@given(iterates())
def test_a_posteriori_bounds_hold_for_any_approximation(problem):
    s, _, target, X = problem
    check_bounds(a_posteriori_bounds(X, target), *problem)
    check_bounds(a_posteriori_bounds(X, target, tail=np.append(s, 0)[X.rank]), *problem)


@given(generators(), st.integers(-17, -1), st.integers(0, 3), st.booleans())
def test_a_stationary_point_that_is_not_the_optimum_gets_no_certificate(rng, exponent, iters, known):
    s = np.array([5.0, 4, 3, 2, 1, 0.5])
    left, right = orthonormal(rng, 14, 6), orthonormal(rng, 12, 6)
    target = LowRank(left * s, right)
    noise = 10.0**exponent
    stuck = LowRank(rng.normal(size=(14, 3)), right[:, [0, 1, 3]] + noise * rng.normal(size=(12, 3)))
    X = lorsum(target, init=stuck, iters=iters + 1, gauge="balanced")
    bounds = a_posteriori_bounds(X, target, tail=s[3] if known else None)
    check_bounds(bounds, s, left, target, X)
    if exponent <= -8:
        residual = np.linalg.norm((dense(target) - dense(X)) @ scipy.linalg.orth(X.V))
        assert residual < 1e-5
        assert gap(X, target).excess > 0.3
        assert bounds.angle == np.pi / 2
        assert bounds.excess < 0.51  # and yet it says how bad it can be: σ₃/σ₄ − 1
        assert bounds.upper[2] >= 3


@pytest.mark.parametrize(
    "s", [0.7 ** np.arange(40), 1 / np.arange(1.0, 41), np.repeat([3.0, 1], [5, 35])], ids=["geometric", "1/i", "gap"]
)
def test_a_posteriori_bounds_are_within_a_factor_of_three_once_the_iterate_is_close(s):
    rng = np.random.default_rng(0)
    target, init = with_spectrum(rng, 60, 50, s), normal_lowrank(rng, 60, 50, 5)
    for iters in (4, 5, 6):
        X = lorsum(target, init=init, iters=iters)
        excess, bounds = gap(X, target).excess, a_posteriori_bounds(X, target)
        assert 0 < excess <= bounds.excess <= 3 * excess
        assert bounds.angle <= 3 * largest_angle(target.U[:, :5], X.U)
        lost = s[:5] ** 2 - bounds.lower**2
        assert np.all(bounds.upper**2 - s[:5] ** 2 <= 3 * np.sum(lost) + 1e-13)


def test_a_known_tail_sharpens_what_a_small_gap_leaves_open():
    rng = np.random.default_rng(0)
    s = np.repeat([1.002, 1], [4, 56])
    target, noise = with_spectrum(rng, 70, 60, s), normal_lowrank(rng, 70, 60, 4)
    X = lorsum(target, init=LowRank(noise.U, target.V[:, :4] + 1e-3 * noise.V))
    without, known = a_posteriori_bounds(X, target), a_posteriori_bounds(X, target, tail=s[4])
    assert known.optimal > without.optimal
    assert known.angle < without.angle == np.pi / 2


def test_the_bias_of_reg_is_certified():
    rng = np.random.default_rng(0)
    W, G = normal_lowrank(rng, 60, 40, 4).balanced(), normal_lowrank(rng, 60, 40, 9)
    target = W - 0.1 * G
    X = lorsum(target, iters=100, reg=0.1)
    excess = gap(X, target).excess
    assert 1e-9 < excess <= a_posteriori_bounds(X, target).excess <= 2 * excess


def test_the_bounds_are_the_same_in_every_library_and_for_every_kind_of_term(library):
    rng = np.random.default_rng(0)
    A, B, X = (normal_lowrank(rng, 12, 9, rank) for rank in (3, 2, 3))
    X = lorsum(A + 0.1 * B, init=X, iters=3)
    expected = a_posteriori_bounds(X, A + 0.1 * B)

    def converted(A):
        return LowRank(library(A.U), library(A.V))

    sums = [converted(A) + 0.1 * converted(B), converted(A) + 0.1 * library(dense(B))]
    if library is np.asarray:
        sums.append(A + 0.1 * aslinearoperator(dense(B)))
    for target in sums:
        for one, other in zip(a_posteriori_bounds(converted(X), target), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)


def test_complex_matrices_are_bounded_too():
    rng = np.random.default_rng(0)
    A, B = (normal_lowrank(rng, 12, 9, rank, np.complex128) for rank in (3, 5))
    target = A + 0.2 * B
    left, s, _ = scipy.linalg.svd(dense(target))
    for iters in range(5):
        X = lorsum(target, iters=iters, gauge="balanced")
        check_bounds(a_posteriori_bounds(X, target), s, left, target, X)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_bounds_scale_with_the_matrices(scale):
    rng = np.random.default_rng(0)
    target, init = normal_lowrank(rng, 12, 9, 6), normal_lowrank(rng, 12, 9, 3)
    X = lorsum(target, init=init, iters=3, gauge="balanced")
    one, other = (
        a_posteriori_bounds(X, target),
        a_posteriori_bounds(LowRank(scale * X.U, X.V), LowRank(scale * target.U, target.V)),
    )
    assert other.excess == pytest.approx(one.excess)
    assert other.angle == pytest.approx(one.angle)
    np.testing.assert_allclose(other.upper, scale * one.upper)


def test_an_approximation_that_is_exact_has_no_excess():
    rng = np.random.default_rng(0)
    A = normal_lowrank(rng, 12, 9, 3)
    assert a_posteriori_bounds(A, A + 0 * A).excess == 0
    zero = LowRank(np.zeros((4, 1)), np.zeros((3, 1)))
    assert a_posteriori_bounds(zero, zero).excess == 0
    assert a_posteriori_bounds(zero, LowRank(np.eye(4, 1), np.eye(3, 1))).excess == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: a_posteriori_bounds(LowRank(np.eye(4, 1), np.eye(3, 1)), np.eye(4)), "`approx` has shape"),
        (lambda: a_posteriori_bounds(LowRank(np.eye(4, 1), np.eye(3, 1)), np.eye(4, 3), tail=-1), "`tail` is -1"),
        (lambda: a_posteriori_bounds(LowRank(np.ones((2, 4, 1)), np.ones((2, 3, 1))), np.ones((2, 4, 3))), "a batch"),
        (lambda: a_posteriori_bounds(LowRank(np.eye(4), np.eye(4)), np.nan * np.eye(4)), "`target` has a NaN"),
        (lambda: a_posteriori_bounds(LowRank(np.ones((4, 5)), np.ones((4, 5))), np.eye(4)), "`approx.rank` is 5"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_arguments_of_the_wrong_kind_are_refused():
    with pytest.raises(TypeError, match="`approx` is a ndarray"):
        a_posteriori_bounds(np.eye(3), np.eye(3))
    with pytest.raises(TypeError, match="`target` is a list"):
        a_posteriori_bounds(LowRank(np.eye(3), np.eye(3)), [1])
