"""A configuration measured: the times of its competitors, taken in turns, their accuracy, and the roofline."""

from functools import lru_cache
from typing import Any

import lorsum as ls
from analysis.benchmarks import memory
from analysis.benchmarks.kernels import competitors, problems, roofline
from analysis.benchmarks.kernels.problems import Case
from analysis.benchmarks.kernels.reference_svd import ReferenceSVD, reference_svd
from analysis.benchmarks.recording import four_digits
from analysis.experiments.timing import interleaved, threads

__all__ = ["run"]


def run(config: dict) -> dict:
    """Measure one configuration.

    Returns
    -------
    dict
        ``seconds`` (name → seconds a call, one number a round; nan where it sat out); and, as the task has it,
        ``excess`` and ``distance`` (name → number), ``rounding`` (the excess that counts as none), ``picked`` (K → the
        method that ``auto`` took), ``bandwidth`` and ``products`` (bytes and operations a second), ``limit`` (K →
        seconds at the roofline), or ``temporaries``, ``total`` and ``resident`` (name → bytes).
    """
    with threads(config["threads"]):
        return _RUNS.get(config["task"], _run_case)(config)


def _timed(calls, config):
    """Times and answers; rest between blocks where threads of one competitor could disturb the next."""
    few: dict[str, Any] = {"rounds": 3, "block": 1e-3, "budget": 0.2} if config["quick"] else {}
    return interleaved(calls, pause=5e-3 if config["threads"] > 1 else 0.0, **few)


def _run_case(config):
    case, names = Case.of(config), config["competitors"]
    target, product = problems.problem(case), 128 if config["quick"] else roofline.PRODUCT
    seconds, answers = _timed(roofline.probes(case, product) | competitors.calls(names, target), config)
    rates = roofline.rates(case, seconds, product)
    best = _best(case._replace(dtype="float64"))
    found = {name: competitors.to_lowrank(name, answers[name], case.rank) for name in names}
    accuracies = {name: best.accuracy(X) for name, X in found.items() if X is not None}
    iterations = [iters for kind, iters in map(competitors.parsed, names) if kind == "auto" and iters]
    return {
        "seconds": four_digits({name: seconds[name] for name in names}),
        "excess": {name: accuracy.excess for name, accuracy in accuracies.items()},
        "distance": {name: accuracy.distance for name, accuracy in accuracies.items()},
        "rounding": best.rounding(case.dtype),
        "picked": competitors.picks({name: answers[name] for name in names}),
        **rates._asdict(),
        "limit": {str(K): roofline.least_seconds(case, K, rates) for K in iterations},
    }


@lru_cache(maxsize=1)
def _best(case: Case) -> ReferenceSVD:
    """The target is the same in both dtypes, which follow one another."""
    return reference_svd(problems.problem(case), case.rank)


def _run_batch(config):
    case = Case.of(config)
    together, singles = problems.batch(case, config["adapters"])
    calls = {}
    for K in (1, 8):
        calls[f"batch K={K}"] = lambda K=K: ls.lorsum(together, iters=K, first="V")
        calls[f"loop K={K}"] = lambda K=K: [ls.lorsum(single, iters=K, first="V") for single in singles]
        calls[f"{competitors.LISTING} K={K}"] = _loop_of_listing_1(K, singles)
    seconds, answers = _timed(calls, config)
    apart = [_largest_distance(answers[f"batch K={K}"], answers[f"loop K={K}"]) for K in (1, 8)]
    return {"seconds": four_digits(seconds), "apart": max(apart)}


def _loop_of_listing_1(iters, singles):
    name = f"{competitors.LISTING} K={iters}"
    every = [competitors.calls([name], single)[name] for single in singles]
    return lambda: [call() for call in every]


def _largest_distance(stack, singles):
    """Between a batch and the same one by one, relative."""
    pairs = ((ls.LowRank(U, V), X) for U, V, X in zip(*stack, singles, strict=True))
    return max(float((A - X).norm() / X.norm()) for A, X in pairs)


def _run_overhead(config):
    W, G, M = problems.weight_gradient_momentum(Case(4, 4, 1, 1, "float64"))
    U, V = W
    target = W - 0.1 * G - 0.1 * 0.9 * M
    calls = {
        "LowRank(U, V)": lambda: ls.LowRank(U, V),
        "W - lr * G - lr * alpha * M": lambda: W - 0.1 * G - 0.1 * 0.9 * M,
        "lorsum(target), 4 × 4, rank 1": lambda: ls.lorsum(target),
    }
    return {"seconds": four_digits(_timed(calls, config)[0])}


def _run_memory(config):
    case = Case.of(config)
    names = [name for name in config["competitors"] if competitors.feasible(name, case)]
    peaks = {name: memory.peak_of(call) for name, call in competitors.calls(names, problems.problem(case)).items()}
    return {
        entry: {name: getattr(peak, entry) for name, peak in peaks.items()}
        for entry in ("temporaries", "total", "resident")
    }


_RUNS = {"batch": _run_batch, "overhead": _run_overhead, "memory": _run_memory}
