"""How long a training step of LeNet5 takes in PyTorch and in JAX.

A step is forward, backward and update on a batch of 64, in the loops of `analysis.studies.lenet5`. The two take turns.
What is taken is the processor's time, on one thread: the wall time of a machine that does nothing else, and nearly the
same on one that does.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from analysis.benchmarks.recording import provenance, recorded, write_page
from analysis.experiments.command_line import parser
from analysis.experiments.methods import label
from analysis.experiments.tables import markdown
from analysis.experiments.timing import interleaved, median
from analysis.studies.lenet5 import in_jax, in_torch
from analysis.studies.lenet5.network import SIDE, network_of
from analysis.studies.lenet5.study import METHODS

__all__ = ["command", "configurations", "page", "run"]

BATCHES = 10


def configurations() -> list[dict]:
    """One for each method of the study."""
    task = {"study": "step time", "batch": 64, "rank": 8, "init": "normal", "seed": 0}
    return [{**task, **method} for method in METHODS]


def run(config: dict, *, rounds: int = 13) -> dict:
    """Time one method.

    Returns
    -------
    dict
        ``torch`` and ``jax``: seconds a step, one number a round; ``compilation``: JAX's, seconds, of an epoch.
    """
    rng, count = np.random.default_rng(config["seed"]), BATCHES * config["batch"]
    images = torch.from_numpy(rng.standard_normal((count, 1, SIDE, SIDE), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(10, size=count))
    epoch_in_jax, compilation = _epoch_in_jax(config, *(jnp.asarray(x.numpy()) for x in (images, labels)))
    calls = {"torch": _epoch_in_torch(config, images, labels), "jax": epoch_in_jax}
    seconds, _ = interleaved(calls, rounds=rounds, budget=60, clock=time.process_time)
    return {name: np.divide(values, BATCHES) for name, values in seconds.items()} | {"compilation": compilation}


def _epoch_in_torch(config, images, labels):
    model = network_of(config)
    optimizer = in_torch.optimizer_of(config, model)
    return partial(in_torch.train, model, optimizer, images, labels, torch.arange(len(images)), batch=config["batch"])


def _epoch_in_jax(config, images, labels):
    """An epoch, and the time that it took to compile."""
    training, trained = in_jax.training_of(config)
    start = time.process_time()
    epoch = in_jax.compiled(training, trained, (images, labels), config["batch"])
    compilation, order = time.process_time() - start, jnp.arange(len(images), dtype=jnp.int32)

    def again():
        nonlocal trained
        trained, loss = jax.block_until_ready(epoch(trained, images, labels, order))
        return float(loss)

    return again, compilation


def page(records: list[dict]) -> str:
    """The page as Markdown."""
    config, text = records[0]["config"], " ".join(__doc__.partition("\n\n")[2].split())
    table = markdown(
        ["method", "PyTorch, ms", "JAX, ms", "JAX / PyTorch", "JAX compiles in, s"],
        [_row(record["config"], **record["results"]) for record in records],
    )
    return (
        "# Step time of LeNet5 in PyTorch and JAX\n\n"
        f"{provenance('python -m analysis step-time', records[-1]['environment'])} Batches of {config['batch']}, "
        f"adapters of rank {config['rank']}.\n\n{text} Medians of {len(records[0]['results']['jax'])} rounds of "
        f"{BATCHES} steps. JAX compiles a run's epoch once, before its first step, which no step's time has in it.\n\n"
        f"{table}"
    )


def _row(config, torch, jax, compilation):
    theirs, ours = (1e3 * median(seconds) for seconds in (torch, jax))
    return label(config), f"{theirs:.1f}", f"{ours:.1f}", f"{ours / theirs:.2f}", f"{compilation:.1f}"


def command(arguments: Sequence[str] | None = None) -> None:
    """Time what has no record yet, print the page, and write it where ``--output`` says."""
    made = parser("analysis step-time", __doc__, folder=Path("records/step-time"), output=None, again=False)
    options = made.parse_args(arguments)
    records = recorded(run, configurations(), options.folder, again=options.again)
    print(page(records))
    if options.output is not None:
        write_page(options.output, "step-time", page(records), records)


if __name__ == "__main__":
    command()
