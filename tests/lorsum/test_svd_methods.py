"""The iterative methods of ``truncated_svd``, the choice between all methods, and ``rtol``."""

import functools
import types

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import EPS, dense
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from strategies import exact_lowrank, generators, normal_lowrank, orthonormal, problems, seeds, with_spectrum

import lorsum._iterative
from lorsum import LowRank, LowRankSum, TruncatedSVD, truncated_svd
from lorsum._iterative import _norm_from_below

CONVERGING = ["arpack", "propack", "lobpcg", "subspace"]
ITERATIVE = [*CONVERGING, "randomized"]
SPECTRA = {
    "halving": 0.5 ** np.arange(60),
    "1/i": 1 / np.arange(1, 61),
    "steep": 10.0 ** -np.arange(60),
    "a gap after 5": np.r_[np.linspace(2, 1, 5), np.linspace(0.1, 0, 55)],
    "clustered": np.r_[1 + 1e-3 * np.arange(4)[::-1], np.linspace(0.3, 0.1, 56)],
    "rank 5": np.r_[[5.0, 4, 3, 2, 1], np.zeros(55)],
}
TIES = {
    "two equal pairs": np.r_[[3.0, 3, 2, 2], np.linspace(1, 0.1, 56)],
    "all equal": np.ones(60),
    "a tie at the cut": np.r_[[4.0, 3, 2, 2, 2, 2, 2], np.linspace(1, 0.1, 53)],
    "a tight cluster": np.r_[1 + 1e-10 * np.arange(8)[::-1], 0.1 * np.ones(52)],
}


@functools.cache
def matrix(m, n, spectrum, dtype=np.float64):
    rng = np.random.default_rng(0)
    s = {**SPECTRA, **TIES}[spectrum][: min(m, n)]
    U, V = orthonormal(rng, m, len(s)), orthonormal(rng, n, len(s))
    if np.issubdtype(dtype, np.complexfloating):
        U, V = (scipy.linalg.qr(Q + 1j * rng.normal(size=Q.shape), mode="economic")[0] for Q in (U, V))
    return (U * s @ V.conj().T).astype(dtype)


def matrix_of(svd):
    return svd.U * svd.s[..., None, :] @ svd.Vh


def assert_best(svd, A, rank, tolerance=1e-13):
    """Orthonormal vectors, the leading values, and the error of Eckart and Young; which vectors of a tie is open."""
    A, s = dense(A), scipy.linalg.svdvals(dense(A))
    size = s[0] or 1
    assert (svd.U.shape, svd.s.shape, svd.Vh.shape) == ((len(A), rank), (rank,), (rank, A.shape[1]))
    assert np.abs(svd.U.conj().T @ svd.U - np.eye(rank)).max() < tolerance
    assert np.abs(svd.Vh @ svd.Vh.conj().T - np.eye(rank)).max() < tolerance
    np.testing.assert_allclose(svd.s, s[:rank], rtol=0, atol=tolerance * size)
    assert scipy.linalg.norm((A - matrix_of(svd)) / size) <= scipy.linalg.norm(s[rank:] / size) + tolerance


# --- against LAPACK ---


