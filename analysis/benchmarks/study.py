"""The study: which cases are run in which way, and the run of one of them."""

from functools import lru_cache

import lorsum as ls
from analysis.benchmarks import cases, competitors, limit, memory, timing, truth
from analysis.benchmarks.cases import Case
from analysis.workers import available_cpus

__all__ = ["TASKS", "configurations", "name_of", "run"]

BASE = {"study": "benchmarks", "seed": 0}
ITERATIONS, RANKS = (1, 2, 4, 8, 16, 32), (2, 4, 8, 16, 32, 64)
ADAPTERS = 48


def configurations(*, tasks=None, quick=False):
    """The configurations of the study.

    Parameters
    ----------
    tasks : sequence of str, optional
        Which of its parts; default: all. "grid" (every case on one thread), "threads" (some of them on two), "ranks"
        and "iterations" (growth against r and K), "batch", "overhead" and "memory".
    quick : bool
        The smallest of each, to see that all works.

    Returns
    -------
    list of dict
        None with more threads than there are CPUs: such threads wait for each other.
    """
    makers, asked, cpus = _QUICK if quick else _FULL, tasks or TASKS, available_cpus()
    parts = [BASE | {"task": task, "quick": quick} | part for task in asked for part in makers[task]()]
    return [part for part in parts if part["threads"] <= cpus]


def _grid(threads=1, shapes=cases.SHAPES, ranks=(8, 16), dtypes=("float32", "float64"), gradients=None):
    return [
        {"shape": shape, "rank": r, "gradient_rank": R, "dtype": dtype, "threads": threads}
        | {"competitors": _competitors(Case(*shape, r, R, dtype))}
        for shape in shapes
        for r in ranks
        for R in gradients or _gradient_ranks(shape)
        for dtype in dtypes
    ]


def _gradient_ranks(shape):
    """2048 for the large layers only; 256 exceeds the smaller side of LeNet5's layers, as a batch may."""
    return (16, 64, 256, 2048) if max(shape) > 1000 else (16, 64, 256)


def _competitors(case):
    """The standard ones; the others where the targets ask for them, and once for each shape."""
    more = min(case.m, case.n) == max(case.m, case.n) == 4096 or (case.rank, case.gradient_rank) == (8, 64)
    chosen = [*competitors.STANDARD, *(competitors.BASELINES if more else ())]
    if min(case.m, case.n) > 1000:
        left_out = ("dense SVD", "Krylov K=8") if case.gradient_rank > 1000 else ("dense SVD",)
        chosen = [name for name in chosen if name not in left_out]
    return [name for name in chosen if competitors.feasible(name, case)]


def _growth(shape, ranks, iterations):
    kinds = ("auto", "direct", "coefficients", "Krylov", competitors.LISTING) if len(iterations) > 1 else ("auto",)
    names = [f"{kind} K={K}" for kind in kinds for K in iterations]
    if len(iterations) == 1:
        names += ["factored", f"{competitors.LISTING} K=1"]
    return [
        {"shape": shape, "rank": r, "gradient_rank": 64, "dtype": "float32", "threads": 1, "competitors": names}
        for r in ranks
    ]


def _batch(shape=(768, 768), adapters=ADAPTERS, gradients=(16, 64), dtypes=("float32", "float64")):
    return [
        {"shape": shape, "rank": 8, "gradient_rank": R, "dtype": dtype, "threads": threads, "adapters": adapters}
        for R in gradients
        for dtype in dtypes
        for threads in (1, 2)
    ]


def _memory(shapes=((84, 120), (768, 3072), (4096, 4096), (4096, 11008)), gradients=(16, 64)):
    names = ("auto K=1", "auto K=8", "direct K=8", "coefficients K=8", "Krylov K=2", "factored")
    return [
        {"shape": shape, "rank": 8, "gradient_rank": R, "dtype": "float32", "threads": 1, "competitors": names}
        for shape in shapes
        for R in gradients
    ]


_FULL = {
    "grid": _grid,
    "threads": lambda: [
        *_grid(2, ranks=(8,), dtypes=("float32",), gradients=(64,)),
        *_grid(2, cases.LARGE, (8,), ("float32",), (2048,)),
    ],
    "ranks": lambda: _growth((768, 3072), RANKS, (1,)),
    "iterations": lambda: [*_growth((84, 120), (8,), ITERATIONS), *_growth((4096, 4096), (8,), ITERATIONS)],
    "batch": _batch,
    "overhead": lambda: [{"threads": 1}],
    "memory": _memory,
}
_SMALL = ((84, 120),)
_QUICK = {
    "grid": lambda: _grid(1, _SMALL, (8,), ("float32", "float64"), (64,)),
    "threads": lambda: _grid(2, _SMALL, (8,), ("float32",), (64,)),
    "ranks": lambda: _growth((84, 120), (2, 4), (1,)),
    "iterations": lambda: _growth((84, 120), (8,), (1, 2)),
    "batch": lambda: _batch((84, 120), 4, (16,), ("float32",)),
    "overhead": _FULL["overhead"],
    "memory": lambda: _memory(_SMALL, (16,)),
}
TASKS = tuple(_FULL)


