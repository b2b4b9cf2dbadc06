"""What lorsum does beyond the paper's iteration: Krylov spaces, oversampling, coefficients, metrics, certificates."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from array_code import in_array_code
from hypothesis import given
from hypothesis import strategies as st
from reference import EPS, alternating, dense, distance, truncated
from strategies import generators, normal_lowrank, problems, with_spectrum

from lorsum import Damped, LowRank, LowRankSum, lorsum, lorsum_until, optim, truncated_svd
from lorsum.alternating import array_api
from lorsum.alternating import problem as checked

starts = pytest.mark.parametrize("first", ["U", "V"])


def example(seed=0, m=12, n=10, rank=3, gradient_rank=5):
    rng = np.random.default_rng(seed)
    return normal_lowrank(rng, m, n, rank), normal_lowrank(rng, m, n, gradient_rank)


def slow_decay(seed=0, m=30, n=24, rank=3):
    """A sum whose singular values are 1, 1/2, 1/3, …, and a random start."""
    rng = np.random.default_rng(seed)
    A = with_spectrum(rng, m, n, 1 / np.arange(1.0, 21))
    return LowRankSum([A]), normal_lowrank(rng, m, n, rank)


# --- Krylov: the best approximation in the span of all iterates ---


def span_of_iterates(W, V, iters):
    """An orthonormal basis of the left factors of iterations 1 … K, each of which orthogonal iteration makes anew."""
    blocks = []
    for _ in range(iters):
        blocks.append(scipy.linalg.qr(W @ scipy.linalg.qr(V, mode="economic")[0], mode="economic")[0])
        V = W.T @ blocks[-1]
    return scipy.linalg.orth(np.hstack(blocks), rcond=1e-12)


@starts
@pytest.mark.parametrize("iters", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_krylov_is_the_truncated_svd_of_the_projection_on_the_span_of_all_iterates(seed, iters, first):
    target, init = slow_decay(seed)
    W, V = (dense(target), init.V) if first == "U" else (dense(target).T, init.U)
    Q = span_of_iterates(W, V, iters)
    best = truncated(Q @ (Q.T @ W), 3)
    X = lorsum(target, init=init, iters=iters, first=first, accelerate="krylov")
    assert Q.shape[1] == 3 * iters
    assert distance(X, best if first == "U" else best.T) < 1e-10


@given(problems(smallest=3, largest=10), st.integers(1, 4))
def test_no_matrix_with_columns_in_the_span_is_nearer_than_krylovs(problem, iters):
    W, V = dense(problem.target), problem.W.V
    Q = span_of_iterates(W, V, iters)
    s = scipy.linalg.svdvals(Q.T @ W)[: problem.W.rank]
    best = np.sqrt(max(np.linalg.norm(W) ** 2 - np.sum(s**2), 0))
    error = np.linalg.norm(W - dense(lorsum(problem.target, iters=iters, accelerate="krylov")))
    assert error <= best + 1e-7 * np.linalg.norm(W)


@starts
def test_krylov_with_one_iteration_is_the_plain_one(first):
    W, G = example()
    assert distance(lorsum(W - G, first=first, accelerate="krylov"), lorsum(W - G, first=first)) < 1e-13
    # with more columns, it is the plain one before its truncation
    both = {"first": first, "oversample": 2}
    assert distance(lorsum(W - G, **both, accelerate="krylov"), lorsum(W - G, **both)) < 1e-13


@pytest.mark.parametrize("accelerate", [None, "krylov"])
def test_krylov_costs_as_many_products_as_the_plain_iteration(accelerate, monkeypatch):
    target, init = slow_decay()
    products, times = [], LowRankSum._times
    monkeypatch.setattr(LowRankSum, "_times", lambda self, X: products.append(X.shape[-1]) or times(self, X))
    in_array_code(target, init=init, iters=4, accelerate=accelerate, method="direct")
    assert products == [3] * 8


EXHAUSTED = [
    # m, n, rank, gradient rank, iterations, oversample
    (6, 5, 2, 4, 3, 0),
    (5, 9, 1, 3, 5, 0),
    (7, 7, 3, 2, 3, 0),
    (9, 4, 2, 6, 2, 0),
    (8, 6, 3, 1, 4, 1),
    (4, 4, 4, 2, 1, 0),
    (1, 6, 1, 2, 1, 0),
    (6, 1, 1, 2, 3, 0),
]


@starts
@pytest.mark.parametrize("case", EXHAUSTED, ids=str)
@pytest.mark.parametrize("method", ["direct", "coefficients"])
def test_krylov_is_exact_once_its_span_is_all_there_is(case, first, method):
    m, n, rank, gradient_rank, iters, oversample = case
    for seed in range(5):
        W, G = example(seed, m, n, rank, gradient_rank)
        options = {"first": first, "method": method, "oversample": oversample}
        X = lorsum(W - G, iters=iters, accelerate="krylov", **options)
        optimal = np.linalg.norm(scipy.linalg.svdvals(dense(W - G))[rank:])
        assert np.linalg.norm(dense(W - G) - dense(X)) <= optimal + 1e-13 * np.linalg.norm(dense(W - G))


def graded_example(seed):
    """Shapes, ranks and gradings of all kinds: blocks that converge in part, and spans that fill up in part."""
    rng = np.random.default_rng(seed)
    m, n = rng.integers(2, 14, size=2)
    rank = int(rng.integers(1, min(m, n) + 1))
    W, G = normal_lowrank(rng, m, n, rank), normal_lowrank(rng, m, n, int(rng.integers(1, 10)))
    W, G = (LowRank(A.U * 10.0 ** rng.uniform(low, 0, A.rank), A.V) for A, low in ((W, -3), (G, -8)))
    return W - G, {"iters": int(rng.integers(1, 7)), "oversample": int(rng.integers(0, min(m, n) - rank + 1))}


def test_converged_and_exhausted_blocks_leave_the_basis_orthonormal(monkeypatch):
    bases = []
    monkeypatch.setattr(array_api, "truncated_svd", lambda QP, rank: bases.append(QP.U) or truncated_svd(QP, rank))
    for seed in range(300):
        target, options = graded_example(seed)
        lorsum(target, accelerate="krylov", **options)
    for Q in bases:
        Q = Q[:, np.any(Q != 0, axis=0)]  # zeros stand for columns that bring nothing new
        assert np.abs(Q.T @ Q - np.eye(Q.shape[1])).max() < 1e-12


def test_converged_and_exhausted_blocks_cost_no_digits():
    exhausted = 0
    for seed in range(1000):
        target, options = graded_example(seed)
        rank = target.terms[0].rank
        X, W = lorsum(target, accelerate="krylov", **options), dense(target)
        if options["iters"] * (rank + options["oversample"]) >= min(W.shape):
            exhausted += 1
            optimal = np.linalg.norm(scipy.linalg.svdvals(W)[rank:])
            assert np.linalg.norm(W - dense(X)) <= optimal + 1e-12 * np.linalg.norm(W)
    assert exhausted > 500


# --- oversampling ---


@starts
@pytest.mark.parametrize(
    "options",
    [{}, {"solver": "qr"}, {"reg": 0.1}, {"accelerate": "krylov"}, {"method": "coefficients"}, {"simultaneous": True}],
    ids=str,
)
def test_oversampling_is_the_truncation_of_an_iteration_with_more_columns(first, options, monkeypatch):
    W, G = example()
    extended, made = checked._with_more_columns, []
    with monkeypatch.context() as patch:
        patch.setattr(checked, "_with_more_columns", lambda *args: made.append(extended(*args)) or made[-1])
        X = lorsum(W - G, iters=2, first=first, oversample=2, **options)
    (init,) = made
    assert distance(init, W) < EPS  # the same matrix: the columns of one side have zeros on the other
    assert init.rank == 5 and X.rank == 3
    wide = lorsum(W - G, init=init, iters=2, first=first, **options)
    assert distance(X, truncated(wide, 3)) < 1e-13


def test_the_columns_that_oversampling_draws_depend_on_rng_alone():
    target, init = slow_decay()

    def approximation(rng):
        return dense(lorsum(target, init=init, oversample=2, rng=rng))

    np.testing.assert_array_equal(approximation(1), approximation(np.random.default_rng(1)))
    np.testing.assert_array_equal(approximation(0), dense(lorsum(target, init=init, oversample=2)))
    assert np.abs(approximation(1) - approximation(2)).max() > 1e-6


# --- coefficients: what method="auto" takes ---


def stated_operations(m, n, R, r, iters):
    """What Plan's docstring says that the direct method and coefficients cost."""
    direct = iters * (m + n) * (4 * R * r + 6 * r**2)
    compressing = 6 * (m + n) * R**2 + 2 * R**3 + 2 * (m + n) * R * r
    return direct, compressing + iters * (8 * R**2 * r + 12 * R * r**2)


