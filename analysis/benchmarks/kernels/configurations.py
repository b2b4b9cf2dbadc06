"""What is measured: which problems, with which competitors, on how many threads."""

from collections.abc import Sequence
from itertools import product

from analysis.benchmarks.kernels import competitors, problems
from analysis.benchmarks.kernels.problems import Case
from analysis.experiments.workers import available_cpus

__all__ = ["TASKS", "configurations", "name_of"]

BASE = {"study": "benchmarks", "seed": 0}


def configurations(*, tasks: Sequence[str] | None = None, quick: bool = False) -> list[dict]:
    """The configurations of the benchmark.

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


def _case(shape, rank, gradient_rank, dtype="float32", threads=1, **more):
    return {"shape": shape, "rank": rank, "gradient_rank": gradient_rank, "dtype": dtype, "threads": threads, **more}


def _grid(threads=1, shapes=problems.SHAPES, ranks=(8, 16), dtypes=("float32", "float64"), gradients=None):
    return [
        _case((m, n), r, R, dtype, threads, competitors=_competitors(Case(m, n, r, R, dtype)))
        for m, n in shapes
        for r in ranks
        for R in gradients or _gradient_ranks(max(m, n))
        for dtype in dtypes
    ]


def _gradient_ranks(larger_side):
    """2048 for the large layers only; 256 exceeds the smaller side of LeNet5's layers, as a batch may."""
    return (16, 64, 256, 2048) if larger_side > 1000 else (16, 64, 256)


def _competitors(case):
    """The standard ones; the others where the targets ask for them, and once for each shape."""
    more = min(case.m, case.n) == max(case.m, case.n) == 4096 or (case.rank, case.gradient_rank) == (8, 64)
    chosen = [*competitors.STANDARD, *(competitors.BASELINES if more else ())]
    if min(case.m, case.n) > 1000:
        left_out = ("dense SVD", "Krylov K=8") if case.gradient_rank > 1000 else ("dense SVD",)
        chosen = [name for name in chosen if name not in left_out]
    return [name for name in chosen if competitors.feasible(name, case)]


def _ranks(shape, ranks):
    names = ("auto K=1", "factored", f"{competitors.LISTING} K=1")
    return [_case(shape, r, 64, competitors=names) for r in ranks]


def _iterations(shapes, iterations):
    kinds = ("auto", "direct", "coefficients", "Krylov", competitors.LISTING)
    names = [f"{kind} K={K}" for kind in kinds for K in iterations]
    return [_case(shape, 8, 64, competitors=names) for shape in shapes]


def _batch(shape=(768, 768), adapters=48, gradients=(16, 64), dtypes=("float32", "float64")):
    cases = product(gradients, dtypes, (1, 2))
    return [_case(shape, 8, R, dtype, threads, adapters=adapters) for R, dtype, threads in cases]


def _memory(shapes=((84, 120), (768, 3072), (4096, 4096), (4096, 11008)), gradients=(16, 64)):
    names = ("auto K=1", "auto K=8", "direct K=8", "coefficients K=8", "Krylov K=2", "factored")
    return [_case(shape, 8, R, competitors=names) for shape in shapes for R in gradients]


_FULL = {
    "grid": _grid,
    "threads": lambda: [
        *_grid(2, ranks=(8,), dtypes=("float32",), gradients=(64,)),
        *_grid(2, problems.LARGE, (8,), ("float32",), (2048,)),
    ],
    "ranks": lambda: _ranks((768, 3072), (2, 4, 8, 16, 32, 64)),
    "iterations": lambda: _iterations(((84, 120), (4096, 4096)), (1, 2, 4, 8, 16, 32)),
    "batch": _batch,
    "overhead": lambda: [{"threads": 1}],
    "memory": _memory,
}
_SMALL = ((84, 120),)
_QUICK = {
    "grid": lambda: _grid(1, _SMALL, (8,), ("float32", "float64"), (64,)),
    "threads": lambda: _grid(2, _SMALL, (8,), ("float32",), (64,)),
    "ranks": lambda: _ranks((84, 120), (2, 4)),
    "iterations": lambda: _iterations(_SMALL, (1, 2)),
    "batch": lambda: _batch((84, 120), 4, (16,), ("float32",)),
    "overhead": _FULL["overhead"],
    "memory": lambda: _memory(_SMALL, (16,)),
}
TASKS = tuple(_FULL)


def name_of(config: dict) -> str:
    """A configuration in words: what ``--case`` looks into, and what tables call it."""
    if "shape" not in config:
        return config["task"]
    (m, n), r, R = config["shape"], config["rank"], config["gradient_rank"]
    return f"{config['task']} {m}x{n} r={r} R={R} {config['dtype']} threads={config['threads']}"
