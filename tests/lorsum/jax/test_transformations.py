"""The rules as transformations of Optax: the same steps as on NumPy arrays, and what Optax does with them."""

import dataclasses
import functools
import inspect
import io
import re
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_adapters import adapter, jit, normal, pair_of

from lorsum import LowRank, LowRankSum, lorsum, optim
from lorsum import jax as lj


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def in_numpy(tree):
    """Adapters, gradients and states of NumPy arrays."""
    return jax.tree.map(np.asarray, LowRank(*tree) if isinstance(tree, lj.Pair) else tree)


def assert_equal_matrices(W, expected, tolerance=1e-10):
    expected = np.asarray(expected.to_dense())
    assert np.linalg.norm(np.asarray(W.to_dense()) - expected) <= tolerance * np.linalg.norm(expected)


RULES = [
    (lj.oplora, optim.OPLoRA, {}),
    (lj.oplora, optim.OPLoRA, {"momentum": 0.9}),
    (lj.oplora, optim.OPLoRA, {"momentum": 0.9, "momentum_rank": 4, "iters": 3, "reg": 0.1}),
    (lj.oplora, optim.OPLoRA, {"momentum": 0.5, "iters": 8, "method": "coefficients"}),
    (lj.oplora, optim.OPLoRA, {"first": "V", "simultaneous": True, "reg": 0.5}),
    (lj.projected_oplora, optim.ProjectedOPLoRA, {"momentum": 0.9, "iters": 2}),
    (lj.scaled_oplora, optim.ScaledOPLoRA, {"scale": optim.DiagonalScale(), "momentum": 0.9}),
    (lj.scaled_oplora, optim.ScaledOPLoRA, {"scale": optim.KFAC(rank=2, damping=0.1)}),
    (lj.scaled_oplora, optim.ScaledOPLoRA, {"scale": optim.Shampoo(rank=2, damping=0.1), "momentum": 0.5}),
    (lj.preconditioned_sgd, optim.PreconditionedSGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (lj.preconditioned_adamw, optim.PreconditionedAdamW, {}),
    (lj.svdlora, optim.SVDLoRA, {}),
    (lj.svdlora, optim.SVDLoRA, {"momentum": 0.9}),
]


@pytest.mark.parametrize(("make", "Rule", "options"), RULES, ids=lambda x: str(getattr(x, "__name__", x)))
def test_steps_are_those_of_the_rule_on_numpy_arrays(make, Rule, options):
    tx, rule, lr = make(0.1, **options), Rule(lr=0.1, **options), 0.1
    W = adapter(0, 9, 7)
    state = tx.init(W)
    expected, expected_state = in_numpy(W), in_numpy(state)._replace(count=0)
    update = jit(tx.update)
    for step in range(4):
        G = pair_of(10 + step, 9, 7)
        updates, state = update(G, state, W)
        W = optax.apply_updates(W, updates)
        expected, expected_state = rule.step(expected, in_numpy(G), expected_state)
        assert_equal_matrices(W, expected, 1e-8 if lr else 0)
    assert int(state.count) == 4


def test_a_dense_gradient_does_the_same_as_a_pair():
    W, G = adapter(0, 9, 7), pair_of(10, 9, 7)
    tx = lj.oplora(0.1, momentum=0.9, iters=2)
    (one, _), (other, _) = (tx.update(g, tx.init(W), W) for g in (G, G.to_dense()))
    assert_equal_matrices(optax.apply_updates(W, one), optax.apply_updates(W, other))


@pytest.mark.parametrize(("make", "Rule", "given"), {make: (make, *rest) for make, *rest in RULES}.values())
def test_the_options_of_the_rule_are_seen_with_their_defaults(make, Rule, given):
    seen, options = inspect.signature(make).parameters, inspect.signature(Rule).parameters
    assert seen.keys() - {"rng"} == options.keys()
    assert all(seen[name].default == options[name].default for name in options.keys() - {"scale"})
    assert all(re.search(rf"\b{name}\b", make.__doc__) for name in seen)
    with pytest.raises(TypeError, match="gradient_clip"):
        make(0.1, **given, gradient_clip=1.0)


@pytest.mark.parametrize(("make", "Rule"), {make: (make, Rule) for make, Rule, _ in RULES}.values())
def test_the_types_of_the_options_are_those_of_the_rule(make, Rule):
    (options,) = typing.get_args(typing.get_type_hints(make)["options"])
    of_rule = {field.name: field.type for field in dataclasses.fields(Rule) if field.name not in ("lr", "scale")}
    assert typing.get_type_hints(options) == of_rule


@pytest.mark.parametrize(
    "tx",
    [lj.scaled_oplora(0.1, scale=optim.KFAC()), lj.oplora(0.1, method="coefficients")],
    ids=["K-FAC", "coefficients"],
)
def test_a_matrix_is_refused_by_rules_that_read_rows(tx):
    W = {"W": adapter(0, 9, 7)}
    with pytest.raises(TypeError, match=r"`params\['W'\]` is a matrix, but .* reads the rows.*gradient=\"pairs\""):
        tx.update({"W": jnp.ones((9, 7))}, tx.init(W), W)


class Forgetful(optim.SGD):
    def init(self, W, *, rng=None):
        return {"count": 0}


def test_a_rule_whose_state_counts_no_steps_is_refused():
    with pytest.raises(TypeError, match="the state of the rule is a dict; a named tuple is needed"):
        lj.transformation(Forgetful(lr=0.1)).init(adapter(0, 9, 7))


# One compilation for each shape, one batch for many layers


def model(count=3, m=9, n=7):
    return {f"layer{i}": {"W": adapter(10 * i, m, n), "b": normal(i, m)} for i in range(count)}


def loss(params, x):
    total = 0.0
    for layer in params.values():
        total = total + jnp.mean((lj.lora(x, layer["W"]) + layer["b"] - 1) ** 2)
    return total


def trained(params, **options):
    adapters = lj.oplora(0.1, momentum=0.9, **options)
    return optax.multi_transform({"adapters": adapters, "others": optax.sgd(0.1, momentum=0.9)}, lj.labels(params))


def stepper(tx, gradient="auto"):
    """A compiled step, and how often it has been traced."""
    traces = []

    @jit
    def step(params, state, x):
        traces.append(1)
        value, gradients = lj.value_and_grad(loss, gradient=gradient)(params, x)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return step, traces


SCHEDULE = optax.cosine_decay_schedule(0.1, 20)
INJECTED = functools.partial(
    optax.inject_hyperparams(lj.oplora, static_args=("iters", "momentum_rank", "rng")), momentum=0.9, iters=2
)


@pytest.mark.parametrize(
    "adapters",
    [
        lj.oplora(0.1, momentum=0.9),
        lj.oplora(SCHEDULE, momentum=0.9, iters=2),
        lj.scaled_oplora(0.05, scale=optim.KFAC(rank=2, damping=0.1), momentum=0.9),
        lj.preconditioned_adamw(0.05),
        INJECTED(SCHEDULE),
        optax.chain(lj.clip_by_global_norm(1.0), lj.projected_oplora(SCHEDULE, momentum=0.9)),
        lj.apply_if_finite(lj.svdlora(0.1, momentum=0.9)),
        optax.chain(lj.clip_by_global_norm(5.0), lj.multi_steps(lj.projected_oplora(0.1, momentum=0.9), 2)),
    ],
    ids=["constant", "schedule", "scaled", "adamw", "injected", "chain", "finite", "accumulated"],
)
def test_a_step_is_traced_once_and_lowers_the_loss(adapters):
    params = model()
    tx = optax.multi_transform({"adapters": adapters, "others": optax.adam(0.1)}, lj.labels(params))
    step, traces = stepper(tx, "pairs")
    state, values, x = tx.init(params), [], normal(99, 4, 7)
    for _ in range(12):
        params, state, value = step(params, state, x)
        values.append(float(value))
    assert len(traces) == 1
    assert values[-1] < 0.5 * values[0]


def count_of(program, name):
    """How many equations of a name a program has."""
    count = 0
    for eqn in program.eqns:
        inner = [x for x in jax.tree.leaves(list(eqn.params.values())) if hasattr(x, "eqns")]
        count += (eqn.primitive.name == name) + sum(count_of(x, name) for x in inner)
    return count


def test_layers_of_one_shape_are_one_batch():
    def decompositions(params):
        tx = lj.oplora(0.1, momentum=0.9, iters=2)
        adapters = {name: layer["W"] for name, layer in params.items()}
        gradients = {name: pair_of(i, *W.shape) for i, (name, W) in enumerate(adapters.items())}
        return count_of(jax.make_jaxpr(tx.update)(gradients, tx.init(adapters), adapters).jaxpr, "svd")

    one = decompositions(model(1))
    assert one > 0
    assert decompositions(model(6)) == one
    assert decompositions(model(2) | {"other": {"W": adapter(7, 8, 7)}}) == 2 * one


def test_a_batch_gives_what_each_gives_by_itself():
    adapters = {"a": adapter(0, 9, 7), "b": adapter(10, 9, 7), "c": adapter(20, 5, 6), "d": adapter(30, 9, 7)}
    gradients = {"a": pair_of(1, 9, 7), "b": pair_of(3, 9, 7), "c": pair_of(5, 5, 6), "d": pair_of(7, 9, 7, rows=4)}
    tx = lj.oplora(0.1, momentum=0.9, iters=2)
    state = tx.init(adapters)
    for _ in range(3):
        before, old = adapters, state
        updates, state = tx.update(gradients, state, adapters)
        adapters = optax.apply_updates(adapters, updates)
    for name, W in before.items():
        alone, own = tx.update(gradients[name], old[name], W)
        assert_equal_matrices(adapters[name], optax.apply_updates(W, alone))
        assert_equal_matrices(state[name].M, own.M, 1e-8)
        assert int(own.count) == int(state[name].count) == 3


def test_a_stack_of_adapters_is_a_batch_too():
    W, tx = adapter(0, 4, 9, 7), lj.oplora(0.1, momentum=0.9)
    x = normal(9, 4, 5, 7)
    gradient = lj.grad(lambda W: jnp.sum(lj.lora(x, W) ** 2), gradient="pairs")
    state = tx.init(W)
    for _ in range(2):
        old, before = state, W
        G = gradient(W)
        updates, state = tx.update(G, state, W)
        W = optax.apply_updates(W, updates)
    for i in range(4):
        own_W, own_G, own_M = (type(A)(A.U[i], A.V[i]) for A in (before, G, old.M))
        alone, _ = tx.update(own_G, old._replace(M=own_M), own_W)
        assert_equal_matrices(LowRank(W.U[i], W.V[i]), optax.apply_updates(own_W, alone))


# What Optax offers


def test_schedules_and_injected_rates_are_those_of_the_rule():
    W, G = adapter(0, 9, 7), pair_of(10, 9, 7)
    results = []
    for tx in (lj.oplora(SCHEDULE, momentum=0.9, iters=2), INJECTED(SCHEDULE)):
        params, state = W, tx.init(W)
        for _ in range(3):
            updates, state = jit(tx.update)(G, state, params)
            params = optax.apply_updates(params, updates)
        results.append(params)
    assert_equal_matrices(*results)
    expected, rule = in_numpy(W), optim.OPLoRA(lr=lambda t: float(SCHEDULE(t)), momentum=0.9, iters=2)
    state = in_numpy(lj.oplora(0.1, momentum=0.9).init(W))._replace(count=0)
    for _ in range(3):
        expected, state = rule.step(expected, in_numpy(G), state)
    assert_equal_matrices(results[0], expected, 1e-8)


def test_an_injected_rate_can_be_set_by_hand():
    W, G, tx = adapter(0, 9, 7), pair_of(10, 9, 7), INJECTED(0.1)
    state = tx.init(W)
    state.hyperparams["lr"] = jnp.asarray(0.0)
    updates, _ = tx.update(G, state, W)
    assert_equal_matrices(optax.apply_updates(W, updates), W)


def test_what_cannot_be_injected_says_so():
    tx = optax.inject_hyperparams(lj.oplora)(0.1, iters=2)
    with pytest.raises(TypeError, match=r"`iters` is a JAX array.*static_args"):
        tx.init(adapter(0, 9, 7))


def test_clipping_is_by_the_norm_of_the_matrices():
    G = {"W": pair_of(10, 9, 7), "b": normal(3, 9), "Z": normal(4, 5, 6)}
    whole = np.concatenate([np.ravel(G["W"].to_dense()), *(np.ravel(G[name]) for name in "bZ")])
    clipped, _ = lj.clip_by_global_norm(1.0).update(G, optax.EmptyState())
    np.testing.assert_allclose(clipped["W"].to_dense(), G["W"].to_dense() / np.linalg.norm(whole), rtol=1e-10)
    np.testing.assert_allclose(clipped["b"], G["b"] / np.linalg.norm(whole), rtol=1e-10)
    many = lj.Pair(normal(5, 9, 400), normal(6, 7, 400))
    assert_equal_matrices(lj.clip_by_global_norm(1.0).update(many, None)[0], many / float(many.norm()))
    kept, _ = lj.clip_by_global_norm(1e3).update(G, optax.EmptyState())
    np.testing.assert_array_equal(kept["W"].U, G["W"].U)
    nothing = {"W": lj.Pair(jnp.zeros((9, 3)), jnp.zeros((7, 3)))}
    assert np.isfinite(lj.clip_by_global_norm(1.0).update(nothing, None)[0]["W"].U).all()


def test_the_norm_of_a_pair_that_cancels_is_right():
    """As near an optimum, where S and X stay large."""
    U, V = (np.asarray(normal(seed, n, 4), np.float32) for seed, n in ((5, 90), (6, 70)))
    off = 1e-4 * np.asarray(normal(7, 90, 4), np.float32)
    G = lj.Pair(jnp.asarray(np.hstack([U, off - U])), jnp.asarray(np.hstack([V, V])))
    clipped, _ = lj.clip_by_global_norm(1e-3).update(G, None)
    assert np.linalg.norm(np.float64(clipped.U) @ np.float64(clipped.V).T) == pytest.approx(1e-3, rel=2e-3)


def test_adapters_can_be_frozen():
    params = {"a": adapter(0, 9, 7), "b": adapter(10, 9, 7)}
    G = {"a": pair_of(1, 9, 7), "b": pair_of(3, 9, 7).to_dense()}
    tx = optax.multi_transform({"t": lj.oplora(0.1), "f": lj.set_to_zero()}, lambda _: {"a": "t", "b": "f"})
    updates, _ = tx.update(G, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved["b"].U, params["b"].U)
    assert not np.allclose(moved["a"].U, params["a"].U)


def test_what_is_linear_and_without_state_acts_on_matrices():
    W, G = adapter(0, 9, 7), pair_of(10, 9, 7).to_dense()
    tx = optax.chain(optax.scale(0.5), lj.oplora(0.1))
    (half, _), (same, _) = tx.update(G, tx.init(W), W), lj.oplora(0.1).update(0.5 * G, lj.oplora(0.1).init(W), W)
    np.testing.assert_allclose(half.U, same.U, atol=1e-12)


@pytest.mark.parametrize(
    "first",
    [optax.add_decayed_weights(0.1), optax.scale_by_adam(), optax.trace(0.9), optax.ema(0.9)],
    ids=["decay", "adam", "trace", "ema"],
)
def test_what_would_mix_a_pair_with_the_factors_is_an_error_even_where_shapes_agree(first):
    W = adapter(0, 9, 7)
    tx = optax.chain(first, lj.oplora(0.1))
    with pytest.raises(ValueError):
        tx.update(pair_of(10, 9, 7, rows=2), tx.init(W), W)


@pytest.mark.parametrize(
    "first",
    [
        optax.scale(0.5), optax.clip(1.0), optax.clip_by_global_norm(1.0), optax.clip_by_block_rms(1.0),
        optax.adaptive_grad_clip(0.1), optax.scale_by_sign(), optax.normalize_by_update_norm(),
        optax.centralize(), optax.scale_by_schedule(lambda t: 0.5),
        optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0),
    ],
    ids=lambda tx: tx.update.__qualname__.partition(".")[0],
)  # fmt: skip
@pytest.mark.parametrize("compiled", [False, True])
def test_what_would_take_a_pair_for_two_arrays_is_an_error(first, compiled):
    W = adapter(0, 9, 7)
    tx = optax.chain(first, lj.oplora(0.1))
    update = jax.jit(tx.update) if compiled else tx.update
    with pytest.raises((TypeError, ValueError, NotImplementedError, IndexError)):  # as JAX takes it: a key is no number
        update({"W": pair_of(10, 9, 7, rows=2)}, tx.init({"W": W}), {"W": W})