@pytest.mark.parametrize("shape", [(80, 60), (60, 80)], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", ["arpack", "propack", "subspace"])
def test_the_truncated_svd_of_every_spectrum(method, spectrum, shape):
    A = matrix(*shape, spectrum)
    for rank in (1, 3, 8):
        assert_best(truncated_svd(A, rank, method=method, rng=0), A, rank)


@pytest.mark.parametrize("shape", [(80, 60), (60, 80)], ids=str)
@pytest.mark.parametrize("spectrum", ["halving", "1/i", "a gap after 5", "clustered"])
def test_lobpcg_where_the_rank_is_well_above_r(spectrum, shape):
    A = matrix(*shape, spectrum)
    for rank in (1, 3, 8):
        assert_best(truncated_svd(A, rank, method="lobpcg", rng=0), A, rank)


@pytest.mark.parametrize("spectrum", TIES)
@pytest.mark.parametrize("method", ["arpack", "subspace"])
def test_equal_singular_values(method, spectrum):
    A = matrix(80, 60, spectrum)
    for rank in (1, 3, 8):
        assert_best(truncated_svd(A, rank, method=method, rng=0), A, rank)


@given(exact_lowrank((9, 7)), exact_lowrank((9, 7)), st.integers(1, 6), seeds())
@pytest.mark.parametrize("method", ["arpack", "subspace"])
def test_ties_and_zeros_of_small_matrices(method, A, B, rank, seed):
    target = A - 2 * B
    assert_best(truncated_svd(target, rank, method=method, rng=seed), target, rank)


@given(exact_lowrank((12, 10)), exact_lowrank((12, 10)), st.integers(1, 9), seeds())
@pytest.mark.parametrize("method", ["propack", "lobpcg"])
def test_the_less_robust_are_right_or_say_so(method, A, B, rank, seed):
    target = A - 2 * B
    try:
        svd = truncated_svd(target, rank, method=method, rng=seed)
    except scipy.linalg.LinAlgError:
        return
    assert_best(svd, target, rank, 1e-7)


@given(problems(largest=12), generators())
@pytest.mark.parametrize("method", ITERATIVE)
def test_orthonormal_vectors_whatever_the_matrix(method, problem, rng):
    target = problem.target
    assume(min(target.shape) > 1)
    rank = int(rng.integers(1, min(target.shape)))
    try:
        svd = truncated_svd(target, rank, method=method, rng=rng)
    except scipy.linalg.LinAlgError:
        assert method in ("propack", "lobpcg")
        return
    for Q in (svd.U, svd.Vh.T):
        assert np.abs(Q.T @ Q - np.eye(rank)).max() < 1e-13
    assert np.all(np.diff(svd.s) <= 0)
    assert svd.s[-1] >= 0


@pytest.mark.parametrize("method", CONVERGING)
def test_singular_vectors_to_more_than_half_the_digits(method):
    A = matrix(80, 60, "1/i")
    svd = truncated_svd(A, 5, method=method, rng=0)
    np.testing.assert_allclose(A @ svd.Vh.T, svd.U * svd.s, atol=1e-9)
    np.testing.assert_allclose(A.T @ svd.U, svd.Vh.T * svd.s, atol=1e-9)


@pytest.mark.parametrize("method", ["arpack", "propack", "subspace"])
def test_small_singular_values_survive_the_squares(method):
    A = matrix(80, 60, "steep")  # AᴴA has nothing below 1e-8
    svd = truncated_svd(A, 11, method=method, rng=0)
    error, best = scipy.linalg.norm(A - matrix_of(svd)), scipy.linalg.norm(SPECTRA["steep"][11:])
    assert error < 1.001 * best


@pytest.mark.parametrize("method", ITERATIVE)
def test_complex_matrices(method):
    A = matrix(60, 80, "halving", np.complex128)
    svd = truncated_svd(A, 4, method=method, rng=0, iters=30 if method == "randomized" else None)
    assert svd.U.dtype == svd.Vh.dtype == np.complex128
    assert svd.s.dtype == np.float64
    assert_best(svd, A, 4)
    np.testing.assert_allclose(A.conj().T @ svd.U, svd.Vh.conj().T * svd.s, atol=1e-9)


@pytest.mark.parametrize("method", ITERATIVE)
def test_single_precision_stays_single(method):
    A = matrix(80, 60, "halving", np.float32)
    svd = truncated_svd(A, 4, method=method, rng=0)
    assert svd.U.dtype == svd.s.dtype == svd.Vh.dtype == np.float32
    assert_best(svd, A, 4, 2e-6)


@pytest.mark.parametrize("method", ["arpack", "propack", "randomized", "subspace"])
def test_half_precision_is_computed_in_single(method):
    W = normal_lowrank(np.random.default_rng(0), 20, 15, 2, np.float16)
    for A in (W, W.to_dense(), aslinearoperator(W.to_dense())):
        svd = truncated_svd(A, 1, method=method, rng=0)
        assert (svd.U.dtype, svd.s.dtype, svd.Vh.dtype) == (np.float16, np.float32, np.float16)
        exact = scipy.linalg.svdvals(W.U.astype(float) @ W.V.T.astype(float))[:1]
        np.testing.assert_allclose(svd.s, exact, rtol=2e-3)


@pytest.mark.parametrize("size", [1e150, 1e-150])
@pytest.mark.parametrize("method", ITERATIVE)
def test_huge_and_tiny_numbers_are_numbers(method, size):
    A = matrix(80, 60, "halving")
    svd = truncated_svd(size * A, 3, method=method, rng=0)
    np.testing.assert_allclose(svd.s / size, SPECTRA["halving"][:3], rtol=1e-8)


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_zero_matrix_has_orthonormal_vectors_too(method):
    assert_best(truncated_svd(LowRank(np.zeros((6, 2)), np.zeros((5, 2))), 3, method=method), np.zeros((6, 5)), 3)


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_seed_decides_everything(method):
    A = matrix(80, 60, "1/i")
    one, same, other = (truncated_svd(A, 3, method=method, rng=seed) for seed in (7, np.random.default_rng(7), 8))
    np.testing.assert_array_equal(one.U, same.U)
    assert not np.array_equal(one.U, other.U)


# --- operators and sums ---


def operators(A):
    """A as sums whose terms are operators, low-rank and dense."""
    W = normal_lowrank(np.random.default_rng(1), *A.shape, 2)
    yield aslinearoperator(A)
    yield LowRankSum([aslinearoperator(A)], [1.0])
    yield W + aslinearoperator(A) - W
    yield LowRankSum([A, aslinearoperator(A)], [0.75, 0.25])


@pytest.mark.parametrize("method", ["auto", "lapack", *ITERATIVE])
def test_operators_and_sums_with_operators(method):
    A = matrix(60, 80, "a gap after 5")
    for target in operators(A):
        svd = truncated_svd(target, 5, method=method, rng=0, iters=10 if method == "randomized" else None)
        np.testing.assert_allclose(matrix_of(svd), matrix_of(truncated_svd(A, 5)), atol=1e-12)


def test_operators_of_integers_and_complex_coefficients():
    A = np.arange(20).reshape(5, 4)
    for method in ("lapack", "arpack", "randomized", "subspace"):
        svd = truncated_svd(aslinearoperator(A), 2, method=method, rng=0)
        assert svd.U.dtype == np.float64
        np.testing.assert_allclose(matrix_of(svd), A, atol=1e-13)
        svd = truncated_svd(LowRankSum([A.astype(float)], [2 + 1j]), 2, method=method, rng=0)
        np.testing.assert_allclose(matrix_of(svd), (2 + 1j) * A, atol=1e-13)


def test_a_sum_of_low_rank_matrices_is_not_formed(monkeypatch):
    target = with_spectrum(np.random.default_rng(0), 80, 60, SPECTRA["halving"][:20]) - normal_lowrank(
        np.random.default_rng(1), 80, 60, 2
    )
    expected = matrix_of(truncated_svd(target, 3))
    monkeypatch.setattr(LowRankSum, "to_dense", None)
    for method in ("auto", "factored", *CONVERGING):
        np.testing.assert_allclose(matrix_of(truncated_svd(target, 3, method=method, rng=0)), expected, atol=1e-10)


# --- the randomized method ---


def test_the_error_bound_of_halko_martinsson_and_tropp():
    A, rank = matrix(80, 60, "1/i"), 5
    tail = scipy.linalg.norm(SPECTRA["1/i"][rank:])
    for p in (2, 5, 10):
        U = [truncated_svd(A, rank + p, method="randomized", oversample=0, iters=0, rng=k).U for k in range(100)]
        errors = [scipy.linalg.norm(A - Q @ (Q.T @ A)) for Q in U]
        assert np.mean(errors) < (1 + rank / (p - 1)) ** 0.5 * tail  # theorem 10.5


def test_power_iterations_and_oversampling_bring_it_closer():
    A = matrix(80, 60, "1/i")

    def excess(**options):
        errors = [
            scipy.linalg.norm(A - matrix_of(truncated_svd(A, 5, method="randomized", rng=k, **options)))
            for k in range(10)
        ]
        return np.mean(errors) / scipy.linalg.norm(SPECTRA["1/i"][5:]) - 1

    plain = excess(oversample=0, iters=0)
    assert excess(oversample=10, iters=0) < 0.5 * plain
    assert excess(oversample=0, iters=2) < 0.2 * plain
    assert excess(oversample=10, iters=2) < 1e-3 * plain


@given(generators(), st.integers(1, 5))
def test_it_is_exact_for_a_matrix_of_no_higher_rank(rng, rank):
    A = normal_lowrank(rng, 20, 15, rank)
    assert_best(truncated_svd(A, rank, method="randomized", oversample=0, iters=0, rng=rng), A, rank, 1e-9)


@pytest.mark.parametrize("method", ["randomized", "subspace"])
def test_a_batch_is_a_loop_over_its_matrices(method):
    rng = np.random.default_rng(0)
    W, G = (LowRank(rng.normal(size=(2, 3, 9, 2)), rng.normal(size=(2, 3, 7, 2))) for _ in range(2))
    svd = truncated_svd(W - 0.5 * G, 3, method=method, rng=0, oversample=4)
    assert (svd.U.shape, svd.s.shape, svd.Vh.shape) == ((2, 3, 9, 3), (2, 3, 3), (2, 3, 3, 7))
    for i in np.ndindex(2, 3):
        assert_best(TruncatedSVD(*(x[i] for x in svd)), dense(W)[i] - 0.5 * dense(G)[i], 3)


@pytest.mark.parametrize("method", ["randomized", "subspace"])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_every_array_library_gives_the_same(library, method, dtype):
    W, G = (normal_lowrank(np.random.default_rng(seed), 9, 7, 2, dtype) for seed in (0, 1))
    target = LowRank(*map(library, W)) - 0.5 * LowRank(*map(library, G))
    svd = truncated_svd(target, 3, method=method, rng=0)
    assert type(svd.U) is type(library(W.U))
    assert_best(TruncatedSVD(*map(np.asarray, svd)), W - 0.5 * G, 3)
    assert truncated_svd(target, rtol=0.1).s.shape == truncated_svd(W - 0.5 * G, rtol=0.1).s.shape


def test_it_compiles_under_jax():
    jax = pytest.importorskip("jax")
    W = normal_lowrank(np.random.default_rng(0), 9, 7, 4, np.float32)

    def s(U, V):
        return truncated_svd(LowRank(U, V), 2, method="randomized", rng=0, iters=8).s

    np.testing.assert_allclose(jax.jit(s)(W.U, W.V), truncated_svd(W, 2).s, rtol=1e-4)


# --- results that are not returned ---


def test_propack_misses_equal_singular_values_and_is_found_out():
    A = matrix(80, 60, "all equal")
    if tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 17):  # whose PROPACK, another program, finds them
        assert_best(truncated_svd(A, 8, method="propack", rng=0), A, 8)
        return
    with pytest.raises(scipy.linalg.LinAlgError, match=r"'propack' has not converged: .*'arpack' or 'lapack'"):
        truncated_svd(A, 8, method="propack", rng=0)


