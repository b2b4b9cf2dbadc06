import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from reference import EPS, dense, distance, listing_1, truncated
from strategies import exact_lowrank, generators, normal_lowrank, with_spectrum

from lorsum import LowRank, lorsum
from lorsum.optim import OPLoRA, PreconditionedSGD, ProjectedOPLoRA, SVDLoRA
from lorsum.optim.oplora import tangent_projection

LR, MOMENTUM = 0.1, 0.9


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return normal_lowrank(rng, 9, 7, 2), [normal_lowrank(rng, 9, 7, 3) for _ in range(6)]


def run(rule, W, Gs, rng=0):
    state = rule.init(W, rng=rng)
    for G in Gs:
        W, state = rule.step(W, G, state)
    return W, state


# --- OPLoRA ---


@pytest.mark.parametrize("momentum", [0.0, MOMENTUM])
@pytest.mark.parametrize("reg", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("iters", [1, 2])
@pytest.mark.parametrize("simultaneous", [False, True])
def test_a_step_is_algorithm_1(problem, momentum, reg, first, iters, simultaneous):
    W, Gs = problem
    options = {"iters": iters, "first": first, "simultaneous": simultaneous}
    rule = OPLoRA(lr=LR, momentum=momentum, reg=reg, **options)
    X, state = W, rule.init(W, rng=0)
    for G in Gs[:3]:
        M = state.M
        if momentum:
            expected = lorsum(X - LR * G - LR * momentum * M, reg=LR * reg, **options)
            expected_M = lorsum(momentum * M + G, gauge="balanced", **options)
        else:
            expected, expected_M = lorsum(X - LR * G, reg=LR * reg, **options), None
        X, state = rule.step(X, G, state)
        np.testing.assert_array_equal(X.U, expected.U)
        np.testing.assert_array_equal(X.V, expected.V)
        assert (state.M is None) == (expected_M is None)
        if momentum:
            # What W and M have in common is read once, in one order of the terms
            np.testing.assert_allclose(state.M.U, expected_M.U, rtol=0, atol=1e-13)
            np.testing.assert_allclose(state.M.V, expected_M.V, rtol=0, atol=1e-13)


def test_a_step_is_listing_1(problem):
    W, (G, M, *_) = problem
    rule = OPLoRA(lr=LR, momentum=MOMENTUM, reg=0.5, iters=2, first="V")
    state = rule.init(W, rng=0)._replace(M=M)
    X, _ = rule.step(W, G, state)
    factors = [(A.V.T, A.U) for A in (W, G, M)]
    Vt, U = listing_1(factors, [1, -LR, -LR * MOMENTUM], 2, LR * 0.5, "in")
    np.testing.assert_allclose(X.U, U, rtol=1e-10)
    np.testing.assert_allclose(X.V.T, Vt, rtol=1e-10)


@pytest.mark.parametrize("reg", [0.0, 1e-10])
def test_one_simultaneous_iteration_is_preconditioned_sgd(problem, reg):
    W, Gs = problem
    X, _ = run(OPLoRA(lr=LR, iters=1, reg=reg, simultaneous=True), W, Gs)
    Y, _ = run(PreconditionedSGD(lr=LR, reg=reg), W, Gs)
    np.testing.assert_allclose(X.U, Y.U, rtol=1e-8)
    np.testing.assert_allclose(X.V, Y.V, rtol=1e-8)


@pytest.mark.parametrize("momentum", [0.0, MOMENTUM])
def test_many_iterations_with_a_full_momentum_are_svdlora(momentum):
    rng = np.random.default_rng(0)
    W = with_spectrum(rng, 9, 7, np.array([5.0, 4.0]))
    Gs = [normal_lowrank(rng, 9, 7, 3) for _ in range(4)]
    ours, _ = run(OPLoRA(lr=0.02, momentum=momentum, momentum_rank=7, iters=200, reg=0.0), W, Gs)
    exact, _ = run(SVDLoRA(lr=0.02, momentum=momentum), W, Gs)
    assert distance(ours, exact) < 1e-10


def test_more_iterations_come_nearer_to_svdlora(problem):
    W, (G, *_) = problem
    exact, _ = run(SVDLoRA(lr=LR), W, [G])
    apart = [distance(run(OPLoRA(lr=LR, iters=iters, reg=0.0), W, [G])[0], exact) for iters in (1, 4, 16, 64)]
    assert apart[0] > 10 * apart[1] > 100 * apart[2]
    assert apart[3] < 1e-9


def test_the_momentum_is_balanced_with_its_own_rank(problem):
    W, Gs = problem
    for rank in (None, 1, 4):
        _, state = run(OPLoRA(lr=LR, momentum=MOMENTUM, momentum_rank=rank), W, Gs)
        M = state.M
        assert M.rank == (rank or W.rank)
        s = np.diag(scipy.linalg.svdvals(dense(M))[: M.rank])
        np.testing.assert_allclose(M.U.T @ M.U, s, rtol=0, atol=1e-12)
        np.testing.assert_allclose(M.V.T @ M.V, s, rtol=0, atol=1e-12)


def test_the_momentum_starts_as_zero_with_one_random_factor(problem):
    W, (G, *_) = problem
    state = OPLoRA(lr=LR, momentum=MOMENTUM).init(W, rng=0)
    assert state.count == 0
    np.testing.assert_array_equal(dense(state.M), 0)
    assert np.linalg.matrix_rank(state.M.V) == 2
    _, state = run(OPLoRA(lr=LR, momentum=MOMENTUM, momentum_rank=3), W, [G])
    assert distance(state.M, G) < 1e-12  # a rank that suffices takes the whole gradient


def test_the_rank_of_the_momentum_is_at_most_full(problem):
    W, Gs = problem
    assert run(OPLoRA(lr=LR, momentum=MOMENTUM, momentum_rank=50), W, Gs)[1].M.rank == 7


def test_without_momentum_there_is_no_buffer(problem):
    W, Gs = problem
    assert run(OPLoRA(lr=LR), W, Gs)[1] == (6, None)


def test_the_same_seed_gives_the_same_bits(problem):
    W, Gs = problem
    rule = OPLoRA(lr=LR, momentum=MOMENTUM)
    one, other, third = (run(rule, W, Gs, rng=rng)[0] for rng in (3, np.random.default_rng(3), 4))
    np.testing.assert_array_equal(one.U, other.U)
    np.testing.assert_array_equal(one.V, other.V)
    assert distance(one, third) > 0


@pytest.mark.parametrize("first", ["U", "V"])
@pytest.mark.parametrize("zero", ["U", "V"])
@pytest.mark.parametrize("reg", [0.0, 1e-3])
def test_a_fresh_adapter_is_trained(first, zero, reg):
    rng = np.random.default_rng(0)
    A = dense(normal_lowrank(rng, 9, 7, 2))
    W = normal_lowrank(rng, 9, 7, 2)
    W = LowRank(0 * W.U, W.V) if zero == "U" else LowRank(W.U, 0 * W.V)
    rule = OPLoRA(lr=0.25, momentum=0.5, first=first, reg=reg)
    state = rule.init(W, rng=0)
    for _ in range(40):
        W, state = rule.step(W, 2 * (dense(W) - A), state)  # the gradient of ‖W − A‖²
    assert distance(W, A) < 1e-3


def test_a_minibatch_gradient_of_rank_above_the_dimensions(problem):
    W, _ = problem
    G = normal_lowrank(np.random.default_rng(1), 9, 7, 64)
    rule = OPLoRA(lr=LR, momentum=MOMENTUM)
    assert distance(run(rule, W, [G, G])[0], run(rule, W, [dense(G), dense(G)])[0]) < 1e-12


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"iters": 0}, ValueError, "`iters` is 0"),
        ({"iters": 1.5}, TypeError, "`iters` is 1.5"),
        ({"momentum_rank": 0}, ValueError, "`momentum_rank` is 0"),
        ({"momentum_rank": 2.0}, TypeError, "`momentum_rank` is 2.0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        OPLoRA(lr=LR, **options)


@pytest.mark.parametrize("options", [{"first": "in"}, {"method": "fast"}], ids=str)
def test_names_that_lorsum_does_not_know_are_refused_at_the_latest_at_the_first_step(problem, options):
    W, (G, *_) = problem
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is"):
        run(OPLoRA(lr=LR, **options), W, [G])


# --- ProjectedOPLoRA ---


def projectors(W):
    Qu, Qv = scipy.linalg.orth(W.U), scipy.linalg.orth(W.V)
    return Qu @ Qu.T, Qv @ Qv.T


def projected(W, A):
    """P_U A + A P_V − P_U A P_V."""
    P, Q = projectors(W)
    return P @ A + A @ Q - P @ A @ Q


@given(generators(), st.integers(1, 9), st.integers(1, 9), st.data())
def test_the_tangent_projection_is_an_orthogonal_projection(rng, m, n, data):
    W = normal_lowrank(rng, m, n, data.draw(st.integers(1, min(m, n))))
    A, B = rng.normal(size=(2, m, n))
    PA, PB = (tangent_projection(W, X) for X in (A, B))
    assert PA.rank == 2 * W.rank
    assert distance(PA, projected(W, A)) < 1e-11
    assert distance(tangent_projection(W, PA), PA) < 1e-12  # P² = P
    assert abs(np.sum(dense(PA) * B) - np.sum(A * dense(PB))) < 1e-12 * m * n * (1 + np.abs(A).max()) * 10  # Pᵀ = P


@given(generators(), exact_lowrank((9, 7)))
def test_it_keeps_what_a_change_of_the_factors_can_express(rng, A):
    W = normal_lowrank(rng, 9, 7, 2)
    dU, dV = rng.normal(size=W.U.shape), rng.normal(size=W.V.shape)
    tangent = dU @ W.V.T + W.U @ dV.T
    assert distance(tangent_projection(W, tangent), tangent) < 1e-12
    P, Q = projectors(W)
    normal = (np.eye(9) - P) @ dense(A) @ (np.eye(7) - Q)
    assert np.abs(dense(tangent_projection(W, normal))).max() < 1e-12 * (1 + np.abs(normal).max())


def test_the_projected_momentum_follows_its_recursion(problem):
    W, Gs = problem
    rule = ProjectedOPLoRA(lr=LR, momentum=MOMENTUM, iters=2, reg=0.5)
    X, state, M = W, rule.init(W), np.zeros(W.shape)
    for G in Gs:
        expected = lorsum(X - LR * G - LR * MOMENTUM * projected(X, M), iters=2, reg=LR * 0.5)
        M = projected(X, MOMENTUM * M + dense(G))
        before = X
        X, state = rule.step(X, G, state)
        assert distance(X, expected) < 1e-11
        assert distance(state.M, M) < 1e-11
        assert state.M.rank == 4
        # in the tangent space of the adapter the gradient belongs to
        assert distance(projected(before, dense(state.M)), state.M) < 1e-11


def test_without_momentum_it_is_oplora(problem):
    W, Gs = problem
    one, other = run(ProjectedOPLoRA(lr=LR), W, Gs), run(OPLoRA(lr=LR), W, Gs)
    assert one[1] == other[1] == (6, None)
    assert distance(one[0], other[0]) < EPS


def test_a_projected_momentum_has_no_rank_of_its_own():
    with pytest.raises(ValueError, match="`momentum_rank` is 3"):
        ProjectedOPLoRA(lr=LR, momentum=MOMENTUM, momentum_rank=3)


def test_the_tangent_space_of_a_fresh_adapter_has_no_rows(problem):
    (U, V), (G, *_) = problem
    W = LowRank(0 * U, V)  # a change of V does not change W
    assert distance(tangent_projection(W, G), dense(G) @ projectors(W)[1]) < 1e-12
    rule = ProjectedOPLoRA(lr=LR, momentum=MOMENTUM)
    _, state = rule.step(W, G, rule.init(W))
    assert distance(state.M, dense(G) @ projectors(W)[1]) < 1e-12


def test_truncation_is_what_svdlora_does(problem):
    W, (G, *_) = problem
    X, _ = run(SVDLoRA(lr=LR), W, [G])
    assert distance(X, truncated(dense(W) - LR * dense(G), 2)) < 1e-13
