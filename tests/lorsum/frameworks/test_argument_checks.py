"""What every function does with the kinds of arrays, numbers and operands that reach it: takes them, or says why not.

The computing dtype is that of all terms and coefficients together, in floating point; what is not made of real or
complex numbers of up to double precision is refused by the name of its argument.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.sparse
import torch
from array_code import in_array_code
from reference import distance
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from strategies import normal_lowrank

import lorsum as ls
from lorsum import LowRank, LowRankSum

M, N, R = 6, 5, 2


def rng():
    return np.random.default_rng(0)


W, G = normal_lowrank(rng(), M, N, R), normal_lowrank(np.random.default_rng(1), M, N, 3)
INIT = normal_lowrank(np.random.default_rng(2), M, N, R)
COUNTS = np.random.default_rng(3).integers(-300, 300, size=(M, N))


def in_dtype(A, dtype):
    return LowRank(A.U.astype(dtype), A.V.astype(dtype))


# --- functions: each takes a matrix of shape (M, N) ---

FUNCTIONS = {
    "LowRank": ("U", lambda A: LowRank(A, np.ones((N, N)))),
    "LowRankSum": (r"terms\[0\]", lambda A: LowRankSum([A])),
    "from_factors": (r"factors\[0\]\[0\]", lambda A: LowRankSum.from_factors([(A, np.ones((N, M)))], [1.0])),
    "W + A": ("array", lambda A: W + A),
    "A - W": ("array", lambda A: A - W),
    "W @ A": ("operand", lambda A: W.T @ A),
    "A @ W": ("operand", lambda A: A @ W.T),
    "lorsum": ("target", lambda A: ls.lorsum(A, init=INIT)),
    "lorsum metric": (r"metric\[0\]", lambda A: ls.lorsum(W, metric=(A, None))),
    "half a step": ("V", lambda A: ls.alternating.least_squares_factor(W.T, A)),
    "truncated_svd": ("A", lambda A: ls.truncated_svd(A, 1)),
    "gap": ("target", lambda A: ls.gap(W, A)),
    "principal_angles": ("A", lambda A: ls.principal_angles(A, W.U)),
    "lorsum_until": ("target", lambda A: ls.lorsum_until(A, 0.1)),
    "IncrementalSVD": ("U", lambda A: ls.IncrementalSVD(A, np.ones(N), np.eye(N))),
    "update": ("A", lambda A: ls.IncrementalSVD.zeros((M, N)).update(A, np.ones((N, N)))),
    "append_rows": ("R", lambda A: ls.IncrementalSVD.zeros((M, N)).append_rows(A)),
    "append_columns": ("C", lambda A: ls.IncrementalSVD.zeros((M, N)).append_columns(A)),
    "from_matrix": ("A", lambda A: ls.IncrementalSVD.from_matrix(A, 1)),
}
every_function = pytest.mark.parametrize(("name", "function"), FUNCTIONS.values(), ids=FUNCTIONS)

REFUSED = {
    "longdouble": np.ones((M, N), np.longdouble),
    "complex longdouble": np.ones((M, N), np.clongdouble),
    "text": np.full((M, N), "1.0"),
    "object": np.ones((M, N), object),
    "datetime": np.zeros((M, N), "M8[s]"),
    "timedelta": np.zeros((M, N), "m8[s]"),
    "structured": np.zeros((M, N), [("x", "f8")]),
    "masked": np.ma.array(np.ones((M, N)), mask=np.eye(M, N) > 0),
    "masked integers": np.ma.array(np.ones((M, N), int)),
    "table of text": pd.DataFrame(np.full((M, N), "a")),
}


@every_function
@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "table of text"])
def test_what_is_not_made_of_numbers_is_refused_by_name(name, function, kind):
    with pytest.raises(TypeError, match=f"^`{name}` (has dtype|is a masked array).*(convert it|`.filled)"):
        function(REFUSED[kind])


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("function", [lambda A: W + A, lambda A: ls.lorsum(A, init=INIT), lambda A: LowRank(A, A)])
def test_tables_are_looked_at_too(function, kind):
    with pytest.raises(TypeError, match=r"`(array|target|U)` "):
        function(REFUSED[kind])


@pytest.mark.parametrize("x", [[[1.0, np.ma.masked]], [np.ma.array([1.0, 2.0])], ([1.0], [np.ma.masked])], ids=str)
def test_masks_are_found_inside_of_lists(x):
    with pytest.raises(TypeError, match=r"`U` is a masked array"):
        LowRank(x, [[1.0]])


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">c16", ">c8", ">f2", ">i4", ">u2", "i1", "u8", "?", "f2"])
def test_byte_orders_and_integers_are_converted(dtype):
    """The result is that of the same numbers in this machine's floating point."""
    A = COUNTS.astype(dtype)
    native = A.astype(np.float64 if A.dtype.kind in "biu" else A.dtype.newbyteorder("="))
    for name in ("W + A", "lorsum", "truncated_svd", "gap", "principal_angles", "update", "append_rows", "W @ A"):
        function = FUNCTIONS[name][1]
        actual, expected = function(A), function(native)
        if isinstance(actual, LowRankSum):
            actual, expected = (actual.to_dense(),), (expected.to_dense(),)
        if isinstance(actual, ls.IncrementalSVD):
            actual, expected = (actual.U, actual.s, actual.Vh), (expected.U, expected.s, expected.Vh)
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.asarray(x).dtype == np.asarray(y).dtype
            assert np.asarray(x).dtype.kind in "fc"


