"""Probes: inputs of zeros, of which the derivatives are S of each product, or the sum SᵀX of each adapter.

A product's result does not depend on its probe: the derivative with respect to it is defined here. A probe for S
belongs to a product: in a loop it has a part for each round. One for SᵀX belongs to an adapter, or to a stack of them:
it is beside U and goes where U goes, into loops and branches and through what selects out of a stack, so that JAX adds
up what all products give.
"""

from collections.abc import Collection, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from lorsum._arrays import computing_dtype
from lorsum.jax._matrix_views import over_stack
from lorsum.jax._pytrees import Pair
from lorsum.jax._tracing import Product, TracedProgram
from lorsum.lowrank import LowRank
from lorsum.typing import Array, DType


def probes(program: TracedProgram, summed: Collection[int]) -> list[Array | None]:
    """A probe for S of each product, or None where its adapter is among ``summed``."""
    return [None if x.adapter in summed else zeros_of_all_rounds(x, x.y) for x in program.products]


def sum_probes(program: TracedProgram, adapters: Mapping[int, LowRank], summed: Collection[int]) -> dict[int, Array]:
    """A probe for SᵀX of each of the adapters ``summed``, by its number."""
    dtypes: dict[int, list[DType]] = {number: [] for number in summed}
    for x in program.products:
        if x.adapter in summed:
            dtypes[x.adapter].append(computing_dtype(jnp, jnp.result_type(x.x.dtype, x.y.dtype)))
    return {number: jnp.zeros(adapters[number].shape, jnp.result_type(*of)) for number, of in dtypes.items()}


def zeros_of_all_rounds(product: Product, of_one: Array) -> Array:
    """Zeros of the shape and dtype that ``of_one`` has in one round, for all rounds of the loops."""
    return jnp.zeros((*(loop.length for loop in product.loops), *of_one.shape), of_one.dtype)


@jax.custom_vjp
def with_probe_for_S(y, probe):
    """The identity on y; the derivative with respect to the probe is that with respect to y."""
    return y


with_probe_for_S.defvjp(lambda y, probe: (y, None), lambda _, S: (S, S))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def with_probe_for_sum(y, x, probe, view, stack, dtype):
    """The identity on y; the derivative with respect to the probe, which has this dtype, is SᵀX."""
    return y


def _sum(view, stack, dtype, x, S):
    total = over_stack(view.dense, stack)
    return S, None, total(*(a.astype(computing_dtype(jnp, a.dtype)) for a in (S, x))).astype(dtype)


with_probe_for_sum.defvjp(lambda y, x, probe, *_: (y, x), _sum)


def collected(program: TracedProgram, derivatives: list[Array | None], Xs: list[Array | None]) -> dict[int, Pair]:
    """The pair of each adapter that has one, by its number: the rows of all its products under each other."""
    rows: dict[int, list] = {}
    for product, S, X in zip(program.products, derivatives, Xs, strict=True):
        if X is not None:
            rows.setdefault(product.adapter, []).append(_rows(product, S, X))
    return {number: _pair(of_products) for number, of_products in rows.items()}


def _rows(product, S, X):
    """S and X of all rounds as matrices of N rows, of one adapter or of a stack of them, in the order of the stack."""
    depth = len(product.loops)
    outer = [i for i, loop in enumerate(product.loops) if loop.stacked]
    inner = [i for i, loop in enumerate(product.loops) if not loop.stacked]
    stack = [*outer, *range(depth, depth + product.stack)]
    own = product.factor.taken + product.factor.axes  # which dimension of the adapters' stack each of these is
    order = [*(i for _, i in sorted(zip(own, stack, strict=True))), *inner]
    S, X = (jnp.moveaxis(a, order, range(len(order))) for a in (S, X))
    S, X = over_stack(product.view.pair, len(stack))(S, X)
    return (X, S) if product.transposed else (S, X)


def _pair(of_products):
    S, X = (jnp.concatenate(rows, axis=-2) if len(rows) > 1 else rows[0] for rows in zip(*of_products, strict=True))
    dtype = jnp.result_type(S, X)
    return Pair._of(S.mT.astype(dtype), X.mT.astype(dtype))
