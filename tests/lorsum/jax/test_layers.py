"""Layers of Equinox with adapters: they call what they wrap, whatever it is; what is trained, and merging."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapters import normal, trained

from lorsum import LowRank
from lorsum import jax as lj

KEY = jax.random.key(0)


def everywhere(name, layer):
    return True


def with_adapters_set(model):
    """B is zero at first, and an adapter would not show."""
    return jax.tree.map(
        lambda W: LowRank(normal(1, *W.U.shape), W.V) if isinstance(W, LowRank) else W,
        model,
        is_leaf=lambda x: isinstance(x, LowRank),
    )


class Scaled(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return 0.25 * super().__call__(x)


class WithoutKey(eqx.nn.Linear):
    def __call__(self, x):
        return jnp.tanh(super().__call__(x))


class Noisy(eqx.nn.Linear):
    def __call__(self, x, *, key):
        return super().__call__(x) + jax.random.normal(key, (self.out_features,))


class Rows(eqx.nn.Linear):
    """Takes whole sequences, and looks at more than a row."""

    def __call__(self, x, *, key=None):
        y = x @ self.weight.T
        return y - y.mean(axis=0)


class Counted(eqx.nn.Linear):
    def __call__(self, x, count, *, key=None):
        return super().__call__(x) * count, count + 1


class Gained(eqx.nn.Linear):
    """Has more fields, and computes as a linear layer does."""

    gain: float = 2.0


class ScaledConv(eqx.nn.Conv2d):
    def __call__(self, x, *, key=None):
        return 0.5 * super().__call__(x)


LAYERS = {
    "plain": (eqx.nn.Linear(6, 5, key=KEY), (6,), {}),
    "no bias": (eqx.nn.Linear(6, 5, use_bias=False, key=KEY), (6,), {}),
    "scaled": (Scaled(6, 5, key=KEY), (6,), {"key": KEY}),
    "without key": (WithoutKey(6, 5, key=KEY), (6,), {}),
    "noisy": (Noisy(6, 5, key=KEY), (6,), {"key": KEY}),
    "rows": (Rows(6, 5, key=KEY), (4, 6), {}),
    "state": (Counted(6, 5, key=KEY), (6,), {"count": 3.0}),
    "more fields": (Gained(6, 5, key=KEY), (6,), {}),
    "convolution": (eqx.nn.Conv2d(3, 5, 3, padding=1, key=KEY), (3, 7, 7), {}),
    "scaled convolution": (ScaledConv(3, 5, 3, key=KEY), (3, 7, 7), {"key": KEY}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_that_is_adapted_is_called(name):
    layer, shape, options = LAYERS[name]
    x = normal(2, *shape)
    adapted = lj.add_lora(layer, 2, targets=everywhere, key=KEY)
    expected, actual = layer(x, **options), adapted(x, **options)
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    moved = jax.tree.leaves(with_adapters_set(adapted)(x, **options))[0] - jax.tree.leaves(expected)[0]
    W = with_adapters_set(adapted).W
    product = lj.lora(x, W) if shape[-1] == 6 else lj.lora_conv(x, W, (3, 3), padding=layer.padding)
    np.testing.assert_allclose(moved, product, rtol=1e-4, atol=1e-4)


def test_a_key_reaches_layers_that_take_none():
    model = eqx.nn.Sequential([WithoutKey(6, 5, key=KEY), eqx.nn.Lambda(jnp.sin), Scaled(5, 4, key=KEY)])
    x = normal(2, 6)
    adapted = lj.add_lora(model, 2, key=KEY)
    np.testing.assert_allclose(adapted(x, key=KEY), model[2](jnp.sin(model[0](x))), rtol=1e-5, atol=1e-6)


def test_attention_and_embeddings():
    attention = eqx.nn.MultiheadAttention(2, 8, key=KEY)
    model = {"tokens": eqx.nn.Embedding(11, 8, key=KEY), "attention": attention}
    adapted = lj.add_lora(model, 2, targets=lambda name, layer: name.endswith("_proj"), key=KEY)
    projections = ("query_proj", "key_proj", "value_proj", "output_proj")
    assert all(isinstance(getattr(adapted["attention"], name), lj.LoRALinear) for name in projections)
    x = jax.vmap(adapted["tokens"])(jnp.arange(5))
    np.testing.assert_allclose(adapted["attention"](x, x, x), attention(x, x, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"no layer of `model`.*equinox.nn.Linear.*lorsum.jax.lora"):
        lj.add_lora(model, 2, targets=lambda name, layer: "tokens" in name, key=KEY)


def test_a_layer_that_stands_twice_in_the_tree():
    layer = eqx.nn.Linear(6, 6, key=KEY)
    model, x = [layer, layer], normal(2, 6)
    adapted = lj.add_lora(model, 2, key=KEY)
    np.testing.assert_allclose(adapted[1](adapted[0](x)), layer(layer(x)), rtol=1e-5, atol=1e-6)
    params, frozen = lj.partition(adapted)
    np.testing.assert_array_equal(eqx.combine(params, frozen)[1].base.weight, layer.weight)


# What is trained


def test_adapters_alone_are_trained_unless_others_are_asked_for():
    model = {"embedding": eqx.nn.Embedding(9, 6, key=KEY), "mlp": eqx.nn.MLP(6, 3, 5, 1, key=KEY), "scale": jnp.ones(3)}
    adapted = lj.add_lora(model, 2, targets=lambda name, layer: "layers[0]" in name, key=KEY)

    def trained(**options):
        params, frozen = lj.partition(adapted, **options)
        whole = eqx.combine(params, frozen)
        assert jax.tree.structure(whole) == jax.tree.structure(adapted)
        return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}

    adapter = {"['mlp'].layers[0].W.U", "['mlp'].layers[0].W.V"}
    biases = {"['mlp'].layers[0].base.bias", "['mlp'].layers[1].bias"}
    assert trained() == adapter
    assert trained(others=lambda name, array: name.endswith("bias")) == adapter | biases
    assert trained(others=True) == adapter | biases | {"['embedding'].weight", "['mlp'].layers[1].weight", "['scale']"}
    with pytest.raises(ValueError, match="has no adapter"):
        lj.partition(model)


def test_adapters_alone_learn():
    model = with_adapters_set(lj.add_lora(eqx.nn.MLP(6, 3, 5, 1, key=KEY), 2, key=KEY))
    params, frozen = lj.partition(model)
    x = normal(3, 8, 6)

    def loss(params):
        return jnp.mean((jax.vmap(eqx.combine(params, frozen))(x) - 1) ** 2)

    params, values = trained(loss, params, lj.oplora(0.1, momentum=0.9), 20)
    assert values[-1] < 0.2 * values[0]
    merged = lj.merge(eqx.combine(params, frozen))
    np.testing.assert_allclose(jax.vmap(merged)(x), jax.vmap(eqx.combine(params, frozen))(x), rtol=1e-3, atol=1e-4)


# Merging


def test_a_merged_model_computes_the_same():
    model = eqx.nn.Sequential(
        [eqx.nn.Conv2d(3, 5, 3, stride=2, key=KEY), eqx.nn.Lambda(jnp.ravel), Gained(45, 4, key=KEY)]
    )
    adapted = with_adapters_set(lj.add_lora(model, 2, targets=everywhere, alpha=3.0, key=KEY))
    merged, x = lj.merge(adapted), normal(2, 3, 7, 7)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    np.testing.assert_allclose(merged(x), adapted(x), rtol=1e-4, atol=1e-4)
    assert not np.allclose(merged(x), model(x))


def test_a_merged_stack_of_layers_computes_the_same():
    def layer(key):
        return lj.LoRALinear(eqx.nn.Linear(6, 5, key=key), 2, key=key)

    stack = with_adapters_set(eqx.filter_vmap(layer)(jax.random.split(KEY, 3)))
    x = normal(2, 6)
    run = eqx.filter_vmap(lambda layer: layer(x))
    np.testing.assert_allclose(run(lj.merge(stack)), run(stack), rtol=1e-4, atol=1e-4)


def test_merging_keeps_half_precision_and_its_digits():
    layer = jax.tree.map(lambda a: a.astype(jnp.bfloat16), eqx.nn.Linear(6, 5, key=KEY))
    adapted = with_adapters_set(lj.LoRALinear(layer, 2, key=KEY))
    weight = lj.merge(adapted).weight
    exact = layer.weight.astype(jnp.float32) + adapted.W.astype(jnp.float32).to_dense()
    assert weight.dtype == jnp.bfloat16
    np.testing.assert_array_equal(weight, exact.astype(jnp.bfloat16))


def test_what_cannot_be_merged_is_named():
    with pytest.raises(ValueError, match=r"`model\[0\]` adapts a Scaled, which computes otherwise"):
        lj.merge(lj.add_lora([Scaled(6, 5, key=KEY)], 2, key=KEY))
    with pytest.raises(ValueError, match="no layer with an adapter"):
        lj.merge(eqx.nn.MLP(6, 3, 5, 1, key=KEY))


def test_merging_into_a_pytree():
    weights = {"a": {"kernel": normal(0, 6, 5), "bias": normal(1, 5)}, "b": {"kernel": normal(2, 5, 4)}}
    W = LowRank(normal(3, 5, 2), normal(4, 6, 2))
    merged = lj.merge_into(weights, {"a": {"kernel": W.T}, "b": None}, scaling=0.5)
    np.testing.assert_allclose(merged["a"]["kernel"], weights["a"]["kernel"] + 0.5 * W.to_dense().T, rtol=1e-6)
    np.testing.assert_array_equal(merged["b"]["kernel"], weights["b"]["kernel"])
    with pytest.raises(ValueError, match=r"`adapters\['a'\]\['kernel'\]` has shape \(5, 6\), but the weight"):
        lj.merge_into(weights, {"a": {"kernel": W}})
    with pytest.raises(ValueError, match="is missing"):
        lj.merge_into(weights, {"c": W})
