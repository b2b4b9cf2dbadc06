"""Random adapters and gradients of JAX, in the precision that is switched on, and a ``jit`` for tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lorsum import LowRank
from lorsum.jax import Pair

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def adapter(seed, *shape, rank=2):
    *stack, m, n = shape
    return LowRank(normal(seed, *stack, m, rank), normal(seed + 1, *stack, n, rank))


def pair_of(seed, m, n, rows=5):
    return Pair(normal(seed, m, rows), normal(seed + 1, n, rows))
