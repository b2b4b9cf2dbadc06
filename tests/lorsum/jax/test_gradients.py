"""The gradient with respect to the matrix of an adapter, against ``jax.grad``, in every kind of program."""

import functools

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapters import adapter, jit, normal

from lorsum import LowRank
from lorsum.jax import LoRAConv2d, LoRALinear, add_lora, grad, lora, lora_conv, partition, value_and_grad

FORMS = ("auto", "pairs", "dense")
SINGLE, DOUBLE = 1e-5, 1e-11


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def product(x, W):
    """With an adapter or, for comparison, with a matrix."""
    if isinstance(W, LowRank):
        return lora(x, W)
    return jnp.einsum("...n,mn->...m" if W.ndim == 2 else "l...n,lmn->l...m", x, W)


def size(y):
    return jnp.sum(y**2) + jnp.sin(y).sum()


def matrices(params):
    """The same with dense matrices in place of adapters."""
    return {name: W.to_dense() if isinstance(W, LowRank) else W for name, W in params.items()}


def as_matrix(G):
    return G.to_dense() if isinstance(G, LowRank) else G


def assert_close(actual, expected, tolerance=SINGLE):
    actual, expected = (np.asarray(a, np.complex128) for a in (actual, expected))
    assert actual.shape == expected.shape
    assert np.linalg.norm(expected) > 1e-3
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def assert_exact(loss, params, gradient, tolerance=DOUBLE):
    """Pairs against the gradients of a dense matrix, and of the factors: G V and Gᵀ U."""

    @jit
    def everything(params):
        of_matrices = jax.value_and_grad(loss)(matrices(params))
        return value_and_grad(loss, gradient=gradient)(params), of_matrices, jax.grad(loss)(params)

    (value, gradients), (expected_value, of_matrices), of_factors = everything(params)
    assert_close(value, expected_value, tolerance)
    assert gradients.keys() == params.keys()
    for name, W in params.items():
        if not isinstance(W, LowRank):
            assert_close(gradients[name], of_factors[name], tolerance)
            continue
        G = as_matrix(gradients[name])
        assert_close(G, of_matrices[name], tolerance)
        assert_close(G @ W.V, of_factors[name].U, tolerance)
        assert_close(G.mT @ W.U, of_factors[name].V, tolerance)
    return gradients


# Programs of two layers, W: 7 × 9 and Z: 9 × 7, with a bias


def layers(params, x):
    return product(jnp.tanh(product(x, params["W"]) + params["b"]), params["Z"])


def plain(params):
    return size(layers(params, normal(5, 6, 9)))


def one_row(params):
    return size(layers(params, normal(5, 9)))


def three_dimensional(params):
    return size(layers(params, normal(5, 2, 3, 9)))


def vmapped(params):
    return size(jax.vmap(functools.partial(layers, params))(normal(5, 6, 9)))


def vmapped_over_other_axes(params):
    inner = jax.vmap(functools.partial(layers, params), in_axes=1, out_axes=1)
    return size(jax.vmap(inner, in_axes=2)(normal(5, 9, 3, 4)))


def vmapped_losses(params):
    return jax.vmap(lambda x: size(layers(params, x)))(normal(5, 6, 9)).mean()


def jitted(params):
    return size(jax.jit(jax.jit(layers))(params, normal(5, 6, 9)))


def scanned_micro_batches(params):
    def add(total, x):
        return total + size(layers(params, x)) / 4, None

    return jax.lax.scan(add, 0.0, normal(5, 4, 3, 9))[0]


def scanned_twice(params):
    def add(total, xs):
        return jax.lax.scan(lambda t, x: (t + size(layers(params, x)), None), total, xs)

    return jax.lax.scan(lambda t, xs: (add(t, xs)[0], None), 0.0, normal(5, 2, 4, 3, 9), reverse=True, unroll=2)[0]


def recurrent(params):
    """The same layers again on what they gave."""

    def again(state, x):
        y = layers(params, state + x)
        return jnp.tanh(jnp.pad(y, (0, 2))), y

    state, ys = jax.lax.scan(again, normal(5, 9), normal(6, 5, 9))
    return size(state[:7]) + size(ys)


def loop_of_fixed_length(params):
    return jax.lax.fori_loop(0, 3, lambda i, t: t + size(layers(params, normal(5, 4, 9) * (i + 1))), 0.0)


def checkpointed(params):
    return size(jax.checkpoint(layers)(params, normal(5, 6, 9)))


