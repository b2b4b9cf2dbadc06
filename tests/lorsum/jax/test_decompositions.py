"""Decompositions of JAX arrays: values, derivatives, and that nothing waits for ever on a CPU of few threads."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapters import adapter, jit, normal, pair_of

from lorsum import _decompositions_in_jax as decompositions
from lorsum import gap, lorsum, optim, truncated_svd
from lorsum import jax as lj


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# No call of LAPACK has a batch


RULES = {
    **{f"oplora, K = {K}": lj.oplora(0.1, momentum=0.9, iters=K) for K in (1, 8)},
    "without momentum": lj.oplora(0.1),
    "coefficients": lj.oplora(0.1, momentum=0.9, method="coefficients"),
    "simultaneous": lj.oplora(0.1, momentum=0.9, simultaneous=True),
    "projected": lj.projected_oplora(0.1, momentum=0.9),
    "K-FAC": lj.scaled_oplora(0.1, scale=optim.KFAC(rank=2), momentum=0.9),
    "Shampoo": lj.scaled_oplora(0.1, scale=optim.Shampoo(rank=2)),
    "diagonal": lj.scaled_oplora(0.1, scale=optim.DiagonalScale(), momentum=0.9),
    "preconditioned": lj.preconditioned_sgd(0.1, momentum=0.9),
    "preconditioned adamw": lj.preconditioned_adamw(0.1),
    "svdlora": lj.svdlora(0.1, momentum=0.9),
}
FUNCTIONS = {
    "lorsum": lambda W, D: lorsum(W - 0.1 * D, iters=2, reg=0.1),
    "gram": lambda W, D: lorsum(W - 0.1 * D, reg=0.1, solver="gram"),
    "balanced": lambda W, D: lorsum(W - 0.1 * D, gauge="balanced"),
    "krylov": lambda W, D: lorsum(W - 0.1 * D, iters=2, accelerate="krylov"),
    "in a metric": lambda W, D: lorsum(W - 0.1 * D, metric=(D.to_dense() @ D.to_dense().mT + jnp.eye(40), None)),
    "truncated_svd": lambda W, D: truncated_svd(W - 0.1 * D, 2),
    "of a dense sum": lambda W, D: truncated_svd(W - 0.1 * D.to_dense(), 2, method="lapack"),
    "randomized": lambda W, D: truncated_svd(W - 0.1 * D, 2, method="randomized", rng=0),
    "gap": lambda W, D: gap(W, W - 0.1 * D),
    "singular values": lambda W, D: (W.singular_values(), D.norm()),
    "derivative": lambda W, D: jax.grad(lambda W: jnp.sum(lorsum(W - 0.1 * D).to_dense() ** 2))(W),
    "derivative of gap": lambda W, D: jax.grad(lambda W: gap(W, D).distance)(W),
}


def sizes_of_batches(function, *arguments):
    """How many matrices the calls of LAPACK in a program for a CPU have."""
    text = jax.jit(function).lower(*arguments).as_text()
    calls = re.findall(r"custom_call @lapack_[^\n]*? : \(tensor<([\dx]*)x[a-z]", text)
    assert calls
    return {int(np.prod([int(d) for d in shape.split("x")[:-2]])) for shape in calls}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_calls_lapack_for_one_matrix_at_a_time(rule):
    params = {f"{m}.{i}": adapter(i, m, 30, rank=3) for m in (40, 50) for i in range(3)}
    gradients = {name: pair_of(i, *W.shape, rows=5) for i, (name, W) in enumerate(params.items())}
    tx = RULES[rule]
    assert sizes_of_batches(tx.update, gradients, tx.init(params), params) == {1}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_calls_lapack_for_one_matrix_at_a_time(name):
    W, D = adapter(0, 4, 40, 30, rank=3), adapter(2, 4, 40, 30, rank=5)
    assert sizes_of_batches(jax.vmap(FUNCTIONS[name]), W, D) == {1}
    if "derivative" not in name and name != "in a metric":
        assert sizes_of_batches(FUNCTIONS[name], W, D) == {1}


MANY_SHAPES = """
import jax, jax.numpy as jnp, lorsum.jax as lj
from lorsum import LowRank
from lorsum.jax import Pair
def normal(seed, *shape): return jax.random.normal(jax.random.key(seed), shape)
params = [LowRank(normal(i, n, 8), normal(i + 1, 256, 8)) for n in (256, 384) for i in range(12)]
gradients = [Pair(normal(i, W.shape[0], 16), normal(i + 1, 256, 16)) for i, W in enumerate(params)]
tx = lj.oplora(1e-2, momentum=0.9)
state, update = tx.init(params), jax.jit(tx.update)
for _ in range(5): updates, state = jax.block_until_ready(update(gradients, state, params))
"""


def test_steps_of_many_adapters_end_on_few_threads():
    """XLA takes as many threads as NPROC says."""
    environment = os.environ | {"NPROC": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", MANY_SHAPES], env=environment, timeout=120, check=True)


# Values and derivatives


PLAIN = {
    "qr": (decompositions.qr, jnp.linalg.qr),
    "svd": (decompositions.svd, lambda A: jnp.linalg.svd(A, full_matrices=False)),
    "svdvals": (decompositions.svdvals, lambda A: jnp.linalg.svd(A, compute_uv=False)),
}
POSITIVE = {
    "eigh": (decompositions.eigh, jnp.linalg.eigh),
    "cholesky": (decompositions.cholesky, jnp.linalg.cholesky),
    "solve": (lambda A: decompositions.solve(A, A[..., :2] + 1), lambda A: jnp.linalg.solve(A, A[..., :2] + 1)),
}


def assert_same_with_derivatives(ours, theirs, A, dA):
    def everything(function):
        def total(A):
            return sum(jnp.sum(jnp.abs(x) ** 3) for x in jax.tree.leaves(function(A)))

        return lambda A, dA: (jax.jvp(lambda A: jax.tree.leaves(function(A)), (A,), (dA,)), jax.grad(total)(A))

    results = jit(lambda A, dA: (everything(ours)(A, dA), everything(theirs)(A, dA)))(A, dA)
    for actual, expected in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_decompositions_are_those_of_jax(name, shape, dtype, double):
    assert_same_with_derivatives(*PLAIN[name], *(random(seed, dtype, *shape) for seed in (0, 1)))


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("name", POSITIVE)
def test_those_of_positive_matrices_are_those_of_jax(name, dtype, double):
    A, dA = (random(seed, dtype, 2, 4, 4) for seed in (0, 1))
    assert_same_with_derivatives(*POSITIVE[name], A @ A.conj().mT + jnp.eye(4), dA + dA.conj().mT)


def random(seed, dtype, *shape):
    return normal(seed, *shape).astype(dtype) + (1j * normal(seed + 9, *shape) if dtype is complex else 0)


@pytest.mark.parametrize("name", PLAIN)
def test_derivatives_are_finite_where_columns_depend(name):
    for A in (jnp.zeros((5, 3)), jnp.ones((5, 3)), jnp.eye(5, 3), jnp.ones((3, 5))):
        total = jit(jax.grad(lambda A: sum(jnp.sum(x) for x in jax.tree.leaves(PLAIN[name][0](A)))))(A)
        assert np.isfinite(total).all()


def test_they_can_be_mapped_over_any_axis():
    A = normal(0, 5, 3, 4)
    mapped = jax.vmap(decompositions.qr, in_axes=2, out_axes=1)(A)
    for i in range(4):
        for actual, expected in zip(mapped, jnp.linalg.qr(A[..., i]), strict=True):
            np.testing.assert_allclose(actual[:, i], expected, atol=1e-5)
    B = normal(1, 4, 3, 2)
    solved = jax.vmap(decompositions.solve, in_axes=(None, 0))(A[:3, :, 0], B)
    np.testing.assert_allclose(solved, jnp.linalg.solve(A[None, :3, :, 0], B), rtol=1e-3, atol=1e-4)
