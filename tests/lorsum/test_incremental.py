import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from reference import EPS, dense, distance, truncated
from strategies import generators, normal_lowrank, orthonormal, small_integers

from lorsum import LowRank
from lorsum.incremental import IncrementalSVD


def matrix_of(svd):
    return np.asarray(svd.U) * np.asarray(svd.s) @ np.asarray(svd.Vh)


def loss(svd):
    """Largest entry of UᴴU − I and VᴴV − I."""
    U, Vh = np.asarray(svd.U), np.asarray(svd.Vh)
    return max(np.abs(Q.conj().T @ Q - np.eye(svd.rank)).max(initial=0) for Q in (U, Vh.conj().T))


def assert_is_svd_of(svd, A, size=None, tolerance=1e-13):
    """A thin SVD of A with LAPACK's singular values, to rounding relative to ``size``; what is left out is zero."""
    size = size or np.abs(A).max(initial=0) or 1
    assert (svd.shape, svd.s.shape) == (A.shape, (svd.rank,))
    assert (svd.U.shape, svd.Vh.shape) == ((A.shape[0], svd.rank), (svd.rank, A.shape[1]))
    assert loss(svd) < tolerance
    expected = scipy.linalg.svdvals(A) if A.size else np.zeros(0)
    np.testing.assert_allclose(np.asarray(svd.s) / size, expected[: svd.rank] / size, rtol=0, atol=tolerance * len(A))
    assert np.all(expected[svd.rank :] <= tolerance * size * len(A))
    np.testing.assert_allclose(matrix_of(svd) / size, A / size, rtol=0, atol=tolerance * len(A))


def start(rng, m=9, n=7, rank=3, dtype=np.float64, **options):
    """An SVD and its dense matrix."""
    A = dense(normal_lowrank(rng, m, n, rank, dtype))
    return IncrementalSVD.from_matrix(A, rank, **options), A


# --- every change, against LAPACK ---


def changed(svd, A, change, rng):
    """The SVD after a change with random whole numbers (dependent and zero columns among them), and the matrix."""
    m, n = A.shape
    k = int(rng.integers(1, 4))

    def integers(*shape):
        return rng.integers(-2, 3, shape).astype(float)

    if change == "update":
        U, V = integers(m, k), integers(n, k)
        return svd.update(U, V), A + U @ V.T
    if change == "append_rows":
        R = integers(k, n)
        return svd.append_rows(R), np.vstack([A, R])
    if change == "append_columns":
        C = integers(m, k)
        return svd.append_columns(C), np.hstack([A, C])
    axis = 0 if change == "remove_rows" else 1
    indices = rng.permutation(A.shape[axis])[:k] - A.shape[axis] * rng.integers(0, 2)
    return getattr(svd, change)(indices.tolist()), np.delete(A, indices, axis)


CHANGES = ["update", "append_rows", "append_columns", "remove_rows", "remove_columns"]


@given(
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.lists(st.sampled_from(CHANGES), min_size=1, max_size=12),
    generators(),
)
def test_any_sequence_of_changes_is_followed(shape, changes, rng):
    svd, A = IncrementalSVD.zeros(shape), np.zeros(shape)
    size = 1
    for change in changes:
        svd, A = changed(svd, A, change, rng)
        size = max(size, np.abs(A).max(initial=0))
        assert_is_svd_of(svd, A, size)


@given(generators(), st.sampled_from(CHANGES), st.integers(1, 7))
def test_each_change_of_a_full_or_low_rank_matrix(rng, change, rank):
    assert_is_svd_of(*changed(*start(rng, rank=rank), change, rng))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.complex128])
