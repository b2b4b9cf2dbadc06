import copy
import operator
import pickle

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from reference import EPS, dense, distance
from scipy.sparse.linalg import LinearOperator, aslinearoperator, svds
from strategies import exact_lowrank, gauge_of_condition, generators, normal_lowrank, small_integers, with_spectrum

from lorsum import LowRank, LowRankSum

SHAPE = (4, 3)


def ones(m, n, rank=1):
    return LowRank(np.ones((m, rank)), np.ones((n, rank)))


def terms(shape=SHAPE):
    """What a sum may be made of, next to other sums."""
    kinds = [exact_lowrank(shape), small_integers(shape)]
    return st.one_of(kinds if len(shape) > 2 else [*kinds, small_integers(shape).map(aslinearoperator)])


def sums(shape=SHAPE):
    return st.builds(
        lambda pairs: LowRankSum(*zip(*pairs, strict=True)),
        st.lists(st.tuples(terms(shape), scalars()), min_size=1, max_size=3),
    )


def scalars():
    """Numbers of every kind, whose products and quotients are exact."""
    numbers = st.sampled_from([-2.0, -1.0, 0.5, 1.0, 4.0])
    kinds = [float, np.float64, np.float32, np.asarray, lambda x: int(x) or 1, lambda x: np.int64(x) or np.int64(1)]
    return st.builds(lambda kind, x: kind(x), st.sampled_from(kinds), numbers)


def matrices(shape=SHAPE):
    return st.one_of(exact_lowrank(shape), sums(shape))


# --- arithmetic ---


@given(
    st.recursive(
        st.one_of(exact_lowrank(SHAPE), sums()).map(lambda A: (A, dense(A))),
        lambda pairs: st.one_of(
            st.builds(
                lambda f, a, b: (f(a[0], b[0]), f(a[1], b[1])),
                st.sampled_from([operator.add, operator.sub]),
                pairs,
                st.one_of(pairs, terms().map(lambda A: (A, dense(A)))),
            ),
            st.builds(lambda c, a: (c * a[0], c * a[1]), scalars(), pairs),
            st.builds(lambda c, a: (a[0] * c, a[1] * c), scalars(), pairs),
            st.builds(lambda c, a: (a[0] / c, a[1] / c), scalars(), pairs),
            pairs.map(lambda a: (-a[0], -a[1])),
            pairs.map(lambda a: (a[0].T.T, a[1])),
        ),
        max_leaves=6,
    )
)
def test_expressions_are_those_of_dense_matrices(pair):
    expression, expected = pair
    np.testing.assert_array_equal(expression.to_dense(), expected)
    np.testing.assert_array_equal(expression.T.to_dense(), expected.T)
    assert expression.shape == expected.shape


@given(small_integers(SHAPE), matrices())
def test_arrays_add_and_subtract_from_the_left(D, A):
    assert isinstance(D + A, LowRankSum)
    assert isinstance(D - A, LowRankSum)
    np.testing.assert_array_equal((D + A).to_dense(), D + dense(A))
    np.testing.assert_array_equal((D - A).to_dense(), D - dense(A))
    assert (D + A).terms[0] is D


@pytest.mark.parametrize("scalar", [2, 2.0, True, 2j, np.float64(2), np.float32(2), np.int8(2), np.asarray(2.0)])
@pytest.mark.parametrize("A", [ones(4, 3), ones(4, 3) - ones(4, 3, 2)], ids=["LowRank", "LowRankSum"])
def test_every_kind_of_number_multiplies_from_both_sides(scalar, A):
    for product in (scalar * A, A * scalar):
        assert isinstance(product, LowRankSum)
        np.testing.assert_array_equal(product.to_dense(), scalar * A.to_dense())


@given(st.lists(matrices(), min_size=1, max_size=4))
def test_the_builtin_sum_adds_up(As):
    np.testing.assert_array_equal(sum(As).to_dense(), sum(map(dense, As)))


