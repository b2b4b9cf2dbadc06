"""How long a training step of LeNet5 takes in PyTorch and in JAX: ``python -m analysis.step_time``.

A step is forward, backward and update on a batch of 64, in the loops of `analysis.lenet5` and `analysis.lenet5_jax`.
The two take turns. What is taken is the processor's time, on one thread: the wall time of a machine that does nothing
else, and nearly the same on one that does.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from analysis import lenet5, lenet5_jax
from analysis.benchmarks.timing import interleaved, median
from analysis.methods import label
from analysis.records import run_study

__all__ = ["configurations", "main", "page", "run"]

BATCHES = 10


def configurations():
    """One for each method of the study."""
    task = {"study": "step time", "batch": lenet5.BATCH, "rank": lenet5.RANK, "init": lenet5.INIT, "seed": 0}
    return [{**task, **method} for method in lenet5.METHODS]


def run(config, *, rounds=13):
    """Time one method.

    Returns
    -------
    dict
        ``torch`` and ``jax``: seconds a step, one number a round; ``compilation``: JAX's, seconds, of an epoch.
    """
    rng, count = np.random.default_rng(config["seed"]), BATCHES * config["batch"]
    images = torch.from_numpy(rng.standard_normal((count, 1, lenet5.SIDE, lenet5.SIDE), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(10, size=count))
    in_jax, compilation = _in_jax(config, *(jnp.asarray(x.numpy()) for x in (images, labels)))
    calls = {"torch": _in_torch(config, images, labels), "jax": in_jax}
    seconds, _ = interleaved(calls, rounds=rounds, budget=60, clock=time.process_time)
    return {name: np.divide(values, BATCHES) for name, values in seconds.items()} | {"compilation": compilation}


def _in_torch(config, images, labels):
    model = lenet5.network(config["seed"], init=None if config["method"].startswith("full") else config["init"])
    optimizer = lenet5.optimizer_of(config, model)
    return partial(lenet5.train, model, optimizer, images, labels, torch.arange(len(images)))


def _in_jax(config, images, labels):
    """An epoch, and the time that it took to compile."""
    training, trained = lenet5_jax.training_of(config)
    start = time.process_time()
    epoch = lenet5_jax.compiled(training, trained, (images, labels), config["batch"])
    compilation, order = time.process_time() - start, jnp.arange(len(images), dtype=jnp.int32)

    def again():
        nonlocal trained
        trained, loss = jax.block_until_ready(epoch(trained, images, labels, order))
        return float(loss)

    return again, compilation


def page(records):
    """The table as Markdown."""
    env = records[-1]["environment"]
    versions = ", ".join(f"{name} {env['versions'][name]}" for name in ("torch", "jax", "numpy", "numba"))
    lines = ["| method | PyTorch, ms | JAX, ms | JAX / PyTorch | JAX compiles in, s |", "| --- " * 5 + "|"]
    for record in records:
        results = record["results"]
        ours, theirs = (1e3 * median(results[name]) for name in ("jax", "torch"))
        row = (label(record["config"]), f"{theirs:.1f}", f"{ours:.1f}", f"{ours / theirs:.2f}")
        lines.append(f"| {' | '.join(row)} | {results['compilation']:.1f} |")
    text = " ".join(__doc__.partition("\n\n")[2].split())
    return (
        f"# Step time of LeNet5 in PyTorch and JAX\n\nWritten by `python -m analysis.step_time`: {env['cpu']}, "
        f"{env['time'][:10]}; {versions}; batches of {records[0]['config']['batch']}, adapters of rank "
        f"{records[0]['config']['rank']}.\n\n{text} Medians of {len(records[0]['results']['jax'])} rounds of "
        f"{BATCHES} steps. JAX compiles a run's epoch once, before its first step, which no step's time has in it.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def main(folder="records/step_time", *, output="docs/step-time.md"):
    """Time what has no record yet, print the table and write it down."""
    text = page(run_study(run, configurations(), folder, workers=1))  # one process, since the two take turns
    print(text)
    from paper_figures.files import write  # which writes whole files, and is above the studies otherwise

    write(Path(output), text.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("records/step_time"), help="where the records go")
    parser.add_argument("--output", type=Path, default=Path("docs/step-time.md"), help="a Markdown file to write")
    main(**vars(parser.parse_args()))