def test_other_dtypes(dtype):
    rng = np.random.default_rng(0)
    svd, A = start(rng, dtype=dtype)
    U, V = normal_lowrank(rng, 9, 7, 2, dtype)
    R, C = normal_lowrank(rng, 2, 7, 2, dtype).to_dense(), normal_lowrank(rng, 11, 3, 2, dtype).to_dense()
    svd.update(U, V).append_rows(R).append_columns(C).remove_columns([0, 3]).remove_rows(-1)
    expected = np.delete(np.hstack([np.vstack([A + U @ V.T, R]), C]), [0, 3], axis=1)[:-1]
    assert svd.U.dtype == svd.Vh.dtype == svd.dtype == dtype
    assert svd.s.dtype == np.zeros(0, dtype).real.dtype
    assert_is_svd_of(svd, expected, tolerance=100 * np.finfo(dtype).eps)


def test_a_wider_dtype_widens():
    rng = np.random.default_rng(0)
    svd, A = start(rng, dtype=np.float32)
    svd.update(np.ones(9), 1j * np.ones(7))
    assert (svd.U.dtype, svd.s.dtype) == (np.complex128, np.float64)
    assert_is_svd_of(svd, A + 1j * np.ones((9, 7)), tolerance=1e-6)


def test_half_precision_is_kept_in_single():
    U, s, Vh = (x.astype(np.float16) for x in scipy.linalg.svd(np.diag([3.0, 2.0, 1.0]) + 0.1, full_matrices=False))
    svd = IncrementalSVD(U, s, Vh)
    assert svd.dtype == svd.s.dtype == np.float32
    assert loss(svd) < 1e-6  # the rounded vectors were orthogonalised
    assert distance(matrix_of(svd.update(np.ones(3, np.float16), np.ones(3))), np.diag([3.0, 2, 1]) + 1.1) < 2e-3


def test_vectors_stand_for_matrices_of_one_column_or_row():
    rng = np.random.default_rng(0)
    svd, A = start(rng)
    a, b, row, column = rng.normal(size=9), rng.normal(size=7), rng.normal(size=7), rng.normal(size=10)
    svd.update(a, b).append_rows(row).append_columns(column)
    assert_is_svd_of(svd, np.column_stack([np.vstack([A + np.outer(a, b), row]), column]))


def test_more_columns_than_the_matrix_has():
    rng = np.random.default_rng(0)
    svd, A = start(rng)
    U, V = normal_lowrank(rng, 9, 7, 50)
    assert_is_svd_of(svd.update(U, V), A + U @ V.T)
    assert svd.rank == 7
    C = rng.normal(size=(9, 40))
    assert_is_svd_of(svd.append_columns(C), np.hstack([A + U @ V.T, C]))


def test_changes_by_nothing():
    rng = np.random.default_rng(0)
    svd, A = start(rng)
    svd.update(np.zeros((9, 0)), np.zeros((7, 0))).append_rows(np.zeros((0, 7))).append_columns(np.zeros((9, 0)))
    svd.remove_columns([]).remove_rows([]).update(np.zeros((9, 2)), rng.normal(size=(7, 2)))
    assert_is_svd_of(svd, A)
    assert svd.rank == 3


def test_everything_is_removed_and_comes_back():
    svd, A = start(np.random.default_rng(0))
    assert svd.remove_columns(range(7)).shape == (9, 0)
    assert svd.rank == 0
    assert_is_svd_of(svd.append_columns(A), A)
    assert svd.remove_rows(np.arange(9)).shape == (0, 7)
    assert_is_svd_of(svd.append_rows(A), A)


# --- rank ---


def test_repeated_and_dependent_vectors_do_not_raise_the_rank():
    rng = np.random.default_rng(0)
    U, V = rng.normal(size=(90, 3)), rng.normal(size=(70, 3))
    svd = IncrementalSVD.zeros((90, 70))
    total = np.zeros((3, 3))
    for _ in range(50):
        mix = rng.normal(size=(3, 3))
        svd.update(U, V @ mix)
        total += mix
        assert svd.rank == 3
    assert_is_svd_of(svd, U @ total.T @ V.T, tolerance=1e-14)