def takes_coefficients(target, monkeypatch, **options):
    taken, compressed = [], array_api.compressed
    with monkeypatch.context() as patch:
        patch.setattr(array_api, "compressed", lambda *args: taken.append(args) or compressed(*args))
        in_array_code(target, **options)
    return bool(taken)


def test_coefficients_are_taken_exactly_where_they_cost_fewer_operations(monkeypatch):
    rng, taken = np.random.default_rng(0), []
    for _ in range(300):
        m, n = rng.integers(4, 80, size=2)
        r = int(rng.integers(1, min(m, n, 8) + 1))
        W, G = normal_lowrank(rng, m, n, r), normal_lowrank(rng, m, n, int(rng.integers(1, 12)))
        R, iters = W.rank + G.rank, int(rng.integers(1, 30))
        direct, coefficients = stated_operations(m, n, R, r, iters)
        taken.append(takes_coefficients(W - G, monkeypatch, iters=iters))
        assert taken[-1] == (min(m, n) > R and coefficients < direct), (m, n, R, r, iters)
    assert 50 < sum(taken) < 250  # the problems lie on both sides


def test_coefficients_pay_from_some_number_of_iterations_on(monkeypatch):
    rng = np.random.default_rng(0)
    W, G = normal_lowrank(rng, 60, 50, 2), normal_lowrank(rng, 60, 50, 8)
    costs = [stated_operations(60, 50, 10, 2, iters) for iters in range(1, 40)]
    first = next(iters for iters, (direct, coefficients) in enumerate(costs, 1) if coefficients < direct)
    assert not takes_coefficients(W - G, monkeypatch, iters=first - 1)
    assert takes_coefficients(W - G, monkeypatch, iters=first)
    assert not takes_coefficients(W - G + np.ones((60, 50)), monkeypatch, iters=100)  # a dense term


