"""Timing side by side: rounds over all competitors, blocks of calls, medians, ratios round by round; and threads."""

import gc
import math
import time
from contextlib import ExitStack, contextmanager

import numba
import numpy as np
import torch
from threadpoolctl import threadpool_limits

__all__ = ["interleaved", "median", "no_collection", "ratio", "threads"]

MOST_REPETITIONS = 5000
LONG = 0.05  # seconds that a call lasts to which warm caches make no difference


def interleaved(calls, *, rounds=13, block=2e-3, budget=0.5, pause=0.0, clock=time.perf_counter):
    """Time calls in turns, so that what disturbs the machine disturbs all of them.

    Each call is made once before anything is timed (which compiles what compiles). A round then times a block of calls
    of each competitor, as many as last ``block`` seconds, in an order that differs from round to round; a call before
    the block is not timed. The garbage collector is off.

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
    with no_collection():
        answers = {name: call() for name, call in calls.items()}
        repetitions = {name: _repetitions(call, block, clock) for name, call in calls.items()}
        seconds, spent = {name: [] for name in calls}, dict.fromkeys(calls, 0.0)
        order = np.random.default_rng(0)  # another one each round: a neighbour may leave caches cold, or a core hot
        for _ in range(rounds):
            for name in order.permutation(list(calls)).tolist():
                if spent[name] >= budget:
                    seconds[name].append(math.nan)
                    continue
                time.sleep(pause)
                taken = _block(calls[name], repetitions[name], clock)
                spent[name] += taken
                seconds[name].append(taken / repetitions[name])
    return seconds, answers


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


def median(seconds):
    """The median of the rounds that a competitor took part in."""
    return float(np.nanmedian(seconds))


def ratio(theirs, ours):
    """How many times longer they take than we do: the median of the ratios in the rounds that both took part in."""
    ratios = np.asarray(theirs, dtype=float) / np.asarray(ours, dtype=float)
    return median(ratios) if np.isfinite(ratios).any() else median(theirs) / median(ours)


@contextmanager
def threads(count):
    """That many threads for BLAS, OpenMP, torch, and for the batches that lorsum divides among Numba's number."""
    with ExitStack() as stack:
        stack.callback(setattr, numba.config, "NUMBA_NUM_THREADS", numba.config.NUMBA_NUM_THREADS)
        numba.config.NUMBA_NUM_THREADS = count
        # Before threadpoolctl, which changes torch's OpenMP and would have torch get back what that was set to
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(count)
        stack.enter_context(threadpool_limits(count))
        yield


@contextmanager
def no_collection():
    """Without the garbage collector, which would strike some competitor's turn."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