@given(generators(), st.integers(1, 6), st.sampled_from([1.0, 1e100, 1e-100]))
def test_a_matrix_minus_itself_is_exactly_zero(rng, rank, size):
    W = normal_lowrank(rng, 40, 30, rank)
    svd = IncrementalSVD.zeros((40, 30)).update(size * W.U, W.V)
    mix = scipy.linalg.qr(rng.normal(size=(rank, rank)))[0]
    svd.update(-size * (W.U @ mix), W.V @ mix)
    assert svd.rank == 0
    assert not np.any(matrix_of(svd))


@given(generators(), st.integers(1, 6), st.integers(1, 8))
def test_what_is_added_and_subtracted_leaves_no_trace(rng, rank, k):
    W, G = normal_lowrank(rng, 40, 30, rank), normal_lowrank(rng, 40, 30, k)
    svd = IncrementalSVD.zeros((40, 30)).update(*W).update(*G).update(-G.U, G.V)
    assert svd.rank == rank
    assert_is_svd_of(svd, W.to_dense(), np.abs(G.to_dense()).max())


def test_columns_of_very_different_scales_are_all_kept():
    rng = np.random.default_rng(0)
    U, V = rng.normal(size=(9, 4)), rng.normal(size=(7, 4))
    scales = np.array([1e200, 1e-200, 1e100, 1.0])
    assert_is_svd_of(IncrementalSVD.zeros((9, 7)).update(U * scales, V / scales), U @ V.T)


def test_small_directions_are_kept_to_full_orthogonality():
    rng = np.random.default_rng(0)
    for small in 10.0 ** -np.arange(1, 16):
        svd, A = start(rng, 60, 50, 5)
        a, b = A[:, 0] + small * rng.normal(size=60), A[0] + small * rng.normal(size=50)
        U = np.column_stack([a, a + 1e-10 * rng.normal(size=60)])
        V = np.column_stack([b, b + small * rng.normal(size=50)])
        svd.update(U, V)
        assert loss(svd) < 60 * EPS
        assert distance(matrix_of(svd), A + U @ V.T) < 60 * EPS


# --- truncation ---


@given(generators(), st.integers(1, 7))
def test_truncation_is_the_best_approximation(rng, rank):
    svd, A = start(rng, rank=7)
    best = truncated(A, rank)
    assert svd.truncate(rank) is svd
    assert svd.rank == rank
    assert distance(matrix_of(svd), best) < 1e-13


@given(generators(), st.sampled_from(CHANGES))
def test_max_rank_is_the_best_approximation_after_each_change(rng, change):
    svd, A = start(rng, max_rank=3)
    svd, A = changed(svd, A, change, rng)
    assert svd.rank <= 3
    s = scipy.linalg.svdvals(A)
    np.testing.assert_allclose(scipy.linalg.norm(A - matrix_of(svd)), scipy.linalg.norm(s[3:]), atol=1e-12)


def test_max_rank_may_change():
    svd, _ = start(np.random.default_rng(0), max_rank=3)
    assert svd.update(np.ones(9), np.ones(7)).rank == 3
    svd.max_rank = None
    assert svd.append_rows(np.arange(7.0)).rank == 4
    svd.max_rank = 2
    assert svd.rank == 4
    assert svd.append_rows(np.arange(7.0)).rank == 2
    assert start(np.random.default_rng(0), max_rank=2)[0].rank == 2


def test_truncation_by_tolerance():
    s = np.array([4.0, 3, 0.3, 0.04])
    rng = np.random.default_rng(0)
    for rtol, rank in {0.9: 1, 0.59: 2, 0.07: 2, 0.05: 3, 0.001: 4}.items():
        svd = IncrementalSVD(orthonormal(rng, 9, 4), s, orthonormal(rng, 7, 4).T)
        assert svd.truncate(rtol=rtol).rank == rank
    assert svd.truncate(100).rank == 4
    assert IncrementalSVD.zeros((4, 3)).truncate(rtol=0.1).truncate(2).rank == 0