def checkpointed_by_a_policy(params):
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return size(jax.checkpoint(layers, policy=policy, prevent_cse=False)(params, normal(5, 6, 9)))


def checkpointed_in_a_scan(params):
    def add(total, x):
        return total + size(jax.checkpoint(layers)(params, x)), None

    return jax.checkpoint(lambda xs: jax.lax.scan(add, 0.0, xs)[0])(normal(5, 4, 3, 9))


def branches(params):
    x = normal(5, 6, 9)
    chosen = jax.lax.cond(params["b"][0] > -100, lambda x: size(layers(params, x)), lambda x: size(x), x)
    choices = [lambda: 0.0, lambda: size(layers(params, x[:1])), lambda: size(product(x[:4], params["W"]))]
    return chosen + jax.lax.switch(2 + 0 * jnp.int32(params["b"][0]), choices)


def branches_of_a_loop(params):
    def add(total, i):
        x = normal(5, 3, 9) + i
        both = jax.lax.cond(i % 2 == 0, lambda: size(layers(params, x)), lambda: size(product(x, params["W"])))
        return total + both, None

    return jax.lax.scan(add, 0.0, jnp.arange(5))[0]


def called_twice(params):
    return size(layers(params, normal(5, 6, 9))) + size(product(normal(6, 2, 4, 9), params["W"]))


def called_in_a_vmap_of_a_checkpointed_scan(params):
    run = jax.checkpoint(lambda xs: jax.lax.scan(lambda t, x: (t + size(layers(params, x)), None), 0.0, xs)[0])
    return jax.vmap(run)(normal(5, 4, 3, 9)).sum()


def scaled(params):
    return size(2.5 * product(normal(5, 6, 9), params["W"])) + size(layers(params, normal(6, 3, 9)))


def with_dropout(params):
    kept = jax.random.bernoulli(jax.random.key(9), 0.5, (6, 9))
    return size(layers(params, jnp.where(kept, normal(5, 6, 9) * 2, 0)))


def with_functions_of_their_own_derivative(params):
    y = jax.nn.softplus(jax.nn.relu(layers(params, normal(5, 6, 9))))
    return -jax.nn.log_softmax(y)[:, 0].mean() * 10


def with_a_stop(params):
    """What is used without a derivative is no matter."""
    norm = jax.lax.stop_gradient(jnp.linalg.norm(product(jnp.eye(9), params["W"])))
    return plain(params) / norm


def carried_in_a_loop(params):
    def again(carried, x):
        W, total = carried
        return (W, total + size(product(x, W))), None

    return jax.lax.scan(again, (params["W"], plain(params)), normal(5, 3, 2, 9))[0][1]


def with_a_derivative_along_inputs(params):
    """As in a gradient penalty: products with W and with Wᵀ."""
    return plain(params) + size(jax.grad(lambda x: size(layers(params, x)))(normal(6, 3, 9)))


def with_a_laplacian(params):
    """As in a differential equation: forward over reverse, mapped."""
    laplacian = lambda x: jnp.trace(jax.hessian(lambda x: size(layers(params, x)))(x))  # noqa: E731
    return plain(params) + size(jax.vmap(laplacian)(normal(6, 3, 9)))


def with_a_derivative_of_loops(params):
    def again(x, _):
        return jnp.pad(jax.checkpoint(layers)(params, x), (0, 2)), None

    def end(x):
        return size(jax.lax.scan(again, x, None, length=3)[0])

    return plain(params) + size(jax.grad(end)(normal(6, 9)))


PROGRAMS = [
    plain, one_row, three_dimensional, vmapped, vmapped_over_other_axes, vmapped_losses, jitted, scanned_micro_batches,
    scanned_twice, recurrent, loop_of_fixed_length, checkpointed, checkpointed_by_a_policy, checkpointed_in_a_scan,
    branches, branches_of_a_loop, called_twice, called_in_a_vmap_of_a_checkpointed_scan, scaled, with_dropout,
    with_functions_of_their_own_derivative, with_a_stop, carried_in_a_loop, with_a_derivative_along_inputs,
    with_a_laplacian, with_a_derivative_of_loops,
]  # fmt: skip


def two_layers():
    return {"W": adapter(0, 7, 9), "b": normal(4, 7), "Z": adapter(2, 7, 7)}


