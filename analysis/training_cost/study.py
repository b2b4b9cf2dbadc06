"""The study: for each model one run of all optimizers in turns, for time, and one of each by itself, for memory."""

import lorsum.torch
from analysis.benchmarks.timing import threads
from analysis.training_cost.measures import captured_nbytes, interleaved, peaks, state_nbytes
from analysis.training_cost.trainings import AGAIN, OPTIMIZERS, Training, setup

__all__ = ["MODELS", "configurations", "run"]

MODELS = {
    "lenet5": {"batch": 64, "rounds": 300},
    "minilm": {"data": "mnli-23k", "batch": 16, "length": 48, "rounds": 15},
}
WARM = 4  # steps before memory is measured: after steps 1, 2 and 4 gradients are compared with autograd's


def configurations(models=None):
    """The configurations of some models; default: of all."""
    chosen = {name: MODELS[name] for name in models or MODELS}
    timed, weighed = list(OPTIMIZERS), [name for name in OPTIMIZERS if name != AGAIN]
    return [
        {"study": "training-cost", "task": task, "model": name, "seed": 0, "optimizers": optimizers, **options}
        for name, options in chosen.items()
        for task, optimizers in (("time", timed), ("memory", weighed))
    ]


def run(config):
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
            "lora": sum(p.numel() for p in _factors(task.model)),
        }
        return numbers | {"time": _run_time, "memory": _run_memory}[config["task"]](config, task)


def _factors(model):
    return [p for adapter in lorsum.torch.adapters(model) for p in (adapter.A, adapter.B)]


def _run_time(config, task):
    trainings = {name: Training(task, OPTIMIZERS[name]) for name in config["optimizers"]}
    seconds = interleaved(trainings, task.batches, config["rounds"])
    return {
        entry: {name: _short(taken[..., clock]) for name, taken in seconds.items()}
        for clock, entry in enumerate(("seconds", "processor"))
    }


def _run_memory(config, task):
    measured = {name: _memory(Training(task, OPTIMIZERS[name]), task.batches[0]) for name in config["optimizers"]}
    entries = next(iter(measured.values()))
    return {entry: {name: values[entry] for name, values in measured.items()} for entry in entries}


def _memory(training, batch):
    for _ in range(WARM):
        training.step(batch)
    return {
        "lora_state": state_nbytes(training.optimizer, _factors(training.model)),
        "state": state_nbytes(training.optimizer, training.model.parameters()),
        "captured": captured_nbytes(training.optimizer),
        **peaks(training, batch),
    }


def _short(seconds):
    """Four digits are more than a clock is worth."""
    return [[float(f"{value:.4g}") for value in pair] for pair in seconds]
