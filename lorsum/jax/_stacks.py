"""Operations that act on the stack of a factor alone, such as an index, and what they are for arrays of another size.

They change the leading dimensions, and leave the matrices as they are. The gradient of the stack goes through them from
an array of the size of the products W = U Vᵀ, to which each is applied as it is to the factors.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lorsum.jax._value_numbers import ValueNumbers
from lorsum.typing import Array


def rearrangement(eqn: Any, numbers: ValueNumbers) -> tuple[tuple, int] | None:
    """What an operation does to the stack of its first operand, and the number of dimensions it leaves; None if more.

    Two that are equal do the same.
    """
    p, shape, result = eqn.params, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    stack, left = len(shape) - 2, len(result) - 2
    if stack < 0 or left < 0 or result[-2:] != shape[-2:]:
        return None
    indices: tuple = tuple(numbers[v] for v in eqn.invars[1:])
    what: tuple
    match eqn.primitive.name:
        case "slice":
            what = p["start_indices"][:stack], p["limit_indices"][:stack], (p["strides"] or ())[:stack]
        case "squeeze" if max(p["dimensions"], default=0) < stack:
            what = p["dimensions"]
        case "reshape" if p["dimensions"] is None and p.get("sharding") is None:
            what = p["new_sizes"][:left]
        case "broadcast_in_dim" if p["broadcast_dimensions"][-2:] == (left, left + 1) and not indices:
            what = result[:left], p["broadcast_dimensions"][:stack]
        case "dynamic_slice":
            what = p["slice_sizes"][:stack], indices[:stack]
        case "gather" if _leaves_matrices(p["dimension_numbers"], p["slice_sizes"], shape, left):
            what = p["dimension_numbers"], p["slice_sizes"][:stack], str(p["mode"]), indices
        case _:
            return None
    return (eqn.primitive.name, what), left


def _leaves_matrices(numbers, sizes, shape, left):
    """True if a gather takes whole matrices."""
    whole = sizes[-2:] == shape[-2:] and numbers.offset_dims[-2:] == (left, left + 1)
    removed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    return whole and all(d < len(shape) - 2 for d in removed)


def rearranged(eqn: Any, x: Array, indices: list[Array]) -> Array:
    """The same of an array (..., m, n), the leading dimensions of which are those of the operand."""
    p, (m, n) = eqn.params, x.shape[-2:]
    match eqn.primitive.name:
        case "slice":
            stack = len(p["start_indices"]) - 2
            strides = None if p["strides"] is None else (*p["strides"][:stack], 1, 1)
            return jax.lax.slice(x, (*p["start_indices"][:stack], 0, 0), (*p["limit_indices"][:stack], m, n), strides)
        case "squeeze":
            return jax.lax.squeeze(x, p["dimensions"])
        case "reshape":
            return x.reshape(*p["new_sizes"][:-2], m, n)
        case "broadcast_in_dim":
            return jax.lax.broadcast_in_dim(x, (*p["shape"][:-2], m, n), p["broadcast_dimensions"])
        case "dynamic_slice":
            zero = jnp.zeros_like(indices[0])
            return jax.lax.dynamic_slice(x, (*indices[:-2], zero, zero), (*p["slice_sizes"][:-2], m, n))
        case "gather":
            options = {"mode": p["mode"], "fill_value": p["fill_value"]}
            return jax.lax.gather(x, indices[0], p["dimension_numbers"], (*p["slice_sizes"][:-2], m, n), **options)
        case "transpose":
            return jax.lax.transpose(x, p["permutation"])
        case _:
            return x