@pytest.mark.parametrize("gradient", FORMS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_pairs_are_exact(program, gradient, double):
    assert_exact(program, two_layers(), gradient)


@pytest.mark.parametrize("gradient", FORMS)
@pytest.mark.parametrize("program", [plain, called_in_a_vmap_of_a_checkpointed_scan], ids=lambda f: f.__name__)
def test_pairs_are_exact_in_single_precision(program, gradient):
    assert_exact(program, two_layers(), gradient, SINGLE)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    def in_parts(params, x):
        add = lambda total, part: (total + jnp.sum(layers(params, part) ** 2) / 12, None)  # noqa: E731
        return jax.lax.scan(add, 0.0, x.reshape(4, 3, 9))[0]

    x, params = normal(5, 12, 9), two_layers()
    parts = grad(in_parts, gradient="pairs")(params, x)
    whole = grad(lambda params, x: jnp.sum(layers(params, x) ** 2) / 12, gradient="pairs")(params, x)
    for name in ("W", "Z"):
        assert parts[name].rank == whole[name].rank == 12
        assert_close(parts[name].to_dense(), whole[name].to_dense(), 1e-6)


@pytest.mark.parametrize("gradient", FORMS)
def test_half_precision_gives_what_autodiff_gives_in_it(gradient):
    def in_half(params):
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        return size(layers(half, normal(5, 6, 9).astype(jnp.bfloat16)).astype(jnp.float32))

    params = two_layers()
    G = grad(in_half, gradient=gradient)(params)
    _, expected = jax.value_and_grad(plain)(matrices(params))
    for name in ("W", "Z"):
        assert G[name].dtype == (jnp.bfloat16 if isinstance(G[name], LowRank) else jnp.float32)
        assert_close(as_matrix(G[name].astype(jnp.float32)), expected[name], 3e-2)


# Stacks of adapters


def stack_of_layers():
    return {"W": adapter(0, 5, 8, 8), "b": normal(4, 5, 8)}


def scanned_layers(params, x):
    """Each round has a layer of its own, as large models are written."""

    def layer(x, own):
        return jnp.tanh(product(x, own["W"]) + own["b"]), None

    return jax.lax.scan(layer, x, params)[0]


def scan_over_layers(params):
    return size(scanned_layers(params, normal(5, 6, 8)))


def scan_over_checkpointed_layers(params):
    layer = jax.checkpoint(lambda x, own: (jnp.tanh(product(x, own["W"]) + own["b"]), None))
    return size(jax.lax.scan(layer, normal(5, 6, 8), params)[0])


def scan_over_layers_of_micro_batches(params):
    def add(total, x):
        return total + size(scanned_layers(params, x)), None

    return jax.lax.scan(add, 0.0, normal(5, 3, 2, 8))[0]


def vmap_of_a_scan_over_layers(params):
    return jax.vmap(lambda x: size(scanned_layers(params, x)))(normal(5, 4, 8)).sum()


def ensemble(params):
    return size(jax.vmap(lambda W, b, x: product(x, W) + b)(params["W"], params["b"], normal(5, 5, 6, 8)))


def ensemble_on_the_same_rows(params):
    return size(jax.vmap(lambda W: product(normal(5, 6, 8), W))(params["W"])) + size(params["b"])


def ensemble_of_micro_batches(params):
    def of_one(W, b, xs):
        return jax.lax.scan(lambda t, x: (t + size(product(x, W) + b), None), 0.0, xs)[0]

    return jax.vmap(of_one)(params["W"], params["b"], normal(5, 5, 3, 2, 8)).sum()


def all_at_once(params):
    return size(product(normal(5, 5, 6, 8), params["W"]) + params["b"][:, None])


@pytest.mark.parametrize("gradient", FORMS)
@pytest.mark.parametrize(
    "program",
    [
        scan_over_layers, scan_over_checkpointed_layers, scan_over_layers_of_micro_batches, vmap_of_a_scan_over_layers,
        ensemble, ensemble_on_the_same_rows, ensemble_of_micro_batches, all_at_once,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_stacks_of_adapters(program, gradient, double):
    G = assert_exact(program, stack_of_layers(), gradient)
    assert G["W"].shape == (5, 8, 8)


def test_value_and_grad_can_itself_be_mapped():
    params, xs = stack_of_layers(), normal(5, 5, 6, 8)

    def loss(W, x):
        return size(product(x, W))

    _, G = jax.vmap(value_and_grad(loss, gradient="pairs"))(params["W"], xs)
    _, expected = jax.vmap(jax.value_and_grad(loss))(params["W"].to_dense(), xs)
    assert (G.shape, G.rank) == ((5, 8, 8), 6)
    assert_close(G.to_dense(), expected)


# Convolutions


@pytest.mark.parametrize("gradient", FORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"padding": "SAME"}, {"dilation": (2, 1), "padding": ((2, 1), (0, 3))}],
    ids=str,
)
@pytest.mark.parametrize("vmapped", [False, True])
def test_convolutions(options, gradient, vmapped, double):
    def convolution(x, W):
        if isinstance(W, LowRank):
            return lora_conv(x, W, (3, 2), **options)
        geometry = {"stride": 1, "padding": 0, "dilation": 1} | options
        padding = geometry["padding"]
        return jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[-3:]),
            W.reshape(6, 4, 3, 2),
            np.broadcast_to(geometry["stride"], 2),
            [(padding, padding)] * 2 if isinstance(padding, int) else padding,
            rhs_dilation=np.broadcast_to(geometry["dilation"], 2),
        ).reshape(*x.shape[:-3], 6, *jax.eval_shape(lambda: convolution(x, LowRank(*W_factors))).shape[-2:])

    W_factors = adapter(0, 6, 24)
    x = normal(5, 2, 3, 4, 7, 8)

    def loss(params):
        one = functools.partial(convolution, W=params["W"])
        return size(jax.vmap(jax.vmap(one))(x) if vmapped else one(x))

    assert_exact(loss, {"W": W_factors}, gradient)


