"""The memory of a call: what arrays, tensors and the process take at most, and what of it remains with the answer."""

import ctypes
import gc
import tracemalloc
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

__all__ = ["Grown", "Peak", "grown_arrays", "grown_tensors", "peak_of"]


class Grown(NamedTuple):
    """Bytes beyond what was there before a call: the most at a time, and what remains with its answer."""

    peak: int
    kept: int


class Peak(NamedTuple):
    """Bytes.

    Attributes
    ----------
    temporaries : int
        The most that arrays took at a time, less what remained with the result.
    total : int
        The same with the result: what it stays below has never been allocated.
    resident : int or None
        How much the process grew at most, which includes what compiled code and BLAS allocate, unseen by NumPy, and
        the result; None where the system cannot tell.
    """

    temporaries: int
    total: int
    resident: int | None


def peak_of(call: Callable) -> Peak:
    """The peak of a call, which is made twice before to warm it up."""
    for _ in range(2):
        call()
    resident = _resident_peak(call)
    peak, kept = grown_arrays(call)
    return Peak(peak - kept, peak, resident)


def grown_arrays(call: Callable) -> Grown:
    """What Python and NumPy allocate in a call."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        answer = call()
        after, peak = tracemalloc.get_traced_memory()
        del answer
    finally:
        tracemalloc.stop()
    return Grown(peak - before, after - before)


def grown_tensors(call: Callable) -> Grown:
    """What PyTorch allocates in a call.

    Its profiler tells of every allocation and every release, of temporaries inside of operations too.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    *_, kept = held = list(accumulate((event.nbytes() for event in events), initial=0))
    return Grown(max(held), kept)


def _resident_peak(call):
    """Linux keeps the peak of the resident memory and lets a process reset it.

    What was freed before is given back first, or the call would be served from it and the process would not grow.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError, AttributeError):
        return None


def _status(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return 1024 * int(values[entry].split()[0])
