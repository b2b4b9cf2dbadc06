"""Every rule on torch tensors of every mix of dtypes, as autocast makes them, and on batches."""

import numpy as np
import pytest
import torch

from lorsum import LowRank, optim

RULES = {
    "SGD": optim.SGD(lr=0.1, momentum=0.9),
    "AdamW": optim.AdamW(lr=0.1),
    "PreconditionedSGD": optim.PreconditionedSGD(lr=0.1, momentum=0.9),
    "PreconditionedAdamW": optim.PreconditionedAdamW(lr=0.1),
    "OPLoRA": optim.OPLoRA(lr=0.1, momentum=0.9),
    "ProjectedOPLoRA": optim.ProjectedOPLoRA(lr=0.1, momentum=0.9),
    "SVDLoRA": optim.SVDLoRA(lr=0.1, momentum=0.9),
    "Full": optim.Full(lr=0.1, momentum=0.9),
    "Shampoo": optim.ScaledOPLoRA(lr=0.1, scale=optim.Shampoo(rank=3, damping=0.1)),
    "DiagonalScale": optim.ScaledOPLoRA(lr=0.1, scale=optim.DiagonalScale(damping=0.1)),
}
MIXES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
]
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def problem(dtype=np.float64, batch=()):
    rng = np.random.default_rng(0)
    shapes = [(6, 2), (5, 2), (6, 3), (5, 3)]
    U, V, S, X = (rng.normal(size=(*batch, *shape)).astype(dtype) for shape in shapes)
    return LowRank(U, V), LowRank(S, X)


def in_torch(A, dtype):
    return LowRank(*(torch.asarray(factor).to(dtype) for factor in A))


def after_two_steps(rule, W, G):
    state = rule.init(W, rng=0)
    for _ in range(2):
        W, state = rule.step(W, G, state)
    return W


def as_dense(W):
    return np.asarray(W.to_dense().double() if hasattr(W, "to_dense") else W.double())


@every_rule
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_the_adapter_keeps_its_dtype_and_moves_as_in_double(rule, dense, mix):
    W, G = problem()
    stepped = after_two_steps(rule, in_torch(W, mix[0]), _gradient(in_torch(G, mix[1]), dense))
    assert stepped.dtype == mix[0]
    expected = after_two_steps(rule, in_torch(W, torch.float64), _gradient(in_torch(G, torch.float64), dense))
    tolerance = 0.1 if torch.bfloat16 in mix else 1e-2 if torch.float16 in mix else 1e-4
    assert np.linalg.norm(as_dense(stepped) - as_dense(expected)) < tolerance * np.linalg.norm(as_dense(expected))


def _gradient(G, dense):
    return G.to_dense() if dense else G


@every_rule
@pytest.mark.parametrize("batch", [(4,), (6,), (5,)])  # a batch may be as large as a dimension
def test_a_batch_is_a_loop(rule, batch):
    W, G = problem(batch=batch)
    W = LowRank(W.U, np.abs(W.V))
    if isinstance(rule, optim.OPLoRA):  # the momentum's random factor is another one for each of a batch
        rule = type(rule)(lr=0.1, scale=rule.scale) if hasattr(rule, "scale") else type(rule)(lr=0.1)
    if hasattr(rule, "scale") and not isinstance(rule.scale, optim.DiagonalScale):
        rule = optim.ScaledOPLoRA(lr=0.1)
    stepped = after_two_steps(rule, W, G)
    stepped = stepped.to_dense() if hasattr(stepped, "to_dense") else stepped
    for i in range(batch[0]):
        one = after_two_steps(rule, LowRank(W.U[i], W.V[i]), LowRank(G.U[i], G.V[i]))
        one = one.to_dense() if hasattr(one, "to_dense") else one
        np.testing.assert_allclose(stepped[i], one, rtol=0, atol=1e-12)


@every_rule
@pytest.mark.parametrize("lr", [float("nan"), -1.0, "0.1"])
def test_what_a_schedule_returns_is_checked(rule, lr):
    W, G = problem()
    bad = type(rule)(**{**{f: getattr(rule, f) for f in rule.__dataclass_fields__}, "lr": lambda count: lr})
    with pytest.raises((ValueError, TypeError), match="`lr` is"):
        bad.step(W, G, bad.init(W, rng=0))


@every_rule
def test_a_gradient_of_another_shape_or_library_is_named(rule):
    W, G = problem()
    with pytest.raises(ValueError, match="`G` has shape"):
        rule.step(W, G.T, rule.init(W, rng=0))
    with pytest.raises(TypeError, match="`G`"):
        rule.step(W, in_torch(G, torch.float64), rule.init(W, rng=0))


@every_rule
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("library", [np.asarray, torch.asarray])
def test_the_imaginary_part_of_a_gradient_is_not_dropped(rule, dense, library):
    W, G = (LowRank(*map(library, A)) for A in problem())
    G = 1j * G.to_dense() if dense else LowRank(1j * G.U, G.V)
    with pytest.raises(TypeError, match=r"`G` has dtype .*complex128 and `W` .*float64: take the real part"):
        rule.step(W, G, rule.init(W, rng=0))
