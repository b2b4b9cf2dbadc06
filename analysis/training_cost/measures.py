"""The measures: seconds of a step in turns, bytes of state and of captured gradients, peaks of memory."""

import time
from itertools import accumulate

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from analysis.benchmarks.memory import Grown, grown_arrays
from analysis.benchmarks.timing import no_collection

__all__ = ["both_clocks", "captured_nbytes", "grown_tensors", "interleaved", "peaks", "state_nbytes"]

WARM = 3  # rounds that do not count: kernels are compiled, states made


def both_clocks():
    """Wall time, and processor time of all threads: what else the machine does takes of the first alone."""
    return np.array([time.perf_counter(), time.process_time()])


def interleaved(trainings, batches, rounds, clock=both_clocks):
    """Time steps of several trainings in turns, so that what disturbs the machine disturbs all of them.

    Parameters
    ----------
    trainings : dict
        Name → Training.
    batches : list
        One a round, the same for all.
    rounds : int
        In each, every training takes a step; the order differs from round to round.

    Returns
    -------
    dict
        Name → seconds by the round, by forward and backward or the optimizer's step, and by the clock.
    """
    seconds, order = {name: [] for name in trainings}, np.random.default_rng(0)
    with no_collection():
        for number in range(WARM + rounds):
            batch = batches[number % len(batches)]
            for name in order.permutation(list(trainings)).tolist():
                taken = _timed(trainings[name], batch, clock)
                if number >= WARM:
                    seconds[name].append(taken)
    return {name: np.array(taken) for name, taken in seconds.items()}


def _timed(training, batch, clock):
    start = clock()
    training.gradients(batch)
    between = clock()
    training.optimizer.step()
    return between - start, clock() - between


def state_nbytes(optimizer, parameters):
    """Bytes of the tensors that an optimizer keeps for some parameters; the numbers that count its steps are none."""
    kept = [x for p in parameters for x in optimizer.state.get(p, {}).values()]
    return sum(x.nbytes for x in kept if isinstance(x, torch.Tensor) and x.ndim)


def captured_nbytes(optimizer):
    """Bytes of the gradients that an optimizer of ours holds beyond ``.grad``."""
    return sum(optimizer.gradient_nbytes().values()) if hasattr(optimizer, "gradient_nbytes") else 0


def peaks(training, batch):
    """Peaks of forward and backward, and of the optimizer's step, beyond what is there before both.

    Returns
    -------
    dict
        ``tensors`` and ``arrays``: for each of the two, what PyTorch allocates, and what Python and NumPy do.
    """
    return {
        name: _peaks_of_both(grown, training, batch)
        for name, grown in (("tensors", grown_tensors), ("arrays", grown_arrays))
    }


def _peaks_of_both(grown, training, batch):
    def gradients_and_steps_ahead():
        training.gradients(batch)
        if hasattr(training.optimizer, "synchronize"):  # to stop tracemalloc while a thread allocates is unsafe
            training.optimizer.synchronize()

    training.optimizer.zero_grad()
    gradients = grown(gradients_and_steps_ahead)
    step = grown(training.optimizer.step)
    training.optimizer.zero_grad()
    return gradients.peak, gradients.kept + step.peak


def grown_tensors(call):
    """What PyTorch allocates in a call.

    Its profiler tells of every allocation and every release, of temporaries inside of operations too.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    *_, kept = held = list(accumulate((event.nbytes() for event in events), initial=0))
    return Grown(max(held), kept)
