import dataclasses

import numpy as np
import pytest
from reference import dense, distance
from strategies import normal_lowrank

from lorsum import LowRank
from lorsum.optim import SGD, AdamW, Full, OPLoRA, PreconditionedAdamW, PreconditionedSGD, ProjectedOPLoRA, SVDLoRA

RULES = [SGD, AdamW, PreconditionedSGD, PreconditionedAdamW, OPLoRA, ProjectedOPLoRA, SVDLoRA, Full]
every_rule = pytest.mark.parametrize("Rule", RULES)
STEPS = 20


def schedule(step):
    return 0.05 * 0.9**step


def with_momentum(Rule, lr=0.1):
    return Rule(lr=lr) if issubclass(Rule, AdamW) else Rule(lr=lr, momentum=0.9)


def gradients(shape=(8, 6), rank=3, dtype=np.float64):
    rng = np.random.default_rng(1)
    return [normal_lowrank(rng, *shape, rank, dtype) for _ in range(STEPS)]


def adapter(shape=(8, 6), rank=2, dtype=np.float64):
    return normal_lowrank(np.random.default_rng(0), *shape, rank, dtype)


def run(rule, W, Gs, state=None):
    state = state or rule.init(W, rng=0)
    for G in Gs:
        W, state = rule.step(W, G, state)
    return W


def arrays(x):
    """All arrays in a tree of low-rank matrices, tuples and arrays."""
    if isinstance(x, (LowRank, tuple, list)):
        return [array for part in x for array in arrays(part)]
    return [x] if hasattr(x, "shape") else []


def in_double(A):
    return LowRank(*(x.astype(np.float64) for x in A)) if isinstance(A, LowRank) else A.astype(np.float64)