def test_gradients_of_the_factors_are_an_error():
    W, tx = adapter(0, 9, 7), lj.oplora(0.1)
    of_factors = jax.grad(lambda W: jnp.sum(lj.lora(jnp.ones((3, 7)), W) ** 2))(W)
    with pytest.raises(TypeError, match=r"`params\['W'\]` is a LowRank and no lorsum.jax.Pair"):
        tx.update({"W": of_factors}, tx.init({"W": W}), {"W": W})


def test_the_norm_of_all_gradients_is_that_of_their_matrices():
    G = {"W": pair_of(10, 9, 7), "b": normal(3, 9), "stack": lj.Pair(*adapter(20, 3, 5, 6, rank=2))}
    whole = np.concatenate([np.ravel(x.to_dense() if isinstance(x, lj.Pair) else x) for x in G.values()])
    assert float(jit(lj.global_norm)(G)) == pytest.approx(np.linalg.norm(whole), rel=1e-12)
    assert float(lj.global_norm({"none": None})) == 0


def test_pairs_pass_transformations_of_jax():
    G = pair_of(10, 9, 7)
    stack = jax.vmap(lambda c: lj.Pair(G.U * c, G.V))(jnp.arange(3.0))
    assert isinstance(stack, lj.Pair) and stack.shape == (3, 9, 7)
    norms = jax.lax.map(lambda one: one.norm(), stack)
    np.testing.assert_allclose(norms, G.norm() * jnp.arange(3.0), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda one: one.norm())(stack), norms, rtol=1e-12)
    assert isinstance(jit(lambda G: G)(stack), lj.Pair)
    assert isinstance(eqx.filter_jit(lambda G: (G, "a name"))(stack)[0], lj.Pair)
    assert jax.tree.leaves(jax.tree.map(lambda _: True, G)) == [True] * 3
    assert jax.tree.leaves(jax.tree.map(lambda _: None, G)) == []
    assert isinstance(jax.device_put(G), lj.Pair)


