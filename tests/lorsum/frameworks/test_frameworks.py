"""The paper's linear task gives the same curves on NumPy arrays, as an optimizer of PyTorch and in JAX."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import lorsum.jax
import lorsum.torch
from analysis.studies.linear import D_IN, D_OUT, RANK
from lorsum import LowRank, optim, truncated_svd

EPOCHS = {"full batch": 6, "mini-batch": 4}
BATCH = {"full batch": D_IN, "mini-batch": 64}
NAMES = {"OPLoRA": "oplora", "ProjectedOPLoRA": "projected_oplora", "PreconditionedSGD": "preconditioned_sgd",
         "PreconditionedAdamW": "preconditioned_adamw", "SVDLoRA": "svdlora"}  # fmt: skip
METHODS = [
    ("full batch", "OPLoRA", {"lr": 0.5, "iters": 1}),
    ("full batch", "OPLoRA", {"lr": 0.5, "iters": 8}),
    ("full batch", "SVDLoRA", {"lr": 0.5}),
    ("full batch", "PreconditionedSGD", {"lr": 0.48}),
    ("mini-batch", "OPLoRA", {"lr": 0.1, "momentum": 0.75, "iters": 1}),
    ("mini-batch", "OPLoRA", {"lr": 0.1, "momentum": 0.75, "iters": 2, "momentum_rank": 2 * RANK}),
    ("mini-batch", "ProjectedOPLoRA", {"lr": 0.1, "momentum": 0.75, "iters": 2}),
    ("mini-batch", "SVDLoRA", {"lr": 0.1, "momentum": 0.75}),
    ("mini-batch", "PreconditionedSGD", {"lr": 0.1, "momentum": 0.75}),
    ("mini-batch", "PreconditionedAdamW", {"lr": 0.05}),
    ("mini-batch", "OPLoRA", {"lr": 0.1, "momentum": 0.75, "weight_decay": 0.1}),
    ("mini-batch", "ProjectedOPLoRA", {"lr": 0.1, "momentum": 0.75, "weight_decay": 0.1}),
    ("mini-batch", "SVDLoRA", {"lr": 0.1, "momentum": 0.75, "weight_decay": 0.1}),
    ("mini-batch", "PreconditionedSGD", {"lr": 0.1, "momentum": 0.75, "weight_decay": 0.1}),
]
# With the loss's sign changed as well, ascent is the same descent
METHODS += [(kind, method, {**options, "maximize": True}) for kind, method, options in METHODS[-4:]]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@cache
def task():
    """A, the adapter at the start, and the best loss of its rank."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((D_IN, D_OUT)).T
    start = truncated_svd(rng.uniform(-(D_IN**-0.5), D_IN**-0.5, (D_OUT, D_IN)), RANK).to_lowrank()
    return A, start, float(np.sum(np.linalg.svd(A, compute_uv=False)[RANK:] ** 2))


def batches(kind):
    """Rows of the identity, for each step of each epoch."""
    shuffle = np.random.default_rng(1)
    for _ in range(EPOCHS[kind]):
        order = shuffle.permutation(D_IN) if BATCH[kind] < D_IN else np.arange(D_IN)
        yield [np.eye(D_IN)[order[first : first + BATCH[kind]]] for first in range(0, D_IN, BATCH[kind])]


def curve(kind, step, matrix):
    """The excess at the start and after each epoch."""
    A, _, best = task()
    excess = [float(np.sum((matrix() - A) ** 2)) - best]
    for epoch in batches(kind):
        for X in epoch:
            step(X, X @ A.T)
        excess.append(float(np.sum((matrix() - A) ** 2)) - best)
    return np.array(excess)


def sign_of(options):
    return -1 if options.get("maximize") else 1


def in_numpy(kind, method, options):
    rule, W = getattr(optim, method)(**options), task()[1]
    seed = int(np.random.default_rng(0).integers(2**52))  # as the adapters of the frameworks draw the first one's
    held = [W, rule.init(W, rng=np.random.default_rng([seed, 0]))]

    def step(X, Y):
        S = sign_of(options) * 2 * (X @ held[0].T - Y)
        held[:] = rule.step(held[0], LowRank(S.T, X.T), held[1])

    return curve(kind, step, lambda: held[0].to_dense())


def in_torch(kind, method, options):
    """By autograd, through a layer."""
    W = task()[1]
    layer = lorsum.torch.LoRALinear(torch.nn.Linear(D_IN, D_OUT, bias=False, dtype=torch.float64), RANK)
    with torch.no_grad():
        layer.base.weight.zero_()
        layer.lora_B.weight.copy_(torch.from_numpy(W.U.copy()))
        layer.lora_A.weight.copy_(torch.from_numpy(W.V.T.copy()))
    optimizer = getattr(lorsum.torch, method)(layer, **options)

    def step(X, Y):
        optimizer.zero_grad()
        (sign_of(options) * ((layer(torch.from_numpy(X)) - torch.from_numpy(Y)) ** 2).sum()).backward()
        optimizer.step()

    return curve(kind, step, lambda: layer.weight.detach().numpy())


def in_jax(kind, method, options):
    """Compiled, by autodiff, through a product."""
    tx = getattr(lorsum.jax, NAMES[method])(**options)
    W = LowRank(*map(jnp.asarray, task()[1]))
    held = [W, tx.init(W)]

    @jax.jit
    def stepped(W, state, X, Y):
        G = lorsum.jax.grad(lambda W: sign_of(options) * jnp.sum((lorsum.jax.lora(X, W) - Y) ** 2))(W)
        updates, state = tx.update(G, state, W)
        return optax.apply_updates(W, updates), state

    def step(X, Y):
        held[:] = stepped(*held, X, Y)

    return curve(kind, step, lambda: np.asarray(held[0].to_dense()))


@pytest.mark.parametrize(("kind", "method", "options"), METHODS, ids=str)
def test_three_frameworks_give_the_same_curve(kind, method, options):
    expected = in_numpy(kind, method, options)
    assert expected[-1] < 0.9 * expected[0]
    rounding = 1e-14 * task()[2]  # full-batch SVDLoRA is at the optimum after one step
    np.testing.assert_allclose(in_torch(kind, method, options), expected, rtol=1e-6, atol=rounding)
    np.testing.assert_allclose(in_jax(kind, method, options), expected, rtol=1e-6, atol=rounding)