def run_in_torch(optimizer_of, parameters, gradients_of):
    """The same steps by an optimizer of torch, its learning rate following the schedule."""
    torch = pytest.importorskip("torch")
    parameters = [torch.nn.Parameter(torch.tensor(p)) for p in parameters]
    optimizer = optimizer_of(parameters)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = schedule(step)
        for p, g in zip(parameters, gradients_of(step, [p.detach().numpy() for p in parameters]), strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    return [p.detach().numpy() for p in parameters]


SAME_AS_TORCH = pytest.mark.parametrize(
    ("Rule", "name", "options"),
    [
        (SGD, "SGD", {}),
        (SGD, "SGD", {"momentum": 0.9}),
        (SGD, "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        (SGD, "SGD", {"weight_decay": 0.1}),
        (AdamW, "AdamW", {}),
        (AdamW, "AdamW", {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
        (AdamW, "AdamW", {"betas": (0.0, 0.9), "weight_decay": 0.0}),
    ],
    ids=str,
)


@SAME_AS_TORCH
def test_factors_are_trained_as_torch_trains_two_parameters(Rule, name, options):
    optim = pytest.importorskip("torch.optim")
    W, Gs = adapter(), gradients()

    def factor_gradients(step, factors):
        U, V = factors
        return [dense(Gs[step]) @ V, dense(Gs[step]).T @ U]

    expected = run_in_torch(lambda p: getattr(optim, name)(p, lr=1.0, **options), W, factor_gradients)
    actual = run(Rule(lr=schedule, **options), W, Gs)
    np.testing.assert_allclose(actual.U, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(actual.V, expected[1], rtol=1e-12, atol=1e-12)


@SAME_AS_TORCH
@pytest.mark.parametrize("shape", [(), (5,), (8, 6), (2, 3, 4)], ids=str)
def test_dense_parameters_are_trained_as_torch_does(Rule, name, options, shape):
    optim = pytest.importorskip("torch.optim")
    rng = np.random.default_rng(0)
    p, gs = rng.normal(size=shape), rng.normal(size=(STEPS, *shape))
    (expected,) = run_in_torch(lambda p: getattr(optim, name)(p, lr=1.0, **options), [p], lambda step, _: [gs[step]])
    np.testing.assert_allclose(run(Rule(lr=schedule, **options), p, gs), expected, rtol=1e-12, atol=1e-12)


# --- what all rules share ---


@every_rule
def test_dense_and_low_rank_gradients_lead_to_the_same(Rule):
    W, Gs = adapter(), gradients()[:4]
    rule = with_momentum(Rule)
    assert distance(run(rule, W, Gs), run(rule, W, list(map(dense, Gs)))) < 1e-10


@every_rule
def test_a_sum_is_a_gradient_too(Rule):
    W, (A, B, *_) = adapter(), gradients()
    rule = with_momentum(Rule)
    assert distance(run(rule, W, [A - 0.5 * B]), run(rule, W, [dense(A) - 0.5 * dense(B)])) < 1e-10


@every_rule
def test_learning_rates_follow_a_schedule(Rule):
    W, Gs = adapter(), gradients()[:3]
    rule = with_momentum(Rule, schedule)
    X, state = W, rule.init(W, rng=0)
    for step, G in enumerate(Gs):
        assert state.count == step
        X, state = with_momentum(Rule, schedule(step)).step(X, G, state)
    assert distance(run(rule, W, Gs), X) == 0


@every_rule
def test_a_learning_rate_of_zero_changes_nothing(Rule):
    W, Gs = adapter(), gradients()[:2]
    assert distance(run(with_momentum(Rule, 0.0), W, Gs), W) < 1e-13


@every_rule
def test_steps_leave_their_arguments_as_they_were(Rule):
    W, Gs = adapter(), gradients()
    rule = with_momentum(Rule)
    state = rule.step(W, Gs[0], rule.init(W, rng=0))[1]
    before = [array.copy() for array in arrays((W, Gs[1], state))]
    once, twice = rule.step(W, Gs[1], state), rule.step(W, Gs[1], state)
    for array, copy in zip(arrays((W, Gs[1], state)), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    for one, other in zip(arrays(once), arrays(twice), strict=True):
        np.testing.assert_array_equal(one, other)


@every_rule
def test_rules_are_frozen_and_compare_by_their_options(Rule):
    rule = Rule(lr=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.lr = 0.2
    assert rule == Rule(lr=0.1) != Rule(lr=0.2)
    assert hash(rule) == hash(Rule(lr=0.1))
    assert dataclasses.replace(rule, lr=0.2) == Rule(lr=0.2)


@every_rule
def test_rules_take_their_options_by_name_only(Rule):
    with pytest.raises(TypeError):
        Rule(0.1)


@every_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_are_kept(Rule, dtype):
    rule, W = with_momentum(Rule), adapter(dtype=dtype)
    state = rule.init(W, rng=0)
    for G in gradients(dtype=dtype)[:2]:
        W, state = rule.step(W, G, state)
        assert {array.dtype for array in arrays((W, state))} == {np.dtype(dtype)}


@every_rule
@pytest.mark.parametrize(("dtype", "gradient_dtype"), [(np.float32, np.float64), (np.float16, np.float32)])
def test_gradients_of_another_dtype_do_not_change_that_of_the_adapter(Rule, dtype, gradient_dtype):
    W = run(with_momentum(Rule), adapter(dtype=dtype), gradients(dtype=gradient_dtype)[:3])
    assert {array.dtype for array in arrays(W)} == {np.dtype(dtype)}


@every_rule
def test_half_precision_is_trained_in_single_and_comes_back_as_it_came(Rule):
    W, Gs = adapter(dtype=np.float16), gradients(dtype=np.float16)[:2]
    X = run(with_momentum(Rule), W, Gs)
    assert {array.dtype for array in arrays(X)} == {np.dtype(np.float16)}
    expected = run(with_momentum(Rule), in_double(W), list(map(in_double, Gs)))
    assert distance(in_double(X), expected) < 5e-3


@every_rule
def test_a_learning_rate_from_numpy_keeps_the_dtype(Rule):
    W = adapter(dtype=np.float32)
    W = run(with_momentum(Rule, lambda step: np.float64(0.1) * np.cos(step)), W, gradients(dtype=np.float32)[:2])
    assert {array.dtype for array in arrays(W)} == {np.dtype(np.float32)}


@every_rule
def test_every_array_library_gives_the_same(Rule, library):
    W, Gs = adapter(), gradients()[:3]
    rule = with_momentum(Rule)
    state = rule.init(LowRank(*map(library, W)), rng=0)
    X = LowRank(*map(library, W))
    for G in Gs:
        X, state = rule.step(X, LowRank(*map(library, G)), state)
        assert {type(array) for array in arrays((X, state))} == {type(library(W.U))}
    assert distance(X, run(rule, W, Gs)) < 1e-10


@every_rule
def test_steps_can_be_jitted(Rule):
    jax = pytest.importorskip("jax")
    W, (G, *_) = adapter(dtype=np.float32), gradients(dtype=np.float32)

    @jax.jit
    def stepped(U, V, S, X, lr):
        rule, W = Rule(lr=lr), LowRank(U, V)
        return arrays(rule.step(W, LowRank(S, X), rule.init(W))[0])

    actual, expected = stepped(*W, *G, 0.1), run(Rule(lr=0.1), W, [G])
    assert distance(LowRank(*actual) if isinstance(expected, LowRank) else actual[0], expected) < 1e-5


@every_rule
def test_a_batch_of_adapters_is_a_loop_over_them(Rule):
    rng = np.random.default_rng(0)
    W, G = (LowRank(rng.normal(size=(3, 8, k)), rng.normal(size=(3, 6, k))) for k in (2, 4))
    rule = with_momentum(Rule)
    X, state = rule.step(W, G, rule.init(W, rng=0))
    X = dense(rule.step(X, G, state)[0])
    for i in range(3):
        w, g = LowRank(W.U[i], W.V[i]), LowRank(G.U[i], G.V[i])
        state = rule.init(w, rng=0)
        if isinstance(rule, OPLoRA) and not isinstance(rule, ProjectedOPLoRA):  # the batch drew its own random numbers
            state = state._replace(M=LowRank(state.M.U, rule.init(W, rng=0).M.V[i]))
        assert distance(X[i], run(rule, w, [g, g], state)) < 1e-10


# --- bad input ---


@every_rule
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"lr": -0.1}, ValueError, "`lr` is -0.1"),
        ({"lr": np.nan}, ValueError, "`lr` is nan"),
        ({"lr": np.inf}, ValueError, "`lr` is inf"),
        ({"lr": "0.1"}, TypeError, "`lr` is '0.1'"),
        ({"lr": None}, TypeError, "`lr` is None"),
        ({"momentum": 1.0}, ValueError, "`momentum` is 1.0"),
        ({"momentum": -0.1}, ValueError, "`momentum` is -0.1"),
        ({"momentum": np.nan}, ValueError, "`momentum` is nan"),
        ({"weight_decay": -1}, ValueError, "`weight_decay` is -1"),
        ({"reg": -1}, ValueError, "`reg` is -1"),
        ({"reg": np.nan}, ValueError, "`reg` is nan"),
        ({"eps": -1}, ValueError, "`eps` is -1"),
        ({"betas": (0.9, 1.0)}, ValueError, "`betas` is 1.0"),
        ({"betas": (0.9,)}, ValueError, "`betas` is"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(Rule, options, kind, message):
    if not options.keys() <= {field.name for field in dataclasses.fields(Rule)}:
        with pytest.raises(TypeError, match="unexpected keyword"):
            Rule(**{"lr": 0.1, **options})
    else:
        with pytest.raises(kind, match=message):
            Rule(**{"lr": 0.1, **options})


@every_rule
def test_gradients_that_do_not_fit_an_adapter_are_refused(Rule):
    rule, W = Rule(lr=0.1), adapter()
    for G in (adapter((6, 8)), np.ones((6, 8)), adapter((8, 5)), np.ones((7, 6))):
        with pytest.raises(ValueError):
            rule.step(W, G, rule.init(W))
    for G in ("G", [[1.0]], None):
        with pytest.raises(TypeError):
            rule.step(W, G, rule.init(W))


@every_rule
def test_gradients_are_not_broadcast(Rule):
    rule, W = with_momentum(Rule), adapter()
    with pytest.raises(ValueError):
        rule.step(W, np.ones((8, 1)), rule.init(W))


@pytest.mark.parametrize("Rule", [SGD, AdamW])
def test_gradients_of_dense_parameters_are_not_broadcast(Rule):
    rule, b = Rule(lr=0.1), np.ones(3)
    with pytest.raises(ValueError):
        rule.step(b, np.ones((2, 3)), rule.init(b))


@pytest.mark.parametrize("Rule", [OPLoRA, ProjectedOPLoRA, SVDLoRA])
def test_rules_for_adapters_refuse_other_parameters(Rule):
    with pytest.raises(TypeError, match="`W` is a ndarray"):
        Rule(lr=0.1).init(np.ones((3, 2)))
    with pytest.raises(TypeError, match="`W` is a ndarray"):
        Rule(lr=0.1).step(np.ones((3, 2)), np.ones((3, 2)), Rule(lr=0.1).init(adapter()))


@pytest.mark.parametrize("Rule", [OPLoRA, ProjectedOPLoRA, SVDLoRA])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rules_that_round_refuse_a_gradient_that_is_not_finite(Rule, bad):
    rule, W = Rule(lr=0.1), adapter()
    with pytest.raises(ValueError, match=r"has a NaN or an infinity in its terms\[1\]"):
        rule.step(W, np.full((8, 6), bad), rule.init(W))