@pytest.mark.parametrize("stack", [(), (1,), (3,)])
def test_pairs_can_be_donated(stack):
    """Their arrays may be used for results, each only once, and later pairs have others."""
    same = jax.jit(lambda G: G, donate_argnums=0)
    for _ in range(2):
        G = {name: lj.Pair(*adapter(seed, *stack, 9, 7)) for seed, name in enumerate("ab")}
        expected = {name: np.asarray(x.to_dense()) for name, x in G.items()}
        G = same(same(G))
        for name, x in G.items():
            np.testing.assert_allclose(x.to_dense(), expected[name], rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_all_of_a_step_can_be_donated():
    params, x = model(2), normal(99, 4, 7)
    gradient = lj.grad(loss, gradient="pairs")
    tx = lj.apply_if_finite(trained(params))
    expected, _ = tx.update(gradient(params, x), tx.init(params), params)

    def update(gradients, state, params):
        return tx.update(gradients, state, params)[0]

    for computed in (gradient, jit(gradient)):
        G, state, params = computed(params, x), tx.init(params), jax.tree.map(jnp.copy, params)
        updates = jax.jit(update, donate_argnums=(0, 1))(G, state, params)
        np.testing.assert_allclose(updates["layer1"]["W"].U, expected["layer1"]["W"].U, atol=1e-10)


@pytest.mark.parametrize("wrapped", [functools.partial(optax.MultiSteps, every_k_schedule=2), optax.apply_if_finite])
@pytest.mark.parametrize("form", ["pair", "dense"])
def test_what_expects_updates_of_the_structure_of_gradients_is_an_error(wrapped, form):
    W, G = adapter(0, 9, 7), pair_of(10, 9, 7, rows=2)
    tx = wrapped(lj.oplora(0.1)) if wrapped is not optax.apply_if_finite else wrapped(lj.oplora(0.1), 3)
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        tx.update(G if form == "pair" else G.to_dense(), tx.init(W), W)


def test_what_comes_after_acts_on_the_factors_updates():
    W, G, tx = adapter(0, 9, 7), pair_of(10, 9, 7), lj.oplora(0.1)
    expected, _ = tx.update(G, tx.init(W), W)
    for after, factor in ((optax.scale(0.5), 0.5), (optax.ema(0.9, debias=True), 1.0), (optax.clip(1e9), 1.0)):
        chain = optax.chain(tx, after)
        updates, _ = jit(chain.update)(G, chain.init(W), W)
        np.testing.assert_allclose(updates.U, factor * expected.U, rtol=1e-9)
    tx = optax.lookahead(lj.oplora(0.1), sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(W)
    state, fast = tx.init(params), W
    for _ in range(2):
        updates, state = tx.update(G, state, params)
        params = optax.apply_updates(params, updates)
        fast = optax.apply_updates(fast, lj.oplora(0.1).update(G, lj.oplora(0.1).init(W), fast)[0])
    np.testing.assert_allclose(params.fast.U, (W.U + fast.U) / 2, rtol=1e-9)


def test_dense_gradients_are_clipped_as_the_matrices_that_they_are():
    W, G = adapter(0, 9, 7), pair_of(10, 9, 7).to_dense()
    tx, ours = (optax.chain(f(1.0), lj.oplora(0.1)) for f in (optax.clip_by_global_norm, lj.clip_by_global_norm))
    (one, _), (other, _) = (t.update(G, t.init(W), W) for t in (tx, ours))
    assert_equal_matrices(optax.apply_updates(W, one), optax.apply_updates(W, other))


def test_a_saved_state_goes_on_bit_for_bit():
    params = model()
    tx = trained(params, iters=2)
    step, _ = stepper(tx)
    state, x = tx.init(params), normal(99, 4, 7)
    for _ in range(3):
        params, state, _ = step(params, state, x)
    leaves, structure = jax.tree.flatten((params, state))
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    loaded = np.load(file)
    again = jax.tree.unflatten(structure, [jnp.asarray(loaded[name]) for name in loaded.files])
    for continued in (step(params, state, x)[:2], step(params, state, x)[:2]):
        resumed = step(*again, x)[:2]
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (continued, resumed)), strict=True))