# --- drift ---


def random(rng, i):
    return rng.normal(size=(20, 2)), rng.normal(size=(15, 2))


def ill_conditioned(rng, i):
    u, v = rng.normal(size=(20, 1)), rng.normal(size=(15, 1))
    U = np.hstack([u, u + 1e-9 * rng.normal(size=(20, 1)), 1e-12 * rng.normal(size=(20, 1))])
    return U, np.hstack([v, v + 1e-11 * rng.normal(size=(15, 1)), rng.normal(size=(15, 1))])


def repeated(rng, i):
    fixed = np.random.default_rng(0)
    return fixed.normal(size=(20, 2)), fixed.normal(size=(15, 2)) * rng.normal()


def nearly_repeated(rng, i):
    U, V = repeated(rng, i)
    return U + 1e-13 * rng.normal(size=U.shape), V @ rng.normal(size=(2, 2)) + 1e-10 * rng.normal(size=V.shape)


def of_wild_scales(rng, i):
    U, V = random(rng, i)
    return U * 10.0 ** rng.integers(-150, 140, 2), V * 10.0 ** rng.integers(-150, 140, 2)


def of_opposite_scales(rng, i):
    U, V = random(rng, i)
    scales = 10.0 ** rng.integers(-150, 150, 2)
    return U * scales, V / scales


KINDS = [random, ill_conditioned, repeated, nearly_repeated, of_wild_scales, of_opposite_scales]


@pytest.mark.parametrize(("kind", "max_rank"), [*((kind, None) for kind in KINDS), (random, 8), (ill_conditioned, 8)])
def test_orthogonal_to_rounding_after_5000_updates(kind, max_rank):
    rng = np.random.default_rng(0)
    svd, total = IncrementalSVD.zeros((20, 15), max_rank=max_rank), np.zeros((20, 15))
    for i in range(5000):
        U, V = kind(rng, i)
        svd.update(U, V)
        total += U @ V.T
        if i % 100 == 0:
            assert loss(svd) < 1e-13
    assert loss(svd) < 1e-13
    if max_rank is None:
        assert distance(matrix_of(svd), total) < 5e-12
        assert kind not in (repeated, nearly_repeated) or svd.rank == 2


def test_single_precision_drifts_no_further():
    rng = np.random.default_rng(0)
    svd = IncrementalSVD.zeros((20, 15), dtype=np.float32, max_rank=8)
    for i in range(2000):
        svd.update(*(x.astype(np.float32) for x in random(rng, i)))
    assert svd.dtype == np.float32
    assert loss(svd) < 5e-5


def test_a_sliding_window_over_a_stream():
    rng = np.random.default_rng(0)
    stream = normal_lowrank(rng, 40, 800, 6).to_dense() + 1e-3 * rng.normal(size=(40, 800))
    svd = IncrementalSVD.from_matrix(stream[:, :20], 20)
    for i in range(20, 800):
        svd.append_columns(stream[:, i]).remove_columns(0)
    assert_is_svd_of(svd, stream[:, -20:])


def test_vectors_that_were_nearly_orthonormal_are_orthogonalised():
    rng = np.random.default_rng(0)
    A = dense(normal_lowrank(rng, 9, 7, 7))
    U, s, Vh = scipy.linalg.svd(A, full_matrices=False)
    noise = 1e-10 * rng.normal(size=U.shape)
    svd = IncrementalSVD(U + noise, s, Vh)
    assert loss(svd) < 1e-14
    assert distance(matrix_of(svd), (U + noise) * s @ Vh) < 1e-14


# --- the object ---


def test_construction_takes_an_svd_as_it_is():
    U, s, Vh = scipy.linalg.svd(np.random.default_rng(0).normal(size=(9, 7)), full_matrices=False)
    svd = IncrementalSVD(U, s, Vh)
    for x, given_ in ((svd.U, U), (svd.s, s), (svd.Vh, Vh)):
        np.testing.assert_array_equal(x, given_)
    assert isinstance(svd.shape[0], int)


