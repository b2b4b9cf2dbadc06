"""Flax: adapters in modules of Linen and of NNX, merging, and files."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_adapters import trained

from lorsum import LowRank
from lorsum import jax as lj

pytest.importorskip("flax", reason="the extra `test` installs it")
pytest.importorskip("flatbuffers", reason="the extra `test` installs it")

from flax import linen, nnx, serialization

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 6))


def adapter(key, m, n, rank=2):
    """B = 0, and A uniform, as LoRA starts."""
    return LowRank(jnp.zeros((m, rank)), jax.random.uniform(key, (n, rank), minval=-(n**-0.5), maxval=n**-0.5))


def test_linen():
    """Frozen weights are one collection of variables, adapters another."""

    class Dense(linen.Module):
        features: int

        @linen.compact
        def __call__(self, x):
            kernel = self.param("kernel", linen.initializers.lecun_normal(), (x.shape[-1], self.features))
            W = self.variable("adapters", "kernel", adapter, KEY, self.features, x.shape[-1]).value
            return x @ kernel + lj.lora(x, W)

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return Dense(3)(jnp.tanh(Dense(5)(x)))

    model = Model()
    variables = model.init(KEY, X)
    params, adapters = variables["params"], variables["adapters"]

    def loss(adapters):
        return jnp.mean((model.apply({"params": params, "adapters": adapters}, X) - 1) ** 2)

    adapters, values = trained(loss, adapters, lj.oplora(0.3, momentum=0.9), 15)
    assert values[-1] < 0.3 * values[0]
    transposed = jax.tree.map(lambda W: W.T, adapters, is_leaf=lambda W: isinstance(W, LowRank))
    merged = lj.merge_into(params, transposed)  # a kernel is d_in × d_out
    none = jax.tree.map(jnp.zeros_like, adapters)
    expected, actual = (model.apply({"params": p, "adapters": W}, X) for p, W in ((params, adapters), (merged, none)))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


class Adapter(nnx.Variable):
    """A variable that holds a LowRank."""


def test_nnx():
    """Adapters are variables of a type of their own, by which ``nnx.split`` takes them out."""

    class Dense(nnx.Module):
        def __init__(self, d_in, d_out, rngs):
            self.base = nnx.Linear(d_in, d_out, rngs=rngs)
            self.W = Adapter(adapter(rngs.params(), d_out, d_in))

        def __call__(self, x):
            return self.base(x) + lj.lora(x, self.W.get_value())

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = Dense(6, 5, rngs), Dense(5, 3, rngs)

        def __call__(self, x):
            return self.two(jnp.tanh(self.one(x)))

    graph, adapters, others = nnx.split(Model(nnx.Rngs(0)), Adapter, ...)

    def loss(adapters):
        return jnp.mean((nnx.merge(graph, adapters, others)(X) - 1) ** 2)

    adapters, values = trained(loss, adapters, lj.oplora(0.3, momentum=0.9), 15)
    assert values[-1] < 0.3 * values[0]
    model = nnx.merge(graph, adapters, others)
    assert isinstance(model.one.W.get_value(), LowRank)


def test_bytes():
    """As checkpoints of Flax are written: what is read goes into a target of the same structure."""
    params = {"W": LowRank(jnp.ones((4, 2)), jnp.ones((3, 2))), "b": jnp.arange(3.0)}
    tx = optax.multi_transform(
        {"adapters": lj.apply_if_finite(lj.multi_steps(lj.oplora(0.1, momentum=0.9), 2)), "others": optax.adam(0.1)},
        lj.labels(params),
    )
    saved = (params, tx.init(params), params["W"] - 0.5 * params["W"])
    zero = jax.tree.map(lambda x: 0 * x, saved)
    loaded = serialization.from_bytes(zero, serialization.to_bytes(saved))
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    for actual, expected in zip(*map(jax.tree.leaves, (loaded, saved)), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert set(serialization.to_state_dict(params["W"])) == {"U", "V"}
    with pytest.raises(ValueError, match=r"parts \('U', 'V'\)"):
        serialization.from_state_dict(params["W"], {"kernel": jnp.ones(3)})


@pytest.mark.parametrize("tx", [lj.oplora(0.1, momentum=0.9), lj.multi_steps(lj.preconditioned_adamw(0.1), 2)])
def test_exported_steps(tx):
    """Adapters, pairs and states pass a program in a file."""
    params = {"W": LowRank(jnp.ones((4, 2)), jnp.eye(3, 2))}

    def step(params, state, x):
        gradients = lj.grad(lambda params: jnp.mean(lj.lora(x, params["W"]) ** 2), gradient="pairs")(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, gradients, 2 * params["W"]

    arguments = params, tx.init(params), jax.random.normal(KEY, (5, 3))
    file = jax.export.export(jax.jit(step))(*arguments).serialize()
    for actual, expected in zip(
        *map(jax.tree.leaves, (jax.export.deserialize(file).call(*arguments)[:2], step(*arguments)[:2])), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
