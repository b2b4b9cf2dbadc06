"""The runs of LeNet5 in JAX: adapters of `lorsum.jax`, trained by Optax, comparable with PyTorch step by step."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from os import PathLike
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lorsum.jax
from analysis.experiments.methods import Config, method_of, rule_of
from analysis.experiments.output import replacing
from analysis.experiments.records import record_path
from analysis.studies.lenet5 import network
from analysis.studies.lenet5.network_in_jax import LeNet5, converted

__all__ = ["COMPILER", "Trained", "Training", "compiled", "data", "run", "training_of"]

Trained = tuple[LeNet5, Any]  # parameters, None where something is frozen, and the optimizer's state
_TESTED_AT_ONCE = 500
# One thread, as all studies run: the number of cores would change rounding
COMPILER = {"xla_cpu_multi_thread_eigen": False}


@dataclass(frozen=True, eq=False)  # by identity, as jit keeps it
class Training:
    """How a configuration trains: the step of an optimizer, and the weights that it leaves as they are.

    Attributes
    ----------
    frozen : LeNet5
        What is not trained, None where something is.
    transformation : optax.GradientTransformation
    pairs : bool
        Whether it takes the gradients of adapters as low-rank pairs.
    """

    frozen: LeNet5
    transformation: optax.GradientTransformation
    pairs: bool

    def step(self, trained: Trained, images: jax.Array, labels: jax.Array) -> tuple[Trained, jax.Array]:
        """Parameters and optimizer's state after a step on a batch, and the loss before it."""
        params, state = trained
        value_and_grad = lorsum.jax.value_and_grad if self.pairs else jax.value_and_grad
        value, gradients = value_and_grad(self.loss)(params, images, labels)
        updates, state = self.transformation.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    def loss(self, params: LeNet5, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean cross entropy."""
        scores = eqx.combine(params, self.frozen)(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    def epoch(
        self, trained: Trained, images: jax.Array, labels: jax.Array, order: jax.Array, batch: int
    ) -> tuple[Trained, jax.Array]:
        """The same after steps on all images, the last batch being what is left over; and the mean loss."""
        whole = len(order) - len(order) % batch

        def step(trained, chosen):
            return self.step(trained, images[chosen], labels[chosen])

        trained, losses = jax.lax.scan(step, trained, order[:whole].reshape(-1, batch))
        total = batch * losses.sum()
        if whole < len(order):
            trained, value = step(trained, order[whole:])
            total += (len(order) - whole) * value
        return trained, total / len(order)

    def right(self, trained: Trained, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Number of images whose digit has the largest score."""
        model, size = eqx.combine(trained[0], self.frozen), math.gcd(len(labels), _TESTED_AT_ONCE)
        digits = jax.lax.map(lambda x: model(x).argmax(axis=1), images.reshape(-1, size, *images.shape[1:]))
        return (digits.ravel() == labels).sum()


def run(config: Config, *, checkpoints: str | PathLike | None = None) -> dict:
    """Train on one configuration; as `analysis.studies.lenet5.in_torch.run`, whose results these have.

    ``seconds`` are without compilation, which comes before the first epoch.
    """
    *learned, test_images, test_labels = data()
    training, trained = training_of(config)
    path = None if checkpoints is None else record_path(checkpoints, config).with_suffix(".npz")
    trained, results = _resumed(path, trained)
    epoch = compiled(training, trained, learned, config["batch"])
    right = jax.jit(training.right, compiler_options=COMPILER)
    for number in range(len(results["loss"]), config["epochs"]):
        order = np.random.default_rng([config["seed"], number]).permutation(len(learned[0]))
        start = time.perf_counter()
        trained, loss = jax.block_until_ready(epoch(trained, *learned, jnp.asarray(order, jnp.int32)))
        results["seconds"].append(time.perf_counter() - start)
        results["loss"].append(float(loss))
        results["accuracy"].append(int(right(trained, test_images, test_labels)) / len(test_labels))
        _save(path, trained, results)
    return results


def training_of(config: Config) -> tuple[Training, Trained]:
    """How a configuration trains, and the parameters and the optimizer's state before the first step.

    Returns
    -------
    training : Training
    trained : tuple
        Parameters and state.
    """
    params, frozen = lorsum.jax.partition(converted(network.network_of(config)), others=True)
    transformation = _transformation(config, params)
    training = Training(frozen, transformation, pairs=not method_of(config).plain)
    return training, (params, transformation.init(params))


def _transformation(config, params):
    """Of all that is trained: as in PyTorch, convolutions and biases have the options of the adapters' rule."""
    options = {name: config[name] for name in ("momentum", "weight_decay") if name in config}
    beside = {"sgd": optax.sgd, "adamw": optax.adamw}[method_of(config).beside](config["lr"], **options)
    if method_of(config).plain:
        return beside
    adapters = lorsum.jax.transformation(rule_of(config), rng=config["seed"])
    return optax.multi_transform({"adapters": adapters, "others": beside}, lorsum.jax.labels(params))


def compiled(training: Training, trained: Trained, learned: Sequence[jax.Array], batch: int) -> Callable:
    """An epoch of the training, compiled; parameters and state are written in place."""
    epoch = jax.jit(partial(training.epoch, batch=batch), donate_argnums=0, compiler_options=COMPILER)
    order = jax.ShapeDtypeStruct((len(learned[0]),), jnp.int32)
    return epoch.lower(trained, *learned, order).compile()


def _resumed(path, trained):
    """Parameters and state, and the results, as they were when a checkpoint was saved."""
    if path is None or not path.exists():
        return trained, {"loss": [], "accuracy": [], "seconds": []}
    leaves, structure = jax.tree.flatten(trained)
    with np.load(path) as saved:
        leaves = [jnp.array(saved[f"leaf {number}"]) for number in range(len(leaves))]
        return jax.tree.unflatten(structure, leaves), json.loads(str(saved["results"]))


def _save(path, trained, results):
    if path is not None:
        leaves: dict[str, Any] = {
            f"leaf {number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(trained))
        }
        with replacing(path) as file:
            np.savez(file, results=json.dumps(results), **leaves)


@cache
def data() -> tuple[jax.Array, ...]:
    """Training and test images and labels of PyTorch's study, as arrays."""
    return tuple(jnp.asarray(part.numpy()) for part in network.data())