def test_the_random_momentum_depends_on_the_seed_and_the_place():
    params = {"a": adapter(0, 9, 7), "b": adapter(0, 9, 7)}
    one, same, other = (lj.oplora(0.1, momentum=0.9, rng=seed).init(params) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["a"].M.V, same["a"].M.V)
    assert not np.allclose(one["a"].M.V, one["b"].M.V)
    assert not np.allclose(one["a"].M.V, other["a"].M.V)


def test_half_precision_parameters_keep_their_precision():
    W = jax.tree.map(lambda a: a.astype(jnp.bfloat16), adapter(0, 9, 7))
    tx = lj.oplora(0.1, momentum=0.9)
    state = tx.init(W)
    assert state.M.dtype == jnp.float32
    updates, _ = jit(tx.update)(pair_of(10, 9, 7).astype(jnp.bfloat16), state, W)
    assert optax.apply_updates(W, updates).dtype == jnp.bfloat16


# Several gradients for one step


def micro_batches(tx, params, gradient="auto", count=3, steps=3):
    """Parameters after some steps of so many micro-batches of the same data, and how often a step was traced."""
    step, traces = stepper(tx, gradient)
    state, x = tx.init(params), normal(99, 12, 7)
    for _ in range(steps):
        for part in jnp.split(x, count):
            params, state, _ = step(params, state, part)
    return params, len(traces)


