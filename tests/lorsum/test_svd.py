import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from reference import EPS, dense, distance, truncated
from scipy.sparse.linalg import aslinearoperator
from strategies import exact_lowrank, generators, normal_lowrank, orthonormal, problems, with_spectrum

from lorsum import LowRank, LowRankSum, TruncatedSVD, truncated_svd

methods = pytest.mark.parametrize("method", ["auto", "factored", "lapack"])


def matrix_of(svd):
    return svd.U * svd.s[..., None, :] @ svd.Vh


def assert_is_truncated_svd(svd, A, rank, tolerance=100 * EPS):
    """Orthonormal vectors, descending values, and the error of Eckart and Young, whatever the vectors of a tie are."""
    A = dense(A)
    s = scipy.linalg.svdvals(A)
    size = s[0] or 1
    assert (svd.U.shape, svd.s.shape, svd.Vh.shape) == ((len(A), rank), (rank,), (rank, A.shape[1]))
    np.testing.assert_allclose(svd.U.conj().T @ svd.U, np.eye(rank), rtol=0, atol=tolerance)
    np.testing.assert_allclose(svd.Vh @ svd.Vh.conj().T, np.eye(rank), rtol=0, atol=tolerance)
    np.testing.assert_allclose(svd.s, s[:rank], rtol=0, atol=tolerance * size)
    assert abs(scipy.linalg.norm(A - matrix_of(svd)) - scipy.linalg.norm(s[rank:])) <= tolerance * size
    # they are singular vectors: A v = s u and Aᴴ u = s v
    np.testing.assert_allclose(A @ svd.Vh.conj().T, svd.U * svd.s, rtol=0, atol=tolerance * size)
    np.testing.assert_allclose(A.conj().T @ svd.U, svd.Vh.conj().T * svd.s, rtol=0, atol=tolerance * size)


@given(problems(), st.data(), st.sampled_from(["auto", "factored", "lapack"]))
def test_it_is_the_truncated_svd_of_the_dense_matrix(problem, data, method):
    target = problem.target
    rank = data.draw(st.integers(1, min(target.shape)))  # above the stacked rank too
    svd = truncated_svd(target, rank, method=method)
    scale = problem.W.norm() + problem.G.norm()
    assert_is_truncated_svd(svd, target, rank, 100 * EPS * max(1, scale / svd.s[0]))


@given(problems(smallest=3), generators(), st.integers(1, 3))
def test_no_other_matrix_of_the_rank_is_nearer(problem, rng, rank):
    A, X = dense(problem.target), matrix_of(truncated_svd(problem.target, rank))
    best = scipy.linalg.norm(A - X)
    for nudge in (1e-3, 1.0):
        U, s, Vh = scipy.linalg.svd(X + nudge * rng.normal(size=X.shape), full_matrices=False)
        assert best <= scipy.linalg.norm(A - U[:, :rank] * s[:rank] @ Vh[:rank]) + 1e-12


@given(exact_lowrank((6, 5)), exact_lowrank((6, 5)), st.integers(1, 5), st.sampled_from(["auto", "factored", "lapack"]))
def test_dependent_and_zero_columns_are_taken(A, B, rank, method):
    assert_is_truncated_svd(truncated_svd(A - 2 * B, rank, method=method), A - 2 * B, rank, 1e-13)


@methods
def test_a_zero_matrix_has_orthonormal_vectors_too(method):
    assert_is_truncated_svd(
        truncated_svd(LowRank(np.zeros((6, 2)), np.zeros((5, 2))), 3, method=method), np.zeros((6, 5)), 3
    )


@methods
def test_ties_give_one_of_the_best(method):
    A = with_spectrum(np.random.default_rng(0), 9, 8, np.array([2.0, 1, 1, 1, 1]))
    assert_is_truncated_svd(truncated_svd(A, 3, method=method), A, 3)


def test_small_singular_values_are_exact_relative_to_the_terms():
    s = np.geomspace(1, 1e-14, 5)
    rng = np.random.default_rng(0)
    P, Q = orthonormal(rng, 40, 5), orthonormal(rng, 30, 5)
    # QR of graded columns keeps each column's digits; a dense sum of them does not
    np.testing.assert_allclose(truncated_svd(LowRank(P * s, Q), 5, method="factored").s, s, rtol=0, atol=10 * EPS)
    assert truncated_svd(LowRank(P, Q) - LowRank(P, Q), 1).s[0] < 10 * EPS


@pytest.mark.parametrize("size", [1e150, 1e-150])
@methods
def test_huge_and_tiny_numbers_are_numbers(size, method):
    W, G = (normal_lowrank(np.random.default_rng(seed), 9, 7, 2) for seed in (0, 1))
    large = LowRank(size * W.U, size * W.V) - LowRank(size * G.U, size * G.V)
    np.testing.assert_allclose(
        truncated_svd(large, 3, method=method).s / size / size,
        scipy.linalg.svdvals(dense(W) - dense(G))[:3],
        rtol=1e-13,
    )


@methods
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_matrices(dtype, method):
    rng = np.random.default_rng(0)
    A = normal_lowrank(rng, 9, 7, 2, dtype) - 0.5 * normal_lowrank(rng, 9, 7, 2, dtype)
    svd = truncated_svd(A, 3, method=method)
    assert svd.U.dtype == svd.Vh.dtype == dtype
    assert not np.iscomplexobj(svd.s)
    assert_is_truncated_svd(svd, A, 3, 100 * np.finfo(dtype).eps)