@pytest.mark.parametrize("method", ["arpack", "lobpcg", "subspace"])
def test_too_few_iterations(method):
    A = np.random.default_rng(0).normal(size=(80, 60))
    with pytest.raises(scipy.linalg.LinAlgError, match=f"`method` '{method}' has not converged"):
        truncated_svd(A, 3, method=method, max_iters=1, rng=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda U, s, Vh: (U[:, 1:4], s[1:4], Vh[1:4]), "a direction was missed along which A is 1.000e"),
        (lambda U, s, Vh: (U[:, :3], s[:3], np.full_like(Vh[:3], np.nan)), "it gave NaN"),
        (lambda U, s, Vh: (U[:, :3], s[:3], Vh[:3] + 0.1), "σ₁"),
    ],
    ids=["missed", "nan", "inaccurate"],
)
@pytest.mark.parametrize("solver", ["arpack", "propack", "lobpcg"])
def test_wrong_answers_of_scipy_are_refused(monkeypatch, solver, wrong, message):
    A = matrix(80, 60, "halving")
    answer = wrong(*scipy.linalg.svd(A, full_matrices=False))
    monkeypatch.setattr(scipy.sparse.linalg, "svds", lambda *args, **options: answer)
    with pytest.raises(scipy.linalg.LinAlgError, match=message):
        truncated_svd(A, 3, method=solver, rng=0)