@pytest.mark.parametrize("gradient", ["pairs", "dense"])
@pytest.mark.parametrize("place", ["around", "inside"])
def test_micro_batches_are_one_step_on_all_of_them(place, gradient):
    """Around the transformations of all kinds of parameters, and inside of each, in a chain."""
    params = model(2)

    def transformation(around, inside):
        each = {"adapters": lj.oplora(SCHEDULE, momentum=0.9, iters=2), "others": optax.adam(0.1)}
        whole = optax.multi_transform({kind: inside(tx) for kind, tx in each.items()}, lj.labels(params))
        return optax.chain(optax.identity(), around(whole))

    by_three, as_it_is = functools.partial(lj.multi_steps, every_k=3), lambda tx: tx
    accumulated = (by_three, as_it_is) if place == "around" else (as_it_is, by_three)
    expected, _ = micro_batches(transformation(as_it_is, as_it_is), params, gradient, count=1)
    actual, traced = micro_batches(transformation(*accumulated), params, gradient, count=3)
    assert traced == 1
    for name, layer in expected.items():
        assert_equal_matrices(actual[name]["W"], layer["W"], 1e-8)
        np.testing.assert_allclose(actual[name]["b"], layer["b"], rtol=1e-8)


@pytest.mark.parametrize("every_k", [1, 3, lambda step: jnp.where(step < 1, 2, 3)])
@pytest.mark.parametrize("compiled", [False, True])
def test_accumulation_of_arrays_is_that_of_optax(every_k, compiled):
    params = normal(0, 4).astype(jnp.float32)
    ours, theirs = lj.multi_steps(optax.adam(0.1), every_k), optax.MultiSteps(optax.adam(0.1), every_k)
    state, expected_state = ours.init(params), theirs.init(params)
    update = jit(ours.update) if compiled else ours.update
    for call in range(7):
        G = normal(call, 4).astype(jnp.float32)
        updates, state = update(G, state, params)
        expected, expected_state = theirs.update(G, expected_state, params)
        np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-7)
        assert updates.dtype == expected.dtype
        assert int(state.mini_step) == expected_state.mini_step
        assert int(state.gradient_step) == expected_state.gradient_step


