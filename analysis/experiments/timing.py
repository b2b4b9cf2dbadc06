"""Timing side by side: competitors take turns, in rounds; medians, ratios round by round; and how many threads."""

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

__all__ = ["in_turns", "interleaved", "median", "ratio", "threads"]

MOST_REPETITIONS = 5000
LONG = 0.05  # seconds that a call lasts to which warm caches make no difference


def in_turns(measures: Mapping[str, Callable[[int], Any]], rounds: int, *, warm: int = 0) -> dict[str, list]:
    """Measure competitors in turns, so that what disturbs the machine disturbs all of them.

    Every round measures each once, in an order that differs from round to round: a neighbour may leave caches cold, or
    a core hot. The garbage collector, which would strike some competitor's turn, is off.

    Parameters
    ----------
    measures : dict
        Name → function of the round's number, which measures and returns what it found.
    rounds : int
    warm : int
        Rounds before them that do not count: kernels are compiled, states made.

    Returns
    -------
    dict
        Name → what was found, one entry a round.
    """
    found: dict[str, list] = {name: [] for name in measures}
    order = np.random.default_rng(0)
    with _no_collection():
        for number in range(warm + rounds):
            for name in order.permutation(list(measures)).tolist():
                found[name].append(measures[name](number))
    return {name: entries[warm:] for name, entries in found.items()}


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 13,
    block: float = 2e-3,
    budget: float = 0.5,
    pause: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time calls in turns.

    Each call is made once before anything is timed (which compiles what compiles). A round then times a block of calls
    of each competitor, as many as last ``block`` seconds; a call before the block is not timed.

    Parameters
    ----------
    calls : dict
        Name → function without arguments.
    rounds : int
    block : float
        Seconds that a block lasts at least.
    budget : float
        Seconds that a competitor may take in all; with that spent it sits out the other rounds.
    pause : float
        Seconds of rest before a block: idle threads of the competitor before go on spinning for some time.
    clock : callable

    Returns
    -------
    seconds : dict
        Name → seconds a call, one number a round, nan where it sat out.
    answers : dict
        Name → what the first call returned.
    """

    def measure(call):
        repetitions, spent = _repetitions(call, block, clock), 0.0

        def a_block(_):
            nonlocal spent
            if spent >= budget:
                return math.nan
            time.sleep(pause)
            taken = _block(call, repetitions, clock)
            spent += taken
            return taken / repetitions

        return a_block

    with _no_collection():
        answers = {name: call() for name, call in calls.items()}
        measures = {name: measure(call) for name, call in calls.items()}
    return in_turns(measures, rounds), answers


def _repetitions(call, block, clock):
    repetitions = 1
    for _ in range(2):  # the first estimate is of a call with cold caches
        taken = _block(call, repetitions, clock) / repetitions
        if taken >= block:
            return 1
        repetitions = min(MOST_REPETITIONS, math.ceil(block / max(taken, 1e-9)))
    return repetitions


def _block(call, repetitions, clock):
    start = clock()
    call()  # brings the operands back into the caches, and counts only where it is long
    if repetitions == 1 and clock() - start > LONG:
        return clock() - start
    start = clock()
    for _ in range(repetitions):
        call()
    return clock() - start


def median(seconds: list[float]) -> float:
    """The median of the rounds that a competitor took part in."""
    return float(np.nanmedian(seconds))


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times longer they take than we do: the median of the ratios in the rounds that both took part in."""
    ratios = np.asarray(theirs, dtype=float) / np.asarray(ours, dtype=float)
    return median(ratios) if np.isfinite(ratios).any() else median(theirs) / median(ours)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads for BLAS, OpenMP, torch and Numba, by whose number lorsum divides batches.

    Torch and Numba are told where they are imported already.
    """
    with ExitStack() as stack:
        if numba := sys.modules.get("numba"):
            most = numba.config.NUMBA_NUM_THREADS
            stack.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(min(count, most))
            stack.callback(setattr, numba.config, "NUMBA_NUM_THREADS", most)
            numba.config.NUMBA_NUM_THREADS = count
        if torch := sys.modules.get("torch"):
            # Before threadpoolctl, which changes torch's OpenMP and would have torch get back what that was set to
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(count)
        stack.enter_context(threadpool_limits(count))
        yield


@contextmanager
def _no_collection():
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