def test_an_ensemble_of_convolutions():
    W = adapter(0, 3, 6, 36)
    x = normal(5, 3, 2, 4, 5, 5)
    G = grad(lambda W: size(lora_conv(x, W, (3, 3))), gradient="pairs")(W)
    for i in range(3):
        own = grad(lambda W, i=i: size(lora_conv(x[i], W, (3, 3))), gradient="dense")(LowRank(W.U[i], W.V[i]))
        assert_close(G.to_dense()[i], own)


@pytest.mark.parametrize("kernel", [(3,), (2, 2, 2)])
def test_one_and_three_dimensions(kernel):
    dims = len(kernel)
    n = 2 * int(np.prod(kernel))
    W, x = adapter(0, 5, n), normal(5, 4, 2, *(6,) * dims)

    def with_kernel(W):
        return size(jax.lax.conv_general_dilated(x, W.reshape(5, 2, *kernel), (1,) * dims, "VALID"))

    expected = jax.grad(with_kernel)(W.to_dense())
    for gradient in ("pairs", "dense"):
        assert_close(as_matrix(grad(lambda W: size(lora_conv(x, W, kernel)), gradient=gradient)(W)), expected)


def test_padding_may_be_a_number_for_one_dimension_and_a_pair_for_another():
    x, W = normal(5, 4, 7, 7), adapter(0, 6, 36)
    mixed, pairs = (lora_conv(x, W, (3, 3), padding=padding) for padding in ([(1, 2), 1], [(1, 2), (1, 1)]))
    np.testing.assert_array_equal(mixed, pairs)


@pytest.mark.parametrize("gradient", ["pairs", "dense"])
@pytest.mark.parametrize(
    ("of_x", "of_W"), [("uint8", "float32"), ("float32", "float64"), ("float64", "float32"), ("float64", "complex128")]
)
def test_convolutions_of_two_precisions(of_x, of_W, gradient, double):
    W = jax.tree.map(lambda a: a.astype(of_W), adapter(0, 6, 36))
    x = (4 * jnp.abs(normal(5, 2, 4, 6, 6))).astype(of_x)
    G = jax.jit(grad(lambda W: jnp.sum(jnp.abs(lora_conv(x, W, (3, 3))) ** 2), gradient=gradient))(W)

    def with_kernel(kernel):
        dtype = jnp.result_type(x, kernel)
        y = jax.lax.conv_general_dilated(x.astype(dtype), kernel.reshape(6, 4, 3, 3).astype(dtype), (1, 1), "VALID")
        return jnp.sum(jnp.abs(y) ** 2)

    assert_close(as_matrix(G), jax.grad(with_kernel)(W.to_dense()), 1e-5)


# Forms and what is kept


@pytest.mark.parametrize(("rows", "kept"), [(3, LowRank), (4, jax.Array)])
def test_auto_keeps_what_is_smaller(rows, kept):
    W = adapter(0, 7, 9)  # 63 numbers, or 16 a row
    G = grad(lambda W: size(lora(normal(5, rows, 9), W)))(W)
    assert isinstance(G, kept)


def test_auto_counts_the_rounds_of_a_loop():
    W = adapter(0, 7, 9)

    def loss(W):
        return jax.lax.scan(lambda t, x: (t + size(lora(x, W)), None), 0.0, normal(5, 4, 1, 9))[0]

    assert isinstance(grad(loss)(W), jax.Array)