# --- metrics ---


def definite(rng, d):
    B = rng.normal(size=(d, d))
    return B @ B.T / d + 0.5 * np.eye(d)


def power_of(M, power):
    s, Q = scipy.linalg.eigh(M)
    return Q * s**power @ Q.T


METRICS = {  # of dimension d: what is passed, and the same as a dense matrix
    "none": lambda rng, d: (None, np.eye(d)),
    "diagonal": lambda rng, d: (x := rng.uniform(0.5, 2, size=d), np.diag(x)),
    "definite": lambda rng, d: (M := definite(rng, d), M),
    "damped": lambda rng, d: damped(rng, d, 1.0),
    "damped to the power 1/4": lambda rng, d: damped(rng, d, 0.25),
    "damped to the power −1/2": lambda rng, d: damped(rng, d, -0.5),
}


def damped(rng, d, power):
    X = rng.normal(size=(d, 3))
    return Damped(LowRank(X, X), 0.3, power), power_of(X @ X.T + 0.3 * np.eye(d), power)


@pytest.mark.parametrize("left", METRICS)
@pytest.mark.parametrize("right", ["none", "definite", "damped to the power 1/4"])
def test_with_a_metric_many_iterations_reach_the_best_approximation_in_its_norm(left, right):
    rng = np.random.default_rng(0)
    (M_U, dense_U), (M_V, dense_V) = METRICS[left](rng, 12), METRICS[right](rng, 10)
    W, G = with_spectrum(rng, 12, 10, np.array([9.0, 8, 7])), with_spectrum(rng, 12, 10, np.array([0.5, 0.3]))
    X = lorsum(W - G, iters=60, metric=(M_U, M_V))
    T = dense(W) - np.linalg.solve(dense_U, dense(G)) @ np.linalg.inv(dense_V)
    root_U, root_V = power_of(dense_U, 0.5), power_of(dense_V, 0.5)
    best = np.linalg.solve(root_U, truncated(root_U @ T @ root_V, 3)) @ np.linalg.inv(root_V)
    assert distance(X, best) < 1e-12