def test_between_steps_nothing_moves():
    W, tx = adapter(0, 3, 9, 7), lj.multi_steps(lj.oplora(0.1, momentum=0.9), 3)
    pairs = [lj.Pair(*adapter(10 + i, 3, 9, 7, rank=4 + i)) for i in range(3)]
    state = tx.init(W)
    for G in pairs[:2]:
        updates, state = tx.update(G, state, W)
        assert not np.any(updates.U) and not np.any(updates.V) and int(state.inner_state.count) == 0
    updates, state = tx.update(pairs[2], state, W)
    plain, mean = lj.oplora(0.1, momentum=0.9), sum(G.to_dense() for G in pairs) / 3
    expected, _ = plain.update(mean, plain.init(W), W)
    np.testing.assert_allclose(updates.U, expected.U, atol=1e-10)
    assert int(state.inner_state.count) == 1 and not np.any(state.mean)


def test_what_is_not_finite_is_left_out_of_the_mean():
    W, tx = adapter(0, 9, 7), lj.apply_if_finite(lj.multi_steps(lj.oplora(0.1), 2))
    state, update, one, other = tx.init(W), jit(tx.update), pair_of(1, 9, 7), pair_of(3, 9, 7)
    for G in (one, lj.Pair(jnp.full((9, 5), jnp.nan), one.V), other):
        updates, state = update(G, state, W)
    plain = lj.oplora(0.1)
    expected, _ = plain.update((one.to_dense() + other.to_dense()) / 2, plain.init(W), W)
    np.testing.assert_allclose(updates.U, expected.U, atol=1e-10)
    assert int(state.total_notfinite) == 1