@methods
def test_a_batch_is_a_loop_over_its_matrices(method):
    rng = np.random.default_rng(0)
    W, G = (LowRank(rng.normal(size=(2, 3, 9, 2)), rng.normal(size=(2, 3, 7, 2))) for _ in range(2))
    svd = truncated_svd(W - 0.5 * G, 3, method=method)
    assert (svd.U.shape, svd.s.shape, svd.Vh.shape) == ((2, 3, 9, 3), (2, 3, 3), (2, 3, 3, 7))
    for i in np.ndindex(2, 3):
        assert_is_truncated_svd(TruncatedSVD(*(x[i] for x in svd)), dense(W)[i] - 0.5 * dense(G)[i], 3)


def test_a_batch_of_low_rank_is_completed():
    rng = np.random.default_rng(0)
    W = LowRank(rng.normal(size=(3, 9, 1)), rng.normal(size=(3, 7, 1)))
    svd = truncated_svd(W, 4)
    for i in range(3):
        assert_is_truncated_svd(TruncatedSVD(*(x[i] for x in svd)), dense(W)[i], 4)


@pytest.mark.parametrize("as_term", [dense, lambda G: aslinearoperator(dense(G))], ids=["dense", "operator"])
def test_dense_and_operator_terms(as_term):
    W, G = (normal_lowrank(np.random.default_rng(seed), 9, 7, 2) for seed in (0, 1))
    assert_is_truncated_svd(truncated_svd(W - LowRankSum([as_term(G)]), 3), W - G, 3)
    assert_is_truncated_svd(truncated_svd(as_term(G), 3), G, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@methods
def test_vectors_come_in_the_dtype_of_the_matrix(dtype, method):
    W = normal_lowrank(np.random.default_rng(0), 9, 7, 2, dtype)
    svd = truncated_svd(W, 2, method=method)
    assert svd.U.dtype == svd.Vh.dtype == svd.to_lowrank().dtype == dtype
    wide = LowRank(*(x.astype(np.float64) for x in W))
    assert distance(matrix_of(TruncatedSVD(*(x.astype(np.float64) for x in svd))), wide) < 10 * np.finfo(dtype).eps


def test_as_a_low_rank_matrix_it_is_balanced():
    A = normal_lowrank(np.random.default_rng(0), 9, 7, 4)
    svd = truncated_svd(A, 3)
    X = svd.to_lowrank()
    assert distance(X, truncated(A, 3)) < 1e-14
    np.testing.assert_allclose(X.U.T @ X.U, np.diag(svd.s), atol=1e-13)
    np.testing.assert_allclose(X.V.T @ X.V, np.diag(svd.s), atol=1e-13)


def test_a_complex_one_becomes_a_low_rank_matrix_without_conjugation():
    A = normal_lowrank(np.random.default_rng(0), 9, 7, 3, np.complex128)
    assert distance(truncated_svd(A, 3).to_lowrank(), A) < 1e-14


@methods
def test_every_array_library_gives_the_same(library, method):
    W, G = (normal_lowrank(np.random.default_rng(seed), 9, 7, 2) for seed in (0, 1))
    for rank in (3, 6):  # 6 is above the stacked rank
        svd = truncated_svd(LowRank(*map(library, W)) - 0.5 * LowRank(*map(library, G)), rank, method=method)
        assert type(svd.U) is type(library(W.U))
        assert_is_truncated_svd(TruncatedSVD(*map(np.asarray, svd)), W - 0.5 * G, rank)
        assert distance(svd.to_lowrank(), truncated(dense(W) - 0.5 * dense(G), rank)) < 1e-13


# --- bad input ---


@pytest.mark.parametrize(
    ("A", "rank", "options", "kind", "message"),
    [
        ("A", 1, {}, TypeError, "`A` is a str"),
        ([[1.0]], 1, {}, TypeError, "`A` is a list"),
        (np.ones(3), 1, {}, TypeError, "`A` is a ndarray"),
        (np.ones((3, 2)), 0, {}, ValueError, "`rank` is 0"),
        (np.ones((3, 2)), 3, {}, ValueError, r"`rank` is 3, above min\(m, n\) = 2"),
        (np.ones((3, 2)), 1.5, {}, TypeError, "`rank` is 1.5"),
        (np.ones((3, 2)), 1, {"method": "svd"}, ValueError, "`method` is 'svd'"),
        (np.ones((3, 2)), 1, {"method": "factored"}, ValueError, "`method` is 'factored'"),
        (np.array([[1.0, np.nan]]), 1, {}, ValueError, "`A` has a NaN or an infinity"),
        (LowRank([[np.inf]], [[1.0]]), 1, {}, ValueError, "`A` has a NaN or an infinity in its U"),
        (LowRank([[1.0]], [[np.nan]]), 1, {}, ValueError, "`A` has a NaN or an infinity in its V"),
        (LowRank([[1.0]], [[1.0]]) + LowRank([[1.0]], [[np.nan]]), 1, {}, ValueError, r"`A` .* its terms\[1\].V"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(A, rank, options, kind, message):
    with pytest.raises(kind, match=message):
        truncated_svd(A, rank, **options)
