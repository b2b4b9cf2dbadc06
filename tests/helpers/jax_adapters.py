"""Random adapters and gradients of JAX, in the precision that is switched on; a ``jit`` for tests; training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lorsum import LowRank
from lorsum.jax import Pair, value_and_grad

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def adapter(seed, *shape, rank=2):
    *stack, m, n = shape
    return LowRank(normal(seed, *stack, m, rank), normal(seed + 1, *stack, n, rank))


def pair_of(seed, m, n, rows=5):
    return Pair(normal(seed, m, rows), normal(seed + 1, n, rows))


def trained(loss, params, tx, steps):
    """The parameters after some compiled steps, and the losses on the way."""

    @jax.jit
    def step(params, state):
        value, gradients = value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        values.append(float(value))
    return params, values
