"""What lorsum is to reach: the targets, what was measured of them, and pass or miss."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from analysis.benchmarks.kernels.competitors import FORM, LISTING
from analysis.benchmarks.kernels.configurations import name_of
from analysis.benchmarks.kernels.problems import LENET, Case
from analysis.benchmarks.kernels.reference_svd import as_accurate
from analysis.benchmarks.recording import having
from analysis.experiments.timing import median, ratio

__all__ = ["TARGETS", "Outcome", "Target", "compared", "geometric_mean", "outcomes"]


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


def _at_least(ratios, wanted, summary=min, worse=()):
    """Pass or miss of ratios that are to be at least ``wanted``, by their summary; ``worse`` are cases that fail."""
    if not ratios and not worse:
        return None
    if worse:
        note = f"less accurate in {len(worse)} of {len(worse) + len(ratios)}, as {worse[0]}"
        return Outcome(summary(ratios.values()) if ratios else math.nan, False, note)
    slowest, value = min(ratios, key=ratios.get), summary(ratios.values())
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


def _grid(records, where=lambda case: True):
    """Name of a case → results."""
    chosen = (record for record in having(records, task="grid") if where(Case.of(record["config"])))
    return {name_of(record["config"]): record["results"] for record in chosen}


def _small_stack(case):
    return case.stacked_rank <= 3 * case.rank


def _is_lenet(case):
    return (case.m, case.n) in LENET


def _is_4096(case):
    return case.m == case.n == 4096


def _from_4096(case):
    return min(case.m, case.n) >= 4096


def compared(
    cases: dict[str, dict], ours: Sequence[str], theirs: Sequence[str], wanted: float, summary: Callable = min
) -> Outcome | None:
    """Time of all of theirs together over that of the fastest of ours that is as accurate as the last of theirs.

    Parameters
    ----------
    cases : dict
        Name of a case → its results.
    ours, theirs : sequences of str
        Names of calls.
    wanted : float
        What the summary of these ratios is to be at least.
    summary : callable
        Of all ratios.
    """
    ratios, worse = {}, []
    for case, results in cases.items():
        seconds, excess = results["seconds"], results["excess"]
        if not all(name in seconds for name in theirs):
            continue
        limits = excess[theirs[-1]], results["rounding"]
        fit = [name for name in ours if name in seconds and as_accurate(excess[name], *limits)]
        if fit:
            taken = np.sum([seconds[name] for name in theirs], axis=0)
            ratios[case] = max(ratio(taken, seconds[name]) for name in fit)
        else:
            worse.append(case)
    return _at_least(ratios, wanted, summary, worse)


def _against_listing(K, wanted, summary, where=lambda case: True):
    """``auto`` at K against Listing 1 at K: the least ratio, or the geometric mean."""
    return lambda records: compared(_grid(records, where), [f"auto K={K}"], [f"{LISTING} K={K}"], wanted, summary)


def _against_baseline(*theirs):
    ours = ("auto K=1", "auto K=2", "auto K=8", "Krylov K=2", "factored")
    return lambda records: compared(_grid(records, _is_4096), ours, theirs, 20)


def _iterations_nearly_free(records):
    values = {
        case: ratio(results["seconds"]["auto K=8"], results["seconds"]["auto K=1"])
        for case, results in _grid(records).items()
        if results["picked"].get("8") == "coefficients"
    }
    return _at_most(values, 1.5)


def _factored(records):
    cases = _grid(records, _small_stack)
    values = {case: ratio(r["seconds"]["factored"], r["seconds"][f"{LISTING} K=1"]) for case, r in cases.items()}
    gaps = [case for case, results in cases.items() if results["excess"]["factored"] > results["rounding"]]
    if gaps:
        return Outcome(max(values.values()), False, f"a gap of more than rounding in {len(gaps)} cases, as {gaps[0]}")
    return _at_most(values, 1)


def _batched(records):
    ratios, apart = {}, []
    for record in having(records, task="batch", threads=2):
        case, results = name_of(record["config"]), record["results"]
        for K in (1, 8):
            ratios[f"{case} K={K}"] = ratio(results["seconds"][f"loop K={K}"], results["seconds"][f"batch K={K}"])
        if results["apart"] > 100 * np.finfo(record["config"]["dtype"]).eps:
            apart.append(case)
    return _at_least(ratios, 2, worse=apart)


def _near_the_roofline(K):
    def measure(records):
        cases = _grid(records, _from_4096).items()
        return _at_most({case: median(r["seconds"][f"auto K={K}"]) / r["limit"][str(K)] for case, r in cases}, 3)

    return measure


def _overhead(records):
    calls = [call for record in having(records, task="overhead") for call in record["results"]["seconds"].items()]
    return _at_most({name: 1e6 * median(seconds) for name, seconds in calls}, 20)


def _never_formed(records):
    """The most that a call allocated, over the size of the matrix; for cases whose factors are a tenth of it."""
    values = {}
    for record in having(records, task="memory"):
        case, results = Case.of(record["config"]), record["results"]
        if case.factor_numbers <= 0.1 * case.m * case.n:
            for name, total in results["total"].items():
                most = max(total, results["resident"][name] or 0)
                values[f"{name} {name_of(record['config'])}"] = most / (case.m * case.n * case.itemsize)
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
        Target(f"`{theirs[-1]}` at 4096²{said}, as accurate", "least ≥ 20", _against_baseline(*theirs))
        for name in ("torch.svd_lowrank", "randomized_svd")
        for theirs, said in (((FORM, name), ", with forming the matrix"), ((name,), " alone"))
    ),
    Target("adapters one by one, two threads: one batched call", "least ≥ 2", _batched),
    Target("the roofline at K = 1, 4096² and above", "all ≤ 3 × its time", _near_the_roofline(1)),
    Target("the roofline at K = 8, 4096² and above", "all ≤ 3 × its time", _near_the_roofline(8)),
    Target("overheads, µs a call", "all < 20", _overhead),
    Target("peak memory with the result, over the size of the matrix", "all < 0.9", _never_formed),
]
