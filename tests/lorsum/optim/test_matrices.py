import numpy as np
import pytest
from reference import dense, distance, truncated
from strategies import normal_lowrank

from lorsum import LowRank
from lorsum.optim import Full, SVDLoRA

STEPS = 20


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return normal_lowrank(rng, 9, 7, 2), [normal_lowrank(rng, 9, 7, 3) for _ in range(STEPS)]


def run(rule, W, Gs):
    state = rule.init(W)
    for G in Gs:
        W, state = rule.step(W, G, state)
    return W, state


def schedule(step):
    return 0.05 * 0.9**step


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_svdlora_truncates_the_full_step_with_momentum(problem, momentum):
    W, Gs = problem
    X, M = dense(W), np.zeros(W.shape)
    for step, G in enumerate(Gs):
        M = momentum * M + dense(G)
        X = truncated(X - schedule(step) * M, 2)
    actual, state = run(SVDLoRA(lr=schedule, momentum=momentum), W, Gs)
    assert distance(actual, X) < 1e-11
    assert state.count == STEPS
    if momentum:
        assert distance(state.M, M) < 1e-12
    else:
        assert state.M is None


def test_svdlora_keeps_balanced_factors(problem):
    W, Gs = problem
    X, _ = run(SVDLoRA(lr=0.1, momentum=0.9), W, Gs)
    np.testing.assert_allclose(X.U.T @ X.U, X.V.T @ X.V, rtol=0, atol=1e-12)
    assert (X.shape, X.rank) == (W.shape, 2)


def test_svdlora_moves_a_fresh_adapter(problem):
    (U, V), (G, *_) = problem
    X, _ = run(SVDLoRA(lr=0.1), LowRank(0 * U, V), [G])
    assert distance(X, truncated(-0.1 * dense(G), 2)) < 1e-13


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("low_rank", [True, False])
def test_full_training_is_torch_on_the_dense_matrix(problem, options, low_rank):
    torch = pytest.importorskip("torch")
    W, Gs = problem
    p = torch.nn.Parameter(torch.tensor(dense(W)))
    optimizer = torch.optim.SGD([p], lr=1.0, **options)
    for step, G in enumerate(Gs):
        optimizer.param_groups[0]["lr"] = schedule(step)
        p.grad = torch.tensor(dense(G))
        optimizer.step()
    actual, _ = run(Full(lr=schedule, **options), W if low_rank else dense(W), Gs)
    assert type(actual) is np.ndarray
    np.testing.assert_allclose(actual, p.detach().numpy(), rtol=1e-12, atol=1e-12)