@pytest.mark.parametrize("left", METRICS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first": "V", "reg": 0.2},
        {"accelerate": "krylov"},
        {"method": "coefficients"},
        {"oversample": 2},
        {"simultaneous": True, "reg": 0.2},
        {"solver": "gram"},
    ],
    ids=str,
)
def test_every_form_of_a_metric_is_its_dense_matrix_in_every_option(left, options):
    rng = np.random.default_rng(0)
    W, G = example()
    (M_U, dense_U), (M_V, dense_V) = METRICS[left](rng, 12), METRICS["damped"](rng, 10)
    options = {"iters": 2, **options}
    X, expected = (lorsum(W - G, metric=metric, **options) for metric in ((M_U, M_V), (dense_U, dense_V)))
    if "oversample" in options:  # where the random columns depend on the root of the metric: errors
        size = distance(expected, dense(W - G))
        assert distance(X, expected) < size
    elif "reg" in options:  # the proximal term is not in the metric of the factors' coordinates, which roots differ in
        assert distance(X, expected) < 1e-9
    else:
        assert distance(X, expected) < 1e-12


@pytest.mark.parametrize("left", METRICS)
@pytest.mark.parametrize("options", [{}, {"reg": 0.3}, {"first": "V"}, {"simultaneous": True}], ids=str)
def test_a_zero_gradient_is_a_fixed_point_in_every_metric(left, options):
    rng = np.random.default_rng(0)
    W, G = example()
    metric = METRICS[left](rng, 12)[0], METRICS["damped"](rng, 10)[0]
    assert distance(lorsum(W - 0 * G, iters=3, metric=metric, **options), W) < 1e-13


@pytest.mark.parametrize(
    "identity",
    [
        lambda d: None,
        lambda d: np.ones(d),
        lambda d: np.eye(d),
        lambda d: Damped(LowRank(np.zeros((d, 1)), np.zeros((d, 1))), 1.0),
        lambda d: Damped(LowRank(np.ones((d, 1)), np.ones((d, 1))), 0.7, power=0.0),
    ],
    ids=["None", "ones", "eye", "damped zero", "to the power 0"],
)
@pytest.mark.parametrize("options", [{}, {"reg": 0.3}, {"first": "V"}, {"accelerate": "krylov"}], ids=str)
def test_the_identity_in_every_form_changes_nothing(identity, options):
    W, G = example()
    X = lorsum(W - G, iters=2, metric=(identity(12), identity(10)), **options)
    assert distance(X, lorsum(W - G, iters=2, **options)) < 1e-14