# --- the dtype of a sum ---


def operators():
    """Matrices as operators of dtypes that say little about what they are to be computed in."""
    flip = LinearOperator((M, M), matvec=lambda x: x[::-1], rmatvec=lambda x: x[::-1])
    assert flip.dtype == np.int8  # what SciPy infers
    nothing = LinearOperator((M, N), matvec=lambda x: COUNTS @ x, rmatvec=lambda x: COUNTS.T @ x, dtype=np.int8)
    nothing.dtype = None
    return {
        "int64": (aslinearoperator(COUNTS), COUNTS),
        "int16 sparse": (scipy.sparse.csr_array(COUNTS.astype(np.int16)), COUNTS),
        "int8 sparse matrix": (scipy.sparse.coo_matrix(np.sign(COUNTS).astype(np.int8)), np.sign(COUNTS)),
        "bool sparse": (scipy.sparse.csc_array(COUNTS > 0), (COUNTS > 0).astype(float)),
        "inferred int8": (flip, np.eye(M)[::-1]),
        "no dtype": (nothing, COUNTS),
        ">f8": (aslinearoperator(COUNTS.astype(">f8")), COUNTS),
    }


OPERATORS = operators()


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_an_operators_dtype_is_never_that_of_the_computation(kind, dtype):
    operator, A = OPERATORS[kind]
    init = normal_lowrank(rng(), *A.shape, R, dtype)
    near = 100 * float(np.finfo(dtype).eps)
    for target, dense in (
        (LowRankSum([operator], [0.5]), 0.5 * A),
        (init + 0.25 * LowRankSum([operator]), init.to_dense() + 0.25 * A),
    ):
        assert target.dtype.kind in "fc"
        X = ls.lorsum(target, init=init, iters=3)
        assert X.dtype == np.result_type(target.dtype, init.dtype if init.dtype.kind == "c" else target.dtype)
        expected = in_array_code(np.asarray(dense), init=init, iters=3)
        assert distance(X, expected) < 1e3 * near
        assert distance(target.to_dense(), dense) < near
        assert target.to_dense().dtype == target.dtype
        assert float(target.norm()) == pytest.approx(scipy.linalg.norm(dense), rel=near)
        assert distance(target @ init.V, dense @ init.V) < near
        s = scipy.linalg.svdvals(dense)
        for options in ({}, {"method": "subspace"}, {"method": "randomized", "oversample": N}, {"method": "arpack"}):
            if kind != "inferred int8" or options.get("method") in (None, "randomized"):  # all values equal
                svd = ls.truncated_svd(target, 2, rng=0, **options)
                np.testing.assert_allclose(svd.s, s[:2], rtol=1e3 * near)
                assert svd.U.dtype.kind == target.dtype.kind
        gap = ls.gap(X, target)
        assert gap.optimal == pytest.approx(scipy.linalg.norm(s[R:]), rel=1e-6, abs=near * s[0])
        history = ls.History()
        ls.lorsum(target, init=init, callback=history)
        assert np.isfinite(history.error).all()