def test_arithmetic_computes_nothing():
    W, G = ones(4, 3), ones(4, 3, 2)
    target = 2 * (W - 0.1 * G) / 4
    assert [A is B for A, B in zip(target.terms, (W, G), strict=True)] == [True, True]
    assert target.coefficients == (0.5, -0.05)


def test_the_terms_stand_in_the_order_written():
    A, B, C = (ones(4, 3, rank) for rank in (1, 2, 3))
    assert [term.rank for term in (C - (A + B)).terms] == [3, 1, 2]
    assert (C - (A + B)).coefficients == (1, -1, -1)


def test_python_numbers_do_not_change_the_dtype():
    W = LowRank(np.ones((4, 1), np.float32), np.ones((3, 1), np.float32))
    assert (0.5 * W - W / 3).dtype == (0.5 * W - W / 3).to_dense().dtype == np.float32


def test_numpy_numbers_do_not_change_the_dtype():
    W = LowRank(np.ones((4, 1), np.float32), np.ones((3, 1), np.float32))
    target = np.float64(0.5) * W
    assert target.dtype == target.to_dense().dtype == (target @ np.ones(3, np.float32)).dtype


def test_complex_numbers_make_a_sum_complex():
    assert (2j * ones(4, 3)).dtype == np.complex128


# --- products ---


@given(matrices(), small_integers(3), small_integers((3, 2)))
def test_products_with_arrays_on_the_right(A, x, X):
    for right in (x, X):
        np.testing.assert_array_equal(A @ right, dense(A) @ right)


@given(matrices(), small_integers(4), small_integers((2, 4)))
def test_products_with_arrays_on_the_left(A, x, X):
    for left in (x, X):
        product = left @ A
        assert type(product) is np.ndarray
        np.testing.assert_array_equal(product, left @ dense(A))


@given(exact_lowrank(SHAPE), small_integers(SHAPE), small_integers((5, 3, 2)), small_integers((5, 2, 4)))
def test_products_of_one_matrix_with_a_batch(W, D, right, left):
    for A in (W, W - 2 * LowRankSum([D])):
        np.testing.assert_array_equal(A @ right, dense(A) @ right)
        np.testing.assert_array_equal(left @ A, left @ dense(A))


@given(
    matrices((2, 4, 3)), small_integers(3), small_integers((3, 2)), small_integers((2, 3, 2)), small_integers((2, 2, 4))
)
def test_products_of_a_batch(A, x, X, right, left):
    for array in (x, X, right):
        np.testing.assert_array_equal(A @ array, dense(A) @ array)
    np.testing.assert_array_equal(left @ A, left @ dense(A))
    np.testing.assert_array_equal(left[0, 0] @ A, left[0, 0] @ dense(A))


@given(matrices(), exact_lowrank((3, 5)))
def test_product_with_a_low_rank_matrix_has_its_rank(A, B):
    product = A @ B
    assert isinstance(product, LowRank)
    assert product.rank == B.rank
    np.testing.assert_array_equal(product.to_dense(), dense(A) @ dense(B))


# --- LowRank ---


def test_factors_unpack():
    U, V = W = ones(4, 3, 2)
    assert U is W.U
    assert V is W.V
    assert (W.shape, W.ndim, W.rank, W.dtype) == ((4, 3), 2, 2, np.float64)


def test_batch_dimensions_lead():
    W = LowRank(np.ones((5, 2, 4, 1)), np.ones((5, 2, 3, 1)))
    assert (W.shape, W.ndim, W.rank) == ((5, 2, 4, 3), 4, 1)
    assert W.T.shape == (5, 2, 3, 4)
    assert W.norm().shape == (5, 2)


def test_lists_and_integers_become_float64():
    for W in (LowRank([[1], [2]], [[3]]), LowRank(np.array([[1], [2]]), np.array([[3]], np.int8))):
        assert W.dtype == np.float64
        np.testing.assert_array_equal(W.to_dense(), [[3], [6]])


def test_factors_of_two_dtypes_are_promoted():
    W = LowRank(np.ones((4, 1), np.float32), np.ones((3, 1), np.float64))
    assert W.U.dtype == W.V.dtype == W.dtype == np.float64


