"""The core on tensors, inside of PyTorch's transformations: what works is what works without, the rest says so."""

import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

import lorsum as ls
from lorsum import LowRank, LowRankSum

# array_api_compat's are meant
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tensors():
    torch.manual_seed(0)
    return [torch.randn(size, dtype=torch.float64) for size in ((9, 3), (7, 3), (9, 4), (7, 4))]


def target(U, V, S, X):
    return LowRank(U, V) - 0.1 * LowRank(S, X)


def rounded(**options):
    return lambda *factors: ls.lorsum(target(*factors), **options).to_dense()


def independent(U, V, S, X):
    """An approximation whose factors have nothing to do with those of the sum."""
    return LowRank(torch.roll(S[:, :2], 1, 0) ** 2, torch.roll(X[:, :2], 1, 0) ** 3)


def measured(approx, target):
    """The gap in tensors, which it is in by itself where there are no values."""
    return ls.Gap(*(torch.as_tensor(x, dtype=torch.float64) for x in ls.gap(approx, target)))


FUNCTIONS = {
    "lorsum": rounded(),
    "lorsum reg": rounded(reg=0.1, iters=2),
    "lorsum start": rounded(first="V"),
    "lorsum coefficients": rounded(method="coefficients"),
    "lorsum direct": rounded(method="direct"),
    "lorsum gram": rounded(solver="gram"),
    "lorsum simultaneous": rounded(simultaneous=True),
    "lorsum balanced": rounded(gauge="balanced"),
    "lorsum krylov": rounded(accelerate="krylov", iters=2),
    "lorsum metric": lambda U, V, S, X: rounded(metric=(1 + S[:, 0] ** 2, None))(U, V, S, X),
    "lorsum, a step of learning rate": lambda U, V, S, X: ls.lorsum(
        LowRankSum([LowRank(U, V), LowRank(S, X)], [1, -(S[0, 0] ** 2)])
    ).to_dense(),
    "lorsum, reg a tensor": lambda U, V, S, X: ls.lorsum(target(U, V, S, X), reg=S[0, 0] ** 2).to_dense(),
    "lorsum, a dense term": lambda U, V, S, X: ls.lorsum(LowRankSum([LowRank(U, V), S @ X.mT])).to_dense(),
    "half a step": lambda U, V, S, X: ls.alternating.least_squares_factor(target(U, V, S, X), V),
    "gap": lambda U, V, S, X: measured(independent(U, V, S, X), LowRank(U, V)).error,
    "gap, excess": lambda U, V, S, X: measured(independent(U, V, S, X), LowRank(U, V)).excess,
    "svd": lambda *factors: ls.truncated_svd(target(*factors), 2).s,
    "svd, vectors": lambda *factors: ls.truncated_svd(target(*factors), 2).to_lowrank().to_dense(),
    "svd lapack": lambda *factors: ls.truncated_svd(target(*factors), 2, method="lapack").s,
    "norm": lambda *factors: target(*factors).norm(),
    "to_dense": lambda *factors: target(*factors).to_dense(),
    "dot": lambda U, V, S, X: target(U, V, S, X).dot(X),
    "dot, low rank": lambda U, V, S, X: LowRank(U, V).dot(LowRank(X, S)).to_dense(),
    "balanced": lambda U, V, S, X: LowRank(U, V).balanced().to_dense(),
    "singular values": lambda U, V, S, X: LowRank(U, V).singular_values(),
    "angles": lambda U, V, S, X: ls.principal_angles(U, S),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
WITH_RANDOM_COLUMNS = {
    "lorsum oversample": rounded(oversample=1),
    "svd randomized": lambda *factors: ls.truncated_svd(target(*factors), 2, method="randomized", rng=0).s,
}
WITH_OPERATORS = {
    "W @ x": lambda U, V, S, X: target(U, V, S, X) @ X,
    "y @ W": lambda U, V, S, X: S.mT @ target(U, V, S, X),
    "tensor times": lambda U, V, S, X: (S[0, 0] * LowRank(U, V)).to_dense(),
}
LOOKS_AT_VALUES = {
    "svd rtol": lambda *factors: ls.truncated_svd(target(*factors), rtol=0.1).s,
    "svd subspace": lambda *factors: ls.truncated_svd(target(*factors), 2, method="subspace", rng=0).s,
    "lorsum_until": lambda *factors: ls.lorsum_until(target(*factors), 0.1).approx.to_dense(),
    "History": rounded(callback=ls.History()),
}


@pytest.mark.parametrize("function", (FUNCTIONS | WITH_RANDOM_COLUMNS | WITH_OPERATORS).values(),
                         ids=FUNCTIONS | WITH_RANDOM_COLUMNS | WITH_OPERATORS)  # fmt: skip
def test_vmap_is_a_loop(function):
    batch = [torch.stack([x, x + 0.1, x.flip(0)]) for x in tensors()]
    expected = torch.stack([function(*(x[k] for x in batch)) for k in range(3)])
    torch.testing.assert_close(torch.func.vmap(function)(*batch), expected, rtol=1e-9, atol=1e-9)


@every_function
def test_gradients_are_those_of_differences(function):
    U, *rest = tensors()
    E, step = torch.randn(U.shape, dtype=U.dtype), 1e-6
    weights = torch.randn(function(U, *rest).shape, dtype=U.dtype)

    def value(U):
        return (weights * function(U, *rest)).sum()

    difference = (value(U + step * E) - value(U - step * E)) / (2 * step)
    along = torch.func.grad(value)(U).mul(E).sum()
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-5)