def test_unsorted_answers_are_sorted(monkeypatch):
    A = matrix(80, 60, "halving")
    U, s, Vh = (x[..., :3] if x.ndim == 1 else x for x in scipy.linalg.svd(A, full_matrices=False))
    order = [2, 0, 1]
    answer = U[:, order], s[order], Vh[order]
    monkeypatch.setattr(scipy.sparse.linalg, "svds", lambda *args, **options: answer)
    assert_best(truncated_svd(A, 3, method="arpack", rng=0), A, 3)


@pytest.mark.parametrize("method", CONVERGING)
def test_a_looser_tolerance_takes_fewer_products(method):
    A = np.random.default_rng(0).normal(size=(200, 150))

    def products(tol):
        counted = counting(A)
        svd = truncated_svd(counted.operator, 3, method=method, residual_tol=tol, rng=0)
        residual = scipy.linalg.norm(A @ svd.Vh.T - svd.U * svd.s) / svd.s[0]
        assert residual <= max(tol, 1e-8)
        return counted.columns

    assert products(1e-2) < products(0.0)


# --- rtol ---


@given(problems(), st.floats(0, 0.999))
@pytest.mark.parametrize("method", ["auto", "factored", "lapack"])
def test_rtol_gives_the_smallest_rank_that_will_do(method, problem, rtol):
    target = problem.target
    svd = truncated_svd(target, rtol=rtol, method=method)
    s = scipy.linalg.svdvals(dense(target))
    tails = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0))
    r, slack = len(svd.s), 1e-12 * tails[0]
    assert tails[r] <= rtol * tails[0] + slack
    assert r == 1 or tails[r - 1] > rtol * tails[0] - slack


