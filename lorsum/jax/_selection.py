"""Operations that take adapters out of a stack, by an index or otherwise, and what they are for arrays of another size.

They act on the leading dimensions alone. The gradient of the stack goes through them from an array of the size of the
matrices, to which each is applied as it is to the factors.
"""

import operator
from enum import Enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, primitives

__all__ = ["Names", "selected", "selection"]

_PLAIN = (bool, int, float, str, Enum, np.dtype, type, jax.lax.GatherDimensionNumbers)
_FOLDED = {"lt": operator.lt, "add": operator.add, "select_n": lambda which, *cases: cases[int(which)]}


class Names:
    """A name for each variable of a program: what is surely computed alike has the same.

    ``W.U[i]`` and ``W.V[i]`` compute their index apart from each other. Names of integers tell what they are computed
    from; all else has a name of its own.

    Parameters
    ----------
    program : ClosedJaxpr
    inputs : list
        Names of its first inputs.
    outside : Names, optional
        Those of the program that this one is in.
    """

    def __init__(self, program, inputs=(), outside=None):
        self.computed = {} if outside is None else outside.computed
        self.known = dict(zip(program.jaxpr.invars, inputs, strict=False))
        self.known |= {v: self._of_value(x) for v, x in zip(program.jaxpr.constvars, program.consts, strict=True)}

    def __getitem__(self, variable):
        if isinstance(variable, Literal):
            return self._of_value(variable.val)
        return self.known.setdefault(variable, object())

    def add(self, eqn):
        """Names for the results of an equation of integers."""
        if not all(map(_is_integer, eqn.outvars)):
            return
        names, operands = eqn.outvars, [self[v] for v in eqn.invars]
        if eqn.primitive is primitives.jit_p:
            program = eqn.params["jaxpr"]
            inside = Names(program, operands, self)
            for inner in program.jaxpr.eqns:
                inside.add(inner)
            names = [inside[v] for v in program.jaxpr.outvars]
        elif eqn.primitive.name == "select_n" and isinstance(operands[0], Number):
            names = [operands[1 + int(operands[0].value)]]
        elif eqn.primitive.name in _FOLDED and all(isinstance(x, Number) for x in operands):
            names = [Number(_FOLDED[eqn.primitive.name](*(x.value for x in operands)))]
        elif all(isinstance(x, _PLAIN) for x in jax.tree.leaves(list(eqn.params.values()))):
            key = (eqn.primitive, str(eqn.params), *operands)
            names = [self.computed.setdefault((key, i), object()) for i in range(len(eqn.outvars))]
        else:
            return
        self.known |= zip(eqn.outvars, names, strict=True)

    def _of_value(self, value):
        if isinstance(value, jax.core.Tracer) or not _is_integer(value):
            return object()
        value = np.asarray(value)
        if value.ndim == 0:
            return Number(value.item())
        return self.computed.setdefault((value.dtype, value.shape, value.tobytes()), object())


class Number(NamedTuple):
    """The name of a constant."""

    value: int


def selection(eqn, names):
    """What an operation does to the stack of its first operand, and the number of dimensions it leaves; None if more.

    Two that are equal do the same.
    """
    p, shape, result = eqn.params, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    stack, left = len(shape) - 2, len(result) - 2
    if stack < 0 or left < 0 or result[-2:] != shape[-2:]:
        return None
    indices: tuple = tuple(names[v] for v in eqn.invars[1:])
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


def selected(eqn, x, indices):
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


def _is_integer(x):
    """True for a variable or a value of integers, or of truth values."""
    dtype = getattr(getattr(x, "aval", x), "dtype", np.result_type(x) if isinstance(x, (bool, int)) else None)
    return dtype is not None and (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))
