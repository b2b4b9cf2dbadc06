"""Value numbers, as compilers have them: which integers of a program are surely equal.

``W.U[i]`` and ``W.V[i]`` compute their index apart from each other, and yet are factors of one adapter. So a number of
an integer tells what it is computed from; all else has a number of its own.
"""

import operator
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, primitives

_PLAIN = (bool, int, float, str, Enum, np.dtype, type, jax.lax.GatherDimensionNumbers)
_FOLDED = {"lt": operator.lt, "add": operator.add, "select_n": lambda which, *cases: cases[int(which)]}


class Constant(NamedTuple):
    """The value number of a constant."""

    value: int


class ValueNumbers:
    """A value number for each variable of a program: what is surely computed alike has the same.

    Parameters
    ----------
    program : ClosedJaxpr
    inputs : list
        Value numbers of its first inputs.
    outside : ValueNumbers, optional
        Those of the program that this one is in.
    """

    def __init__(self, program: Any, inputs: Sequence = (), outside: "ValueNumbers | None" = None):
        self.computed: dict = {} if outside is None else outside.computed
        self.known = dict(zip(program.jaxpr.invars, inputs, strict=False))
        self.known |= {v: self._of_value(x) for v, x in zip(program.jaxpr.constvars, program.consts, strict=True)}

    def __getitem__(self, variable: Any) -> Any:
        if isinstance(variable, Literal):
            return self._of_value(variable.val)
        return self.known.setdefault(variable, object())

    def add(self, eqn: Any) -> None:
        """Number the results of an equation of integers."""
        if not all(map(_is_integer, eqn.outvars)):
            return
        numbers, operands = eqn.outvars, [self[v] for v in eqn.invars]
        if eqn.primitive is primitives.jit_p:
            program = eqn.params["jaxpr"]
            inside = ValueNumbers(program, operands, self)
            for inner in program.jaxpr.eqns:
                inside.add(inner)
            numbers = [inside[v] for v in program.jaxpr.outvars]
        elif eqn.primitive.name == "select_n" and isinstance(operands[0], Constant):
            numbers = [operands[1 + int(operands[0].value)]]
        elif eqn.primitive.name in _FOLDED and all(isinstance(x, Constant) for x in operands):
            numbers = [Constant(_FOLDED[eqn.primitive.name](*(x.value for x in operands)))]
        elif all(isinstance(x, _PLAIN) for x in jax.tree.leaves(list(eqn.params.values()))):
            key = (eqn.primitive, str(eqn.params), *operands)
            numbers = [self.computed.setdefault((key, i), object()) for i in range(len(eqn.outvars))]
        else:
            return
        self.known |= zip(eqn.outvars, numbers, strict=True)

    def _of_value(self, value):
        if isinstance(value, jax.core.Tracer) or not _is_integer(value):
            return object()
        value = np.asarray(value)
        if value.ndim == 0:
            return Constant(value.item())
        return self.computed.setdefault((value.dtype, value.shape, value.tobytes()), object())


def _is_integer(x):
    """True for a variable or a value of integers, or of truth values."""
    dtype = getattr(getattr(x, "aval", x), "dtype", np.result_type(x) if isinstance(x, (bool, int)) else None)
    return dtype is not None and (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))
