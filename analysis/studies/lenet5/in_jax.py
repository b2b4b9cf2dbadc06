"""The same study in JAX: LeNet5 with adapters of `lorsum.jax`, trained by Optax; ``analysis.lenet5 --framework jax``.

Images and first weights are those of `analysis.lenet5`, so that the two can be compared step by step.
"""

import io
import json
import math
import os
import time
from dataclasses import dataclass
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lorsum.jax
from analysis import lenet5
from analysis.methods import rule_of
from analysis.records import record_path

__all__ = ["LeNet5", "Training", "compiled", "converted", "data", "network", "run", "training_of"]

# LoRA as it is usually trained, and full training: Optax's own rules, on arrays
_PLAIN = {"lora sgd": optax.sgd, "lora adamw": optax.adamw, "full": optax.sgd, "full adamw": optax.adamw}
_OTHERS = {"preconditioned adamw": optax.adamw}
_TESTED_AT_ONCE = 500
# One thread, as all studies run: the number of cores would change rounding
COMPILER = {"xla_cpu_multi_thread_eigen": False}


class Convolution(eqx.Module):
    """A convolution as a product with the patches of the images, the axes being channels, images, height, width.

    XLA's own convolution runs three times slower than this inside of a loop over the batches.
    """

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        """Images without the border that the kernel does not reach across."""
        out, _, *kernel = self.weight.shape
        channels, count, height, width = x.shape
        height, width = height - kernel[0] + 1, width - kernel[1] + 1
        shifted = [x[:, :, i : i + height, j : j + width] for i in range(kernel[0]) for j in range(kernel[1])]
        patches = jnp.stack(shifted, axis=1).reshape(channels * len(shifted), -1)
        y = self.weight.reshape(out, -1) @ patches + self.bias[:, None]
        return y.reshape(out, count, height, width)


class LeNet5(eqx.Module):
    """The network; tanh after the pooling, as in PyTorch's."""

    convolutions: list
    layers: list

    def __call__(self, images):
        """Scores of the digits, shape (images, 10), for images of shape (images, 1, 32, 32)."""
        x = images.swapaxes(0, 1)
        for convolution in self.convolutions:
            x = jnp.tanh(_pooled(convolution(x)))
        x = x.swapaxes(0, 1).reshape(len(images), -1)
        for layer in self.layers[:-1]:
            x = jnp.tanh(jax.vmap(layer)(x))
        return jax.vmap(self.layers[-1])(x)


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

    def step(self, trained, images, labels):
        """Parameters and optimizer's state after a step on a batch, and the loss before it."""
        params, state = trained
        value_and_grad = lorsum.jax.value_and_grad if self.pairs else jax.value_and_grad
        value, gradients = value_and_grad(self.loss)(params, images, labels)
        updates, state = self.transformation.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    def loss(self, params, images, labels):
        """Mean cross entropy."""
        scores = eqx.combine(params, self.frozen)(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    def epoch(self, trained, images, labels, order, batch):
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

    def right(self, trained, images, labels):
        """Number of images whose digit has the largest score."""
        model, size = eqx.combine(trained[0], self.frozen), math.gcd(len(labels), _TESTED_AT_ONCE)
        digits = jax.lax.map(lambda x: model(x).argmax(axis=1), images.reshape(-1, size, *images.shape[1:]))
        return (digits.ravel() == labels).sum()


def run(config, *, checkpoints=None):
    """Train on one configuration; as `analysis.lenet5.run`, whose results these have.

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
        _keep(path, trained, results)
    return results


def training_of(config):
    """How a configuration trains, and the parameters and the optimizer's state before the first step.

    Returns
    -------
    training : Training
    trained : tuple
        Parameters and state.
    """
    model = network(config["seed"], init=None if config["method"].startswith("full") else config["init"])
    params, frozen = lorsum.jax.partition(model, others=True)
    transformation = _transformation(config, params)
    training = Training(frozen, transformation, pairs=config["method"] not in _PLAIN)
    return training, (params, transformation.init(params))


def network(seed, *, init=lenet5.INIT):
    """LeNet5 with the first weights of `analysis.lenet5.network`, of the same arguments."""
    return converted(lenet5.network(seed, init=init))


def converted(model):
    """The network of `analysis.lenet5` as one of Equinox with the same weights."""
    convolutions, layers = [], []
    for part in model:
        if hasattr(part, "kernel_size") and hasattr(part, "weight"):
            convolutions.append(Convolution(_array(part.weight), _array(part.bias)))
        elif hasattr(part, "in_features"):
            layers.append(_linear(part))
    return LeNet5(convolutions, layers)


def _linear(layer):
    key = jax.random.key(0)  # that Equinox asks for; what is drawn of it is replaced
    base = getattr(layer, "base", layer)
    made = eqx.nn.Linear(layer.in_features, layer.out_features, key=key)
    made = eqx.tree_at(lambda x: (x.weight, x.bias), made, (_array(base.weight), _array(base.bias)))
    if base is layer:
        return made
    A, B = _array(layer.lora_A.weight), _array(layer.lora_B.weight)
    made = lorsum.jax.LoRALinear(made, len(A), key=key)
    return eqx.tree_at(lambda x: (x.W.U, x.W.V), made, (B, A.T))


def _array(p):
    return jnp.array(p.detach().numpy())


def _pooled(x):
    """The largest of each 2 × 2 pixels."""
    x = jnp.maximum(x[..., ::2, :], x[..., 1::2, :])
    return jnp.maximum(x[..., ::2], x[..., 1::2])


def _transformation(config, params):
    """Of all that is trained: as in PyTorch, convolutions and biases have the options of the adapters' rule."""
    method, lr = config["method"], config["lr"]
    options = {name: config[name] for name in ("momentum", "weight_decay") if name in config}
    if method in _PLAIN:
        return _PLAIN[method](lr, **options)
    adapters = lorsum.jax.transformation(rule_of(config), rng=config["seed"])
    others = _OTHERS.get(method, optax.sgd)(lr, **options)
    return optax.multi_transform({"adapters": adapters, "others": others}, lorsum.jax.labels(params))


def compiled(training, trained, learned, batch):
    """An epoch of the training, compiled; parameters and state are written in place."""
    epoch = jax.jit(partial(training.epoch, batch=batch), donate_argnums=0, compiler_options=COMPILER)
    order = jax.ShapeDtypeStruct((len(learned[0]),), jnp.int32)
    return epoch.lower(trained, *learned, order).compile()


def _resumed(path, trained):
    """Parameters and state, and the results, as they were when a checkpoint was kept."""
    if path is None or not path.exists():
        return trained, {"loss": [], "accuracy": [], "seconds": []}
    structure = jax.tree.structure(trained)
    with np.load(path) as kept:
        leaves = [jnp.array(kept[f"leaf {number}"]) for number in range(structure.num_leaves)]
        return jax.tree.unflatten(structure, leaves), json.loads(str(kept["results"]))


def _keep(path, trained, results):
    """Write a checkpoint, whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = {f"leaf {number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(trained))}
    written = io.BytesIO()
    np.savez(written, results=json.dumps(results), **leaves)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(written.getvalue())
    os.replace(temporary, path)


@cache
def data():
    """Training and test images and labels of `analysis.lenet5`, as arrays."""
    return tuple(jnp.asarray(part.numpy()) for part in lenet5.data())