def test_complex_factors_are_transposed_not_conjugated():
    np.testing.assert_array_equal(LowRank([[1j]], [[2j]]).to_dense(), [[-2]])


@given(generators(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_norm_and_singular_values_are_those_of_the_dense_matrix(rng, m, n, rank):
    W = normal_lowrank(rng, m, n, rank)
    k = min(m, n, rank)
    s = scipy.linalg.svdvals(dense(W))
    assert abs(W.norm() - scipy.linalg.norm(dense(W))) <= 100 * EPS * s[0]
    np.testing.assert_allclose(W.singular_values()[:k], s[:k], rtol=0, atol=100 * EPS * s[0])
    G = normal_lowrank(rng, m, n, 2)
    assert abs((W - 3 * G).norm() - scipy.linalg.norm(dense(W) - 3 * dense(G))) <= 100 * EPS * (s[0] + 3 * G.norm())


@pytest.mark.parametrize("size", [1e150, 1e-150])
def test_norm_neither_overflows_nor_underflows(size):
    W = LowRank(size * np.ones((4, 1)), size * np.ones((3, 1)))
    assert W.norm() == pytest.approx(np.sqrt(12) * size * size, rel=1e-14)
    assert (W + W.to_dense()).norm() == pytest.approx(2 * np.sqrt(12) * size * size, rel=1e-14)
    assert W.singular_values() == pytest.approx([np.sqrt(12) * size * size], rel=1e-14)


def test_norm_of_a_difference_does_not_cancel():
    W, G = with_spectrum(np.random.default_rng(0), 30, 20, [3.0, 2, 1]), ones(30, 20)
    assert (W + 1e-12 * G - W).norm() == pytest.approx(1e-12 * G.norm(), rel=1e-2)


@given(generators(), st.integers(3, 9), st.integers(3, 9), st.sampled_from([1, 1e3, 1e6]))
def test_balanced_factors_are_the_square_roots_of_the_svd(rng, m, n, condition):
    A = gauge_of_condition(rng, 3, condition)
    W = with_spectrum(rng, m, n, np.array([3.0, 2, 1]))
    W = LowRank(W.U @ A, W.V @ np.linalg.inv(A).T)
    X = W.balanced()
    assert distance(X, W) < 100 * EPS * condition
    expected = np.diag(scipy.linalg.svdvals(dense(W))[:3])
    np.testing.assert_allclose(X.U.T @ X.U, expected, rtol=0, atol=100 * EPS * condition)
    np.testing.assert_allclose(X.V.T @ X.V, expected, rtol=0, atol=100 * EPS * condition)


@pytest.mark.parametrize("rank", [1, 8, 12, 13, 20])  # small ones by rotations, others by LAPACK
@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("spectrum", ["equal", "graded"])
def test_balanced_at_any_rank_and_size(rank, size, spectrum):
    rng = np.random.default_rng(0)
    s = np.ones(rank) if spectrum == "equal" else np.logspace(0, -6, rank)
    W = with_spectrum(rng, 40, 30, s)
    A = np.linalg.qr(rng.normal(size=(rank, rank)))[0]
    X = LowRank(W.U @ A * size, W.V @ A).balanced()
    assert distance(X.U / size**0.5 @ (X.V / size**0.5).T, W) < 1e-14
    for factor in X:
        np.testing.assert_allclose(factor.T @ factor / size, np.diag(s), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64, np.complex128])
def test_balanced_keeps_shape_rank_and_dtype(dtype):
    W = normal_lowrank(np.random.default_rng(0), 6, 5, 3, dtype)
    X = W.balanced()
    assert (X.shape, X.rank, X.dtype) == (W.shape, W.rank, W.dtype)
    assert distance(X, W) < 20 * np.finfo(dtype).eps


def test_balanced_keeps_a_rank_above_the_dimensions():
    assert normal_lowrank(np.random.default_rng(0), 6, 5, 9).balanced().rank == 9


def test_balanced_does_each_matrix_of_a_batch():
    rng = np.random.default_rng(0)
    W = LowRank(rng.normal(size=(3, 6, 2)), rng.normal(size=(3, 5, 2)))
    X = W.balanced()
    for k in range(3):
        assert distance(LowRank(X.U[k], X.V[k]), LowRank(W.U[k], W.V[k])) < 100 * EPS
        assert distance(X.U[k].T @ X.U[k], X.V[k].T @ X.V[k]) < 100 * EPS


@pytest.mark.parametrize("which", ["U", "V", "both", "dependent columns"])
def test_balanced_takes_zero_and_dependent_factors(which):
    U, V = np.arange(8.0).reshape(4, 2), np.ones((3, 2))
    if which != "dependent columns":
        U, V = U * (which == "V"), V * (which == "U")
    X = LowRank(U, V).balanced()
    assert distance(X, U @ V.T) < 100 * EPS
    left, right = X.U.T @ X.U, X.V.T @ X.V
    kept = np.diag(left) > 1e-13
    np.testing.assert_allclose(left[kept][:, kept], right[kept][:, kept], atol=1e-13)
    assert np.all(np.diag(right) > 0.1)  # zero in both factors, a column could never be filled again


# --- LowRankSum ---


def test_matrices_and_sums_can_be_copied_and_sent_to_another_process():
    W, G = ones(4, 3), ones(4, 3, 2)
    for A in (W, W - 0.5 * G):
        for B in (pickle.loads(pickle.dumps(A)), copy.copy(A), copy.deepcopy(A)):
            assert type(B) is type(A)
            assert repr(B) == repr(A)
            np.testing.assert_array_equal(dense(B), dense(A))


def test_from_factors_takes_the_lists_of_listing_1():
    W, G = ones(4, 3, 2), normal_lowrank(np.random.default_rng(0), 4, 3, 3)
    target = LowRankSum.from_factors([(W.V.T, W.U), (G.V.T, G.U)], [1.0, -0.5])
    assert target.coefficients == (1.0, -0.5)
    assert distance(target, dense(W) - 0.5 * dense(G)) < EPS


def test_rank_is_that_of_the_stacked_factors_and_at_most_full():
    W = ones(9, 8, 2)
    assert (W + W).rank == 4
    assert (W + W + W + W + W).rank == 8
    assert (W + np.ones((9, 8))).rank == 8


def test_dtype_is_that_of_all_terms_together():
    W = ones(4, 3)
    assert (W + np.ones((4, 3), np.float32)).dtype == np.float64
    assert (LowRank(W.U.astype(np.float32), W.V.astype(np.float32)) + 1j * np.ones((4, 3))).dtype == np.complex128


def test_operators_are_terms_like_any_other():
    rng = np.random.default_rng(0)
    D, W, X = rng.normal(size=(4, 3)), normal_lowrank(rng, 4, 3, 2), rng.normal(size=(3, 5))
    operator_ = LinearOperator(
        (4, 3), matvec=lambda x: D @ x, rmatvec=lambda x: D.T @ x, matmat=lambda x: D @ x, rmatmat=lambda x: D.T @ x,
        dtype=np.float64,
    )  # fmt: skip
    target = W - 2 * LowRankSum([operator_])
    assert distance(target @ X, dense(W) @ X - 2 * D @ X) < 100 * EPS
    assert distance(target.T @ np.eye(4), dense(W).T - 2 * D.T) < 100 * EPS
    assert distance(target.to_dense(), dense(W) - 2 * D) < 100 * EPS
    assert target.norm() == pytest.approx(np.linalg.norm(dense(W) - 2 * D))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_sums_are_operators_for_scipy(dtype):
    rng = np.random.default_rng(0)
    W, G = normal_lowrank(rng, 9, 7, 2, dtype), normal_lowrank(rng, 9, 7, 3, dtype)
    D = dense(W) - 2 * dense(G)
    for A, expected in ((W, dense(W)), (W - 2 * G, D), (W - LowRankSum([2 * dense(G)]), D)):
        operator_ = A.as_linear_operator()
        assert (operator_.shape, operator_.dtype) == ((9, 7), dtype)
        assert distance(operator_ @ np.eye(7), expected) < 1e-14
        assert distance(operator_.H @ np.eye(9), expected.conj().T) < 1e-14
        assert distance(operator_.H @ np.ones(9), expected.conj().T @ np.ones(9)) < 1e-14
        s = svds(operator_, k=2, return_singular_vectors=False, rng=0)
        np.testing.assert_allclose(np.sort(s)[::-1], scipy.linalg.svdvals(expected)[:2], rtol=1e-12)


def test_a_batch_is_no_operator():
    with pytest.raises(TypeError, match="no single matrix of NumPy arrays"):
        LowRank(np.ones((2, 4, 1)), np.ones((2, 3, 1))).as_linear_operator()


# --- array libraries ---


def test_algebra_is_the_same_in_every_array_library(library):
    rng = np.random.default_rng(0)
    W, G, D = normal_lowrank(rng, 6, 5, 2), normal_lowrank(rng, 6, 5, 3), rng.normal(size=(6, 5))
    W_, G_, D_ = LowRank(*map(library, W)), LowRank(*map(library, G)), library(D)
    ours = -2 * (W_ - G_ / 3) + D_
    expected = D - 2 * (dense(W) - dense(G) / 3)
    x = rng.normal(size=5)
    for actual, wanted in [
        (ours.to_dense(), expected),
        (ours.T.to_dense(), expected.T),
        (ours @ library(x), expected @ x),
        ((W_ @ G_.T).to_dense(), dense(W) @ dense(G).T),
        (W_.balanced().to_dense(), dense(W)),
        (W_.singular_values(), scipy.linalg.svdvals(dense(W))[:2]),
        ((W_ - G_).norm(), np.linalg.norm(dense(W) - dense(G))),
    ]:
        assert isinstance(actual, (type(library(wanted)), np.float64))
        assert distance(np.asarray(actual), np.asarray(wanted)) < 1e-13


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"], indirect=True)  # array_api_strict keeps all for itself
def test_arrays_of_every_library_leave_sums_and_products_to_the_matrix_on_their_right(library):
    rng = np.random.default_rng(0)
    W, D, x = normal_lowrank(rng, 6, 5, 2), rng.normal(size=(6, 5)), rng.normal(size=(2, 6))
    W_ = LowRank(*map(library, W))
    assert isinstance(library(D) - W_, LowRankSum)
    assert isinstance(library(np.asarray(2.0)) * W_, LowRankSum)
    assert distance(np.asarray((library(D) - W_).to_dense()), D - dense(W)) < 1e-14
    assert distance(np.asarray(library(x) @ W_), x @ dense(W)) < 1e-14


# --- how they print ---


def test_texts_are_short():
    W = LowRank(np.ones((5, 300, 8), np.float32), np.ones((5, 200, 8), np.float32))
    assert repr(W) == "LowRank(300 × 200, batch of 5, rank 8, float32)"
    A, D = ones(4, 3), np.ones((4, 3))
    target = LowRankSum([A, D, aslinearoperator(D)], [1, -0.25, 3e-5])
    assert repr(target) == "LowRankSum(4 × 3: 1·rank 1 - 0.25·dense + 3e-05·operator, float64)"
    assert repr(-A) == "LowRankSum(4 × 3: -1·rank 1, float64)"


@pytest.mark.parametrize(
    "A",
    [
        ones(4, 3),
        LowRank(np.ones((2, 4, 1)), np.ones((2, 3, 1))),
        LowRank(np.full((4, 1), np.nan), np.ones((3, 1))),
        ones(4, 3) - 2j * ones(4, 3) + np.ones((4, 3)),
        ones(40, 30, 20),
    ],
    ids=["matrix", "batch", "not finite", "sum", "large rank"],
)
def test_notebooks_show_a_table(A):
    html = A._repr_html_()
    assert html.startswith("<table>") and html.endswith("</table>")
    assert " × ".join(map(str, A.shape[-2:])) in html


# --- bad input ---


@pytest.mark.parametrize(
    ("U", "V", "error", "message"),
    [
        (np.ones((4, 2)), np.ones((3, 1)), ValueError, "`U` has 2 columns and `V` 1"),
        (np.ones((2, 4, 1)), np.ones((3, 3, 1)), ValueError, "`U` has the batch dimensions"),
        (np.ones(4), np.ones((3, 1)), ValueError, r"`U` has shape \(4,\)"),
        (np.ones((4, 1)), 1.0, ValueError, r"`V` has shape \(\)"),
        (np.ones((4, 1)), [[1], [2, 3]], ValueError, "`V`"),
        (np.array([["a"]]), np.ones((3, 1)), TypeError, "`U` has dtype"),
        (np.array([[None]]), np.ones((3, 1)), TypeError, "`U` has dtype object"),
    ],
)
def test_factors_that_do_not_fit_are_refused(U, V, error, message):
    with pytest.raises(error, match=message):
        LowRank(U, V)


def test_factors_of_two_libraries_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"`U` is a numpy.ndarray and `V` a torch.Tensor"):
        LowRank(np.ones((4, 1)), torch.ones(3, 1))
    with pytest.raises(TypeError, match="arrays of one library are needed"):
        ones(4, 3) + LowRank(torch.ones(4, 1), torch.ones(3, 1))
    with pytest.raises(TypeError, match="arrays of one library are needed"):
        ones(4, 3) - torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "`terms` is empty"),
        (([ones(4, 3)], [1, 2]), ValueError, "`coefficients` has 2 numbers for 1 `terms`"),
        (([ones(4, 3), ones(3, 4)],), ValueError, r"\(4, 3\) and \(3, 4\)"),
        (([ones(4, 3), LowRank(np.ones((2, 4, 1)), np.ones((2, 3, 1)))],), ValueError, r"\(4, 3\) and \(2, 4, 3\)"),
        (([ones(4, 3), "W"],), TypeError, r"`terms\[1\]` is a str"),
        (([ones(4, 3), 2 * ones(4, 3)],), TypeError, r"`terms\[1\]` is a LowRankSum"),
        (([ones(4, 3)], ["2"]), TypeError, r"`coefficients\[0\]` is a str"),
        (([ones(4, 3)], [np.ones(1)]), TypeError, r"`coefficients\[0\]` is a ndarray"),
    ],
)
def test_terms_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        LowRankSum(*arguments)


