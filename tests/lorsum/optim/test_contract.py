"""What every update rule does, in every framework; a rule of your own belongs into ``RULES`` too."""

import pickle

import numpy as np
import pytest
from own_rule import OneSided, ThriftyOneSided

from lorsum import LowRank, optim

M, N, RANK, ROWS = 12, 10, 3, 7


momentum = {"lr": 0.1, "momentum": 0.9}
RULES = {
    "SGD": optim.SGD(**momentum),
    "AdamW": optim.AdamW(lr=0.1, weight_decay=0.0),
    "PreconditionedSGD": optim.PreconditionedSGD(**momentum),
    "PreconditionedAdamW": optim.PreconditionedAdamW(lr=0.1, weight_decay=0.0),
    "OPLoRA": optim.OPLoRA(**momentum, iters=2),
    "OPLoRA without momentum": optim.OPLoRA(lr=0.1),
    "OPLoRA, a larger momentum": optim.OPLoRA(**momentum, momentum_rank=5, first="V"),
    "OPLoRA, simultaneous": optim.OPLoRA(**momentum, simultaneous=True),
    "OPLoRA, coefficients": optim.OPLoRA(**momentum, method="coefficients"),
    "ProjectedOPLoRA": optim.ProjectedOPLoRA(**momentum, iters=2),
    "ScaledOPLoRA": optim.ScaledOPLoRA(**momentum),
    "K-FAC": optim.ScaledOPLoRA(**momentum, scale=optim.KFAC(rank=2, damping=0.1)),
    "Shampoo": optim.ScaledOPLoRA(**momentum, scale=optim.Shampoo(rank=2, damping=0.1)),
    "diagonal": optim.ScaledOPLoRA(**momentum, scale=optim.DiagonalScale(damping=0.1)),
    "SVDLoRA": optim.SVDLoRA(**momentum),
    "Full": optim.Full(**momentum),
    "a rule of one's own": OneSided(lr=0.1),
    "one that reads less": ThriftyOneSided(lr=0.1),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))


def problem(library=np.asarray, dtype="float64"):
    """An adapter W and a gradient Sᵀ X of seven rows."""
    rng = np.random.default_rng(0)
    factors = [library(rng.normal(size=(size, rank)).astype(dtype)) for size, rank in ((M, RANK), (N, RANK))]
    rows = [library(rng.normal(size=(size, ROWS)).astype(dtype)) for size in (M, N)]
    return LowRank(*factors), LowRank(*rows)


def leaves(x):
    """The arrays and numbers in a tree of tuples and low-rank matrices; anything else is no state."""
    if isinstance(x, (tuple, LowRank)):
        return [leaf for part in x for leaf in leaves(part)]
    return [] if x is None else [x]


def values(x):
    return [np.asarray(leaf).copy() for leaf in leaves(x)]


def matrices(x):
    """The same with the products of factors, which may differ in their signs."""
    if isinstance(x, tuple):
        return [leaf for part in x for leaf in matrices(part)]
    return [] if x is None else [dense(x)]


def dense(W):
    return np.asarray(W.to_dense() if isinstance(W, LowRank) else W)


def assert_same(one, other):
    for x, y in zip(values(one), values(other), strict=True):
        np.testing.assert_array_equal(x, y)


@every_rule
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_and_dtypes_stay(rule, dtype, library):
    W, G = problem(library, dtype)
    state = rule.init(W, rng=0)
    after, following = rule.step(W, G, state)
    assert isinstance(rule, optim.Rule)
    assert tuple(after.shape) == (M, N) and after.dtype == W.dtype
    assert not isinstance(after, LowRank) or after.rank == RANK
    assert type(following) is type(state)
    assert [np.shape(x) for x in leaves(following)] == [np.shape(x) for x in leaves(state)]


@every_rule
def test_a_state_is_the_steps_done_and_arrays(rule, library):
    W, G = problem(library)
    state, kind = rule.init(W, rng=0), type(W.U)
    for count in range(3):
        assert state.count == count
        assert all(type(x) in (kind, int) and (type(x) is not int or x == count) for x in leaves(state))
        W, state = rule.step(W, G, state)


