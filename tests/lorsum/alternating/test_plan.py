"""What ``plan`` says is what runs: the way, the backend, the solver, and what takes over where the kernels give up."""

import itertools
from contextlib import nullcontext, suppress

import numpy as np
import pytest
from numpy.linalg import LinAlgError
from scipy.sparse.linalg import aslinearoperator
from strategies import normal_lowrank

from lorsum import LowRank, lorsum, plan
from lorsum import alternating as connected
from lorsum.alternating import array_api
from lorsum.alternating.plan import planned
from lorsum.alternating.problem import Problem, checked, simplified


def target(rank=3, others=(5,), shape=(30, 20), dtype=np.float64):
    rng = np.random.default_rng(0)
    W, *terms = (normal_lowrank(rng, *shape, k) for k in (rank, *others))
    return sum((0.1 * A for A in terms), start=W).astype(dtype)


@pytest.fixture
def taken(monkeypatch):
    """Backend and way of all that runs, with the half-steps in array code."""
    calls = []

    def watched(module, name, note):
        function = getattr(module, name)

        def with_note(*args, **kwargs):
            calls.append(note(*args))
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, with_note)

    watched(connected, "by_kernels", lambda problems, plan: ("numba", plan.way))
    watched(connected, "by_array_code", lambda problem, plan, observe: ("array API", plan.way))
    watched(array_api, "compressed", lambda *_: "compressed")
    watched(array_api, "gram_half_step", lambda *_: "Gram matrix")
    watched(array_api, "orthogonalised", lambda *_: "orthogonalised")
    return calls


OPTIONS = {
    "iters": (1, 30),
    "reg": (0.0, 0.1),
    "simultaneous": (False, True),
    "method": ("auto", "direct", "coefficients"),
    "solver": ("auto", "qr", "gram"),
    "oversample": (0, 2),
    "callback": (None, lambda iterate: None),
}


COMBINATIONS = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]


@pytest.mark.parametrize("options", COMBINATIONS)
def test_what_is_planned_is_what_runs(taken, options):
    W = target()
    expected = plan(W, **options)
    with nullcontext() if options["solver"] != "gram" else suppress(LinAlgError):  # of the zeros of `oversample`
        lorsum(W, **options)
    (ran, *others), solver = taken, options["solver"]
    assert ran == (expected.backend, expected.way)
    assert ("compressed" in others) == (expected.way == "QR coefficients")
    if expected.backend == "array API":
        assert set(others) - {"compressed"} == {"Gram matrix" if solver == "gram" else "orthogonalised"}
    else:
        assert (solver, others) == ("auto", [])
    assert all(cost > 0 for cost in expected.cost.values())
    if options["method"] == "auto":
        assert expected.cost[expected.way] == min(expected.cost.values())


@pytest.mark.parametrize("start", [None, normal_lowrank(np.random.default_rng(1), 30, 20, 4)])
def test_the_start_with_more_columns_is_counted(start):
    problem = checked(Problem(target(), start, oversample=3))
    assert planned(problem).size == planned(simplified(problem)[0]).size


@pytest.mark.parametrize("method", ["auto", "direct", "coefficients"])
def test_what_takes_over_is_the_fallback(taken, method):
    """Of a start with two equal columns the Gram matrix is singular, and the kernels give up."""
    A, B = target().terms
    W = LowRank(np.repeat(A.U[:, :1], 3, axis=1), np.repeat(A.V[:, :1], 3, axis=1)) + B
    expected = [plan(W, method=method, iters=60)]
    while expected[-1].backend == "numba":
        expected.append(expected[-1].fallback())
    lorsum(W, method=method, iters=60)
    assert [x for x in taken if isinstance(x, tuple)] == [(p.backend, p.way) for p in expected]
    assert len(expected) == {"auto": 3, "direct": 2, "coefficients": 2}[method]


def test_a_plan_says_why():
    W = target()
    whys = {
        "it costs least": plan(W),
        "`method` is 'direct'": plan(W, method="direct"),
        "`solver` is 'gram'": plan(W, solver="gram"),
        "`accelerate` is 'krylov'": plan(W, accelerate="krylov"),
        "`iters` is 0": plan(W, iters=0),
        "numbers are complex": plan(W.astype(np.complex128)),
        "two terms are dense": plan(W + np.ones((30, 20)) + np.ones((30, 20))),
        "a term is an operator": plan(W + aslinearoperator(np.ones((30, 20)))),
    }
    for why, given in whys.items():
        assert given.why == why
        assert str(given).splitlines()[0].endswith(why)
        assert why.replace("'", "&#x27;") in given._repr_html_()


@pytest.mark.parametrize(
    "options", [{"iters": -1}, {"method": "fast"}, {"reg": np.nan}, {"init": 3}, {"accelerate": "krylov", "reg": 1.0}]
)
def test_what_cannot_be_planned_is_lorsums_error(options):
    with pytest.raises((TypeError, ValueError)) as expected:
        lorsum(target(), **options)
    with pytest.raises(expected.type) as got:
        plan(target(), **options)
    assert str(got.value) == str(expected.value)


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match=r"plan\(\) got an unexpected keyword argument 'start'"):
        plan(target(), start="U")
