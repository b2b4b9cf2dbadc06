"""Probes: inputs of zeros beside the products of a program, of which the derivatives are S, or the sum SᵀX.

A product's result does not depend on its probe; :func:`attached` says what the derivative with respect to it is. The
probe of a product in a loop is one array for all rounds. Where adapters are selected out of a stack by an index, their
products share one probe for the whole stack.
"""

from collections.abc import Collection, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from lorsum._arrays import computing_dtype
from lorsum.jax._pytrees import Pair
from lorsum.jax._tracing import Product, TracedProgram
from lorsum.lowrank import LowRank
from lorsum.typing import Array, DType

__all__ = ["attached", "collected", "probes", "stack_probes", "zeros_of_all_rounds"]


def probes(program: TracedProgram, adapters: Mapping[int, LowRank], summed: Collection[int]) -> list[Array | None]:
    """A probe for each product: for SᵀX where its adapter is among ``summed``, else for S of all rounds.

    None for a product with an adapter that was selected out of a stack.
    """

    def probe(product):
        if product.selected:
            return None
        if product.adapter not in summed:
            return zeros_of_all_rounds(product, product.y)
        m, n = adapters[product.adapter].shape[-2:]
        stack = [loop.length for loop in product.loops if loop.stacked]
        size = (n, m) if product.transposed else (m, n)
        return jnp.zeros((*stack, *product.y.shape[: product.stack], *size), sum_dtype(product))

    return list(map(probe, program.products))


def stack_probes(program: TracedProgram, adapters: Mapping[int, LowRank]) -> dict[int, Array]:
    """By its number, a probe for each stack that adapters are selected out of."""
    dtypes: dict[int, list[DType]] = {}
    for product in program.products:
        if product.selected:
            dtypes.setdefault(product.adapter, []).append(sum_dtype(product))
    return {number: jnp.zeros(adapters[number].shape, jnp.result_type(*of)) for number, of in dtypes.items()}


def zeros_of_all_rounds(product: Product, of_one: Array) -> Array:
    """Zeros of the shape and dtype that ``of_one`` has in one round, for all rounds of the loops."""
    return jnp.zeros((*(loop.length for loop in product.loops), *of_one.shape), of_one.dtype)


def sum_dtype(product: Product) -> DType:
    """What SᵀX is summed up in."""
    return computing_dtype(jnp, jnp.result_type(product.x.dtype, product.y.dtype))


def attached(product: Product, y: Array, x: Array, probe: Array, summed: bool) -> tuple[Array, Array | None]:
    """The product's result with a probe for SᵀX, or with one for S, and X."""
    if summed:
        return _with_probe_for_sum(y, x, probe, product.view, product.stack), None
    return _with_probe_for_S(y, probe), x


@jax.custom_vjp
def _with_probe_for_S(y, probe):
    """The identity on y; the derivative with respect to the probe is that with respect to y."""
    return y


_with_probe_for_S.defvjp(lambda y, probe: (y, None), lambda _, S: (S, S))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _with_probe_for_sum(y, x, probe, view, stack):
    """The identity on y; the derivative with respect to the probe is SᵀX."""
    return y


def _summed(view, stack, x, S):
    total = view.dense
    for _ in range(stack):
        total = jax.vmap(total)
    return S, None, total(*(a.astype(computing_dtype(jnp, a.dtype)) for a in (S, x)))


_with_probe_for_sum.defvjp(lambda y, x, probe, view, stack: (y, x), _summed)


def collected(
    program: TracedProgram, stacks: Mapping[int, Array], derivatives: list[Array | None], Xs: list[Array | None]
) -> dict[int, Pair | Array]:
    """The gradient of each adapter, by its number, from the derivatives with respect to all probes."""
    of_products: dict[int, list] = {number: [G] for number, G in stacks.items()}
    for product, S, X in zip(program.products, derivatives, Xs, strict=True):
        if not product.selected:
            G = _matrix(product, S) if X is None else _rows(product, S, X)
            of_products.setdefault(product.adapter, []).append(G)
    return {number: _together(parts) for number, parts in of_products.items()}


def _matrix(product, G):
    """SᵀX in the order of the adapters' stack, that of a product with Wᵀ transposed."""
    (G,) = _in_place(product, G)
    return G.mT if product.transposed else G


def _rows(product, S, X):
    """S and X of all rounds as matrices of N rows, of one adapter or of a stack of them."""
    depth, stack = len(product.loops), product.stack
    outer = [i for i, loop in enumerate(product.loops) if loop.stacked]
    inner = [i for i, loop in enumerate(product.loops) if not loop.stacked]
    order = [*outer, *range(depth, depth + stack), *inner]
    S, X = (jnp.moveaxis(a, order, range(len(order))) for a in (S, X))
    S, X = _in_place(product, *product.view.pair(S, X, len(outer) + stack))
    return (X, S) if product.transposed else (S, X)


def _in_place(product, *arrays):
    """Arrays of a stack with its dimensions in the adapters' own order."""
    order = product.order
    if order == tuple(sorted(order)):
        return arrays
    return tuple(jnp.moveaxis(a, range(len(order)), order) for a in arrays)


def _together(parts):
    """One gradient out of those of several products: rows under each other, sums added up."""
    if not isinstance(parts[0], tuple):
        return sum(parts[1:], parts[0])
    S, X = (jnp.concatenate(rows, axis=-2) if len(rows) > 1 else rows[0] for rows in zip(*parts, strict=True))
    dtype = jnp.result_type(S, X)
    return Pair._of(S.mT.astype(dtype), X.mT.astype(dtype))