def name_of(config):
    """A configuration in words: what ``--case`` looks into, and what tables call it."""
    if "shape" not in config:
        return config["task"]
    (m, n), r, R = config["shape"], config["rank"], config["gradient_rank"]
    return f"{config['task']} {m}x{n} r={r} R={R} {config['dtype']} threads={config['threads']}"


def run(config):
    """Measure one configuration.

    Returns
    -------
    dict
        ``seconds`` (name → seconds a call, one number a round; nan where it sat out); and, as the task has it,
        ``excess`` and ``distance`` (name → number), ``rounding`` (the excess that counts as none), ``picked`` (K → the
        method that ``auto`` took), ``bandwidth`` and ``products`` (bytes and operations a second), ``limit`` (K →
        seconds), or ``temporaries``, ``total`` and ``resident`` (name → bytes).
    """
    with timing.threads(config["threads"]):
        return _RUNS.get(config["task"], _run_case)(config)


def _options(config):
    """Rest between blocks where threads of one competitor could disturb the next."""
    few = {"rounds": 3, "block": 1e-3, "budget": 0.2} if config["quick"] else {}
    return {"pause": 5e-3 if config["threads"] > 1 else 0.0} | few


def _run_case(config):
    case, names = Case.of(config), config["competitors"]
    target, product = cases.problem(case), 128 if config["quick"] else limit.PRODUCT
    calls = limit.probes(case, product) | competitors.calls(names, target)
    seconds, answers = timing.interleaved(calls, **_options(config))
    measured = limit.rates(case, seconds, product)
    known = _truth(case._replace(dtype="float64"))
    found = {name: competitors.to_lowrank(name, answers[name], case.rank) for name in names}
    judged = {name: known.judge(X) for name, X in found.items() if X is not None}
    iterations = sorted({int(name.split("=")[1]) for name in names if name.startswith("auto ")})
    return {
        "seconds": {name: _short(seconds[name]) for name in names},
        "excess": {name: accuracy.excess for name, accuracy in judged.items()},
        "distance": {name: accuracy.distance for name, accuracy in judged.items()},
        "rounding": known.rounding(case.dtype),
        "picked": competitors.picks({name: answers[name] for name in names}),
        **measured._asdict(),
        "limit": {str(K): limit.limit(case, K, measured) for K in iterations},
    }


@lru_cache(maxsize=1)
def _truth(case):
    """The target is the same in both dtypes, which follow one another."""
    return truth.truth_of(cases.problem(case), case.rank)


def _run_batch(config):
    case = Case.of(config)
    together, singles = cases.batch(case, config["adapters"])
    calls = {}
    for K in (1, 8):
        calls[f"batch K={K}"] = lambda K=K: ls.lorsum(together, iters=K, first="V")
        calls[f"loop K={K}"] = lambda K=K: [ls.lorsum(single, iters=K, first="V") for single in singles]
        calls[f"{competitors.LISTING} K={K}"] = _listing_loop(K, singles)
    seconds, answers = timing.interleaved(calls, **_options(config))
    apart = [_apart(answers[f"batch K={K}"], answers[f"loop K={K}"]) for K in (1, 8)]
    return {"seconds": {name: _short(values) for name, values in seconds.items()}, "apart": max(apart)}


def _listing_loop(iters, singles):
    name = f"{competitors.LISTING} K={iters}"
    every = [competitors.calls([name], single)[name] for single in singles]
    return lambda: [call() for call in every]


def _apart(stack, singles):
    """Largest relative distance between a batch and the same one by one."""
    pairs = ((ls.LowRank(U, V), X) for U, V, X in zip(*stack, singles, strict=True))
    return max(float((A - X).norm() / X.norm()) for A, X in pairs)


def _run_overhead(config):
    W, G, M = cases.weight_gradient_momentum(Case(4, 4, 1, 1, "float64"))
    U, V = W
    target = W - 0.1 * G - 0.1 * 0.9 * M
    calls = {
        "LowRank(U, V)": lambda: ls.LowRank(U, V),
        "W - lr * G - lr * alpha * M": lambda: W - 0.1 * G - 0.1 * 0.9 * M,
        "lorsum(target), 4 × 4, rank 1": lambda: ls.lorsum(target),
    }
    seconds, _ = timing.interleaved(calls, **_options(config))
    return {"seconds": {name: _short(values) for name, values in seconds.items()}}


def _run_memory(config):
    case = Case.of(config)
    names = [name for name in config["competitors"] if competitors.feasible(name, case)]
    peaks = {name: memory.peak_of(call) for name, call in competitors.calls(names, cases.problem(case)).items()}
    return {
        entry: {name: getattr(peak, entry) for name, peak in peaks.items()}
        for entry in ("temporaries", "total", "resident")
    }


_RUNS = {"batch": _run_batch, "overhead": _run_overhead, "memory": _run_memory}


def _short(seconds):
    """Four digits are more than a clock is worth."""
    return [float(f"{value:.4g}") for value in seconds]