def test_a_regularisation_has_a_gradient():
    reg = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def value(reg):
        return ls.lorsum(target(*tensors()), reg=reg).norm()

    (gradient,) = torch.autograd.grad(value(reg), reg)
    with torch.no_grad():
        difference = (value(reg + 1e-6) - value(reg - 1e-6)) / 2e-6
    torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ls.lorsum(target(*tensors()), reg=reg.detach()).U.requires_grad is False


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("function", (FUNCTIONS | WITH_RANDOM_COLUMNS).values(), ids=FUNCTIONS | WITH_RANDOM_COLUMNS)
def test_tensors_without_values_have_shapes(kind, function):
    factors, expected = tensors(), function(*tensors())
    if kind == "meta":
        result = function(*(x.to("meta") for x in factors))
    else:
        with FakeTensorMode() as mode:
            result = function(*map(mode.from_tensor, factors))
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert result.device.type == ("meta" if kind == "meta" else "cpu")


def check_whole_graph(function, backend):
    factors = tensors()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*factors), function(*factors), rtol=1e-9, atol=1e-9)


@every_function
def test_whole_graphs(function):
    check_whole_graph(function, "eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own are not ours to mend
@pytest.mark.parametrize("name", ["lorsum reg", "gap, excess", "svd, vectors"])
def test_whole_graphs_as_machine_code(name):
    check_whole_graph(FUNCTIONS[name], "inductor")


@pytest.mark.parametrize("function", (WITH_OPERATORS | WITH_RANDOM_COLUMNS).values(),
                         ids=WITH_OPERATORS | WITH_RANDOM_COLUMNS)  # fmt: skip
def test_what_the_compiler_does_not_follow_runs_outside_of_it(function):
    factors = tensors()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(function, fullgraph=True, backend="eager")(*factors)


@pytest.mark.parametrize("function", LOOKS_AT_VALUES.values(), ids=LOOKS_AT_VALUES)
def test_what_depends_on_values_says_so_where_there_are_none(function):
    with pytest.raises(RuntimeError, match=r"vmap: .*(data-dependent control flow|calling .item)"):
        torch.func.vmap(function)(*(x[None] for x in tensors()))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensors"):
        function(*(x.to("meta") for x in tensors()))


def test_a_bad_value_is_still_refused_where_values_are_there():
    U, V, S, X = tensors()
    with pytest.raises(ValueError, match="`target` has a NaN or an infinity in its terms"):
        ls.lorsum(target(U, V, S * float("nan"), X))