def test_half_precision_gradients_are_added_up_in_single():
    W = jax.tree.map(lambda a: a.astype(jnp.bfloat16), adapter(0, 9, 7))
    tx = lj.multi_steps(lj.svdlora(0.1), 2)
    state, G = tx.init(W), pair_of(10, 9, 7).astype(jnp.bfloat16)
    _, state = jit(tx.update)(G, state, W)
    assert state.mean.dtype == jnp.float32
    updates, _ = jit(tx.update)(G, state, W)
    assert updates.dtype == jnp.bfloat16 and np.any(updates.U)


def test_further_arguments_reach_the_inner_transformation():
    W, G = adapter(0, 9, 7), pair_of(10, 9, 7)
    inner = optax.chain(lj.oplora(0.1), optax.contrib.reduce_on_plateau())
    for tx in (lj.multi_steps(inner, 1), lj.apply_if_finite(inner)):
        updates, state = tx.update(G, tx.init(W), W, value=2.0)
        assert np.any(updates.U) and float(state.inner_state[1].best_value) == 2.0


def test_bad_accumulation_is_named():
    W, tx = adapter(0, 9, 7), lj.multi_steps(lj.oplora(0.1), 2)
    for k in (0, -1, 2.5, "a", None, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"`every_k` is .*a positive integer"):
            lj.multi_steps(lj.oplora(0.1), k)
    with pytest.raises(ValueError, match="`every_k` is 0"):
        late = lj.multi_steps(lj.oplora(0.1), lambda step: 0)
        late.update(pair_of(10, 9, 7), late.init(W), W)
    state = tx.init({"W": W})
    with pytest.raises(ValueError, match=r"the gradient of `params\['W'\]` has shape \(9, 1\); \(9, 7\) is needed"):
        tx.update({"W": jnp.ones((9, 1))}, state, {"W": W})
    with pytest.raises(ValueError, match="the gradients have the structure"):
        tx.update({"Z": pair_of(10, 9, 7)}, state, {"W": W})
    with pytest.raises(TypeError, match=r"`params\['W'\]` is a LowRank and no lorsum.jax.Pair"):
        tx.update({"W": W}, state, {"W": W})


# Singular and not finite, compiled

SINGULAR = {
    "a zero gradient": lambda W, G: (W, LowRank(0 * G.U, G.V)),
    "dependent columns": lambda W, G: (LowRank(W.U[:, :1] * np.ones(2), W.V), G),
    "dependent columns of both": lambda W, G: (LowRank(*(A[:, :1] * np.ones(2) for A in W)), G),
    "LoRA's start": lambda W, G: (LowRank(0 * W.U, W.V), G),
    "zero": lambda W, G: (LowRank(0 * W.U, 0 * W.V), G),
    "zero and a zero gradient": lambda W, G: (LowRank(0 * W.U, W.V), LowRank(0 * G.U, 0 * G.V)),
    "a zero column": lambda W, G: (LowRank(W.U * np.array([1, 0]), W.V * np.array([1, 0])), G),
    "tiny": lambda W, G: (W, 1e-200 * G.U @ G.V.T),
    "large": lambda W, G: (LowRank(1e100 * W.U, W.V), LowRank(1e100 * G.U, G.V)),
    "graded columns": lambda W, G: (LowRank(W.U * np.array([1e8, 1e-8]), W.V), G),
}


@functools.cache
def singular_step(iters, reg):
    """Compiled once for all cases of one structure."""
    tx = lj.oplora(0.1, momentum=0.9, iters=iters, reg=reg)
    return tx, jit(tx.update)


@pytest.mark.parametrize("reg", [0.0, 1e-3])
@pytest.mark.parametrize("iters", [1, 3])
@pytest.mark.parametrize("case", SINGULAR)
def test_compiled_steps_are_finite_where_the_input_is(case, iters, reg):
    """And the first is what the rule gives on NumPy arrays, but where rounding alone tells two columns apart."""
    W, G = SINGULAR[case](*map(in_numpy, (adapter(0, 9, 7), LowRank(*pair_of(10, 9, 7)))))
    tx, update = singular_step(iters, reg)
    rule = optim.OPLoRA(lr=0.1, momentum=0.9, iters=iters, reg=reg)
    params = jax.tree.map(jnp.asarray, W)
    gradient = lj.Pair(*map(jnp.asarray, G)) if isinstance(G, LowRank) else jnp.asarray(G)
    state = tx.init(params)
    expected_state = in_numpy(state)._replace(count=0)
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    expected = rule.step(W, G, expected_state)[0].to_dense()
    scale = np.linalg.norm(expected) or 1
    if case != "dependent columns of both":
        np.testing.assert_allclose(params.to_dense() / scale, expected / scale, atol=1e-9)
    for _ in range(3):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, state)))
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)