def test_arrays_are_replaced_and_never_written_to():
    svd, A = start(np.random.default_rng(0))
    before = svd.U, svd.s, svd.Vh
    copies = [x.copy() for x in before]
    U, V = np.ones(9), np.ones(7)
    svd.update(U, V).append_rows(A[:1]).remove_columns(0).truncate(2)
    for x, copy in zip((*before, U, V), (*copies, np.ones(9), np.ones(7)), strict=True):
        np.testing.assert_array_equal(x, copy)


def test_no_array_is_shared_with_the_caller():
    """Whatever becomes of arrays that were given or handed out, the SVD stays that of the matrix."""
    A = np.random.default_rng(0).normal(size=(9, 7))
    U, s, Vh = scipy.linalg.svd(A, full_matrices=False)
    given_ = [np.asfortranarray(U), s.copy(), np.ascontiguousarray(Vh)]
    svd = IncrementalSVD(*given_)
    for x in given_:
        x[...] = np.nan
    assert_is_svd_of(svd, A)

    sizes = (9, 1), (7, 1), (2, 7), (11, 1)
    left, right, rows, columns = (np.random.default_rng(0).normal(size=size) for size in sizes)
    A = np.vstack([A + left @ right.T, rows])
    A = np.hstack([A, columns])
    svd.update(left, right).append_rows(rows).append_columns(columns)
    for x in (left, right, rows, columns):
        x[...] = np.nan
    assert_is_svd_of(svd, A)

    before = svd.U, svd.s, svd.Vh
    for x in before + tuple(svd.to_lowrank()):
        x[...] = np.nan
    assert_is_svd_of(svd, A)
    assert_is_svd_of(svd.remove_columns([]).truncate(rtol=0.0), A)


@pytest.mark.parametrize("kind", ["from_matrix", "zeros", "truncate"])
def test_every_way_to_an_svd_has_arrays_of_its_own(kind):
    A = np.random.default_rng(0).normal(size=(9, 7))
    make = {
        "from_matrix": lambda A: IncrementalSVD.from_matrix(A, 7),
        "zeros": lambda A: IncrementalSVD.zeros((9, 7)).update(A, np.eye(7)),
        "truncate": lambda A: IncrementalSVD.from_matrix(A, 7).truncate(7),
    }[kind]
    copy = A.copy()
    svd = make(copy)
    for x in (copy, svd.U, svd.s, svd.Vh):
        x[...] = 0
    assert_is_svd_of(svd, A)


def test_torchs_arrays_are_not_shared_either():
    torch = pytest.importorskip("torch")
    U, s, Vh = torch.linalg.svd(torch.ones(4, 3, dtype=torch.float64), full_matrices=False)
    given_ = U[:, :1].clone(), s[:1].clone(), Vh[:1].clone()
    svd = IncrementalSVD(*given_)
    for x in (*given_, svd.U, svd.s, svd.Vh):
        x.zero_()
    assert_is_svd_of(svd, np.ones((4, 3)))


def test_a_refused_change_changes_nothing():
    svd, A = start(np.random.default_rng(0))
    for change in (
        lambda: svd.update(np.full(9, np.nan), np.ones(7)),
        lambda: svd.append_columns(np.ones(8)),
        lambda: svd.remove_rows(9),
        lambda: svd.truncate(0),
    ):
        with pytest.raises(ValueError, match="`"):
            change()
        assert_is_svd_of(svd, A)


def test_an_overflow_is_an_error_and_changes_nothing():
    svd, A = start(np.random.default_rng(0))
    with np.errstate(over="ignore"), pytest.raises(scipy.linalg.LinAlgError, match="overflows"):
        svd.update(np.full(9, 1e200), np.full(7, 1e200))
    assert_is_svd_of(svd, A)


