"""``weight_decay`` and ``maximize`` of every rule, against their definitions."""

import dataclasses

import numpy as np
import pytest
from reference import alternating, dense, distance, truncated
from strategies import normal_lowrank

from lorsum import LowRank
from lorsum.optim import (
    KFAC,
    SGD,
    AdamW,
    DiagonalScale,
    Full,
    OPLoRA,
    PreconditionedAdamW,
    PreconditionedSGD,
    ProjectedOPLoRA,
    ScaledOPLoRA,
    Shampoo,
    SVDLoRA,
)

LR, DECAY, MOMENTUM = 0.1, 0.7, 0.9
RULES = {
    "SGD": SGD(lr=LR, momentum=MOMENTUM),
    "AdamW": AdamW(lr=LR),
    "Full": Full(lr=LR, momentum=MOMENTUM),
    "PreconditionedSGD": PreconditionedSGD(lr=LR, momentum=MOMENTUM),
    "PreconditionedAdamW": PreconditionedAdamW(lr=LR),
    "OPLoRA": OPLoRA(lr=LR, momentum=MOMENTUM, iters=2),
    "OPLoRA without momentum": OPLoRA(lr=LR),
    "ProjectedOPLoRA": ProjectedOPLoRA(lr=LR, momentum=MOMENTUM),
    "SVDLoRA": SVDLoRA(lr=LR, momentum=MOMENTUM),
    "KFAC": ScaledOPLoRA(lr=LR, momentum=MOMENTUM, scale=KFAC(rank=3, damping=0.1)),
    "Shampoo": ScaledOPLoRA(lr=LR, momentum=MOMENTUM, scale=Shampoo(rank=3, damping=0.1)),
    "DiagonalScale": ScaledOPLoRA(lr=LR, momentum=MOMENTUM, scale=DiagonalScale(damping=0.1)),
}
every_rule = pytest.mark.parametrize("name", RULES)
FORMS = ["pairs", "dense", "sum"]  # of which K-FAC takes pairs alone
ON_PRECONDITIONED_FACTORS = ["PreconditionedSGD", "PreconditionedAdamW"]
OF_THE_PRODUCT = [
    *ON_PRECONDITIONED_FACTORS,
    *(name for name, rule in RULES.items() if isinstance(rule, (OPLoRA, SVDLoRA))),
]


def adapter():
    return normal_lowrank(np.random.default_rng(0), 8, 6, 2, np.float64)


def gradients(count=4):
    rng = np.random.default_rng(1)
    return [normal_lowrank(rng, 8, 6, 3, np.float64) for _ in range(count)]


def run(rule, Gs, W=None, rng=0):
    W = adapter() if W is None else W
    state = rule.init(W, rng=rng)
    for G in Gs:
        W, state = rule.step(W, G, state)
    return W


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in RULES for form in FORMS if name != "KFAC" or form == "pairs"]
)
def test_ascent_is_descent_along_the_negative(name, form):
    rule = RULES[name]
    Gs = [{"pairs": G, "dense": dense(G), "sum": 0.5 * G + 0.5 * G}[form] for G in gradients()]
    negative = [LowRank(-G.U, G.V) for G in gradients()]
    if form != "pairs":
        negative = [-dense(G) for G in gradients()]
    assert distance(run(dataclasses.replace(rule, maximize=True), Gs), run(rule, negative)) < 1e-10


@every_rule
def test_no_decay_is_the_step_without_it(name):
    rule = RULES[name]
    decaying = dataclasses.replace(rule, weight_decay=0.0)
    if rule.weight_decay == 0:
        assert distance(run(decaying, gradients()), run(rule, gradients())) == 0
    assert distance(run(dataclasses.replace(rule, weight_decay=DECAY), gradients()), run(decaying, gradients())) > 1e-3


@pytest.mark.parametrize("name", OF_THE_PRODUCT)
def test_the_product_decays(name):
    """Of a gradient of zero the step is W ← (1 − η · weight_decay) W, whatever the gauge of its factors."""
    options = {} if name == "SVDLoRA" else {"reg": 0.0}
    rule = dataclasses.replace(RULES[name], weight_decay=DECAY, **options)
    nothing = LowRank(np.zeros((8, 1)), np.zeros((6, 1)))
    W = adapter()
    A = np.array([[2.0, 1.0], [0.0, 0.5]])
    for start in (W, LowRank(W.U @ A, W.V @ np.linalg.inv(A).T)):
        assert distance(run(rule, [nothing], start), (1 - LR * DECAY) * dense(W)) < 1e-12
        assert distance(run(rule, [nothing] * 3, start), (1 - LR * DECAY) ** 3 * dense(W)) < 1e-12


@pytest.mark.parametrize("Rule", [OPLoRA, ProjectedOPLoRA, SVDLoRA])
def test_the_target_has_the_decayed_matrix_as_its_first_term(Rule):
    """Converged: SVD_r((1 − η · weight_decay) W − ηG)."""
    options = {} if Rule is SVDLoRA else {"reg": 0.0, "iters": 80}
    (G,) = gradients(1)
    expected = truncated((1 - LR * DECAY) * dense(adapter()) - LR * dense(G), 2)
    assert distance(run(Rule(lr=LR, weight_decay=DECAY, **options), [G]), expected) < 1e-9


