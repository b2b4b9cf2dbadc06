"""JAX: gradients of adapters as low-rank pairs, and OPLoRA and its siblings for Optax.

Importing this makes :class:`lorsum.LowRank` and :class:`lorsum.LowRankSum` pytrees. How a gradient comes about is told
in :mod:`lorsum.jax.gradients`.

>>> import equinox as eqx, jax, optax
>>> import lorsum.jax
>>> model = eqx.nn.MLP(8, 3, width_size=6, depth=1, key=jax.random.key(0))
>>> model = lorsum.jax.add_lora(model, 2, key=jax.random.key(1))
>>> params, frozen = lorsum.jax.partition(model)
>>> tx = lorsum.jax.oplora(0.02, momentum=0.9)
>>> state = tx.init(params)
>>> def loss(params, frozen, x):
...     return (jax.vmap(eqx.combine(params, frozen))(x) ** 2).mean()
>>> @eqx.filter_jit
... def step(params, state, frozen, x):
...     value, gradients = lorsum.jax.value_and_grad(loss)(params, frozen, x)
...     updates, state = tx.update(gradients, state, params)
...     return optax.apply_updates(params, updates), state, value
>>> params, state, value = step(params, state, frozen, jax.numpy.ones((4, 8)))
>>> model = lorsum.jax.merge(eqx.combine(params, frozen))

To train other arrays too, such as biases or a new head, say which to ``partition`` and give each kind its optimizer:

>>> params, frozen = lorsum.jax.partition(lorsum.jax.add_lora(model, 2, key=jax.random.key(1)), others=True)
>>> tx = optax.multi_transform(
...     {"adapters": lorsum.jax.oplora(0.02, momentum=0.9), "others": optax.sgd(0.02, momentum=0.9)},
...     lorsum.jax.labels(params),
... )

On a CPU the decompositions of all this are made one after another. Batched ones of ``jax.numpy.linalg`` in a program of
your own can wait for each other for ever, as many at a time as XLA has threads; that is in jaxlib.
"""

from lorsum.jax._pytrees import Pair
from lorsum.jax.gradients import grad, value_and_grad
from lorsum.jax.layers import LoRAConv2d, LoRALinear, add_lora, partition
from lorsum.jax.merging import merge, merge_into
from lorsum.jax.products import lora, lora_conv
from lorsum.jax.transformations import (
    oplora,
    preconditioned_adamw,
    preconditioned_sgd,
    projected_oplora,
    scaled_oplora,
    svdlora,
    transformation,
)
from lorsum.jax.wrappers import (
    apply_if_finite,
    clip_by_global_norm,
    global_norm,
    labels,
    multi_steps,
    set_to_zero,
)

__all__ = [
    "LoRAConv2d",
    "LoRALinear",
    "Pair",
    "add_lora",
    "apply_if_finite",
    "clip_by_global_norm",
    "global_norm",
    "grad",
    "labels",
    "lora",
    "lora_conv",
    "merge",
    "merge_into",
    "multi_steps",
    "oplora",
    "partition",
    "preconditioned_adamw",
    "preconditioned_sgd",
    "projected_oplora",
    "scaled_oplora",
    "set_to_zero",
    "svdlora",
    "transformation",
    "value_and_grad",
]