def test_as_a_low_rank_matrix_it_is_balanced():
    svd, A = start(np.random.default_rng(0), dtype=np.complex128)
    X = svd.to_lowrank()
    assert isinstance(X, LowRank)
    assert distance(X, A) < 1e-14
    np.testing.assert_allclose(X.U.conj().T @ X.U, np.diag(svd.s), atol=1e-13)
    assert IncrementalSVD.zeros((4, 3)).to_lowrank().rank == 0


def test_from_every_kind_of_matrix():
    W = normal_lowrank(np.random.default_rng(0), 9, 7, 3)
    for A in (W, 2 * W - W, W.to_dense()):
        assert_is_svd_of(IncrementalSVD.from_matrix(A, rtol=1e-10), W.to_dense())
    assert IncrementalSVD.from_matrix(W, 2, method="randomized", rng=0, max_rank=5).rank == 2


def test_it_prints_its_shape():
    svd = IncrementalSVD.zeros((4, 3), max_rank=2)
    assert repr(svd.update(np.ones(4), np.ones(3))) == "IncrementalSVD(4 × 3, rank 1, max_rank 2, float64)"
    svd.max_rank = None
    assert repr(svd) == "IncrementalSVD(4 × 3, rank 1, float64)"


def test_every_array_library(library):
    rng = np.random.default_rng(0)
    A = dense(normal_lowrank(rng, 9, 7, 3))
    svd = IncrementalSVD(*(library(x) for x in (np.zeros((9, 0)), np.zeros(0), np.zeros((0, 7)))))
    U, s, Vh = scipy.linalg.svd(A, full_matrices=False)
    svd.update(library(U[:, :3] * s[:3]), library(Vh[:3].T.copy()))
    C = rng.normal(size=(9, 2))
    svd.append_columns(library(C)).remove_columns([1, -3]).truncate(5)
    assert type(svd.U) is type(library(U))
    assert svd.to_lowrank().rank == svd.rank == 5
    assert_is_svd_of(svd, np.delete(np.column_stack([A, C]), [1, 6], axis=1))
    assert svd.remove_columns(range(7)).append_columns(library(np.ones(9))).rank == 1


@given(small_integers((4, 2)), small_integers((3, 2)))
def test_a_low_rank_matrix_unpacks_into_an_update(U, V):
    svd = IncrementalSVD.zeros((4, 3)).update(*LowRank(U, V))
    assert_is_svd_of(svd, U @ V.T)


# --- bad input ---