@every_rule
def test_nothing_changes_in_place(rule, library):
    W, G = problem(library)
    state = rule.init(W, rng=0)
    for _ in range(2):
        before = [values(x) for x in (W, G, state)]
        after, following = rule.step(W, G, state)
        for x, y in zip((W, G, state), before, strict=True):
            assert_same(x, tuple(y))
        W, state = after, following


@every_rule
def test_a_step_along_zero_stays(rule, library):
    W, G = problem(library)
    after, _ = rule.step(W, LowRank(0 * G.U, G.V), rule.init(W, rng=0))
    np.testing.assert_allclose(dense(after), dense(W), rtol=1e-10, atol=1e-10)


@every_rule
def test_the_same_steps_again_are_the_same_bits(rule, library):
    W, G = problem(library)
    once, again = (rule.step(W, G, rule.init(W, rng=np.random.default_rng(3))) for _ in range(2))
    assert_same(once, again)


def curve(rule, library, form):
    """Distances to a matrix in six steps along their gradient, a pair or dense."""
    W, G = problem(library)
    target, identity = dense(G), library(np.eye(N))
    state, distances = rule.init(W, rng=0), []
    for _ in range(6):
        difference = library(dense(W) - target)
        W, state = rule.step(W, difference if form == "dense" else LowRank(difference, identity), state)
        distances.append(np.linalg.norm(dense(W) - target))
    return distances


@every_rule
def test_every_framework_draws_the_same_curve(rule, library):
    expected = curve(rule, np.asarray, "pair")
    np.testing.assert_allclose(curve(rule, library, "pair"), expected, rtol=1e-8)


@every_rule
def test_the_form_of_the_gradient_makes_no_difference(rule):
    """Where the rule does not ask for rows."""
    if optim.reads(rule, RANK).what != "rows":
        np.testing.assert_allclose(curve(rule, np.asarray, "dense"), curve(rule, np.asarray, "pair"), rtol=1e-8)


@every_rule
def test_rules_and_states_are_pickled(rule):
    W, G = problem()
    state = rule.init(W, rng=0)
    copy, restored = pickle.loads(pickle.dumps((rule, state)))
    assert copy == rule
    assert_same(copy.step(W, G, restored), rule.step(W, G, state))


class Products:
    """A gradient that has products alone, and counts their columns."""

    def __init__(self, G, columns, side="V"):
        self.G, self.columns, self.side = G, columns, side
        self.shape, self.dtype = G.shape, G.dtype

    @property
    def T(self):
        return Products(self.G.T, self.columns, "U" if self.side == "V" else "V")

    def matmat(self, X):
        self.columns[self.side].append(np.array(X))
        return self.G @ X

    def rmatmat(self, X):
        return self.T.matmat(X)

    __matmul__ = matmat


@every_rule
def test_a_rule_reads_what_it_says(rule):
    """Its steps are the same with a gradient that offers that and no more."""
    W, G = problem()
    state = rule.init(W, rng=0)
    what, most = optim.reads(rule, RANK)
    columns = {"U": [], "V": []}
    offered = {"matrix": G.to_dense(), "rows": G}.get(what, Products(G, columns))
    for x, y in zip(matrices(rule.step(W, offered, state)), matrices(rule.step(W, G, state)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10)
    read = {side: sum(X.shape[-1] for X in blocks) for side, blocks in columns.items()}
    if what == "products":
        assert max(read.values()) == most
    if what == "factors":
        assert all(np.array_equal(X, {"U": W.U, "V": W.V}[side]) for side, blocks in columns.items() for X in blocks)


def test_a_rule_that_says_nothing_gets_all_of_the_gradient():
    assert optim.reads(OneSided(lr=0.1), RANK) == optim.Reads("matrix")


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (("products", 3), TypeError, "`reads` of Talker gives a tuple; a lorsum.optim.Reads is needed"),
        (None, TypeError, "`reads` of Talker gives a NoneType"),
        (optim.Reads("collumns"), ValueError, "`reads` of Talker gives 'collumns'; it must be one of 'matrix', 'rows'"),
    ],
)
def test_what_a_rule_says_it_reads_is_checked(said, error, message):
    class Talker(OneSided):
        def reads(self, rank):
            return said

    with pytest.raises(error, match=message):
        optim.reads(Talker(lr=0.1), RANK)