@pytest.mark.parametrize("real", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("number", [2 + 1j, np.complex64(2 + 1j), np.complex128(2 + 1j), np.array(2 + 1j)])
def test_complex_coefficients_of_real_terms(real, number, library=np.asarray):
    A, B = in_dtype(W, real), in_dtype(G, real)
    wide = np.complex128 if real == np.float64 else np.complex64
    target = A - number * B
    dense = A.to_dense().astype(complex) - number * B.to_dense()
    near = 100 * max(np.finfo(wide).eps, np.finfo(real).eps)
    assert target.dtype == target.to_dense().dtype == (target @ A.V).dtype == ls.lorsum(target).dtype == wide
    assert target.norm().dtype == np.finfo(wide).dtype
    assert distance(target.to_dense(), dense) < near
    assert distance((target @ A.V.astype(wide)), dense @ A.V) < near
    assert distance(ls.truncated_svd(target, N).to_lowrank(), dense) < near
    assert ls.truncated_svd(target, 2).U.dtype == wide


@pytest.mark.parametrize(
    "options",
    [{}, {"reg": 0.1}, {"accelerate": "krylov"}, {"method": "coefficients"}, {"simultaneous": True},
     {"gauge": "balanced"}, {"oversample": 1}, {"iters": 0}, {"solver": "gram"}],
    ids=str,
)  # fmt: skip
def test_a_complex_start_makes_a_real_target_complex(options):
    """Its imaginary part is not dropped: the result is that of the target with complex zeros."""
    init = normal_lowrank(rng(), M, N, R, np.complex128)
    X = ls.lorsum(W - G, init=init, **options)
    assert X.dtype == np.complex128
    assert distance(X, ls.lorsum(W - (1 + 0j) * G, init=init, **options)) < 1e-12
    assert ls.lorsum_until(W - G, 1e-6, init=init).approx.dtype == np.complex128


@pytest.mark.parametrize("wide", [np.float64, np.complex64, np.complex128])
def test_terms_of_several_dtypes_in_every_library(library, wide):
    narrow = LowRank(*(library(x.astype(np.float32)) for x in W))
    other = LowRank(*(library(x) for x in normal_lowrank(rng(), M, N, 3, wide)))
    target = narrow - 0.5 * other
    dense = np.asarray(narrow.to_dense()) - 0.5 * np.asarray(other.to_dense())
    dtype = str(target.dtype).rpartition(".")[2]
    assert dtype == np.result_type(np.float32, wide).name
    for result in (target.to_dense(), target @ other.V, ls.lorsum(target).U, ls.truncated_svd(target, 2).U):
        assert str(result.dtype).rpartition(".")[2] == dtype
    assert distance(np.asarray(target.to_dense()), dense) < 1e-6
    assert distance(np.asarray(narrow @ other.V), np.asarray(narrow.to_dense()) @ np.asarray(other.V)) < 1e-6


def test_half_precision_is_formed_and_multiplied_in_single():
    """Sums of 4096 products of ones stand still at 2048 in half precision."""
    ones = LowRank(np.ones((3, 4096), np.float16), np.ones((2, 4096), np.float16))
    assert ones.to_dense().tolist() == [[4096, 4096]] * 3
    assert (ones + ones).to_dense().tolist() == [[8192, 8192]] * 3
    assert (ones @ np.ones(2, np.float16)).tolist() == [8192] * 3
    assert ones.to_dense().dtype == (ones @ np.ones(2, np.float16)).dtype == np.float16


# --- numbers ---

NUMBERS = {
    "float32": np.float32(0.25),
    "float16": np.float16(0.25),
    "0-d": np.array(0.25),
    "0-d >f8": np.array(0.25, ">f8"),
    "fraction": Fraction(1, 4),
    "jax": jnp.asarray(0.25),
    "torch": torch.tensor(0.25),
    "torch bfloat16": torch.tensor(0.25, dtype=torch.bfloat16),
}
NO_NUMBERS = {
    "longdouble": (np.longdouble(0.25), "longdouble|float128|float96"),
    "clongdouble": (np.clongdouble(0.25), "complex"),
    "timedelta": (np.timedelta64(1, "s"), "timedelta"),
    "0-d object": (np.array(0.25, object), "object"),
    "0-d text": (np.array("0.25"), "<U4"),
    "0-d datetime": (np.array(0, "M8[s]"), "datetime"),
    "masked": (np.ma.masked, "masked"),
    "0-d masked array": (np.ma.array(0.25), "masked"),
    "an integer above all floats": (10**400, "1329 bits"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_another_library_are_numbers(library, kind):
    """A quarter is exact in every precision, so that not a digit may be lost."""
    c = NUMBERS[kind]
    A, B = (LowRank(*map(library, X)) for X in (W, G))
    for target in (A - c * B, A - B * c, A - B / (4 * 4 * c), LowRankSum([A, B], [1, -c])):
        expected = A - 0.25 * B
        assert float(target.norm()) == float(expected.norm())
        np.testing.assert_array_equal(np.asarray(ls.lorsum(target).U), np.asarray(ls.lorsum(expected).U))
    if kind not in ("jax", "torch", "torch bfloat16"):
        assert float(ls.lorsum(A + B, reg=c).norm()) == float(ls.lorsum(A + B, reg=0.25).norm())


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name(library, kind):
    c, message = NO_NUMBERS[kind]
    A = LowRank(*map(library, W))
    for name, use in {
        "coefficient": lambda: A * c,
        "divisor": lambda: A / c,
        r"coefficients\[0\]": lambda: LowRankSum([A], [c]),
        "reg": lambda: ls.lorsum(A, reg=c),
        "tol": lambda: ls.lorsum_until(A, c),
        "rtol": lambda: ls.truncated_svd(A, rtol=c),
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"`{name}` is .*({message})"):
            use()


def test_a_traced_number_and_a_gradient_are_not_dropped():
    with pytest.raises(TypeError, match=r"`coefficient` is a number that jax traces, the matrix is of numpy"):
        jax.jit(lambda c: (c * W).to_dense())(0.5)
    with pytest.raises(TypeError, match=r"`coefficient` is a number that torch traces, the matrix is of numpy"):
        torch.tensor(0.5, requires_grad=True) * W


def test_the_numbers_of_a_metric():
    A = LowRank(np.ones((M, 1)), np.ones((M, 1)))
    expected = ls.lorsum(W + G, metric=(ls.Damped(A, 0.25), None))
    for c in (NUMBERS["jax"], NUMBERS["torch"], NUMBERS["fraction"], np.float32(0.25)):
        np.testing.assert_array_equal(ls.lorsum(W + G, metric=(ls.Damped(A, c), None)).U, expected.U)
    for c, message in NO_NUMBERS.values():
        with pytest.raises((TypeError, ValueError), match=rf"`metric\[0\].damping` is .*({message})"):
            ls.lorsum(W + G, metric=(ls.Damped(A, c), None))


def test_a_seed_that_is_none_is_named():
    for use in (
        lambda: ls.lorsum(W, oversample=1, rng="a"),
        lambda: ls.truncated_svd(W, 1, method="subspace", rng="a"),
    ):
        with pytest.raises((TypeError, ValueError), match="`rng` is 'a'; a seed"):
            use()


def test_options_that_are_no_text():
    for use in (
        lambda: ls.truncated_svd(W, rtol="0.5"),
        lambda: ls.lorsum_until(W, "0.5"),
        lambda: ls.lorsum(W, reg="1"),
    ):
        with pytest.raises(TypeError, match=r"`(rtol|tol|reg)` is"):
            use()


# --- the ends of the range ---


@pytest.mark.parametrize(
    ("u", "v", "c"),
    [
        (1e300, 1e-300, 1.0),
        (1e-300, 1e300, 1.0),
        (1e300, 1e-300, 1e300),
        (1e-300, 1e300, 1e300),
        (1e153, 1e153, 0.5),
        (1e-150, 1e-150, 1.0),
        (1e160, 1e160, 1e-300),
        (1e300, 1.0, 1e-300),
        (1e-300, 1.0, 1e300),
        (1e150, 1e150, 1e-300),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_finite_answers_near_the_ends_of_double_precision(u, v, c, dtype):
    A = normal_lowrank(rng(), M, N, R, dtype)
    target = c * LowRank(u * A.U, v * A.V)
    scale = float(np.longdouble(u) * np.longdouble(v) * np.longdouble(c))
    s = scipy.linalg.svdvals(A.to_dense())[:R]
    assert float(target.norm()) == pytest.approx(scale * scipy.linalg.norm(s), rel=1e-13)
    np.testing.assert_allclose(target.to_dense() / scale, A.to_dense(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(ls.truncated_svd(target, R).s, scale * s, rtol=1e-12)
    np.testing.assert_allclose(target @ A.V / scale, A @ A.V, rtol=1e-11, atol=1e-13)
    if c == 1:  # with others U = W V (VᵀV)⁻¹ may overflow
        np.testing.assert_allclose(ls.lorsum(target).to_dense() / scale, A.to_dense(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("u", "v", "c"), [(1e30, 1e-30, 1e37), (1e38, 1e-38, 1.0), (1e-10, 1.0, 1e45), (1.0, 1.0, 1e-42)]
)
def test_finite_answers_near_the_ends_of_single_precision(u, v, c):
    A = in_dtype(W, np.float32)
    target = c * LowRank(np.float32(u) * A.U, np.float32(v) * A.V)
    scale, near = u * v * c, 1e-5 if u * v * c > 1e-37 else 1e-2  # below, numbers have few digits
    np.testing.assert_allclose(
        target.to_dense().astype(float), scale * A.to_dense().astype(float), rtol=near, atol=near * scale
    )
    assert float(target.norm()) == pytest.approx(scale * float(A.norm()), rel=near)


def iterated(D, X, iters):
    """LoRSum from V, λ = 0, as orthogonal iteration on an array: what it gives whatever the factors' sizes."""
    Q = np.linalg.qr(X / np.abs(X).max(axis=0))[0]
    for _ in range(iters):
        P = np.linalg.qr(D @ Q.conj())[0]
        Q = np.linalg.qr(D.T @ P.conj())[0]
    return P @ (D.T @ P.conj()).T


MIXED = {  # exponents of each term's columns: U, V, and the coefficient
    "one size of V": [(0, -30, 0), (-30, 0, 0)],
    "two sizes of V": [([0, 18], [2, -20], 0), ([-27, -16], [36, 27], -9)],
    "undone by a coefficient": [([0, 30], [0, -30], 0), (0, 30, -30)],
    "what is combined at the end": [([16, 13], [-16, -13], 0), ([35, -25], [-34, 26], 0), (0, 0, 0)],
}


@pytest.mark.parametrize("sizes", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize(("dtype", "times"), [(np.float32, 1), (np.complex64, 1), (np.float64, 8), (np.complex128, 8)])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "direct"}, {"method": "coefficients"}, {"solver": "qr"}, {"solver": "gram"},
     {"gauge": "balanced"}, {"callback": ls.History()}],
    ids=["default", "direct", "coefficients", "qr", "gram", "balanced", "history"],
)  # fmt: skip
def test_columns_of_any_size_keep_their_weight(sizes, dtype, times, options):
    """Products of small columns underflow, and must not take a term with them that another factor makes large."""
    terms, coefficients, dense = [], [], 0
    for i, (u, v, c) in enumerate(sizes):
        A = normal_lowrank(np.random.default_rng(i), M, N, R, dtype)
        u, v, c = times * np.asarray(u), times * np.asarray(v), times * c
        U, V = A.U * 10.0**u, A.V * 10.0**v
        terms.append(LowRank(U.astype(dtype), V.astype(dtype)))
        coefficients.append(10.0**c)
        dense = dense + A.U.astype(complex) * 10.0 ** (u + v + c) @ A.V.T
    X = ls.lorsum(LowRankSum(terms, coefficients), iters=2, **options)
    size = np.abs(dense).max()
    expected = iterated(dense / size, terms[0].V.astype(complex), 2)
    assert distance(X.U.astype(complex) @ X.V.T / size, expected) < 1e4 * np.finfo(dtype).eps
    if "callback" in options:
        assert not np.isnan(options["callback"].condition).any()


@pytest.mark.parametrize("reg", [1e-3, 1e3])
@pytest.mark.parametrize(("u", "v"), [(1e200, 1e-200), (1e-200, 1e200), ([1e170, 1.0], [1e-170, 1.0])])
def test_the_proximal_term_of_gram_matrices_near_the_ends(reg, u, v):
    """A target that is the start is a fixed point for every λ."""
    A = LowRank(W.U * u, W.V * v)
    np.testing.assert_allclose(ls.lorsum(A, reg=reg, solver="gram").to_dense(), W.to_dense(), rtol=1e-10, atol=1e-12)


def test_norms_of_huge_complex_parts():
    with np.errstate(over="ignore"):
        assert float(LowRankSum([np.full((2, 2), 1.7e308 * (1 + 1j))]).norm()) == np.inf  # which no double holds
    D = np.full((1, 1), 1e308 * (1 + 1j))
    assert float(LowRankSum([D]).norm()) == pytest.approx(2**0.5 * 1e308, rel=1e-14)
    assert ls.truncated_svd(D, 1).s[0] == pytest.approx(2**0.5 * 1e308, rel=1e-14)


# --- operators and other people's operands ---

FOREIGN = {
    "csr_array": scipy.sparse.csr_array,
    "coo_matrix": scipy.sparse.coo_matrix,
    "operator": aslinearoperator,
    "DataFrame": pd.DataFrame,
    "matrix": lambda D: np.asarray(D).view(np.matrix),
    "list of terms": lambda D: LowRankSum([D / 2, D / 2]),
    "LowRank": lambda D: LowRank(D, np.eye(D.shape[1])),
    "mixed": lambda D: LowRankSum([D / 2, LowRank(D / 4, np.eye(D.shape[1])), aslinearoperator(D / 4)]),
}


def formed(A):
    return A.to_dense() if hasattr(A, "to_dense") else np.asarray(A)


@pytest.mark.parametrize("kind", FOREIGN)
def test_products_and_sums_with_what_others_made(kind):
    D = rng().normal(size=(M, N))
    A = FOREIGN[kind](D)
    mixed = W - G + LowRankSum([D]) + LowRankSum([aslinearoperator(D)])
    for X in (W, W - G, mixed):
        dense = X.to_dense()
        for actual, expected in [
            (X + A, dense + D),
            (X - A, dense - D),
            (X.T @ A, dense.T @ D),
            (X.T.dot(A), dense.T @ D),
        ]:
            assert distance(formed(actual), expected) < 1e-13
            assert type(actual) in (LowRank, LowRankSum, np.ndarray)
        if kind == "operator":
            continue  # SciPy's own operators look at their right operand first
        for actual, expected in [(A + X, D + dense), (A - X, D - dense)]:
            assert distance(formed(actual), expected) < 1e-13


def test_a_product_of_what_is_not_formed_is_not_formed():
    sums = W - G, W + np.ones((M, N)), G + LowRankSum([aslinearoperator(np.ones((M, N)))])
    for A in sums:
        assert (W.T @ A).rank == (A.T @ W).rank == R
        for B in sums:
            assert isinstance(A.T @ B, LowRankSum)
            assert distance(A.T @ B, A.to_dense().T @ B.to_dense()) < 1e-13
    for S in (scipy.sparse.csr_array(np.ones((M, N))), aslinearoperator(np.ones((M, N)))):
        assert isinstance(W.T @ S, LowRank)
        assert isinstance((W - G).T @ S, LowRankSum)
    vector = scipy.sparse.coo_array(np.arange(5.0))
    np.testing.assert_allclose(W @ vector, W.to_dense() @ np.arange(5.0))


def test_a_low_rank_matrix_is_no_array():
    D = np.ones((N, M))
    for use in (
        lambda: np.dot(D, W),
        lambda: np.asarray(W),
        lambda: np.linalg.norm(W - G),
        lambda: scipy.sparse.csr_array(D) @ W,
        lambda: aslinearoperator(D) @ W,
        lambda: pd.DataFrame(D) @ W,
        lambda: pd.Series(D[0]) @ W.T,
    ):
        with pytest.raises(TypeError, match=r"LowRank.* is no array, and is not formed by itself.*`\.to_dense\(\)`"):
            use()
    for use in (lambda: np.matmul(D, W), lambda: np.add(W, D.T), lambda: np.multiply(2, W)):
        with pytest.raises(TypeError, match=r"LowRank.*does not support ufuncs"):
            use()
    for use in (
        lambda: W + pd.Series(D[0]),
        lambda: pd.Series(D[0]) + W,
        lambda: W * D.T,
        lambda: pd.DataFrame(D.T) * W,
    ):
        with pytest.raises(TypeError, match=r"unsupported operand|does not support"):
            use()


@pytest.mark.parametrize(("one", "other"), [((3,), (2, 1)), ((1, 3), (2, 3)), ((2, 1), (1, 3)), ((), (2,)), ((0,), ())])
def test_products_of_batches_broadcast(one, other):
    A, B = (LowRank(*rng().normal(size=(2, *batch, M, R))) for batch in (one, other))
    D = rng().normal(size=(*other, M, N))
    for X in (A, A + A, A + A.to_dense()):
        for Y in (B, B + B, B + B.to_dense(), D):
            expected = formed(X) @ formed(Y)
            assert (X @ Y).shape == expected.shape
            np.testing.assert_allclose(formed(X @ Y), expected, rtol=1e-12, atol=1e-12)
    for X in (A, A + A):
        operator = LinearOperator((M, N), matvec=lambda x: COUNTS @ x, rmatvec=lambda x: COUNTS.T @ x, dtype=float)
        np.testing.assert_allclose(formed(X @ operator), formed(X) @ COUNTS, rtol=1e-12, atol=1e-9)
    with pytest.raises(ValueError, match=r"`@` of shapes \(3, 6, 6\) and \(2, 6, 6\): the batch dimensions"):
        LowRank(*np.ones((2, 3, M, R))) @ LowRank(*np.ones((2, 2, M, R)))


def test_an_operator_times_nothing():
    operator = LinearOperator((M, N), matvec=lambda x: COUNTS @ x, rmatvec=lambda x: COUNTS.T @ x, dtype=float)
    empty = LowRank(np.ones((N, 0)), np.ones((N, 0)))
    assert (empty @ LowRankSum([operator]).T).to_dense().tolist() == np.zeros((N, M)).tolist()
    assert (LowRankSum([operator]) @ np.ones((N, 0))).shape == (M, 0)


@pytest.mark.parametrize("A", [scipy.sparse.csr_array(np.eye(M, N)), aslinearoperator(np.eye(M, N)), W, None], ids=str)
def test_factors_are_arrays(A):
    for name in ("LowRank", "principal_angles", "update", "lorsum metric" if A is not None else "append_rows"):
        with pytest.raises(TypeError, match=f"`{FUNCTIONS[name][0]}` is a .*; an array is needed|is no array"):
            FUNCTIONS[name][1](A)


D = np.random.default_rng(0).normal(size=(M, N))
FAULTY = {
    "no rmatvec": (
        LinearOperator((M, N), matvec=lambda x: D @ x, dtype=float),
        ValueError, "`(target|A)` has an operator without `rmatvec`",
    ),
    "a wrong shape": (
        LinearOperator((M, N), matvec=lambda x: D @ x, rmatvec=lambda x: D.T @ x, matmat=lambda X: D[:2] @ X,
                       dtype=float),
        ValueError, r"gives a product of shape \(2, ",
    ),
    "text": (
        LinearOperator((M, N), matvec=lambda x: D @ x, rmatvec=lambda x: D.T @ x, matmat=lambda X: (D @ X).astype(str),
                       dtype=float),
        TypeError, "gives a product of dtype <U32",
    ),
    "complex numbers that it does not announce": (
        LinearOperator((M, N), matvec=lambda x: 1j * (D @ x), rmatvec=lambda x: -1j * (D.T @ x), dtype=float),
        ValueError, "gives complex products: make it `dtype=complex`",
    ),
    "NaN": (
        LinearOperator((M, N), matvec=lambda x: np.nan * (D @ x), rmatvec=lambda x: np.nan * (D.T @ x), dtype=float),
        (OverflowError, np.linalg.LinAlgError), "NaN",
    ),
    "masked numbers": (
        LinearOperator((M, N), matvec=lambda x: D @ x, rmatvec=lambda x: D.T @ x,
                       matmat=lambda X: np.ma.array(D @ X, mask=True), dtype=float),
        TypeError, "`product of an operator` is a masked array",
    ),
    "an error of its own": (
        LinearOperator((M, N), matvec=lambda x: D @ x.reshape(3, 3), rmatvec=lambda x: D.T @ x, dtype=float),
        ValueError, "cannot reshape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTY)
def test_an_operator_at_fault_is_told(fault):
    A, kind, message = FAULTY[fault]
    for use in (
        lambda: ls.lorsum(A, init=INIT),
        lambda: ls.lorsum(W + A, iters=2),
        lambda: ls.truncated_svd(A, 1, method="subspace", rng=0),
        lambda: ls.truncated_svd(W + A, 1, method="randomized", rng=0),
    ):
        with pytest.raises(kind, match=message):
            use()


def test_products_that_need_an_adjoint_that_is_not_there():
    A, _, _ = FAULTY["no rmatvec"]
    for use in (lambda: W.T @ A, lambda: (W + A).T @ np.ones(M), lambda: (W + A).T.dot(np.ones((M, 2)))):
        with pytest.raises(ValueError, match="has no `rmatvec`, or one that fails"):
            use()


def test_operators_of_numbers_that_are_too_long():
    for A in (scipy.sparse.csr_array(D.astype(np.longdouble)), aslinearoperator(D.astype(np.longdouble))):
        for use in (
            lambda A: W + A,
            lambda A: ls.lorsum(A, init=INIT),
            lambda A: ls.truncated_svd(A, 1),
            lambda A: W.T @ A,
        ):
            with pytest.raises(TypeError, match=r"is an operator of dtype (float128|float96|longdouble)"):
                use(A)