def test_nothing_of_the_size_of_the_layer_is_formed():
    """The largest array of a compiled step of a 3,000 × 2,000 layer with 4 rows."""
    W = adapter(0, 3000, 2000)
    x = normal(5, 4, 2000)
    step = jax.jit(value_and_grad(lambda W, x: size(lora(x, W)))).lower(W, x).compile()
    memory = step.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 3000 * 2000


def test_no_derivative_of_the_factors_is_taken():
    """The backward pass has no more products than needed: of S with U, for what lies before."""
    W = adapter(0, 300, 200)
    program = jax.make_jaxpr(grad(lambda W: size(lora(normal(5, 4, 200), W))))(W)
    step = jax.jit(grad(lambda W: size(lora(normal(5, 4, 200), W)))).lower(W).compile()
    assert step.as_text().count(" dot(") <= 2, program


# What else the loss gives, and what it depends on


def test_aux_comes_back():
    def loss(params, x, *, scale):
        y = layers(params, x)
        return size(y) * scale, {"y": y, "norm": jnp.linalg.norm(params["W"].U)}

    params, x = two_layers(), normal(5, 6, 9)
    (value, aux), G = jax.jit(value_and_grad(loss, has_aux=True))(params, x, scale=2.0)
    gradients, again = grad(loss, has_aux=True)(params, x, scale=2.0)
    np.testing.assert_allclose(value, 2 * size(aux["y"]), rtol=1e-5)
    np.testing.assert_allclose(aux["norm"], jnp.linalg.norm(params["W"].U), rtol=1e-6)
    np.testing.assert_allclose(again["y"], aux["y"], rtol=1e-4)
    assert jax.tree.structure(gradients) == jax.tree.structure(G)


def test_aux_is_what_was_given():
    def loss(params, x):
        y = layers(params, x)
        return size(y), {"name": "train", "f": jnp.tanh, "none": None, "count": 3, "W": params["W"], "y": y, "key": KEY}

    KEY, x, params = jax.random.key(1), normal(5, 6, 9), two_layers()
    (_, aux), _ = value_and_grad(loss, has_aux=True)(params, x)
    (_, compiled), _ = eqx.filter_jit(value_and_grad(loss, has_aux=True))(params, x)
    expected = loss(params, x)[1]
    for found in (aux, compiled):
        assert found["name"] == "train" and found["f"] is jnp.tanh and found["none"] is None and found["count"] == 3
        assert isinstance(found["W"], LowRank) and found["key"] == KEY
        np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-5)
    of_one = lambda x: value_and_grad(lambda params: (loss(params, x)[0], x), has_aux=True)(params)[0][1]  # noqa: E731
    np.testing.assert_array_equal(jax.vmap(of_one)(normal(5, 4, 6, 9)), normal(5, 4, 6, 9))


def test_a_model_comes_back_as_aux():
    params, frozen = partition(add_lora(eqx.nn.MLP(6, 3, 8, 1, key=jax.random.key(0)), 2, key=jax.random.key(1)))

    def loss(params):
        model = eqx.combine(params, frozen)
        return size(model(normal(5, 6))), model

    (_, model), _ = value_and_grad(loss, has_aux=True)(params)
    assert jax.tree.structure(model) == jax.tree.structure(eqx.combine(params, frozen))
    np.testing.assert_allclose(size(model(normal(5, 6))), loss(params)[0], rtol=1e-6)


@pytest.mark.parametrize("gradient", FORMS)
def test_a_number_of_rows_that_is_only_a_name(gradient):
    (rows,) = jax.export.symbolic_shape("rows")
    W = adapter(0, 7, 9)
    of = jax.jit(grad(lambda W, x: size(lora(x, W)), gradient=gradient))
    exported = jax.export.export(of)(W, jax.ShapeDtypeStruct((rows, 9), jnp.float32))
    x = normal(5, 6, 9)
    assert_close(as_matrix(exported.call(W, x)), jax.grad(lambda W: size(x @ W.T))(W.to_dense()))


def test_an_adapter_that_is_not_trained_is_passed_as_an_argument():
    def loss(W, frozen):
        return size(lora(jnp.tanh(lora(normal(5, 6, 9), frozen)), W))

    W, frozen = adapter(2, 7, 7), adapter(0, 7, 9)
    G = grad(loss, gradient="pairs")(W, frozen)
    x = jnp.tanh(lora(normal(5, 6, 9), frozen))
    assert_close(G.V.T, x)