def test_a_gradient_that_is_not_finite_is_left_out():
    W = adapter(0, 9, 7)
    tx = lj.apply_if_finite(lj.oplora(0.1, momentum=0.9))
    state = tx.init(W)
    bad = lj.Pair(jnp.full((9, 3), jnp.nan), jnp.ones((7, 3)))
    updates, state = jit(tx.update)(bad, state, W)
    assert_equal_matrices(optax.apply_updates(W, updates), W)
    assert int(state.notfinite_count) == 1
    assert np.isfinite(state.inner_state.M.V).all()
    updates, state = jit(tx.update)(pair_of(10, 9, 7), state, W)
    assert np.isfinite(updates.U).all() and np.abs(updates.U).max() > 0


def test_a_product_that_overflows_is_left_out_too():
    W, tx = adapter(0, 9, 7), lj.apply_if_finite(lj.oplora(0.1, momentum=0.9))
    G = lj.Pair(jnp.full((9, 3), 1e200), jnp.full((7, 3), 1e200))
    updates, state = jit(tx.update)(G, tx.init(W), W)
    assert int(state.notfinite_count) == 1 and not np.any(updates.U)


def test_a_gradient_that_is_not_finite_is_an_error_without_jit():
    W, tx = adapter(0, 9, 7), lj.oplora(0.1)
    with pytest.raises(ValueError, match="NaN or an infinity"):
        tx.update(lj.Pair(jnp.full((9, 3), jnp.nan), jnp.ones((7, 3))), tx.init(W), W)


# Bad input


def test_bad_input_is_named():
    W, tx = adapter(0, 9, 7), lj.oplora(0.1)
    state = tx.init({"W": W})
    with pytest.raises(ValueError, match="`params` is None"):
        tx.update({"W": pair_of(10, 9, 7)}, state)
    with pytest.raises(TypeError, match=r"`params\['b'\]` is a .*multi_transform"):
        tx.init({"W": W, "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="the gradients have the structure"):
        tx.update({"Z": pair_of(10, 9, 7)}, state, {"W": W})
    with pytest.raises(ValueError, match="`state` is not that of these adapters"):
        tx.update({"Z": pair_of(10, 9, 7)}, state, {"Z": W})
    with pytest.raises(ValueError, match="`lr` is -1"):
        lj.oplora(-1)
    with pytest.raises(ValueError, match=r"`G` has shape \(8, 7\)"):
        tx.update({"W": pair_of(10, 8, 7)}, state, {"W": W})


# Low-rank matrices and sums as pytrees


def test_low_rank_matrices_and_sums_pass_jit():
    W, G = adapter(0, 9, 7), adapter(10, 9, 7, rank=3)

    @jit
    def step(target):
        return lorsum(target, iters=2), 2 * target

    X, doubled = step(W - 0.1 * G)
    expected = lorsum(in_numpy(W) - 0.1 * in_numpy(G), iters=2)
    assert type(X) is LowRank and type(doubled) is LowRankSum
    assert_equal_matrices(X, expected)
    assert_equal_matrices(doubled, 2 * (W - 0.1 * G))


def test_a_new_coefficient_does_not_compile_anew():
    traces = []

    @jit
    def norm(target):
        traces.append(1)
        return target.norm()

    W, G = adapter(0, 9, 7), adapter(10, 9, 7, rank=3)
    norms = [float(norm(W - lr * G)) for lr in (0.1, 0.2, 0.3)]
    np.testing.assert_allclose(norms, [np.linalg.norm(W.to_dense() - lr * G.to_dense()) for lr in (0.1, 0.2, 0.3)])
    assert len(traces) == 1


def test_masks_of_them_can_be_printed():
    assert repr(jax.tree.map(lambda x: "a", adapter(0, 9, 7))) == "LowRank('a', 'a')"


def test_parts_have_names():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(adapter(0, 9, 7) * 2.0)]
    assert paths == [".terms[0].U", ".terms[0].V", ".coefficients[0]"]


@pytest.mark.parametrize("options", [{"rng": 0}, {"iters": 2}, {"learning_rate": 0.1}], ids=str)
def test_options_that_the_rule_has_not_are_refused_by_the_name_of_the_function(options):
    with pytest.raises(TypeError, match=rf"svdlora\(\) got an unexpected keyword argument '{next(iter(options))}'"):
        lj.svdlora(0.1, **options)