def test_rtol_of_known_values():
    A = with_spectrum(np.random.default_rng(0), 20, 15, np.array([4.0, 3, 0.3, 0.04]))  # norm 5.01
    ranks = {0.9: 1, 0.7: 1, 0.59: 2, 0.07: 2, 0.05: 3, 0.01: 3, 0.001: 4}
    for rtol, rank in ranks.items():
        assert len(truncated_svd(A, rtol=rtol).s) == rank
    assert len(truncated_svd(np.diag([2.0, 1.0, 0.0]), rtol=0).s) == 2
    assert len(truncated_svd(np.zeros((3, 2)), rtol=0).s) == 1
    assert len(truncated_svd(LowRank(np.ones((3, 0)), np.ones((2, 0))), rtol=0.1).s) == 1
    assert len(truncated_svd(1e200 * np.diag([2.0, 1.0]), rtol=0.6).s) == 1
    assert len(truncated_svd(aslinearoperator(dense(A)), rtol=0.05).s) == 3


def test_rtol_holds_for_each_matrix_of_a_batch():
    A = np.stack([np.diag([1.0, 1e-3, 0]), np.diag([1.0, 0.5, 1e-3])])
    assert truncated_svd(A, rtol=0.1).s.shape == (2, 2)


# --- the choice of the method ---


def counting(A):
    """An operator that counts the columns it is multiplied by."""
    counted = types.SimpleNamespace(columns=0)

    def times(B):
        def product(X):
            counted.columns += 1 if X.ndim == 1 else X.shape[1]
            return B @ X

        return product

    products = {"matvec": times(A), "matmat": times(A), "rmatvec": times(A.T), "rmatmat": times(A.T)}
    counted.operator = LinearOperator(A.shape, dtype=A.dtype, **products)
    return counted


def chosen(A, monkeypatch, **size):
    """The method that ``"auto"`` takes, by what it calls."""
    calls = []
    for module, name in ((lorsum.svd, "_factored"), (lorsum.svd, "_lapack"), (lorsum.svd, "krylov")):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, name=name, function=function: calls.append(name) or function(*args)
        )
    truncated_svd(A, **(size or {"rank": 2}), rng=0)
    monkeypatch.undo()
    return calls[0].removeprefix("_")


