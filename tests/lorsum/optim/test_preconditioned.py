import numpy as np
import pytest
from reference import dense, distance
from strategies import gauge_of_condition, normal_lowrank

from lorsum import LowRank
from lorsum.optim import SGD, AdamW, PreconditionedAdamW, PreconditionedSGD


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return normal_lowrank(rng, 8, 6, 2), [normal_lowrank(rng, 8, 6, 3) for _ in range(5)]


def preconditioned(W, G, reg):
    """The gradients of the factors times the inverse Gram matrix of the other factor."""
    (U, V), G, ridge = W, dense(G), reg * np.eye(W.rank)
    return G @ V @ np.linalg.inv(V.T @ V + ridge), G.T @ U @ np.linalg.inv(U.T @ U + ridge)


@pytest.mark.parametrize("reg", [0.0, 1e-3, 10.0])
def test_a_step_is_the_formula_with_λ_times_the_learning_rate(problem, reg):
    W, (G, *_) = problem
    rule = PreconditionedSGD(lr=0.1, reg=reg)
    X, _ = rule.step(W, G, rule.init(W))
    for before, after, direction in zip(W, X, preconditioned(W, G, 0.1 * reg), strict=True):
        np.testing.assert_allclose(after, before - 0.1 * direction, rtol=1e-12)


def test_momentum_is_that_of_the_preconditioned_gradients(problem):
    W, Gs = problem
    rule = PreconditionedSGD(lr=0.1, momentum=0.9, reg=1.0)
    X, state, buffers, factors = W, rule.init(W), [0.0, 0.0], list(W)
    for G in Gs:
        directions = preconditioned(LowRank(*factors), G, 0.1)
        buffers = [0.9 * b + d for b, d in zip(buffers, directions, strict=True)]
        factors = [f - 0.1 * b for f, b in zip(factors, buffers, strict=True)]
        X, state = rule.step(X, G, state)
    np.testing.assert_allclose(X.U, factors[0], rtol=1e-10)
    np.testing.assert_allclose(X.V, factors[1], rtol=1e-10)


def test_adamw_is_fed_with_the_preconditioned_gradients(problem):
    W, Gs = problem
    rule, plain = PreconditionedAdamW(lr=0.1, reg=1.0, weight_decay=0.0), AdamW(lr=0.1, weight_decay=0.0)
    X, state = W, rule.init(W)
    factors, states = list(W), [plain.init(factor) for factor in W]
    for G in Gs:
        directions = preconditioned(LowRank(*factors), G, 0.1)
        stepped = [plain.step(f, d, s) for f, d, s in zip(factors, directions, states, strict=True)]
        factors, states = map(list, zip(*stepped, strict=True))
        X, state = rule.step(X, G, state)
    np.testing.assert_allclose(X.U, factors[0], rtol=1e-10)
    np.testing.assert_allclose(X.V, factors[1], rtol=1e-10)


@pytest.mark.parametrize("condition", [1, 1e3])
def test_without_regularisation_the_split_into_factors_does_not_matter(problem, condition):
    W, (G, *_) = problem
    A = gauge_of_condition(np.random.default_rng(0), 2, condition)
    other = LowRank(W.U @ A, W.V @ np.linalg.inv(A).T)
    rule = PreconditionedSGD(lr=0.1, reg=0.0)
    assert distance(rule.step(other, G, rule.init(other))[0], rule.step(W, G, rule.init(W))[0]) < 1e-12 * condition
    rule = SGD(lr=0.1)
    if condition > 1:
        assert distance(rule.step(other, G, rule.init(other))[0], rule.step(W, G, rule.init(W))[0]) > 0.1


@pytest.mark.parametrize("Rule", [PreconditionedSGD, PreconditionedAdamW])
@pytest.mark.parametrize("reg", [0.0, 1e-3])
def test_a_fresh_adapter_moves(problem, Rule, reg):
    (U, V), (G, *_) = problem
    W = LowRank(0 * U, V)
    rule = Rule(lr=0.1, reg=reg)
    X, _ = rule.step(W, G, rule.init(W))
    assert np.isfinite(X.U).all() and np.isfinite(X.V).all()
    assert np.abs(X.U).min() > 0


@pytest.mark.parametrize(("Rule", "Plain"), [(PreconditionedSGD, SGD), (PreconditionedAdamW, AdamW)])
def test_dense_parameters_are_trained_as_without_preconditioning(Rule, Plain):
    b, g = np.ones(3), np.array([1.0, -2.0, 0.5])
    rule, plain = Rule(lr=0.1), Plain(lr=0.1)
    np.testing.assert_array_equal(rule.step(b, g, rule.init(b))[0], plain.step(b, g, plain.init(b))[0])
