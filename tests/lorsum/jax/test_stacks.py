"""Gradients of adapters that come out of stacks, in any order or by an index, of tied adapters and of sums of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapters import adapter, jit, normal

from lorsum import LowRank, LowRankSum
from lorsum.jax import Pair, grad, lora, value_and_grad


def product(x, W):
    """With an adapter or, for comparison, with a matrix."""
    return lora(x, W) if isinstance(W, (LowRank, LowRankSum)) else jnp.einsum("...n,mn->...m", x, W)


def assert_exact(loss, W, gradient):
    @jit
    def both(W, D):
        return grad(loss, gradient=gradient)(W), jax.grad(loss)(D)

    G, expected = both(W, W.to_dense())
    assert G.shape == W.shape and isinstance(G, Pair) == (gradient == "pairs")
    G, expected = (np.asarray(A.to_dense() if isinstance(A, Pair) else A) for A in (G, expected))
    assert np.linalg.norm(expected) > 1e-3
    assert np.linalg.norm(G - expected) <= 1e-5 * np.linalg.norm(expected)


# In any order


X = normal(2, 5, 6)


def scanned(W, x=X):
    """Layers one after another."""
    return jax.lax.scan(lambda h, own: (jnp.tanh(product(h, own)), None), x, W)[0]


def mapped_over_models_of_scanned_layers(W):
    return (jax.vmap(scanned)(W) ** 2).sum()


def mapped_over_the_second_axis(W):
    return (jax.vmap(scanned, in_axes=1)(W) ** 2).sum()


def mapped_twice(W):
    return (jax.vmap(jax.vmap(lambda W: product(X, W)), in_axes=1, out_axes=2)(W) ** 3).sum()


def scanned_twice(W):
    return jax.lax.scan(lambda h, own: (scanned(own, h), None), X, W)[0].sum()


def scanned_over_mapped(W):
    def layer(hs, own):
        return jnp.tanh(jax.vmap(product)(hs, own)), None

    return (jax.lax.scan(layer, normal(3, 4, 5, 6), W)[0] ** 2).sum()


def mapped_over_models_and_inputs(W):
    run = jax.vmap(lambda x: jax.vmap(lambda own: scanned(own, x))(W))
    return (run(normal(3, 2, 5, 6)) ** 2).sum()


@pytest.mark.parametrize("gradient", ["pairs", "dense"])
@pytest.mark.parametrize(
    "loss",
    [
        mapped_over_models_of_scanned_layers, mapped_over_the_second_axis, mapped_twice, scanned_twice,
        scanned_over_mapped, mapped_over_models_and_inputs,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_stacks_in_any_order(loss, gradient):
    assert_exact(loss, adapter(0, 3, 4, 6, 6), gradient)


# Tied, and sums


def tied(W):
    transposed = W.T if isinstance(W, LowRank) else W.mT
    return (product(jnp.tanh(product(X, W)), transposed) ** 2).sum()


def tied_in_a_scan(W):
    def layer(h, own):
        transposed = own.T if isinstance(own, LowRank) else own.mT
        return product(jnp.tanh(product(h, own)), transposed), None

    return (jax.lax.scan(layer, X, W)[0] ** 2).sum()


def tied_and_mapped(W):
    return jax.vmap(tied)(W).sum()


def behind_a_barrier(W):
    if isinstance(W, LowRank):
        V, U = jax.lax.optimization_barrier((W.V, W.U))
        W = LowRank(U, V)
    return tied(W)


@pytest.mark.parametrize("gradient", ["pairs", "dense"])
@pytest.mark.parametrize(
    ("loss", "shape"),
    [(tied, (7, 6)), (tied_in_a_scan, (3, 7, 6)), (tied_and_mapped, (3, 7, 6)), (behind_a_barrier, (7, 6))],
    ids=str,
)
def test_tied_adapters(loss, shape, gradient):
    assert_exact(loss, adapter(0, *shape), gradient)


@pytest.mark.parametrize("gradient", ["pairs", "dense"])
def test_sums_of_adapters(gradient):
    assert_exact(lambda W: (product(X, 2 * W - 0.5 * W) ** 2).sum(), adapter(0, 7, 6), gradient)
    assert_exact(lambda W: (product(X, -W) ** 3).sum(), adapter(0, 7, 6), gradient)


# By an index


EXPERTS = jnp.array([1, 4, 1, 0, 2])


def taken(W, i):
    return jax.tree.map(lambda a: a[i], W)


def by_numbers(W):
    return (product(X, taken(W, 1)) ** 2).sum() + (product(X, taken(W, -1)) ** 3).sum()


def by_slices(W):
    return scanned(jax.tree.map(lambda a: a[1:4], W)).sum() + scanned(jax.tree.map(lambda a: a[::2], W)).sum()


def routed(W):
    return (jax.vmap(lambda x, i: product(x, taken(W, i)))(X, EXPERTS) ** 2).sum()


def routed_by_take(W):
    of = lambda i: jax.tree.map(lambda a: jnp.take(a, i, axis=0), W)  # noqa: E731
    return (jax.vmap(lambda x, i: product(x, of(i)))(X, EXPERTS) ** 2).sum()


def routed_by_an_index_of_the_slice(W):
    of = lambda i: jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), W)  # noqa: E731
    return jax.checkpoint(lambda x: jax.vmap(lambda x, i: product(x, of(i)))(x, EXPERTS))(X).sum() ** 2


def counted_in_a_loop(W):
    return jax.lax.fori_loop(0, 5, lambda i, h: jnp.tanh(product(h, taken(W, i))), X).sum()


def some_at_once(W):
    return (jax.vmap(lambda W: product(X, W))(taken(W, jnp.array([0, 2, 2]))) ** 2).sum()


def reshaped(W):
    W = jax.tree.map(lambda a: a[:4].reshape(2, 2, *a.shape[1:]), W)
    return jax.vmap(scanned)(W).sum()


def beside_a_scan(W):
    return by_numbers(W) + scanned(W).sum()


def tied_by_an_index(W):
    return tied(taken(W, jnp.argmax(EXPERTS)))


def behind_a_barrier_out_of_a_stack(W):
    return behind_a_barrier(taken(W, 1))


def in_branches(W):
    return jax.lax.switch(EXPERTS[0], [lambda: 0.0, lambda: by_numbers(W), lambda: scanned(W).sum()])


@pytest.mark.parametrize("gradient", ["auto", "dense"])
@pytest.mark.parametrize(
    "loss",
    [
        by_numbers, by_slices, routed, routed_by_take, routed_by_an_index_of_the_slice, counted_in_a_loop, some_at_once,
        reshaped, beside_a_scan, tied_by_an_index, behind_a_barrier_out_of_a_stack, in_branches,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_adapters_out_of_a_stack(loss, gradient):
    assert_exact(loss, adapter(0, 5, 6, 6), gradient)


def test_products_of_two_precisions_with_one_adapter():
    def loss(W):
        own = taken(W, 1)
        return sum((product(x, own) ** 2).sum() for x in (X, X.astype(jnp.float64)))

    with jax.enable_x64(True):
        assert_exact(loss, adapter(0, 5, 6, 6).astype(jnp.float32), "dense")


def mixed(W, i, j):
    return product(X, LowRank(W.U[i], W.V[j])).sum()


@jax.jit
def picked(a, t):
    return a[jnp.int32(5 * t)]


@pytest.mark.parametrize(
    "loss",
    [
        lambda W: mixed(W, 0, 1),
        lambda W: mixed(W, EXPERTS[0], EXPERTS[1]),
        lambda W: jax.vmap(product, (None, 0))(X, LowRank(W.U[jnp.array([0, 1])], W.V[jnp.array([0, 2])])).sum(),
        lambda W: product(X, LowRank(picked(W.U, X[0, 0] ** 2), picked(W.V, X[0, 1] ** 2))).sum(),
        lambda W: jax.vmap(product, (None, 0))(X, LowRank(W.U[:2], W.V[1:3])).sum(),
    ],
)
def test_factors_of_two_adapters_of_a_stack_are_refused(loss):
    with pytest.raises(ValueError, match="two adapters"):
        value_and_grad(loss)(adapter(0, 5, 6, 6))


def test_pairs_of_what_is_selected_are_refused():
    with pytest.raises(NotImplementedError, match=r"`gradient` is 'pairs'.*out of a stack"):
        grad(routed, gradient="pairs")(adapter(0, 5, 6, 6))