def test_of_a_damped_matrix_the_symmetric_and_positive_part_is_meant():
    rng = np.random.default_rng(0)
    W, G = example()
    A = normal_lowrank(rng, 12, 12, 3)
    s, Q = scipy.linalg.eigh((dense(A) + dense(A).T) / 2)
    M = Q * (np.maximum(s, 0) + 0.4) ** 0.5 @ Q.T
    assert s[0] < -1
    assert distance(lorsum(W - G, metric=(Damped(A, 0.4, 0.5), None)), lorsum(W - G, metric=(M, None))) < 1e-12


def test_a_damped_metric_is_never_formed():
    rng = np.random.default_rng(0)
    d = 20_000  # a d × d matrix would take 3.2 GB
    W, G = normal_lowrank(rng, d, 50, 4), normal_lowrank(rng, d, 50, 8)
    A = normal_lowrank(rng, d, d, 4)
    tracemalloc.start()
    X = lorsum(W - G, metric=(Damped(A, 1.0, 0.25), None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert X.shape == (d, 50)
    assert peak < 100e6  # a few dozen thin matrices


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ((np.diag([-1.0, *np.ones(11)]), None), r"`metric\[0\]` is not positive definite"),
        ((np.zeros((12, 12)), None), r"`metric\[0\]` is not positive definite"),
        ((np.append(0.0, np.ones(11)), None), r"`metric\[0\]` is a diagonal with an entry that is not positive"),
        ((None, -np.eye(10)), r"`metric\[1\]` is not positive definite"),
        ((Damped(example()[0] @ example()[0].T, -0.1), None), r"`metric\[0\]` has damping -0.1"),
        ((Damped(example()[0] @ example()[0].T, 0.0), None), r"`metric\[0\]` has damping 0.0"),
        ((None, Damped(LowRank(np.ones((9, 1)), np.ones((9, 1))), 1.0)), r"`metric\[1\]` has shape"),
        ((np.full(12, np.nan), None), r"`metric\[0\]` has a NaN"),
    ],
    ids=["indefinite", "zero", "zero entry", "right", "negative damping", "no damping", "size", "NaN"],
)
def test_a_metric_that_is_not_positive_definite_is_refused_by_name(metric, message):
    W, G = example()
    with pytest.raises(ValueError, match=message):
        lorsum(W - G, metric=metric)


@pytest.mark.parametrize(
    "metric",
    [np.eye(12) + 0j, np.ones(12) + 0j, Damped(LowRank(np.ones((12, 1)) + 0j, np.ones((12, 1)) + 0j), 1.0)],
    ids=["definite", "diagonal", "damped"],
)
@pytest.mark.parametrize("dtype", [float, complex])
def test_metrics_are_real_also_for_complex_matrices(metric, dtype):
    rng = np.random.default_rng(0)
    W, G = normal_lowrank(rng, 12, 10, 3, dtype), normal_lowrank(rng, 12, 10, 5, dtype)
    with pytest.raises(ValueError, match=r"`metric\[0\]` is complex"):
        lorsum(W - G, metric=(metric, None))


@pytest.mark.parametrize("left", METRICS)
def test_a_real_metric_for_complex_matrices(left):
    rng = np.random.default_rng(0)
    (M_U, dense_U), (M_V, dense_V) = METRICS[left](rng, 12), METRICS["damped"](rng, 10)
    W, G = normal_lowrank(rng, 12, 10, 3, complex), 0.05 * normal_lowrank(rng, 12, 10, 2, complex)
    T = dense(W) - np.linalg.solve(dense_U, dense(G)) @ np.linalg.inv(dense_V)
    root_U, root_V = power_of(dense_U, 0.5), power_of(dense_V, 0.5)
    best = np.linalg.solve(root_U, truncated(root_U @ T @ root_V, 3)) @ np.linalg.inv(root_V)
    assert distance(lorsum(W - G, iters=200, metric=(M_U, M_V)), best) < 1e-11


# --- the scaled rule: one step in a metric that is estimated from the gradient ---


