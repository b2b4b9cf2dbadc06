"""Functions and options on degenerate matrices: of rank 0, without rows or columns, empty batches, zero and dependent
factors. What comes out is compared with the truncated SVD, or is the error that the documentation names.
"""

import numpy as np
import pytest
import scipy.linalg
from reference import distance, truncated
from strategies import normal_lowrank

from lorsum import (
    History,
    IncrementalSVD,
    LowRank,
    gap,
    lorsum,
    lorsum_until,
    principal_angles,
    truncated_svd,
)

M, N, R = 6, 5, 2
RIGHT_ANGLE = np.pi / 2


def made(kind, batch=()):
    """A matrix with factors of that kind, the same for each matrix of a batch."""
    U, V = normal_lowrank(np.random.default_rng(0), M, N, R)
    if kind == "rank 0":
        U, V = U[:, :0], V[:, :0]
    if kind in ("zero U", "zero"):
        U = 0 * U
    if kind in ("zero V", "zero"):
        V = 0 * V
    if kind == "dependent":
        U, V = U[:, [0, 0]], V[:, [1, 1]]
    if kind == "a zero column":
        U, V = U * [1, 0], V * [1, 0]
    return LowRank(*(np.broadcast_to(X, (*batch, *X.shape)).copy() for X in (U, V)))


KINDS = ["rank 0", "zero U", "zero V", "zero", "dependent", "a zero column"]
EXACT = {  # one iteration is enough for an exact target, from a start with its range on the side used first
    "default": {},
    "three iterations": {"iters": 3},
    "start": {"first": "V"},
    "qr": {"solver": "qr"},
    "direct": {"method": "direct"},
    "coefficients": {"method": "coefficients"},
    "balanced": {"gauge": "balanced"},
    "oversample": {"oversample": 1},
    "oversample from V": {"oversample": 2, "first": "V"},
    "krylov": {"accelerate": "krylov"},
    "krylov, three iterations": {"accelerate": "krylov", "iters": 3},
    "krylov, oversample": {"accelerate": "krylov", "oversample": 1},
    "metric": {"metric": (np.full(M, 2.0), np.eye(N))},
}
OTHERS = {
    "no iterations": {"iters": 0},
    "no iterations, balanced": {"iters": 0, "gauge": "balanced"},
    "no iterations, oversample": {"iters": 0, "oversample": 1},
    "no iterations, krylov": {"iters": 0, "accelerate": "krylov"},
    "reg": {"reg": 0.1},
    "reg, three iterations": {"reg": 0.1, "iters": 3, "gauge": "balanced"},
    "gram with reg": {"solver": "gram", "reg": 0.1},
    "simultaneous": {"simultaneous": True},
    "simultaneous with reg": {"simultaneous": True, "reg": 0.1},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("form", ["LowRank", "sum", "dense"])
def test_a_degenerate_target_is_its_own_approximation(kind, options, form):
    W = made(kind)
    target = {"LowRank": W, "sum": W - 0 * made("dependent"), "dense": W.to_dense()}[form]
    if form == "dense" and options.get("method") == "coefficients":
        with pytest.raises(ValueError, match=r"`method` is 'coefficients', but a term of `target` is not a LowRank"):
            lorsum(target, init=normal_lowrank(np.random.default_rng(1), M, N, R), **options)
        return
    history = History()
    init = normal_lowrank(np.random.default_rng(1), M, N, R)
    for X in (lorsum(target, init=init, **options), lorsum(target, init=init, callback=history, **options)):
        assert (X.shape, X.rank) == ((M, N), R)
        assert distance(X, W) < 1e-13
    assert history.error[-1] < 1e-13
    assert history.angle[-1] < 1e-13
    assert not np.isnan([history.to_dict()[column] for column in history.columns]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", (EXACT | OTHERS).values(), ids=EXACT | OTHERS)
def test_a_degenerate_start_gives_numbers(kind, options):
    """λ → 0 of the formulas: what a start leaves open stays as it was, and nothing becomes worse than zero."""
    target = normal_lowrank(np.random.default_rng(1), M, N, 3) - 0.5 * normal_lowrank(np.random.default_rng(2), M, N, 1)
    start = made(kind)
    if kind == "rank 0":
        with pytest.raises(ValueError, match=r"`init.rank` is 0; it must be at least 1"):
            lorsum(target, init=start, **options)
        return
    X = lorsum(target, init=start, **options)
    assert (X.shape, X.rank) == ((M, N), R)
    assert np.isfinite(X.U).all()
    assert np.isfinite(X.V).all()
    if options.get("iters") == 0:
        assert distance(X, start) < 1e-13
    elif not options.get("simultaneous") and not options.get("metric"):
        assert scipy.linalg.norm(target.to_dense() - X.to_dense()) <= (1 + 1e-12) * scipy.linalg.norm(target.to_dense())


@pytest.mark.parametrize("kind", ["zero", "zero V", "a zero column"])
def test_a_gram_matrix_of_dependent_columns_is_an_error(kind):
    with pytest.raises(np.linalg.LinAlgError, match=r"dependent or zero. Try `solver='qr'`"):
        lorsum(normal_lowrank(np.random.default_rng(1), M, N, 3), init=made(kind), solver="gram")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "method", ["auto", "factored", "lapack", "arpack", "propack", "lobpcg", "randomized", "subspace"]
)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_truncated_svds(kind, method, rank):
    W = made(kind)
    svd = truncated_svd(W, rank, method=method, rng=0)
    assert distance(svd.to_lowrank(), truncated(W.to_dense(), rank)) < 1e-13
    np.testing.assert_allclose(svd.U.T @ svd.U, np.eye(rank), atol=1e-13)
    np.testing.assert_allclose(svd.Vh @ svd.Vh.T, np.eye(rank), atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(), (2,), (0,), (2, 0)])