@pytest.mark.parametrize("reg", [0.0, 0.3])
def test_oploras_step_is_that_of_the_textbook(reg):
    """With momentum, and with λ, of which the proximal term holds on to the factors as they were."""
    W, Gs = adapter(), gradients(2)
    rule = OPLoRA(lr=LR, momentum=MOMENTUM, iters=2, reg=reg, weight_decay=DECAY)
    W1, state = rule.step(W, Gs[0], rule.init(W, rng=0))
    target = (1 - LR * DECAY) * dense(W1) - LR * dense(Gs[1]) - LR * MOMENTUM * dense(state.M)
    U, V = alternating(target, W1.U, W1.V, 2, LR * reg)
    assert distance(rule.step(W1, Gs[1], state)[0], U @ V.T) < 1e-11


def test_sgds_decay_of_the_factors_is_added_to_their_gradients():
    W, (G,) = adapter(), gradients(1)
    plain, decayed = run(SGD(lr=LR), [G]), run(SGD(lr=LR, weight_decay=DECAY), [G])
    np.testing.assert_allclose(decayed.U, plain.U - LR * DECAY * W.U, rtol=1e-12)
    np.testing.assert_allclose(decayed.V, plain.V - LR * DECAY * W.V, rtol=1e-12)


def test_adamws_decay_of_the_factors_is_decoupled():
    W, (G,) = adapter(), gradients(1)
    plain, decayed = run(AdamW(lr=LR, weight_decay=0.0), [G]), run(AdamW(lr=LR, weight_decay=DECAY), [G])
    np.testing.assert_allclose(decayed.U, plain.U - LR * DECAY * W.U, rtol=1e-12)
    np.testing.assert_allclose(decayed.V, plain.V - LR * DECAY * W.V, rtol=1e-12)


@pytest.mark.parametrize("name", ON_PRECONDITIONED_FACTORS)
@pytest.mark.parametrize("decay", [DECAY, 1 / LR, 3 / LR], ids=["less", "all", "more"])
def test_preconditioned_factors_decay_alike_beside_their_step(name, decay):
    """U Vᵀ by 1 − η · weight_decay, of whatever sign; the step is that of the weights before."""
    W, (G,) = adapter(), gradients(1)
    plain, decayed = (run(dataclasses.replace(RULES[name], weight_decay=w), [G]) for w in (0.0, decay))
    U, V = decayed.U - (plain.U - W.U), decayed.V - (plain.V - W.V)
    np.testing.assert_allclose(U @ V.T, (1 - LR * decay) * dense(W), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.abs(U * W.V[0, 0]), np.abs(W.U * V[0, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ON_PRECONDITIONED_FACTORS)
def test_a_bias_decays_as_by_the_rule_that_is_preconditioned(name):
    b, g = np.arange(3.0), np.ones(3)
    plain = {"PreconditionedSGD": SGD, "PreconditionedAdamW": AdamW}[name]
    rules = [Rule(lr=LR, weight_decay=DECAY) for Rule in (plain, type(RULES[name]))]
    np.testing.assert_array_equal(*(rule.step(b, g, rule.init(b))[0] for rule in rules))


@pytest.mark.parametrize("name", OF_THE_PRODUCT)
def test_the_decay_follows_the_schedule(name):
    options = {} if name == "SVDLoRA" else {"reg": 0.0}
    rule = dataclasses.replace(RULES[name], lr=lambda step: LR / (step + 1), weight_decay=DECAY, **options)
    nothing = LowRank(np.zeros((8, 1)), np.zeros((6, 1)))
    expected = (1 - LR * DECAY) * (1 - LR / 2 * DECAY) * dense(adapter())
    assert distance(run(rule, [nothing] * 2), expected) < 1e-12


@every_rule
def test_what_makes_no_sense_is_refused(name):
    with pytest.raises(ValueError, match="`weight_decay` is -1"):
        dataclasses.replace(RULES[name], weight_decay=-1)
    with pytest.raises(TypeError, match="`weight_decay` is '1'"):
        dataclasses.replace(RULES[name], weight_decay="1")
    with pytest.raises(TypeError, match="`maximize` is 1; True or False is needed"):
        dataclasses.replace(RULES[name], maximize=1)


@every_rule
def test_single_precision_stays_single(name):
    rule = dataclasses.replace(RULES[name], weight_decay=np.float64(DECAY), maximize=True)
    Gs = [LowRank(G.U.astype(np.float32), G.V.astype(np.float32)) for G in gradients()]
    W = run(rule, Gs, LowRank(*(x.astype(np.float32) for x in adapter())))
    assert W.dtype == np.float32
    assert distance(W, run(rule, gradients())) < 1e-3


@every_rule
def test_every_array_library_decays_and_ascends_alike(name, library):
    rule = dataclasses.replace(RULES[name], weight_decay=DECAY, maximize=True)
    Gs = [LowRank(*map(library, G)) for G in gradients()]
    actual = run(rule, Gs, LowRank(*map(library, adapter())))
    assert distance(actual, run(rule, gradients())) < 1e-9