def weighted_step(W, G, M_U, M_V, lr, reg, iters=1):
    """Iterations on Lᵤᵀ (W − η Mᵤ⁻¹ G Mᵥ⁻¹) Lᵥ by the normal equations, and the way back."""
    L_U, L_V = np.linalg.cholesky(M_U), np.linalg.cholesky(M_V)
    T = dense(W) - lr * np.linalg.solve(M_U, dense(G)) @ np.linalg.inv(M_V)
    U, V = alternating(L_U.T @ T @ L_V, L_U.T @ W.U, L_V.T @ W.V, iters, reg)
    return np.linalg.solve(L_U.T, U @ V.T) @ np.linalg.inv(L_V)


def gradient(rng, m=12, n=10, rows=4):
    return LowRank(rng.normal(size=(rows, m)).T, rng.normal(size=(rows, n)).T)


def kfac_moments(G):
    return 9 * G.U @ G.U.T / G.rank, G.V @ G.V.T / G.rank


def shampoo_moments(G):
    return dense(G) @ dense(G).T, dense(G).T @ dense(G)


def diagonal_moments(G):
    return np.diag(np.sum(dense(G) ** 2, axis=1)), np.diag(np.sum(dense(G) ** 2, axis=0))


SCALES = {
    "K-FAC": (optim.KFAC(rank=4, damping=0.1, output_scale=3.0), kfac_moments, 1.0),
    "K-FAC with more columns": (optim.KFAC(rank=7, damping=0.1, output_scale=3.0), kfac_moments, 1.0),
    "Shampoo": (optim.Shampoo(rank=4, damping=0.1, smoothing=0.5), shampoo_moments, 0.25),
    "diagonal": (optim.DiagonalScale(damping=0.1), diagonal_moments, 0.25),
    "diagonal, power 1/2": (optim.DiagonalScale(damping=0.1, power=0.5, smoothing=0.0), diagonal_moments, 0.5),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("iters", [1, 3])
def test_a_scaled_step_is_the_dense_formula(scale, iters):
    """The first gradient is the average, once the bias towards zero is removed; diagonals are exact averages later."""
    rng = np.random.default_rng(0)
    scale, moments, power = SCALES[scale]
    W = normal_lowrank(rng, 12, 10, 3)
    rule = optim.ScaledOPLoRA(lr=0.1, reg=0.01, iters=iters, scale=scale)
    state, averages, beta = rule.init(W, rng=0), [0, 0], scale.smoothing
    for count in range(1, 4 if moments is diagonal_moments else 2):
        G = gradient(rng)
        averages = [beta * old + (1 - beta) * new for old, new in zip(averages, moments(G), strict=True)]
        M_U, M_V = (power_of(D / (1 - beta**count) + 0.1 * np.eye(len(D)), power) for D in averages)
        expected = weighted_step(W, G, M_U, M_V, 0.1, 0.1 * 0.01, iters)
        W, state = rule.step(W, G, state)
        assert state.count == count
        assert distance(W, expected) < 1e-9


def test_a_scaled_step_takes_the_momentum_in_its_metric_too():
    rng = np.random.default_rng(0)
    scale = optim.KFAC(rank=8, damping=0.1, smoothing=0.0)
    W, G, H = normal_lowrank(rng, 12, 10, 3), gradient(rng), gradient(rng)
    rule = optim.ScaledOPLoRA(lr=0.1, momentum=0.9, momentum_rank=4, reg=0.0, scale=scale)
    W, state = rule.step(W, G, rule.init(W, rng=0))
    assert distance(state.M, G) < 1e-12  # of rank 4, as G
    M_U, M_V = (D + 0.1 * np.eye(len(D)) for D in (H.U @ H.U.T / 4, H.V @ H.V.T / 4))
    expected = weighted_step(W, LowRankSum([H, G], [1, 0.9]), M_U, M_V, 0.1, 0.0)
    assert distance(rule.step(W, H, state)[0], expected) < 1e-10


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "momentum_rank": 5, "iters": 3}], ids=str)
def test_without_a_scale_the_rule_is_oplora_bit_for_bit(options):
    W = normal_lowrank(np.random.default_rng(0), 12, 10, 3)
    results = []
    for rule in (optim.OPLoRA(lr=0.1, **options), optim.ScaledOPLoRA(lr=0.1, **options)):
        X, state, rng = W, rule.init(W, rng=0), np.random.default_rng(1)
        for _ in range(5):
            X, state = rule.step(X, gradient(rng), state)
        results.append([*X, *(state.M or ())])
    for plain, scaled in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, scaled)


