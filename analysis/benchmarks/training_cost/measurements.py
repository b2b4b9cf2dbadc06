"""For each model one run of all optimizers in turns, for time, and one of each by itself, for memory."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import lorsum.torch
from analysis.benchmarks.memory import grown_arrays, grown_tensors
from analysis.benchmarks.recording import four_digits
from analysis.benchmarks.training_cost.optimizers import AGAIN, OPTIMIZERS, Training, setup
from analysis.experiments.timing import in_turns, threads

__all__ = ["MODELS", "both_clocks", "configurations", "factors", "peaks", "run", "state_nbytes", "step_seconds"]

MODELS: dict[str, dict[str, Any]] = {
    "lenet5": {"batch": 64, "rounds": 300},
    "minilm": {"data": "mnli-23k", "batch": 16, "length": 48, "rounds": 15},
}
WARM_ROUNDS = 3  # that do not count: kernels are compiled, states made
WARM_STEPS = 4  # before memory is measured: after steps 1, 2 and 4 gradients are compared with autograd's


def configurations(models: Sequence[str] | None = None) -> list[dict]:
    """The configurations of some models; default: of all."""
    chosen = {name: MODELS[name] for name in models or MODELS}
    timed, weighed = list(OPTIMIZERS), [name for name in OPTIMIZERS if name != AGAIN]
    return [
        {"study": "training-cost", "task": task, "model": name, "seed": 0, "optimizers": optimizers, **options}
        for name, options in chosen.items()
        for task, optimizers in (("time", timed), ("memory", weighed))
    ]


def run(config: dict) -> dict:
    """Measure one configuration, in one thread.

    Returns
    -------
    dict
        ``parameters``, ``trained`` and ``lora``: numbers of the model, of what is trained, and of its adapters; and by
        the task, name → value:

        - ``seconds``: pairs of forward and backward and of the optimizer's step, one a round; ``processor``: the same
          of processor time;
        - ``lora_state`` and ``state``: bytes that the optimizer keeps for the adapters, and for all; ``captured``, of
          the gradients that it holds beyond ``.grad``; ``tensors`` and ``arrays``, see `peaks`.
    """
    with threads(1):
        task = setup(config)
        numbers = {
            "parameters": sum(p.numel() for p in task.model.parameters()),
            "trained": sum(p.numel() for p in task.model.parameters() if p.requires_grad),
            "lora": sum(p.numel() for p in factors(task.model)),
        }
        return numbers | {"time": _run_time, "memory": _run_memory}[config["task"]](config, task)


def factors(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """A and B of all adapters."""
    return [p for adapter in lorsum.torch.adapters(model) for p in (adapter.A, adapter.B)]


def _run_time(config, task):
    trainings = {name: Training(task, OPTIMIZERS[name]) for name in config["optimizers"]}
    seconds = step_seconds(trainings, task.batches, config["rounds"])
    return {
        entry: four_digits({name: taken[..., clock] for name, taken in seconds.items()})
        for clock, entry in enumerate(("seconds", "processor"))
    }


def both_clocks() -> np.ndarray:
    """Wall time, and processor time of all threads: what else the machine does takes of the first alone."""
    return np.array([time.perf_counter(), time.process_time()])


def step_seconds(
    trainings: dict[str, Training], batches: list, rounds: int, clock: Callable = both_clocks
) -> dict[str, np.ndarray]:
    """Time steps of several trainings in turns, on the same batches.

    Returns
    -------
    dict
        Name → seconds by the round, by forward and backward or the optimizer's step, and by the clock.
    """

    def timed(training, number):
        start = clock()
        training.gradients(batches[number % len(batches)])
        between = clock()
        training.optimizer.step()
        return between - start, clock() - between

    measures = {name: partial(timed, training) for name, training in trainings.items()}
    return {name: np.array(taken) for name, taken in in_turns(measures, rounds, warm=WARM_ROUNDS).items()}


def _run_memory(config, task):
    measured = {name: _memory(Training(task, OPTIMIZERS[name]), task.batches[0]) for name in config["optimizers"]}
    entries = next(iter(measured.values()))
    return {entry: {name: values[entry] for name, values in measured.items()} for entry in entries}


def _memory(training, batch):
    for _ in range(WARM_STEPS):
        training.step(batch)
    return {
        "lora_state": state_nbytes(training.optimizer, factors(training.model)),
        "state": state_nbytes(training.optimizer, training.model.parameters()),
        "captured": _captured_nbytes(training.optimizer),
        **peaks(training, batch),
    }


def state_nbytes(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors that an optimizer keeps for some parameters; the numbers that count its steps are none."""
    kept = [x for p in parameters for x in optimizer.state.get(p, {}).values()]
    return sum(x.nbytes for x in kept if isinstance(x, torch.Tensor) and x.ndim)


def _captured_nbytes(optimizer):
    """Bytes of the gradients that an optimizer of ours holds beyond ``.grad``."""
    return sum(optimizer.gradient_nbytes().values()) if hasattr(optimizer, "gradient_nbytes") else 0


def peaks(training: Training, batch: object) -> dict[str, tuple[int, int]]:
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
    def gradients_and_overlapped_steps():
        training.gradients(batch)
        if hasattr(training.optimizer, "synchronize"):  # to stop tracemalloc while a thread allocates is unsafe
            training.optimizer.synchronize()

    training.optimizer.zero_grad()
    gradients = grown(gradients_and_overlapped_steps)
    step = grown(training.optimizer.step)
    training.optimizer.zero_grad()
    return gradients.peak, gradients.kept + step.peak
