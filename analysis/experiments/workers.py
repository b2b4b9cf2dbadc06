"""Worker processes for long computations: one thread each, and none outlives the process that started it."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

from analysis.experiments.timing import threads

__all__ = ["available_cpus", "check_importable", "outcomes"]

Key = TypeVar("Key")
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def outcomes(
    function: Callable, tasks: dict[Key, tuple], workers: int
) -> Generator[tuple[Key, str | None], None, None]:
    """Call a function for each task, and tell of each as it finishes.

    Parameters
    ----------
    function : callable
        Called as ``function(*arguments)``; what it returns is dropped.
    tasks : dict
        Key → arguments.
    workers : int
        Number of processes; with 1 or fewer the calls are made in this one.

    Yields
    ------
    key, failure
        ``failure`` is None, or the traceback as text.

    Raises
    ------
    RuntimeError
        If a worker process died.

    Notes
    -----
    Close the generator (`contextlib.closing`) to stop the workers at once, in the middle of their tasks.
    Workers are spawned: forking a process that has BLAS or numba threads can deadlock.
    """
    if workers > 1:
        yield from _parallel(function, tasks, workers)
    else:
        for key, arguments in tasks.items():
            yield key, _attempt(function, arguments)


def _parallel(function, tasks, workers):
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_exit_with_parent, initargs=(watched,))
    try:
        with _one_thread_in_children(), _interrupts_blocked():
            futures = {pool.submit(_attempt, function, arguments): key for key, arguments in tasks.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died: it was killed, perhaps for lack of memory, or the calling script lacks "
            '`if __name__ == "__main__":`. What has finished is kept; start again, with fewer `workers` if memory '
            "was short."
        ) from error
    except BaseException:
        held.close()  # interrupted or closed: see _exit_with_parent
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        held.close()
        watched.close()


def _exit_with_parent(watched):
    """Tie a worker's life to its parent's.

    Only the parent holds the other end of this pipe. It closes when the parent gives up and when it dies, of SIGKILL
    even, on every platform; without this an orphan would wait for its next task for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where _interrupts_blocked cannot block it

    def leave():
        wait([watched])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _attempt(function, arguments):
    """Call in one thread; return the traceback as text if that failed, else None.

    As text, since an exception that cannot be unpickled would break the pool and take the other tasks along.
    """
    try:
        with threads(1):
            function(*arguments)
    except Exception:
        return traceback.format_exc()
    return None


@contextmanager
def _one_thread_in_children():
    """Set the thread variables for processes started here; the libraries read them at import, before any task."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_blocked():
    """Block Ctrl-C while processes start. They inherit that, and leave when their parent does, without a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # one that came meanwhile is raised here


def check_importable(run: Callable) -> None:
    """Raise a ValueError if worker processes could not import the function ``run``."""
    try:
        pickle.dumps(run)
    except (pickle.PicklingError, AttributeError, TypeError):
        importable = False
    else:
        at_prompt = not hasattr(sys.modules["__main__"], "__file__")
        importable = not (at_prompt and getattr(run, "__module__", None) == "__main__")
    if not importable:
        raise ValueError(
            f"`run` was {run!r}, which worker processes cannot import: define it at the top level of a module, "
            "or pass `workers=1`."
        )


def available_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