def test_lists_that_are_not_those_of_listing_1_are_refused():
    with pytest.raises(ValueError, match=r"`factors\[0\]` has 3 entries"):
        LowRankSum.from_factors([(np.ones((1, 3)),) * 3], [1])
    with pytest.raises(ValueError, match=r"`factors\[0\]\[0\]` has shape \(3,\)"):
        LowRankSum.from_factors([(np.ones(3), np.ones((4, 1)))], [1])


@pytest.mark.parametrize("A", [ones(4, 3), 2 * ones(4, 3)], ids=["LowRank", "LowRankSum"])
@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul])
@pytest.mark.parametrize("other", ["W", None, [1, 2, 3]], ids=str)
def test_arithmetic_with_no_matrix_is_a_type_error(A, f, other):
    with pytest.raises(TypeError):
        f(A, other)
    with pytest.raises(TypeError):
        f(other, A)


@pytest.mark.parametrize("A", [ones(4, 3), 2 * ones(4, 3)], ids=["LowRank", "LowRankSum"])
def test_a_number_is_no_matrix_to_add(A):
    for f in (operator.add, operator.sub):
        with pytest.raises(TypeError):
            f(A, 1.0)
        with pytest.raises(TypeError):
            f(1.0, A)
    with pytest.raises(TypeError):
        A * A
    with pytest.raises(TypeError):
        A * np.ones((4, 3))


@pytest.mark.parametrize(
    "other", [np.ones(4), np.ones((4, 2)), np.ones((2, 4, 1)), ones(4, 3)], ids=lambda x: str(x.shape)
)
def test_products_whose_inner_dimensions_differ_are_refused(other):
    for A in (ones(4, 3), 2 * ones(4, 3)):
        with pytest.raises(ValueError, match=r"`@` of shapes .*3 ≠ 4"):
            A @ other