def penalised(params):
    return plain(params) + jnp.sum(params["W"].U ** 2)


def changed_in_a_loop(params):
    def again(carried, x):
        W, total = carried
        return (W.T.T, total + size(product(x, W))), None

    W, total = jax.lax.scan(again, (params["W"], plain(params)), normal(5, 3, 2, 9))[0]
    return jax.lax.scan(lambda U, _: (U / 2, U.sum()), W.U, None, length=3)[1].sum() + total


def multiplied_by_hand(params):
    return plain(params) + size(normal(5, 6, 9) @ params["W"].V @ params["W"].U.T)


def derivative_along_factors(params):
    return plain(params) + size(jax.grad(lambda W: size(product(normal(5, 9), W)))(params["W"]).U)


def derivative_of_branches(params):
    branches = [lambda x: size(layers(params, x)), size]
    return plain(params) + size(jax.grad(lambda x: jax.lax.cond(x[0] > 0, *branches, x))(normal(5, 9)))


def mixed_factors(params):
    return plain(params) + size(lora(normal(5, 6, 7), LowRank(params["W"].U, params["Z"].V)))


@pytest.mark.parametrize(
    ("loss", "operation"),
    [
        (penalised, "integer_pow"),
        (changed_in_a_loop, "scan"),
        (multiplied_by_hand, "dot_general"),
        (derivative_along_factors, "dot_general"),
        (derivative_of_branches, "cond"),
        (mixed_factors, "two adapters"),
    ],
)
def test_what_is_no_product_is_refused_and_named(loss, operation):
    with pytest.raises(ValueError, match=rf"params\['[WZ]'\].*{operation}"):
        value_and_grad(loss)(two_layers())


def test_a_branch_that_vmap_chooses_is_refused_and_explained():
    def loss(W):
        choose = lambda x: jax.lax.cond(x[0] > 0, lambda: lora(x, W).sum(), lambda: 0.0)  # noqa: E731
        return jax.vmap(choose)(normal(5, 6, 9)).sum()

    with pytest.raises(ValueError, match="branch chosen for each example"):
        value_and_grad(loss)(adapter(0, 7, 9))


@pytest.mark.parametrize(
    ("loss", "has_aux", "message"),
    [
        (lambda W: None, False, "`loss` gives a NoneType; a number"),
        (lambda W: lora(normal(5, 9), W).sum(), True, r"with `has_aux` a pair \(value, aux\)"),
        (lambda W: (lora(normal(5, 9), W).sum(), 1, 2), True, r"with `has_aux` a pair"),
    ],
)
def test_what_is_no_loss_is_named(loss, has_aux, message):
    with pytest.raises(TypeError, match=message):
        value_and_grad(loss, has_aux)(adapter(0, 7, 9))


def test_constants_of_the_factors_are_no_matter():
    def loss(W):
        return size(lora(normal(5, 6, 9), W)) * jnp.sum(W.U > 0) + jnp.sum(W.V.astype(int).astype(float))

    assert_close(
        as_matrix(grad(loss)(adapter(0, 7, 9))),
        jax.grad(lambda W: size(normal(5, 6, 9) @ W.T) * jnp.sum(adapter(0, 7, 9).U > 0))(adapter(0, 7, 9).to_dense()),
    )


def test_the_precision_of_products_is_what_was_asked_for_around_them():
    def loss(W, x):
        with jax.default_matmul_precision("highest"):
            return size(lora(x, W))

    program = jax.jit(grad(loss)).lower(adapter(0, 70, 90), normal(5, 6, 90)).as_text()
    assert program.count("dot_general") == program.count("HIGHEST, HIGHEST") > 0


def test_iterative_solvers_take_products():
    Z, b = adapter(0, 9, 9), normal(5, 9)

    def solution(b):
        solved, _ = jax.scipy.sparse.linalg.gmres(lambda v: v + 0.01 * lora(v, Z), b, tol=1e-6)
        return jnp.sum(solved**2)

    exact = jax.grad(lambda b: jnp.sum(jnp.linalg.solve(jnp.eye(9) + 0.01 * Z.to_dense(), b) ** 2))(b)
    assert_close(jax.grad(solution)(b), exact, 1e-4)


