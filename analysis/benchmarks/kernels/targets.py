"""What lorsum is to reach: the targets, what was measured of them, and pass or miss."""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from analysis.benchmarks.kernels.competitors import LISTING
from analysis.benchmarks.kernels.configurations import name_of
from analysis.benchmarks.kernels.problems import LENET, Case
from analysis.benchmarks.kernels.reference_svd import as_accurate
from analysis.experiments.timing import median, ratio

__all__ = ["TARGETS", "Outcome", "Target", "geometric_mean", "outcomes"]


class Outcome(NamedTuple):
    """What a target came to."""

    value: float
    passed: bool
    note: str  # the case that decides, or what is wrong


class Target(NamedTuple):
    """``measure(records)`` gives an Outcome, or None where nothing of it was measured."""

    what: str
    wanted: str
    measure: Callable[[list[dict]], Outcome | None]


def outcomes(records: list[dict]) -> list[tuple[Target, Outcome | None]]:
    """Pairs of a target and its outcome."""
    return [(target, target.measure(records)) for target in TARGETS]


def geometric_mean(values: Collection[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _grid(records, where=lambda case: True):
    return [record for record in records if record["config"]["task"] == "grid" and where(Case.of(record["config"]))]


def _small_stack(case):
    return case.stacked_rank <= 3 * case.rank


def _is_lenet(case):
    return (case.m, case.n) in LENET


def _is_4096(case):
    return case.m == case.n == 4096


def _from_4096(case):
    return min(case.m, case.n) >= 4096


def _against_listing(K, wanted, summary, where=lambda case: True):
    """``auto`` at K against Listing 1 at K: the least ratio, or the geometric mean."""
    return lambda records: _compared(_grid(records, where), [f"auto K={K}"], f"{LISTING} K={K}", wanted, summary)


def _compared(records, ours, theirs, wanted, summary, extra=()):
    """Their time over that of the fastest of ours that is as accurate; ``extra`` are parts of their time."""
    ratios, worse = {}, []
    for record in records:
        seconds, excess = record["results"]["seconds"], record["results"]["excess"]
        if not all(name in seconds for name in (theirs, *extra)):
            continue
        fit = [
            name
            for name in ours
            if name in seconds and as_accurate(excess[name], excess[theirs], record["results"]["rounding"])
        ]
        if not fit:
            worse.append(name_of(record["config"]))
            continue
        taken = [sum(parts) for parts in zip(*(seconds[name] for name in (theirs, *extra)), strict=True)]
        ratios[name_of(record["config"])] = max(ratio(taken, seconds[name]) for name in fit)
    return _outcome(ratios, wanted, summary, worse)


def _outcome(ratios, wanted, summary, worse=()):
    """Pass or miss of ratios that are to be at least ``wanted``."""
    if not ratios and not worse:
        return None
    if worse:
        note = f"less accurate in {len(worse)} of {len(worse) + len(ratios)}, as {worse[0]}"
        return Outcome(summary(ratios.values()) if ratios else math.nan, False, note)
    slowest = min(ratios, key=ratios.get)
    value = summary(ratios.values())
    note = f"{len(ratios)} cases, from {ratios[slowest]:.2f} ({slowest}) to {max(ratios.values()):.2f}"
    below = sum(one < wanted for one in ratios.values())
    return Outcome(value, value >= wanted, note + (f"; {below} below" if summary is min and below else ""))


def _at_most(values, wanted):
    """Pass or miss of values that are to be at most ``wanted``, all of them."""
    if not values:
        return None
    largest = max(values, key=values.get)
    above = sum(one > wanted for one in values.values())
    note = f"{len(values)} cases, median {median(list(values.values())):.2f}, worst: {largest}"
    return Outcome(values[largest], values[largest] <= wanted, note + (f"; {above} above" if above else ""))


def _iterations_nearly_free(records):
    values = {}
    for record in _grid(records):
        seconds = record["results"]["seconds"]
        if record["results"]["picked"].get("8") == "coefficients":
            values[name_of(record["config"])] = ratio(seconds["auto K=8"], seconds["auto K=1"])
    return _at_most(values, 1.5)


def _factored(records):
    values, gaps = {}, []
    for record in _grid(records, _small_stack):
        results, name = record["results"], name_of(record["config"])
        values[name] = ratio(results["seconds"]["factored"], results["seconds"][f"{LISTING} K=1"])
        if results["excess"]["factored"] > results["rounding"]:
            gaps.append(name)
    outcome = _at_most(values, 1.0)
    if outcome and gaps:
        return outcome._replace(passed=False, note=f"a gap of more than rounding in {len(gaps)} cases, as {gaps[0]}")
    return outcome


def _against_baseline(name, form):
    ours = ("auto K=1", "auto K=2", "auto K=8", "Krylov K=2", "factored")
    extra = ("form the matrix",) if form else ()
    return lambda records: _compared(_grid(records, _is_4096), ours, name, 20, min, extra)


def _batched(records):
    chosen = [r for r in records if r["config"]["task"] == "batch" and r["config"]["threads"] == 2]
    values = {
        f"{name_of(record['config'])} K={K}": ratio(
            record["results"]["seconds"][f"loop K={K}"], record["results"]["seconds"][f"batch K={K}"]
        )
        for record in chosen
        for K in (1, 8)
    }
    apart = [name_of(r["config"]) for r in chosen if r["results"]["apart"] > 100 * np.finfo(r["config"]["dtype"]).eps]
    return _outcome(values, 2, min, apart)


def _near_the_roofline(K):
    def measure(records):
        values = {
            name_of(record["config"]): median(record["results"]["seconds"][f"auto K={K}"])
            / record["results"]["limit"][str(K)]
            for record in _grid(records, _from_4096)
        }
        return _at_most(values, 3.0)

    return measure


def _overhead(records):
    values = {
        name: 1e6 * median(seconds)
        for record in records
        if record["config"]["task"] == "overhead"
        for name, seconds in record["results"]["seconds"].items()
    }
    return _at_most(values, 20.0)


def _never_formed(records):
    """The most that a call allocated, over the size of the matrix; for cases whose factors are a tenth of it."""
    values = {}
    for record in records:
        if record["config"]["task"] != "memory":
            continue
        case = Case.of(record["config"])
        matrix = case.m * case.n * case.itemsize
        if case.factor_numbers > 0.1 * case.m * case.n:
            continue
        for name in record["results"]["total"]:
            peaks = (record["results"][entry][name] for entry in ("total", "resident"))
            values[f"{name} {name_of(record['config'])}"] = max(peak / matrix for peak in peaks if peak is not None)
    return _at_most(values, 0.9)


TARGETS = [
    Target("Listing 1, K = 1: never slower", "least ≥ 1", _against_listing(1, 1, min)),
    Target("Listing 1, K = 1, LeNet5's layers", "least ≥ 3.5", _against_listing(1, 3.5, min, _is_lenet)),
    Target("Listing 1, K = 1", "geometric mean ≥ 2.5", _against_listing(1, 2.5, geometric_mean)),
    Target("Listing 1, K = 8", "geometric mean ≥ 6", _against_listing(8, 6, geometric_mean)),
    Target("Listing 1, K = 8, stacked rank ≤ 3r", "least ≥ 12", _against_listing(8, 12, min, _small_stack)),
    Target("own K = 1: K = 8 where `auto` picks coefficients", "all ≤ 1.5 × the time", _iterations_nearly_free),
    Target("factored SVD / Listing 1 at K = 1, stacked rank ≤ 3r", "all ≤ 1 × the time, no gap", _factored),
    *(
        Target(f"`{name}` at 4096²{', with forming the matrix' if form else ' alone'}, as accurate", "least ≥ 20",
               _against_baseline(name, form))
        for name in ("torch.svd_lowrank", "randomized_svd")
        for form in (True, False)
    ),
    Target("adapters one by one, two threads: one batched call", "least ≥ 2", _batched),
    Target("the roofline at K = 1, 4096² and above", "all ≤ 3 × its time", _near_the_roofline(1)),
    Target("the roofline at K = 8, 4096² and above", "all ≤ 3 × its time", _near_the_roofline(8)),
    Target("overheads, µs a call", "all < 20", _overhead),
    Target("peak memory with the result, over the size of the matrix", "all < 0.9", _never_formed),
]  # fmt: skip