def test_what_a_matrix_says_of_itself(kind, batch):
    W = made(kind, batch)
    D = W.to_dense()
    assert D.shape == W.shape == (*batch, M, N)
    np.testing.assert_allclose(W.norm(), np.linalg.norm(D, axis=(-2, -1)), rtol=1e-13)
    np.testing.assert_allclose((W - W).norm(), np.zeros(batch), atol=1e-13)
    assert W.singular_values().shape == (*batch, W.rank)
    assert W.balanced().U.shape == W.U.shape
    np.testing.assert_allclose(W.balanced().to_dense(), D, atol=1e-13)
    np.testing.assert_allclose(W @ np.ones(N), D @ np.ones(N), atol=1e-13)
    np.testing.assert_allclose((W @ W.T).to_dense(), D @ D.mT, atol=1e-12)
    assert repr(W - W)
    assert W._repr_html_()


@pytest.mark.parametrize(
    "options",
    [{}, {"reg": 0.1}, {"accelerate": "krylov"}, {"method": "coefficients"}, {"oversample": 1}, {"simultaneous": True},
     {"iters": 0}, {"gauge": "balanced"}, {"solver": "gram"}, {"metric": (np.ones(M), None)}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_an_empty_batch_stays_empty(options, batch):
    W = made("full", batch)
    for target in (W, W - W, W.to_dense()):
        if "method" in options and isinstance(target, np.ndarray):
            continue  # coefficients are of low-rank terms
        X = lorsum(target, init=W, **options)
        assert (X.shape, X.rank) == ((*batch, M, N), R)
        for svd in (
            truncated_svd(target, 2),
            truncated_svd(target, rtol=0.1),
            truncated_svd(target, 1, method="subspace"),
        ):
            assert svd.U.shape[:-1] == (*batch, M)
        assert gap(X, target).excess.shape == batch
    assert principal_angles(W.U, W.U).shape == (*batch, R)


@pytest.mark.parametrize("shape", [(0, N), (M, 0), (0, 0)])
def test_matrices_without_rows_or_columns(shape):
    m, n = shape
    W = LowRank(np.ones((m, 1)), np.ones((n, 1)))
    assert (W - W).to_dense().shape == shape
    assert (W @ np.ones((n, 3))).shape == (m, 3)
    assert W.norm() == (W + W.to_dense()).norm() == 0
    assert W.balanced().rank == 1
    for refused, name in (
        (lambda: lorsum(W), "init.rank"),
        (lambda: lorsum_until(W, 0.1), "init.rank"),
        (lambda: truncated_svd(W, 1), "rank"),
        (lambda: truncated_svd(W.to_dense(), 1, method="arpack"), "rank"),
        (lambda: gap(W, W, rank=1), "rank"),
    ):
        with pytest.raises(ValueError, match=rf"`{name}` is 1, above min\(m, n\) = 0 for a {m} × {n} matrix"):
            refused()
    svd = IncrementalSVD.zeros(shape)
    svd.update(*W).append_rows(np.ones((2, n))).append_columns(np.ones((m + 2, 2)))
    np.testing.assert_allclose(svd.to_lowrank().to_dense()[m:, n:], np.ones((2, 2)), atol=1e-14)


def test_a_rank_of_zero_is_named():
    W, empty = made("full"), made("rank 0")
    for use, name in (
        (lambda: lorsum(empty), "init.rank"),
        (lambda: lorsum(empty, oversample=1), "init.rank"),
        (lambda: lorsum_until(empty, 0.1), "init.rank"),
        (lambda: gap(empty, W), "rank"),
        (lambda: truncated_svd(empty, 0), "rank"),
        (lambda: History(rank=0), "rank"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` is 0; it must be at least 1"):
            use()
    assert gap(empty, W, rank=1).error == pytest.approx(scipy.linalg.norm(W.to_dense()))


# --- certificates of exact targets ---


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("accelerate", [None, "krylov"])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_exact_targets_are_certified_in_every_precision(dtype, accelerate, rank):
    for seed in range(5):
        W = normal_lowrank(np.random.default_rng(seed), M, N, rank, dtype)
        found = lorsum_until(W, 1e-3, accelerate=accelerate)
        assert found.iters == 0  # the start is the target, and comes back as it is
        assert found.gap.error <= 1e-13 * float(W.norm())
        start = normal_lowrank(np.random.default_rng(seed + 100), M, N, rank, dtype)
        for target in (W, W + W, W - 0.5 * W):
            found = lorsum_until(target, 1e-3, init=start, accelerate=accelerate)
            assert found.approx.dtype == dtype
            assert found.gap.error <= 50 * np.finfo(dtype).eps * float(target.norm())


def test_an_optimum_above_rounding_is_still_certified_by_its_excess():
    W = normal_lowrank(np.random.default_rng(0), M, N, 3, np.float32)
    for tol in (1e-1, 1e-2, 1e-3):
        assert lorsum_until(W, tol, init=made("full").astype(np.float32)).gap.excess <= tol


# --- angles ---


@pytest.mark.parametrize(
    ("A", "B", "expected"),
    [
        (np.zeros((6, 2)), np.eye(6, 2), [RIGHT_ANGLE, RIGHT_ANGLE]),
        (np.eye(6, 2), np.zeros((6, 2)), [RIGHT_ANGLE, RIGHT_ANGLE]),
        (np.zeros((6, 2)), np.zeros((6, 3)), [RIGHT_ANGLE, RIGHT_ANGLE]),
        (np.eye(6, 3)[:, [0, 0, 1]], np.eye(6, 3), [RIGHT_ANGLE, 0, 0]),
        (np.eye(6, 3), np.eye(6, 3)[:, [0, 0, 1]], [RIGHT_ANGLE, 0, 0]),
        (np.eye(6, 3) * [1, 0, 1e-30], np.eye(6, 3), [RIGHT_ANGLE, 0, 0]),
        (np.eye(6, 1), np.eye(6, 3) * [1, 0, 0], [0]),
        (np.array([[1.0, 0], [1e-9, 0], [0, 0]]), np.eye(3, 2)[:, [0, 0]], [RIGHT_ANGLE, 1e-9]),
        (np.ones((3, 5)), np.eye(3, 1), [np.arccos(3**-0.5)]),
        (np.eye(6, 0), np.eye(6, 3), []),
    ],
)
def test_directions_that_are_missing_are_a_right_angle_away(library, A, B, expected):
    for X, Y in ((A, B), (B, A)):
        np.testing.assert_allclose(
            np.asarray(principal_angles(library(X), library(Y))), expected, rtol=1e-12, atol=1e-15
        )


@pytest.mark.parametrize("kind", ["zero U", "zero V", "zero", "dependent", "a zero column"])
def test_a_history_does_not_take_a_degenerate_iterate_for_the_optimum(kind):
    target = LowRank(np.eye(M, 4) * [4.0, 3.0, 2.0, 1.0], np.eye(N, 4))
    history = History()
    lorsum(target, init=made(kind), iters=0, callback=history)
    assert history.angle == [pytest.approx(RIGHT_ANGLE)]
    assert history.condition[0] > 1e15


def test_a_history_looks_for_the_directions_that_the_target_has():
    target = LowRank(np.eye(M, 1), np.eye(N, 1))  # rank 1, approximated at rank 2
    history = History()
    lorsum(target, init=LowRank(np.eye(M, 2), np.eye(N, 2)), iters=0, callback=history)
    assert history.angle == [0.0]
    lorsum(target, init=LowRank(np.eye(M)[:, 1:3], np.eye(N)[:, 1:3]), iters=0, callback=history)
    assert history.angle == [pytest.approx(RIGHT_ANGLE)]
    lorsum(0 * target, init=LowRank(np.eye(M, 2), np.eye(N, 2)), iters=0, callback=history)
    assert history.angle == [0.0]  # there is nothing to find