@pytest.mark.parametrize(
    ("m", "n", "R", "expected"),
    [
        (60, 60, 6, "factored"),
        (60, 60, 48, "factored"),
        (60, 60, 54, "lapack"),  # the balance of a square matrix is at 0.85
        (60, 60, 120, "lapack"),
        (600, 30, 27, "factored"),
        (30, 600, 27, "factored"),
        (600, 30, 36, "lapack"),
    ],
)
def test_auto_takes_the_fewer_operations(monkeypatch, m, n, R, expected):
    assert chosen(normal_lowrank(np.random.default_rng(0), m, n, R), monkeypatch) == expected


def test_auto_for_dense_terms_and_operators(monkeypatch):
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(30, 20)), scipy.sparse.random_array((2000, 1000), density=1e-3, rng=rng)
    W = normal_lowrank(rng, 2000, 1000, 2)
    assert chosen(small, monkeypatch) == "lapack"
    assert chosen(aslinearoperator(small), monkeypatch) == "lapack"
    assert chosen(aslinearoperator(large), monkeypatch) == "krylov"
    assert chosen(W + aslinearoperator(large), monkeypatch) == "krylov"
    assert chosen(aslinearoperator(large), monkeypatch, rank=200) == "lapack"


def test_a_large_operator_is_not_formed():
    A = scipy.sparse.random_array((3000, 2000), density=1e-3, rng=np.random.default_rng(0))
    counted = counting(A)
    svd = truncated_svd(counted.operator, 3, rng=0)
    assert counted.columns < 500
    np.testing.assert_allclose(A @ svd.Vh.T, svd.U * svd.s, atol=1e-9)


# --- bad input ---

SMALL = np.random.default_rng(0).normal(size=(4, 3))
ONE_WAY = LinearOperator((4, 3), matvec=lambda x: SMALL @ x)