U, S, VH = np.eye(4, 2), np.array([2.0, 1.0]), np.eye(2, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((np.eye(4, 3), S, VH), ValueError, "`U` has 3 columns, `s` 2 values and `Vh` 2 rows"),
        ((U, S[:1], VH), ValueError, "`U` has 2 columns, `s` 1 values"),
        ((U, S, VH.T), ValueError, "`Vh` 3 rows"),
        ((U[:, 0], S, VH), ValueError, "`U` has shape"),
        ((U, S[:, None], VH), ValueError, "`s` has 2 dimensions; 1 are needed"),
        ((U, S, VH[None]), ValueError, "`Vh` has 3 dimensions; 2 are needed"),
        ((U * np.nan, S, VH), ValueError, "`U` has a NaN"),
        ((U, S * np.inf, VH), ValueError, "`s` has a NaN or an infinity"),
        ((U, S, VH * np.nan), ValueError, "`Vh` has a NaN"),
        ((U, S[::-1], VH), ValueError, "`s` is not descending"),
        ((U, np.array([1.0, -1.0]), VH), ValueError, "`s` is not descending, or negative"),
        ((U, S * 1j, VH), TypeError, "`s` has dtype complex128; real numbers are needed"),
        ((U * 1.001, S, VH), ValueError, "`U` has columns that are not orthonormal: ‖QᴴQ − I‖ = 2.8e-03 > 2.1e-08"),
        ((U, S, np.ones((2, 3))), ValueError, "`Vh` has rows that are not orthonormal"),
        (([["U"]], S, VH), TypeError, "`U` has dtype"),
    ],
    ids=str,
)
def test_what_is_no_svd_is_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        IncrementalSVD(*arguments)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda svd: svd.update(np.ones((3, 1)), np.ones((3, 1))), ValueError, r"`A` has shape \(3, 1\); \(4, k\)"),
        (lambda svd: svd.update(np.ones(4), np.ones(4)), ValueError, r"`B` has shape \(4,\); \(3, k\) or \(3,\)"),
        (lambda svd: svd.update(np.ones((4, 2)), np.ones((3, 1))), ValueError, "`A` has 2 columns and `B` 1"),
        (lambda svd: svd.update(np.ones((1, 4, 2)), np.ones(3)), ValueError, "`A` has shape"),
        (lambda svd: svd.update(np.full(4, np.inf), np.ones(3)), ValueError, "`A` has a NaN or an infinity"),
        (lambda svd: svd.update(np.ones(4), np.full(3, np.nan)), ValueError, "`B` has a NaN"),
        (lambda svd: svd.append_rows(np.ones(4)), ValueError, r"`R` has shape \(4,\); \(p, 3\) or \(3,\) is needed"),
        (lambda svd: svd.append_columns(np.ones((3, 4))), ValueError, r"`C` has shape \(3, 4\); \(4, k\)"),
        (lambda svd: svd.append_columns("CCCC"), ValueError, "`C`"),
        (lambda svd: svd.remove_columns(3), ValueError, "`indices` has 3, which is not between -3 and 2"),
        (lambda svd: svd.remove_rows([0, -5]), ValueError, "`indices` has -5, which is not between -4 and 3"),
        (lambda svd: svd.remove_columns([0, 2, -1]), ValueError, "`indices` has 2 twice"),
        (lambda svd: svd.remove_columns([True, False, True]), TypeError, "`indices` is an array of bool"),
        (lambda svd: svd.remove_columns([0.0]), TypeError, "`indices` is an array of float64"),
        (lambda svd: svd.remove_columns([[0]]), TypeError, r"`indices` is an array of int64, shape \(1, 1\)"),
        (lambda svd: svd.truncate(), ValueError, "`rank` is None and `rtol` None: exactly one"),
        (lambda svd: svd.truncate(1, rtol=0.1), ValueError, "exactly one"),
        (lambda svd: svd.truncate(0), ValueError, "`rank` is 0; it must be at least 1"),
        (lambda svd: svd.truncate(1.5), TypeError, "`rank` is 1.5"),
        (lambda svd: svd.truncate(rtol=1.0), ValueError, "`rtol` is 1.0"),
        (lambda svd: setattr(svd, "max_rank", 0), ValueError, "`max_rank` is 0"),
        (lambda svd: IncrementalSVD.zeros((4, 3), max_rank="2"), TypeError, "`max_rank` is '2'"),
        (lambda svd: IncrementalSVD.zeros(4), TypeError, "`shape` is 4; a pair"),
        (lambda svd: IncrementalSVD.zeros((4, -1)), ValueError, "`shape` is -1"),
        (lambda svd: IncrementalSVD.from_matrix(np.ones((4, 3))), ValueError, "exactly one"),
    ],
)
def test_changes_that_make_no_sense_are_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        change(IncrementalSVD(U, S, VH))


def test_arrays_of_another_library_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"`U` is a numpy.ndarray and `A` a torch.Tensor"):
        IncrementalSVD(U, S, VH).update(torch.ones(4), torch.ones(3))


def test_masked_indices_are_refused():
    with pytest.raises(TypeError, match="`indices` is a masked array"):
        IncrementalSVD.zeros((4, 3)).remove_columns(np.ma.array([0, 1], mask=[True, False]))