def test_derivatives_along_complex_and_half_precision_inputs_are_those_of_matrices():
    real, imaginary = adapter(0, 7, 9), adapter(2, 7, 9)
    with_phase = LowRank(real.U + 1j * imaginary.U, real.V - 1j * imaginary.V)
    x = normal(5, 6, 9)
    for W, z in ((with_phase, x), (with_phase, x * (1 + 2j)), (real, x * (1 + 2j)), (real, x.astype(jnp.bfloat16))):
        actual, expected = (jax.grad(lambda z, f=f: jnp.sum(jnp.abs(f(z)) ** 2))(z) for f in (
            lambda z, W=W: lora(z, W), lambda z, W=W: z @ W.V @ W.U.T
        ))  # fmt: skip
        assert actual.dtype == z.dtype
        assert_close(actual, expected)


def test_manual_axes_keep_their_types():
    """Of a sum over parts that are not added up, JAX itself must hear."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    W, x = adapter(0, 7, 9), normal(5, 6, 9)
    with pytest.raises(ValueError, match="out_specs"):
        jax.shard_map(lambda x: lora(x, W).sum(), mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec())(x)

    with pytest.raises(NotImplementedError, match="check_vma=False"):
        jax.shard_map(lambda x: grad(lambda W: size(lora(x, W)))(W).U, mesh=mesh, in_specs=spec, out_specs=spec)(x)


def test_an_adapter_without_a_product_is_named():
    with pytest.raises(ValueError, match=r"no product with `params\['Z'\]`"):
        value_and_grad(lambda params: size(product(normal(5, 6, 9), params["W"])))(two_layers())


def test_loops_of_open_length_are_refused_by_name():
    def loss(W):
        return jax.lax.while_loop(lambda t: t < 3, lambda t: t + size(lora(normal(5, 6, 9), W)), 0.0)

    with pytest.raises(NotImplementedError, match="`while`"):
        value_and_grad(loss)(adapter(0, 7, 9))


def test_loops_of_open_length_without_a_derivative_are_no_matter():
    def dominant(W):
        """The dominant right singular vector."""
        again = lambda v: (lambda y: y / jnp.linalg.norm(y))(lora(lora(v[1], W), W.T))  # noqa: E731
        return jax.lax.while_loop(lambda v: v[0] < 9, lambda v: (v[0] + 1, again(v)), (0, jnp.ones(9) / 3))[1]

    def loss(W):
        outside = jax.lax.stop_gradient(dominant(W)) * dominant(jax.lax.stop_gradient(W))
        return size(lora(normal(5, 6, 9) * outside, W))

    W = adapter(0, 7, 9)
    x = normal(5, 6, 9) * dominant(W) ** 2
    assert_close(as_matrix(grad(loss)(W)), jax.grad(lambda W: size(x @ W.T))(W.to_dense()), 1e-4)


@pytest.mark.parametrize("leaf", [jnp.arange(3), 3, "relu", None.__class__])
def test_parameters_that_are_no_numbers_are_named(leaf):
    with pytest.raises(TypeError, match=r"`params\['a'\]`"):
        value_and_grad(plain)({**two_layers(), "a": leaf})


def test_other_bad_input():
    with pytest.raises(ValueError, match="`gradient` is 'rows'"):
        value_and_grad(plain, gradient="rows")
    with pytest.raises(ValueError, match=r"`x` has shape \(6, 8\)"):
        lora(normal(5, 6, 8), adapter(0, 7, 9))
    with pytest.raises(ValueError, match=r"\(3, \.\.\., 9\)"):
        lora(normal(5, 6, 9), adapter(0, 3, 7, 9))
    with pytest.raises(ValueError, match=r"\(\.\.\., 4, height, width\)"):
        lora_conv(normal(5, 3, 7, 7), adapter(0, 6, 36), (3, 3))
    with pytest.raises(ValueError, match="`kernel_size` is 3"):
        lora_conv(normal(5, 4, 7, 7), adapter(0, 6, 36), 3)
    with pytest.raises(ValueError, match=r"36 / 15, height"):
        lora_conv(normal(5, 4, 7, 7), adapter(0, 6, 36), (5, 3))
    with pytest.raises(TypeError, match="`W` is a"):
        lora(normal(5, 6, 9), jnp.ones((7, 9)))


# Layers


def test_layers_compute_what_their_bases_and_adapters_do():
    key = jax.random.key(0)
    base = eqx.nn.Linear(9, 7, key=key)
    layer = LoRALinear(base, 2, alpha=4, key=key)
    x = normal(5, 6, 9)
    np.testing.assert_allclose(layer(x), jax.vmap(base)(x), rtol=1e-5, atol=1e-6)  # B = 0
    layer = eqx.tree_at(lambda layer: layer.W, layer, adapter(0, 7, 9))
    expected = jax.vmap(base)(x) + 2 * x @ layer.W.to_dense().T
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)

    convolution = eqx.nn.Conv2d(4, 6, 3, stride=2, padding=1, key=key)
    layer = LoRAConv2d(convolution, 2, key=key)
    layer = eqx.tree_at(lambda layer: layer.W, layer, adapter(0, 6, 36))
    whole = eqx.tree_at(
        lambda c: c.weight, convolution, convolution.weight + layer.W.to_dense().reshape(convolution.weight.shape)
    )
    image = normal(5, 4, 8, 8)
    np.testing.assert_allclose(layer(image), whole(image), rtol=1e-4, atol=1e-5)


def test_layers_without_bias_and_with_dropout():
    key = jax.random.key(0)
    layer = LoRALinear(eqx.nn.Linear(9, 7, use_bias=False, key=key), 2, dropout=0.5, key=key)
    layer = eqx.tree_at(lambda layer: layer.W, layer, adapter(0, 7, 9))
    x = normal(5, 6, 9)
    one, other = layer(x, key=jax.random.key(1)), layer(x, key=jax.random.key(2))
    assert not np.allclose(one, other)
    still = eqx.nn.inference_mode(layer)
    np.testing.assert_allclose(still(x), x @ layer.base.weight.T + lora(x, layer.W), rtol=1e-5, atol=1e-5)


def test_a_model_of_equinox_is_trained_where_it_should_be():
    mlp = eqx.nn.MLP(9, 4, width_size=8, depth=2, key=jax.random.key(0))
    model = add_lora(mlp, 3, key=jax.random.key(1))
    params, frozen = partition(model, others=True)
    assert [layer.W.rank for layer in model.layers] == [3, 3, 3]
    assert {tuple(a.shape) for a in jax.tree.leaves(params)} == {(8, 3), (9, 3), (4, 3), (8,), (4,)}

    def loss(params, x):
        return size(jax.vmap(eqx.combine(params, frozen))(x))

    x = normal(5, 6, 9)
    G = eqx.filter_jit(grad(loss, gradient="pairs"))(params, x)
    assert [layer.W.rank for layer in G.layers] == [6, 6, 6]
    expected = jax.grad(loss)(params, x)
    for layer, other, of_factors in zip(model.layers, G.layers, expected.layers, strict=True):
        assert_close(other.W @ layer.W.V, of_factors.W.U)
        assert_close(other.base.bias, of_factors.base.bias)


def test_targets_choose_layers_and_ranks_stay_within_them():
    mlp = eqx.nn.MLP(9, 2, width_size=8, depth=2, key=jax.random.key(0))
    last = add_lora(mlp, 3, targets=lambda name, layer: name.endswith("[2]"), key=jax.random.key(1))
    assert [type(layer).__name__ for layer in last.layers] == ["Linear", "Linear", "LoRALinear"]
    assert last.layers[2].W.rank == 2
    convolutions = [eqx.nn.Conv2d(3, 6, 3, key=jax.random.key(0)), eqx.nn.Linear(5, 4, key=jax.random.key(1))]
    both = add_lora(convolutions, 2, targets=lambda name, layer: True, key=jax.random.key(2))
    assert [type(layer).__name__ for layer in both] == ["LoRAConv2d", "LoRALinear"]
    with pytest.raises(ValueError, match="no layer"):
        add_lora(mlp, 3, targets=lambda name, layer: False, key=jax.random.key(1))
    with pytest.raises(ValueError, match="`rank` is 5, above"):
        LoRALinear(mlp.layers[2], 5, key=jax.random.key(1))
    with pytest.raises(ValueError, match="groups"):
        LoRAConv2d(eqx.nn.Conv2d(4, 6, 3, groups=2, key=jax.random.key(0)), 2, key=jax.random.key(1))
    twice = add_lora(last, 3, targets=lambda name, layer: True, key=jax.random.key(1))
    assert [layer.W.rank for layer in twice.layers] == [3, 3, 2]
    with pytest.raises(ValueError, match="scalar"):
        add_lora(eqx.nn.MLP(9, "scalar", 8, 1, key=jax.random.key(0)), 2, key=jax.random.key(1))
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(9, 7, key=key))(jax.random.split(jax.random.key(0), 4))
    with pytest.raises(ValueError, match="filter_vmap"):
        add_lora(stack, 2, key=jax.random.key(1))
    with pytest.raises(ValueError, match="`alpha` is"):
        LoRALinear(mlp.layers[0], 2, alpha="high", key=jax.random.key(1))