@pytest.mark.parametrize(
    ("A", "options", "kind", "message"),
    [
        (SMALL, {}, ValueError, "`rank` is None and `rtol` None: exactly one"),
        (SMALL, {"rank": 1, "rtol": 0.1}, ValueError, "`rank` is 1 and `rtol` 0.1: exactly one"),
        (SMALL, {"rtol": 1}, ValueError, "`rtol` is 1; 0 ≤ rtol < 1"),
        (SMALL, {"rtol": np.nan}, ValueError, "`rtol` is nan"),
        (SMALL, {"rtol": "0.1%"}, TypeError, "`rtol` is '0.1%'"),
        (SMALL, {"rtol": 0.1, "method": "arpack"}, ValueError, "`rtol` needs all singular values"),
        (SMALL, {"rtol": 0.1, "method": "randomized"}, ValueError, "`rtol` needs .* 'randomized' .* use 'lapack'"),
        (SMALL, {"rank": 1, "residual_tol": -1}, ValueError, "`residual_tol` is -1"),
        (SMALL, {"rank": 1, "residual_tol": None}, TypeError, "`residual_tol` is None"),
        (SMALL, {"rank": 1, "oversample": -1}, ValueError, "`oversample` is -1"),
        (SMALL, {"rank": 1, "oversample": 0.5}, TypeError, "`oversample` is 0.5"),
        (SMALL, {"rank": 1, "iters": -1, "method": "randomized"}, ValueError, "`iters` is -1"),
        (
            SMALL,
            {"rank": 1, "max_iters": 0, "method": "subspace"},
            ValueError,
            "`max_iters` is 0; it must be at least 1",
        ),
        (SMALL, {"rank": 1, "method": "subspace", "rng": "dice"}, TypeError, "`rng` is 'dice'"),
        (SMALL, {"rank": 1, "method": "arpack", "rng": -1}, ValueError, "`rng` is -1"),
        (SMALL, {"rank": 1, "method": "ARPACK"}, ValueError, "`method` is 'ARPACK'; it must be one of 'auto'"),
        (SMALL, {"rank": 3, "method": "arpack"}, ValueError, "`rank` is 3, .* 'arpack' finds at most 2 .* real 4 × 3"),
        (SMALL, {"rank": 3, "method": "lobpcg"}, ValueError, "`rank` is 3, .* 'lobpcg' finds at most 2 .*use 'lapack'"),
        (SMALL * 1j, {"rank": 2, "method": "arpack"}, ValueError, "`rank` is 2, .* finds at most 1 .* complex 4 × 3"),
        (SMALL[None], {"rank": 1, "method": "arpack"}, ValueError, "'arpack', which takes one NumPy matrix"),
        (ONE_WAY, {"rank": 1, "method": "arpack"}, ValueError, "`A` has an operator without `rmatvec`"),
        (ONE_WAY, {"rank": 1, "method": "subspace"}, ValueError, "`A` has an operator without `rmatvec`"),
        (aslinearoperator(SMALL * np.nan), {"rank": 1}, ValueError, "`A` gives a NaN or an infinity in products"),
        (aslinearoperator(SMALL * np.nan), {"rank": 1, "method": "arpack"}, ValueError, "`A` gives a NaN"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(A, options, kind, message):
    with pytest.raises(kind, match=message):
        truncated_svd(A, **options)


def test_scipy_takes_no_other_arrays():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="'propack', which takes one NumPy matrix: use 'subspace' or 'randomized'"):
        truncated_svd(torch.ones(4, 3), 1, method="propack")


def test_all_singular_values_by_propack():
    assert_best(truncated_svd(SMALL, 3, method="propack", rng=0), SMALL, 3)


def test_an_operator_without_adjoint_can_be_formed():
    np.testing.assert_allclose(truncated_svd(ONE_WAY, 2).s, scipy.linalg.svdvals(SMALL)[:2], rtol=10 * EPS)


@pytest.mark.parametrize(
    ("option", "methods"),
    [
        ({"iters": 3}, ("auto", "factored", "lapack", "arpack", "propack", "lobpcg", "subspace")),
        ({"max_iters": 300}, ("factored", "lapack", "randomized")),
        ({"residual_tol": 1e-3}, ("factored", "lapack", "randomized")),
        ({"oversample": 3}, ("auto", "factored", "lapack", "arpack", "propack", "lobpcg")),
    ],
    ids=str,
)
def test_options_that_a_method_has_no_use_for_are_refused(option, methods):
    A = normal_lowrank(np.random.default_rng(0), 20, 15, 4)
    ((name, value),) = option.items()
    for method in ("auto", "factored", "lapack", "arpack", "propack", "lobpcg", "randomized", "subspace"):
        if method in methods:
            with pytest.raises(ValueError, match=f"`{name}` is {value}, of which `method` '{method}' makes no use"):
                truncated_svd(A, 2, method=method, rng=0, **option)
        else:
            np.testing.assert_allclose(
                truncated_svd(A, 2, method=method, rng=0, **option).s, truncated_svd(A, 2).s, rtol=1e-2
            )


@pytest.mark.parametrize("width", [0.0, 1e-6, 1e-3, 0.1, 0.9])
def test_what_is_left_over_is_estimated_from_below(width):
    """The check of the Krylov methods: near enough to the norm to see a missed value, never above it."""
    s = np.linspace(1, 1 - width, 200)
    rng = np.random.default_rng(0)
    A = LowRankSum([with_spectrum(rng, 300, 250, s).to_dense()])
    for missing in (0.0, 1e-2):  # a value that stands out by so much
        B = A + missing * truncated_svd(A, 1).to_lowrank()
        norm = float(truncated_svd(B, 1).s[0])
        estimate = float(_norm_from_below(B, rng))
        assert estimate <= (1 + 1e-14) * norm
        assert estimate >= (1 - 2e-3) * norm


@pytest.mark.parametrize("method", ["arpack", "propack", "lobpcg"])
@pytest.mark.parametrize("rank", [3, 7])
def test_pairs_of_a_dense_spectrum_are_not_missed_silently(method, rank):
    pairs = np.repeat(np.linspace(40, 1, 40), 2)
    s = np.interp(np.linspace(0, 1, 400), np.linspace(0, 1, 80), pairs)
    A = with_spectrum(np.random.default_rng(0), 600, 500, s).to_dense()
    try:
        found = truncated_svd(A, rank, method=method, rng=1).s
    except scipy.linalg.LinAlgError as error:
        assert f"`method` '{method}' has not converged" in str(error)
    else:
        np.testing.assert_allclose(found, s[:rank], rtol=1e-3)