@pytest.mark.parametrize("scale", [optim.KFAC(rank=8, smoothing=0.5), optim.Shampoo(rank=8, smoothing=0.5)])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_averages_are_exact_until_their_rank_is_used_up(rows, scale):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        D, averages = scale.init(normal_lowrank(rng, 12, 10, 3), rng), [0, 0]
        for _ in range(8 // rows):
            G = gradient(rng, rows=rows)
            D = scale.update(D, G)
            new = [dense(moment) for moment in scale.moments(G)]
            averages = [0.5 * old + 0.5 * moment for old, moment in zip(averages, new, strict=True)]
            assert max(distance(actual, exact) for actual, exact in zip(D, averages, strict=True)) < 1e-9


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_momentum_is_exact_until_its_rank_is_used_up(rows):
    rule = optim.ScaledOPLoRA(lr=0.1, momentum=0.9, momentum_rank=8)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        W = normal_lowrank(rng, 12, 10, 3)
        state, momentum = rule.init(W, rng=rng), 0
        for _ in range(8 // rows):
            G = gradient(rng, rows=rows)
            W, state = rule.step(W, G, state)
            momentum = 0.9 * momentum + dense(G)
            assert distance(state.M, momentum) < 1e-9


def test_gradients_of_one_entry_each_add_up():
    rule = optim.ScaledOPLoRA(lr=0.1, momentum=0.9, momentum_rank=3, scale=optim.KFAC(rank=3, smoothing=0.5))
    W = normal_lowrank(np.random.default_rng(0), 12, 10, 3)
    state, momentum = rule.init(W, rng=0), 0
    for i in range(3):
        G = LowRank(np.eye(12)[:, [i]], np.eye(10)[:, [i]])  # one-hot, as the rows of an embedding
        W, state = rule.step(W, G, state)
        momentum = 0.9 * momentum + dense(G)
        assert distance(state.M, momentum) < 1e-12
        assert np.linalg.matrix_rank(dense(state.D[0])) == i + 1


def test_the_momentum_outlives_a_first_gradient_of_zero():
    W, G = example()
    rule = optim.ScaledOPLoRA(lr=0.1, momentum=0.9, momentum_rank=5, reg=0.0)
    W, state = rule.step(W, 0 * dense(G), rule.init(W, rng=0))
    W, state = rule.step(W, G, state)
    assert distance(state.M, G) < 1e-12


# --- until it is certified ---


def excess_by_scipy(X, target):
    W = dense(target).astype(np.float64)
    optimal = np.linalg.norm(scipy.linalg.svdvals(W)[X.rank :])
    return np.linalg.norm(W - dense(X).astype(np.float64)) / optimal - 1


accelerations = pytest.mark.parametrize("accelerate", [None, "krylov"])


@given(generators(), st.sampled_from([1e-1, 1e-3, 1e-6, 1e-10]), st.sampled_from([None, "krylov"]))
def test_what_is_certified_is_true(rng, tol, accelerate):
    W = normal_lowrank(rng, 20, 15, 3)
    G = normal_lowrank(rng, 20, 15, int(rng.integers(1, 6)))
    result = lorsum_until(W - 0.3 * G, tol, accelerate=accelerate, max_iters=10_000)
    excess = excess_by_scipy(result.approx, W - 0.3 * G)
    assert excess <= tol + 1e-13
    assert result.gap.excess <= tol + 1e-13
    assert result.gap.excess == pytest.approx(excess, abs=1e-12)
    assert result.approx.rank == 3


@accelerations
def test_no_more_iterations_are_made_than_are_needed(accelerate):
    target, init = slow_decay()
    for tol in (1e-1, 1e-2, 1e-3):
        iters = lorsum_until(target, tol, init=init, accelerate=accelerate).iters
        assert excess_by_scipy(lorsum(target, init=init, iters=iters, accelerate=accelerate), target) <= tol
        if accelerate is None:
            assert excess_by_scipy(lorsum(target, init=init, iters=iters - 1), target) > tol
            with pytest.raises(np.linalg.LinAlgError, match=f"after `max_iters` = {iters - 1} iterations"):
                lorsum_until(target, tol, init=init, max_iters=iters - 1)
    assert lorsum_until(target, 0.1, init=truncated_svd(target, 3).to_lowrank()).iters == 0


def test_krylov_needs_fewer_iterations():
    target, init = slow_decay()
    plain, krylov = (lorsum_until(target, 1e-8, init=init, accelerate=accelerate) for accelerate in (None, "krylov"))
    assert krylov.iters < plain.iters


@accelerations
@pytest.mark.parametrize("kept", [[0, 1, 3], [0, 2, 3], [4, 5, 6], [1, 2, 6]], ids=str)
def test_a_stationary_start_that_is_not_optimal_is_left(kept, accelerate):
    A = LowRank(np.eye(20, 7) * [8.0, 7, 6, 5, 4, 3, 2], np.eye(15, 7))
    stuck = LowRank(A.U[:, kept], A.V[:, kept])
    assert distance(lorsum(A, init=stuck, iters=50), stuck) == 0  # where the iteration stays
    result = lorsum_until(A, 1e-6, init=stuck, accelerate=accelerate)
    assert excess_by_scipy(result.approx, A) <= 1e-6
    np.testing.assert_allclose(result.approx.singular_values(), [8, 7, 6], rtol=1e-5)


@accelerations
@pytest.mark.parametrize("start", [(0, 0), (0, 1), (1, 0)], ids=["both zero", "U zero", "V zero"])
def test_zero_factors_are_left_too(start, accelerate):
    W, G = example()
    init = LowRank(start[0] * W.U, start[1] * W.V)
    assert excess_by_scipy(lorsum_until(W - G, 1e-6, init=init, accelerate=accelerate).approx, W - G) <= 1e-6


@accelerations
def test_too_few_iterations_are_an_error_that_says_how_far_it_came(accelerate):
    target, init = slow_decay()
    with pytest.raises(np.linalg.LinAlgError, match="after `max_iters` = 2 iterations; `tol` asks for"):
        lorsum_until(target, 1e-9, init=init, max_iters=2, accelerate=accelerate)


def test_where_the_rank_suffices_the_result_is_the_matrix_itself():
    W, _ = example()
    result = lorsum_until(W + W, 1e-3)
    assert result.gap.excess == 0
    assert distance(result.approx, 2 * dense(W)) < 1e-14


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("tol", [1e-6, 1e-10])
def test_in_lower_precision_it_is_certified_or_an_error_too(dtype, tol):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        target = LowRankSum([normal_lowrank(rng, 30, 20, 3, dtype), normal_lowrank(rng, 30, 20, 6, dtype)])
        try:
            result = lorsum_until(target, tol, accelerate="krylov")
        except np.linalg.LinAlgError:
            continue
        assert result.gap.excess <= tol * (1 + 1e-12)


def test_a_rank_above_the_dimensions_is_refused():
    W, _ = example(m=2, n=2, rank=3)
    with pytest.raises(ValueError, match=r"`init.rank` is 3, above min"):
        lorsum_until(W + W, 0.1)
